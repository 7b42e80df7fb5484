//! A guest's standard output and error, as log lines.
//!
//! **Problem.** What a guest prints comes in pieces and belongs to an instance, perhaps to a run.
//!
//! **Mechanism.** Bytes are gathered to whole lines; each goes to the log with the agent, the instance and,
//! when only one is in flight, the run: the stream does not say which of several calls wrote to it.
//!
//! **Limits.** A line is cut at [`MAX_LINE`] bytes, so that a guest cannot make the host keep more. Of the lines of an instance, so many are
//! logged in a second as the configuration says; the rest is counted, and the first line of a later second, or the instance's end, tells how many.
//!
//! **Cost.** One log record and a look at the clock per line.

use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWrite;
use tokio::time::Instant;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::id::InstanceKey;
use crate::wasm::session::Session;

/// Where a line is cut.
const MAX_LINE: usize = 8 * 1024;

/// How much a guest may hand over at once.
const MAX_WRITE: usize = 64 * 1024;

/// What an instance has logged in the second that began with its first line.
#[derive(Default)]
pub(super) struct Lines {
    since: Option<Instant>,
    logged: u32,
    /// Lines that were too many.
    dropped: u64,
    limit: u32,
}

impl Lines {
    /// Whether a line may be logged now. The first of a second comes with the count of those that were before it.
    fn take(&mut self, now: Instant, limit: u32) -> (bool, Option<Self>) {
        let over = |since: Instant| now.duration_since(since) >= Duration::from_secs(1);
        let before = self
            .since
            .is_none_or(over)
            .then(|| std::mem::replace(self, Self { since: Some(now), limit, ..Self::default() }));
        let fits = self.logged < limit;
        match fits {
            true => self.logged += 1,
            false => self.dropped += 1,
        }
        (fits, before)
    }

    /// Says how many lines were dropped, if any were.
    pub(super) fn tell(&self, key: &InstanceKey) {
        let Self { dropped: dropped @ 1.., limit, .. } = self else { return };
        tracing::warn!(
            target: "bureau::guest",
            agent = %key.agent(), instance = key.name(), dropped, limit,
            "lines were dropped: an instance logs no more than {limit} in a second, and there were {dropped} beyond that"
        );
    }
}

/// One of a guest's two output streams.
#[derive(Clone)]
pub(super) struct GuestLog(Arc<Inner>);

struct Inner {
    session: Arc<Session>,
    stream: &'static str,
    line: Mutex<Vec<u8>>,
}

impl GuestLog {
    pub(super) fn new(session: Arc<Session>, stream: &'static str) -> Self {
        Self(Arc::new(Inner { session, stream, line: Mutex::default() }))
    }

    fn take(&self, bytes: &[u8]) {
        // A line is whole or not; a panic in between leaves neither torn.
        let mut line = self.0.line.lock().unwrap_or_else(PoisonError::into_inner);
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let text = piece.strip_suffix(b"\n").unwrap_or(piece);
            let room = MAX_LINE - line.len();
            line.extend_from_slice(&text[..text.len().min(room)]);
            if text.len() < piece.len() {
                self.log(&line);
                line.clear();
            }
        }
    }

    fn log(&self, line: &[u8]) {
        let ledger = self.0.session.ledger();
        let key = ledger.key();
        let (fits, before) = ledger.lines().take(Instant::now(), self.0.session.limits().log_lines);
        before.inspect(|before| before.tell(key));
        if !fits {
            ledger.feed().counts.dropped_lines.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let run = self.0.session.only_run().map(tracing::field::display);
        tracing::info!(
            target: "bureau::guest",
            agent = %key.agent(), instance = key.name(), run, stream = self.0.stream,
            "{}", String::from_utf8_lossy(line).trim_end_matches('\r')
        );
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let line = std::mem::take(self.line.get_mut().unwrap_or_else(PoisonError::into_inner));
        if !line.is_empty() {
            let key = self.session.ledger().key();
            tracing::info!(
                target: "bureau::guest",
                agent = %key.agent(), instance = key.name(), stream = self.stream,
                "{}", String::from_utf8_lossy(&line)
            );
        }
    }
}

impl IsTerminal for GuestLog {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for GuestLog {
    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(self.clone())
    }

    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }
}

impl AsyncWrite for GuestLog {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.take(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl OutputStream for GuestLog {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        self.take(&bytes);
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(MAX_WRITE)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for GuestLog {
    async fn ready(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_of_a_second_are_dropped_and_counted() {
        let (mut lines, began) = (Lines::default(), Instant::now());
        let mut take = |ms: u64| {
            let (fits, before) = lines.take(began + Duration::from_millis(ms), 2);
            (fits, before.map(|before| before.dropped))
        };
        assert_eq!(take(0), (true, Some(0)));
        assert_eq!([take(1), take(2), take(999)], [(true, None), (false, None), (false, None)]);
        assert_eq!(take(1000), (true, Some(2)), "a second begins, and says what the last one was");
        assert_eq!(take(5000), (true, Some(0)));
    }
}
