//! Agents that are plain `wasi:http`: a request streams in, a response streams out, and nothing of it is journaled.
//!
//! **Problem.** A component that knows nothing of this host has neither runs nor turns, its request and its response go on for
//! as long as both sides like, its client may leave at any time, and it is to live within the same limits as all others.
//!
//! **Mechanism.** An exchange is a run that is never on record. It begins with the guest's [call](handler). The response's head leaves like any answer; its
//! body comes as the guest writes it, each version in its way: [0.3](v03), [0.2](v02). The run ends when the last *part* of the exchange is over: in 0.3 the body and its
//! trailers, in 0.2 the body and the guest's call. A client that leaves is a channel that is closed, so
//! that the guest's next write fails. A run that is cancelled has both of its bodies broken off, and the guest gets the grace to come to
//! its end; then, as for all agents, its store is stopped.
//!
//! ```text
//!               response                  last part over, by the guest or since its client left
//!   called ----------------> answered ----------------------------------------------------------> over
//!     |                                                                                            ^
//!     +-- error, no response, one that HTTP cannot carry ------------------------------------------+
//! ```
//!
//! **Limits.** [`MAX_CHUNK`](crate::wasm::chunks::MAX_CHUNK) bytes a piece, a few pieces a body, and what else an agent has. Calls on an instance interleave in 0.3. In
//! 0.2 they take turns, from the request to the end of the response: such a guest waits inside of its call, and wasmtime lets no other one in.
//!
//! **Cost.** A dozen allocations an exchange, and a copy of each piece.

mod handler;
mod v02;
mod v03;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::header::{self, HeaderMap};
use http::{Method, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::oneshot;
use wasmtime_wasi_http::Error;

pub(super) use self::handler::{Handled, Handler, HandlerIndices, finish};
use crate::fault::Fault;
use crate::wasm::chunks::End;
use crate::wasm::run::{Answer, Run, check_status};
use crate::wasm::session::Session;

/// The body of a request, as its client sends it.
pub struct Upload {
    pub body: UnsyncBoxBody<Bytes, UploadError>,
}

/// The body of a request ended before its end.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("the request's body is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the client kept the agent waiting for the request's body")]
    Late,
    #[error("the client broke off")]
    BrokenOff,
}

impl From<UploadError> for Error {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge(limit) => Self::HttpRequestBodySize(Some(limit as u64)),
            UploadError::Late => Self::ConnectionReadTimeout,
            UploadError::BrokenOff => Self::ConnectionTerminated,
        }
    }
}

/// A response whose body comes as the guest writes it. Its status is one that HTTP knows.
pub type Response = http::Response<UnsyncBoxBody<Bytes, BodyError>>;

/// Why the body of a response breaks off.
pub(super) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// A request and its response, for as long as a part of it is not over.
pub(super) struct Exchange {
    session: Arc<Session>,
    run: Run,
    /// Whether it is the head of a response that was asked for.
    of_head: bool,
    open: Mutex<Open>,
}

struct Open {
    answered: bool,
    /// How many are not over.
    parts: u8,
    /// The first thing that went wrong.
    fault: Option<Fault>,
    /// The end of the response's body, to be marked with the last part.
    end: Option<End>,
    /// Tells a 0.3 guest that its response was sent.
    sent: Option<oneshot::Sender<()>>,
}

/// What a response's head says of its body.
struct Measure {
    /// Whether there is none to send, whatever the guest writes.
    bodiless: bool,
    /// What is left of its length, if that is said.
    left: Option<u64>,
}

impl Measure {
    /// Takes note of bytes that pass. Fails, saying why, if there may not be so many.
    fn pass(&mut self, bytes: usize) -> Result<(), String> {
        let Some(left) = &mut self.left else { return Ok(()) };
        *left = left.checked_sub(bytes as u64).ok_or("it is longer than it said")?;
        Ok(())
    }

    /// The body has ended. Fails, saying why, if there is more of it.
    fn end(&self) -> Result<(), String> {
        match self.left {
            None | Some(0) => Ok(()),
            Some(left) => Err(format!("{left} bytes are missing")),
        }
    }

    /// Whether a client knows that nothing more comes.
    fn is_over(&self) -> bool {
        self.bodiless || self.left == Some(0)
    }
}

impl Exchange {
    fn new(session: Arc<Session>, run: Run, method: &Method) -> Arc<Self> {
        let open = Open { answered: false, parts: 2, fault: None, end: None, sent: None };
        let of_head = method == Method::HEAD;
        Arc::new(Self { session, run, of_head, open: Mutex::new(open) })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this head says, if it may be sent: HTTP can carry it, and nobody has cancelled the run.
    fn measure(&self, status: StatusCode, headers: &HeaderMap) -> Result<Measure, Fault> {
        if self.run.is_cancelled() {
            return Err(Fault::Cancelled);
        }
        check_status(status.as_u16())?;
        let bodiless =
            self.of_head || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        // Guests cannot make it anything but a number.
        let length = headers.get(header::CONTENT_LENGTH).filter(|_| !bodiless);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        Ok(Measure { bodiless, left })
    }

    fn answer(
        &self,
        status: StatusCode,
        headers: HeaderMap,
        body: UnsyncBoxBody<Bytes, BodyError>,
    ) {
        self.open().answered = true;
        let mut response = http::Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        self.session.answer(&self.run, Answer::Exchange(Box::new(response)));
    }

    /// There is no response, but an error of the guest's.
    fn no_response(&self, error: &Error) -> Fault {
        if self.run.is_cancelled() {
            return Fault::Cancelled;
        }
        tracing::warn!(
            instance = %self.session.ledger().key(), run = %self.run.id(),
            "the agent gave no response: {error}"
        );
        Fault::AgentFailed
    }

    /// The body is not what its head says.
    fn wrong(&self, why: String) -> Fault {
        tracing::warn!(
            instance = %self.session.ledger().key(), run = %self.run.id(),
            "the agent's response breaks off: {why}"
        );
        Fault::BadResponse(why)
    }

    /// A part is over, by this fault if by one. With the last one the run ends.
    fn part_over(&self, fault: Option<Fault>, end: Option<End>) {
        let mut open = self.open();
        open.fault = open.fault.take().or(fault);
        open.end = open.end.take().or(end);
        open.parts = open.parts.saturating_sub(1);
        if open.parts > 0 {
            return;
        }
        let Open { fault, end, sent, .. } = &mut *open;
        match (fault.take(), end.take()) {
            (None, Some(end)) => {
                if let Some(sent) = sent.take() {
                    // A guest that does not ask hears nothing.
                    let _ = sent.send(());
                }
                self.session.conclude(&self.run, end);
            }
            (fault, _) => {
                sent.take();
                self.session.leave(&self.run, fault.as_ref());
            }
        }
    }
}
