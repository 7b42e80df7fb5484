//! What is between hyper and a client's socket.
//!
//! [`Guarded`] puts a deadline on writes that do not move, and closes so that the last answer arrives: a socket that is closed
//! while its client still sends is reset, and the reset overtakes the answer that says why. So it says that nothing
//! more will come, and reads on for a bounded time, throwing away what comes. [`Opened`] waits for the first bytes, which tell the version, and then
//! gives them back.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::shutdown::Stage;

/// How long, and for how many bytes, a client that has its last answer is listened to. Twice the largest body of a request by default:
/// most clients look for an answer only when they have sent all.
const LINGER: (Duration, u32) = (Duration::from_secs(5), 4 << 20);

/// What an HTTP/2 connection starts with.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    Http1,
    Http2,
}

/// A connection with a deadline for a write that does not move, and an end that is not a reset.
pub(super) struct Guarded<T> {
    io: T,
    patience: Arc<Patience>,
    /// When the write that is stuck becomes an error, or the client is no longer listened to.
    deadline: Option<Pin<Box<Sleep>>>,
    /// How many bytes of what still comes are thrown away, once nothing more is said.
    lingering: Option<u32>,
}

/// How long clients are waited for.
pub(super) struct Patience {
    /// How long a write may be stuck.
    pub(super) stall: Duration,
    /// Nobody is listened to any longer once the host drains.
    pub(super) drain: Stage,
}

impl<T> Guarded<T> {
    pub(super) fn new(io: T, patience: Arc<Patience>) -> Self {
        Self { io, patience, deadline: None, lingering: None }
    }

    /// Lets `written` through if it is ready or its deadline is still to come.
    fn watch<R>(
        &mut self,
        written: Poll<io::Result<R>>,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            self.deadline = None;
            return written;
        }
        let stall = self.patience.stall;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(sleep(stall)));
        deadline.as_mut().poll(cx).map(|()| Err(timed_out("the client does not read")))
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
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
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
        let this = &mut *self;
        let (time, bytes) = LINGER;
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            this.deadline = None;
        }
        let left = this.lingering.get_or_insert(bytes);
        while *left > 0 && !this.patience.drain.has_begun() {
            let mut space = [0; 4096];
            let mut buf = ReadBuf::new(&mut space);
            match Pin::new(&mut this.io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() => {
                    *left = left.saturating_sub(buf.filled().len() as u32);
                }
                Poll::Ready(_) => break,
                Poll::Pending => {
                    let deadline = this.deadline.get_or_insert_with(|| Box::pin(sleep(time)));
                    return deadline.as_mut().poll(cx).map(Ok);
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// A connection whose first bytes have been looked at.
pub(super) struct Opened<T> {
    pub(super) io: T,
    /// The first bytes, and how many of them; none once they have been read on.
    opening: ([u8; PREFACE.len()], usize),
}

impl<T: AsyncRead + Unpin> Opened<T> {
    pub(super) fn new(io: T) -> Self {
        Self { io, opening: ([0; PREFACE.len()], 0) }
    }

    /// Waits for the first bytes, until they tell the version.
    pub(super) async fn open(&mut self) -> io::Result<Version> {
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

impl<T: AsyncRead + Unpin> AsyncRead for Opened<T> {
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

impl<T: AsyncWrite + Unpin> AsyncWrite for Opened<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
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
