//! The way of a body in chunks: from the stream that a guest writes to the response that a client reads.
//!
//! **Problem.** The bytes are not journaled, yet what a client sees must not run ahead of what is durable, a
//! slow client must slow the guest's writes and nothing else, and a body that was cut off must not look complete.
//!
//! **Mechanism.** A bounded channel. A chunk is taken from the guest when the channel has a place for it, waits
//! in the turn, and goes out with the turn's ticket. The guest's end of the stream, while the store is polled, is a
//! part of the turn too and is marked behind its chunks; a turn that is thrown away and a store that is dropped mark
//! nothing, so their bodies are truncated.
//!
//! **Limits.** [`AHEAD`] chunks of [`MAX_CHUNK`] bytes a body. **Cost.** One copy out of the guest's memory.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context as Waking, Poll, ready};

use bytes::Bytes;
use tokio::sync::mpsc;
use wasmtime::StoreContextMut;
use wasmtime::component::{Source, StreamConsumer, StreamResult};

use crate::journal::Ticket;
use crate::wasm::context::Context;
use crate::wasm::run::Run;
use crate::wasm::session::Session;

/// Chunks that may wait for a slow client; then the guest's write waits.
const AHEAD: usize = 4;

/// The most that one chunk takes.
pub(super) const MAX_CHUNK: usize = 64 * 1024;

/// Bytes of a body, and what must be durable before they leave.
pub type Chunk = (Bytes, Ticket);

/// The client's end of a chunked body.
pub struct Chunks {
    receiver: mpsc::Receiver<Chunk>,
    complete: Arc<AtomicBool>,
}

/// The end of a body, as the guest made it: without it what the channel had is a truncated body.
pub(super) struct End {
    complete: Arc<AtomicBool>,
    /// Keeps the channel from closing before the end is marked.
    _sender: mpsc::Sender<Chunk>,
}

impl End {
    /// Marks the end: all chunks have been sent.
    pub(super) fn mark(self) {
        self.complete.store(true, Ordering::Release);
    }
}

/// The body ended before the guest ended it.
#[derive(Debug, thiserror::Error)]
#[error("the agent's instance ended in the middle of the body")]
pub struct Truncated;

impl Chunks {
    /// The next chunk, or the end.
    pub async fn next(&mut self) -> Option<Result<Chunk, Truncated>> {
        match self.receiver.recv().await {
            Some(chunk) => Some(Ok(chunk)),
            None if self.complete.load(Ordering::Acquire) => None,
            None => Some(Err(Truncated)),
        }
    }
}

/// Whose body passes a pipe, and who hears of how it goes.
pub(super) trait Passage: Send + Unpin + 'static {
    /// Whether so many more bytes may pass. If not, the guest's stream ends here.
    fn passes(&mut self, _bytes: usize) -> bool {
        true
    }

    /// The client has gone.
    fn left(&mut self) {}

    /// The guest's stream has ended, by the guest or after one of the others.
    fn ended(&mut self, end: End);
}

/// The guest's end of a chunked body: a consumer of its stream.
pub(super) struct Pipe<P: Passage> {
    session: Arc<Session>,
    passage: P,
    sender: mpsc::Sender<Chunk>,
    reserving: Option<Pin<Box<dyn Future<Output = Reserved> + Send>>>,
    complete: Arc<AtomicBool>,
}

type Reserved = Result<mpsc::OwnedPermit<Chunk>, mpsc::error::SendError<()>>;

/// The two ends of the body of a response.
pub(super) fn channel<P: Passage>(session: Arc<Session>, passage: P) -> (Pipe<P>, Chunks) {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let complete = Arc::new(AtomicBool::new(false));
    let pipe = Pipe { session, passage, sender, reserving: None, complete: complete.clone() };
    (pipe, Chunks { receiver, complete })
}

/// The body of an agent's run, which ends with it.
pub(super) struct OfRun(pub(super) Arc<Session>, pub(super) Run);

impl Passage for OfRun {
    fn ended(&mut self, end: End) {
        self.0.conclude(&self.1, end);
    }
}

impl<P: Passage> StreamConsumer<Context> for Pipe<P> {
    type Item = u8;

    fn poll_consume(
        self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
        store: StoreContextMut<'_, Context>,
        source: Source<'_, u8>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let this = self.get_mut();
        let sender = &this.sender;
        let reserving =
            this.reserving.get_or_insert_with(|| Box::pin(sender.clone().reserve_owned()));
        let reserved = match reserving.as_mut().poll(cx) {
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            polled => ready!(polled),
        };
        this.reserving = None;
        let Ok(permit) = reserved else {
            // Which ends the stream for the guest.
            this.passage.left();
            return Poll::Ready(Ok(StreamResult::Dropped));
        };
        let mut source = source.as_direct(store);
        let available = source.remaining();
        let bytes = Bytes::copy_from_slice(&available[..available.len().min(MAX_CHUNK)]);
        if !this.passage.passes(bytes.len()) {
            return Poll::Ready(Ok(StreamResult::Dropped));
        }
        source.mark_read(bytes.len());
        if !bytes.is_empty() {
            this.session.chunk(permit, bytes);
        }
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

impl<P: Passage> Drop for Pipe<P> {
    fn drop(&mut self) {
        if self.session.clock().is_polling() {
            let end = End { complete: self.complete.clone(), _sender: self.sender.clone() };
            self.passage.ended(end);
        }
    }
}
