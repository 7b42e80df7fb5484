//! The body of a request on its way to an agent that takes it as it comes.
//!
//! **Problem.** Nobody can know beforehand how long such a body is or takes, and a client must neither send without end nor keep the
//! agent waiting for ever.
//!
//! **Mechanism.** The body counts what passes, and the time for which the agent waits for the client: what the agent takes for itself
//! does not count. A client that goes too far is told so, if its response has not begun, and the agent's body breaks off.
//!
//! **Limits.** `request_body_bytes` in all, `body_timeout` a wait. **Cost.** A channel, and a timer once there is a wait.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};

use super::problem::Problem;
use crate::wasm::UploadError;

pub(super) struct Upload {
    body: Incoming,
    limit: usize,
    passed: usize,
    timeout: Duration,
    waits: Option<Pin<Box<Sleep>>>,
    /// Where the client is told, until it was or the body is over.
    refusal: Option<oneshot::Sender<Problem>>,
}

impl Upload {
    /// The body, and where to hear that its client went too far.
    pub(super) fn new(
        body: Incoming,
        limit: usize,
        timeout: Duration,
    ) -> Result<(Self, oneshot::Receiver<Problem>), Problem> {
        if body.size_hint().lower() > limit as u64 {
            return Err(Problem::PayloadTooLarge { limit });
        }
        let (sender, refused) = oneshot::channel();
        let refusal = Some(sender);
        Ok((Self { body, limit, passed: 0, timeout, waits: None, refusal }, refused))
    }

    fn refuse(&mut self, problem: Problem, error: UploadError) -> Option<UploadError> {
        let refusal = self.refusal.take()?;
        // A client whose response has begun hears no more.
        let _ = refusal.send(problem);
        Some(error)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        if this.refusal.is_none() {
            return Poll::Ready(None);
        }
        let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(cx) else {
            let timeout = this.timeout;
            let waits = this.waits.get_or_insert_with(|| Box::pin(sleep(timeout)));
            return waits
                .as_mut()
                .poll(cx)
                .map(|()| this.refuse(Problem::BodyTimeout, UploadError::Late).map(Err));
        };
        this.waits = None;
        Poll::Ready(match frame {
            None => None,
            Some(Err(_)) => this.refuse(Problem::BadBody, UploadError::BrokenOff).map(Err),
            Some(Ok(frame)) => {
                this.passed += frame.data_ref().map_or(0, Bytes::len);
                if this.passed > this.limit {
                    let limit = this.limit;
                    let problem = Problem::PayloadTooLarge { limit };
                    return Poll::Ready(
                        this.refuse(problem, UploadError::TooLarge(limit)).map(Err),
                    );
                }
                Some(Ok(frame))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.refusal.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
