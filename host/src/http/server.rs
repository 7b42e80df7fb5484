//! The server loop: connections in, responses out, and an orderly end.
//!
//! **Problem.** A listener meets clients that send nothing, send for ever, never read, or come in thousands. None
//! of them may cost more than a bounded share, and nothing that a client or a handler does may end the process.
//!
//! **Mechanism.** One task accepts, one task per connection speaks HTTP/1.1 or HTTP/2. Over [TLS](super::tls) the version is agreed upon
//! in the handshake; without it HTTP/2 is spoken with prior knowledge, told by the first bytes. For the handshake and
//! the first bytes there is one deadline. A [wrapper of the socket](socket) puts a deadline on writes that do not move; hyper has the
//! others. What is [ambiguous](super::strict) is refused, and each request's handler is caught if it panics.
//!
//! **Limits.** All in [`HttpLimits`], and beside them what is named here of HTTP/2. At the limit of connections accepting pauses, and
//! clients wait in the kernel's queue; so do they while the process is out of file descriptors. Over that of
//! their network they are closed at once. A client of HTTP/2 that gives one stream no window, and answers pings, has that stream for as long
//! as it likes, with a page and 64 KiB.
//!
//! **Cost.** A connection is a task of some 1 KiB, its buffers, which grow with use, and no timer while its writes move; what a
//! handler needs goes when it has answered. One with TLS is in a box, so that the others are not as large.

mod socket;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::Either::{Left, Right};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::server::TlsStream;

use self::socket::{Guarded, Opened, Patience, Version};
use super::accept::Accept;
use super::connections::{Connections, Place};
use super::problem::Problem;
use super::tls::{self, Tls};
use super::{Body, Incoming, strict};
use crate::config::HttpLimits;
use crate::fault::Fault;
use crate::shutdown::{Begun, Shutdown};

/// Connections that the kernel holds while none is accepted: a reconnecting crowd must not be refused.
const BACKLOG: u32 = 4096;

/// How long accepting pauses after an error such as too many open files: an error that stays must not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Bytes that a stream of an HTTP/2 connection holds unsent: there may be hundreds of streams.
const STREAM_BUFFER: usize = 64 << 10;

/// Bytes of requests' bodies that a client of HTTP/2 may send before the host has taken them, on a stream and on a connection: it holds
/// them for each connection, whatever becomes of the requests.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 512 << 10;

/// The largest frame of HTTP/2 that is taken, which is the least that may be said: it is buffered as a whole.
const FRAME: u32 = 16 << 10;

/// What an HTTP/2 connection remembers of headers to abbreviate them by; it is the protocol's default.
const HEADER_TABLE: u32 = 4096;

/// Streams of an HTTP/2 connection that their client has reset before a handler got to see them. Each costs
/// the work of a request and none of the streams that it may have at once; past this the connection ends.
const UNSEEN_RESETS: usize = 20;

/// Streams of an HTTP/2 connection that had to be reset since its client broke the protocol, over its life.
const BROKEN_STREAMS: usize = 256;

/// How many fields a request may have where hyper keeps them on its stack.
const FIELDS_ON_STACK: usize = 100;

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
pub async fn serve<S, F>(
    listener: TcpListener,
    service: S,
    limits: &HttpLimits,
    connections: Arc<Connections>,
    tls: Option<Arc<Tls>>,
    shutdown: Shutdown,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let server = Arc::new(Server::new(limits, tls, shutdown));
    let shutdown = &server.shutdown;
    loop {
        let accepted = async {
            let room = connections.room().await;
            (listener.accept().await, room)
        };
        let (accepted, room) = tokio::select! {
            biased;
            () = shutdown.drain.begun() => return,
            accepted = accepted => accepted,
        };
        let (stream, client) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::select! {
                    () = shutdown.drain.begun() => return,
                    () = sleep(ACCEPT_PAUSE) => continue,
                }
            }
        };
        match connections.place(room, client.ip()) {
            Some(place) => {
                let connection = connection(server.clone(), stream, service.clone(), place);
                shutdown.tasks.spawn(connection);
            }
            None => tracing::debug!(%client, "a client has too many connections"),
        }
    }
}

/// What connections share: the two protocols, with their limits, and the limits that are not hyper's.
struct Server {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    tls: Option<Arc<Tls>>,
    header_count: usize,
    header_timeout: Duration,
    patience: Arc<Patience>,
    retry: Duration,
    shutdown: Shutdown,
}

impl Server {
    fn new(limits: &HttpLimits, tls: Option<Arc<Tls>>, shutdown: Shutdown) -> Self {
        let &HttpLimits { header_count, header_timeout, write_stall, retry, .. } = limits;
        let mut http1 = http1::Builder::new();
        http1
            .timer(TokioTimer::new())
            .header_read_timeout(header_timeout)
            .max_buf_size(limits.header_bytes);
        if header_count != FIELDS_ON_STACK {
            http1.max_headers(header_count);
        }
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .header_table_size(HEADER_TABLE)
            .max_frame_size(FRAME)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_concurrent_streams(limits.streams_per_connection)
            .max_pending_accept_reset_streams(UNSEEN_RESETS)
            .max_local_error_reset_streams(BROKEN_STREAMS)
            .max_send_buf_size(STREAM_BUFFER)
            .keep_alive_interval(limits.heartbeat)
            .keep_alive_timeout(limits.heartbeat);
        let patience = Arc::new(Patience { stall: write_stall, drain: shutdown.drain.clone() });
        Self { http1, http2, tls, header_count, header_timeout, patience, retry, shutdown }
    }

    /// Waits for what a client has to say first, for as long as that may take.
    async fn first<T>(&self, said: impl Future<Output = io::Result<T>>) -> Option<T> {
        let said = tokio::select! {
            biased;
            () = self.shutdown.drain.begun() => return None,
            said = timeout(self.header_timeout, said) => said,
        };
        match said {
            Ok(Ok(said)) => return Some(said),
            Ok(Err(error)) => tracing::debug!(%error, "a connection broke"),
            Err(_) => tracing::debug!("a client said nothing"),
        }
        None
    }
}

/// One connection, from its first byte on, with its place among those that there may be.
#[expect(clippy::manual_async_fn, reason = "an async function would keep its arguments twice")]
fn connection<S, F>(
    server: Arc<Server>,
    stream: TcpStream,
    service: S,
    place: Place,
) -> impl Future<Output = ()> + Send
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    async move {
        // It is given back at the end.
        let _ = &place;
        let served = match &server.tls {
            None => {
                let Some((stream, version)) = open(&server, stream).await else { return };
                speak(&server, stream, version, service).await
            }
            Some(tls) => {
                // The larger of the two.
                let served = Box::pin(async {
                    let (stream, version) = open_tls(&server, tls, stream).await?;
                    Some(speak(&server, stream, version, service).await)
                });
                let Some(served) = served.await else { return };
                served
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// The guarded socket of a connection.
fn guarded(server: &Server, stream: TcpStream) -> Guarded<TcpStream> {
    // Events are small and each of them is waited for. A socket that refuses is slower, not broken.
    let _ = stream.set_nodelay(true);
    Guarded::new(stream, server.patience.clone())
}

/// Waits for a connection's first bytes. A future of its own, as its place is then used for what follows.
async fn open(server: &Server, stream: TcpStream) -> Option<(Opened<Guarded<TcpStream>>, Version)> {
    let mut stream = Opened::new(guarded(server, stream));
    let version = server.first(stream.open()).await?;
    Some((stream, version))
}

/// Shakes hands, and waits for the first bytes then too: hyper would wait for those of HTTP/2 without end.
async fn open_tls(
    server: &Server,
    tls: &Tls,
    stream: TcpStream,
) -> Option<(Opened<TlsStream<Guarded<TcpStream>>>, Version)> {
    let said = async {
        let mut stream = Opened::new(tls.acceptor().accept(guarded(server, stream)).await?);
        stream.open().await?;
        let (_, session) = stream.io.get_ref();
        let is_http2 = session.alpn_protocol() == Some(tls::H2);
        let version = if is_http2 { Version::Http2 } else { Version::Http1 };
        Ok((stream, version))
    };
    server.first(said).await
}

/// Serves requests over a stream whose version is known. Not an async function, which would have place for the stream twice.
fn speak<'a, T, S, F>(
    server: &'a Server,
    stream: T,
    version: Version,
    service: S,
) -> impl Future<Output = hyper::Result<()>> + Send + use<'a, T, S, F>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answer = strict::check(&request, server.header_count).map(|()| {
            // In a box, which is gone when the answer is there, where hyper would keep its place for as long as the connection
            // lives.
            catch_unwind(AssertUnwindSafe(|| Box::pin(service(request))))
        });
        let retry = server.retry;
        async move {
            let answered = match answer {
                Ok(Ok(answer)) => AssertUnwindSafe(answer).catch_unwind().await,
                Ok(Err(panicked)) => Err(panicked),
                Err(problem) => Ok(refusal(problem, version, retry)),
            };
            let response = answered.unwrap_or_else(|_| {
                tracing::error!("a request's handler panicked");
                Problem::Fault(Fault::Internal).response(Accept::ANY, retry)
            });
            Ok::<_, Infallible>(response)
        }
    });
    let (io, shutdown) = (TokioIo::new(stream), &server.shutdown);
    match version {
        Version::Http1 => Left(Serving::new(server.http1.serve_connection(io, service), shutdown)),
        // The larger of the two, and without TLS the rarer.
        Version::Http2 => {
            Right(Box::pin(Serving::new(server.http2.serve_connection(io, service), shutdown)))
        }
    }
}

/// Refuses a request that others may read differently: so they may what follows it on its connection.
fn refusal(problem: Problem, version: Version, retry: Duration) -> Response<Body> {
    let mut response = problem.response(Accept::ANY, retry);
    if version == Version::Http1 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
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

#[cfg(test)]
mod tests;
