//! A guest's standard output and error, as log lines.
//!
//! **Problem.** What a guest prints comes in pieces and belongs to an instance, perhaps to a run.
//!
//! **Mechanism.** Bytes are gathered to whole lines; each goes to the log with the agent, the instance and,
//! when only one is in flight, the run: the stream does not say which of several calls wrote to it.
//!
//! **Limits.** A line is cut at [`MAX_LINE`] bytes, so that a guest cannot make the host keep more.
//!
//! **Cost.** One log record per line.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};

use crate::wasm::session::Session;

/// Where a line is cut.
const MAX_LINE: usize = 8 * 1024;

/// How much a guest may hand over at once.
const MAX_WRITE: usize = 64 * 1024;

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
        let key = self.0.session.ledger().key();
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
