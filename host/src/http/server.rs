//! The server loop: connections in, responses out, and an orderly end.
//!
//! **Problem.** A listener meets clients that send nothing, send for ever, never read, or come in thousands. None
//! of them may cost more than a bounded share, and nothing that a client or a handler does may end the process.
//!
//! **Mechanism.** One task accepts, one task per connection speaks HTTP/1.1 or HTTP/2 with prior knowledge, told
//! apart by the first bytes, for which there is a deadline. A wrapper of the socket gives them to hyper with what follows
//! them, and puts a deadline on writes that do not move; hyper has the others. Each request's handler is caught if it panics.
//!
//! **Limits.** All in [`HttpLimits`]. At the limit of connections accepting pauses, and clients wait in the
//! kernel's queue; so do they while the process is out of file descriptors.
//!
//! **Cost.** A connection is a task of some 1 KiB, its buffers, which grow with use, and no timer while its writes move; what a
//! handler needs goes when it has answered.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::{Request, Response};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Sleep, sleep, timeout};

use super::accept::Accept;
use super::problem::Problem;
use super::{Body, Incoming};
use crate::config::HttpLimits;
use crate::fault::Fault;
use crate::shutdown::{Begun, Shutdown};

/// Connections that the kernel holds while none is accepted: a reconnecting crowd must not be refused.
const BACKLOG: u32 = 4096;

/// How long accepting pauses after an error such as too many open files: an error that stays must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bytes that a stream of an HTTP/2 connection holds unsent: there may be hundreds of streams.
const STREAM_BUFFER: usize = 64 << 10;

/// A listener on `address`; port 0 picks one.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // A host that restarts takes its port again at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Serves until the shutdown drains. The service is called when a request's head has been read, in its connection's task: what
/// takes long belongs in the future that it returns. Connections are tasks of the shutdown's tracker: they finish their requests
/// while it drains, and are dropped when it forces.
pub async fn serve<S, F>(listener: TcpListener, service: S, limits: &HttpLimits, shutdown: Shutdown)
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let server = Arc::new(Server::new(limits, shutdown));
    let shutdown = &server.shutdown;
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        let accepted = async {
            let place = room.clone().acquire_owned().await.ok();
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            biased;
            () = shutdown.drain.begun() => return,
            accepted = accepted => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = shutdown.drain.begun() => return,
                    () = sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        shutdown.tasks.spawn(connection(server.clone(), stream, service.clone(), place));
    }
}

/// What connections share: the two protocols, with their limits, and the limits that are not hyper's.
struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    header_timeout: Duration,
    write_stall: Duration,
    retry: Duration,
    shutdown: Shutdown,
}

impl Server {
    fn new(limits: &HttpLimits, shutdown: Shutdown) -> Self {
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(limits.header_timeout)
            .max_buf_size(limits.header_bytes);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(limits.streams_per_connection)
            .max_send_buf_size(STREAM_BUFFER)
            .keep_alive_interval(limits.heartbeat)
            .keep_alive_timeout(limits.heartbeat);
        let &HttpLimits { header_timeout, write_stall, retry, .. } = limits;
        Self { http1, http2, header_timeout, write_stall, retry, shutdown }
    }
}

/// One connection, from its first byte on, with its place among those that there may be.
async fn connection<S, F>(
    server: Arc<Server>,
    stream: TcpStream,
    service: S,
    _place: Option<OwnedSemaphorePermit>,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let Some((stream, version)) = open(&server, stream).await else { return };
    let (server, shutdown) = (&*server, &server.shutdown);
    let service = service_fn(move |request| {
        // In a box, which is gone when the answer is there, where hyper would keep its place for as long as the connection
        // lives.
        let answer = catch_unwind(AssertUnwindSafe(|| Box::pin(service(request))));
        let retry = server.retry;
        async move {
            let answered = match answer {
                Ok(answer) => AssertUnwindSafe(answer).catch_unwind().await,
                Err(panicked) => Err(panicked),
            };
            let response = answered.unwrap_or_else(|_| {
                tracing::error!("a request's handler panicked");
                Problem::Fault(Fault::Internal).response(Accept::ANY, retry)
            });
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(stream);
    let served = match version {
        Version::Http1 => Serving::new(server.http1.serve_connection(io, service), shutdown).await,
        // The larger of the two, and the rarer.
        Version::Http2 => {
            Box::pin(Serving::new(server.http2.serve_connection(io, service), shutdown)).await
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection broke");
    }
}

/// Waits for a connection's first bytes. A future of its own, as its place is then used for what follows.
async fn open(server: &Server, stream: TcpStream) -> Option<(Guarded<TcpStream>, Version)> {
    // Events are small and each of them is waited for. A socket that refuses is slower, not broken.
    let _ = stream.set_nodelay(true);
    let mut stream = Guarded::new(stream, server.write_stall);
    let opened = tokio::select! {
        biased;
        () = server.shutdown.drain.begun() => return None,
        opened = timeout(server.header_timeout, stream.open()) => opened,
    };
    match opened {
        Ok(Ok(version)) => return Some((stream, version)),
        Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
        Err(_) => tracing::debug!("a client said nothing"),
    }
    None
}

pin_project! {
    /// A connection that is served to its end, or to that of the host. Written by hand, because an async function
    /// would have place for the connection twice, as its argument and where it is polled.
    struct Serving<'a, C> {
        #[pin]
        connection: C,
        shutdown: &'a Shutdown,
        // What comes next: the drain, then the force, which never is the first.
        #[pin]
        stage: Begun,
        draining: bool,
    }
}

impl<'a, C> Serving<'a, C> {
    fn new(connection: C, shutdown: &'a Shutdown) -> Self {
        Self { connection, shutdown, stage: shutdown.drain.begun(), draining: false }
    }
}

impl<C: GracefulConnection> Future for Serving<'_, C> {
    type Output = Result<(), C::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if !*this.draining && this.stage.as_mut().poll(cx).is_ready() {
            *this.draining = true;
            this.stage.set(this.shutdown.force.begun());
            this.connection.as_mut().graceful_shutdown();
        }
        if *this.draining && this.stage.poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        this.connection.poll(cx)
    }
}

/// What an HTTP/2 connection with prior knowledge starts with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

/// A connection whose first bytes have been looked at, with a deadline for a write that does not move.
struct Guarded<T> {
    io: T,
    /// The first bytes, and how many of them; none once they have been read on.
    opening: ([u8; PREFACE.len()], usize),
    stall: Duration,
    /// When the write that is stuck becomes an error.
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<T: AsyncRead + Unpin> Guarded<T> {
    /// Waits for the first bytes, until they tell the version.
    async fn open(&mut self) -> io::Result<Version> {
        let (bytes, count) = &mut self.opening;
        loop {
            let new = self.io.read(&mut bytes[*count..]).await?;
            *count += new;
            if new == 0 || bytes[..*count] != PREFACE[..*count] {
                return Ok(Version::Http1);
            }
            if *count == PREFACE.len() {
                return Ok(Version::Http2);
            }
        }
    }
}

impl<T> Guarded<T> {
    fn new(io: T, stall: Duration) -> Self {
        Self { io, opening: ([0; PREFACE.len()], 0), stall, stalled: None }
    }

    /// Lets `written` through if it is ready or its deadline is still to come.
    fn watch<R>(
        &mut self,
        written: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stall = self.stall;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(stall)));
        stalled.as_mut().poll(cx).map(|()| Err(timed_out("the client does not read")))
    }
}

fn timed_out(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let (bytes, count) = &mut this.opening;
        if *count == 0 {
            return Pin::new(&mut this.io).poll_read(cx, buf);
        }
        let first = (*count).min(buf.remaining());
        buf.put_slice(&bytes[..first]);
        bytes.copy_within(first..*count, 0);
        *count -= first;
        // With what follows them, as a whole head makes one read. What else this read comes to, the next one finds too.
        if *count == 0 && buf.remaining() > 0 {
            let _ = Pin::new(&mut this.io).poll_read(cx, buf);
        }
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.watch(written, cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.watch(written, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
