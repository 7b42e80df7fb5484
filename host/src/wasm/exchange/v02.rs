//! The response of a 0.2 guest.
//!
//! **Problem.** Its body comes out of wasmtime, which knows nothing of turns; and when a store goes before its time, such a body ends as if the guest had ended it.
//!
//! **Mechanism.** Each piece is measured, and waits until what the guest has written is durable. The body and the guest's call are the parts of the exchange. The
//! body's end counts only while the session is not closed, and a call that returns without a response is one without a body.
//!
//! **Limits.** wasmtime's, a few pieces. **Cost.** A box for the body.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt as _, StreamBody};
use wasmtime_wasi_http::{Error, WasiBody};

use super::{BodyError, Exchange, Measure};
use crate::fault::Fault;
use crate::wasm::chunks::Truncated;
use crate::wasm::run::Answer;

impl Exchange {
    /// The guest of a 0.2 call answers.
    pub(super) fn respond_02(self: &Arc<Self>, given: Result<http::Response<WasiBody>, Error>) {
        let given = given.map(http::Response::into_parts);
        match given {
            Err(error) => self.fail(self.no_response(&error)),
            Ok((head, body)) => match self.measure(head.status, &head.headers) {
                Err(fault) => self.fail(fault),
                Ok(Measure { left: Some(left), .. }) if left > 0 && body.is_end_stream() => {
                    let why = format!("its content-length is {left}, and it has no body");
                    self.fail(Fault::BadResponse(why));
                }
                Ok(measure) => {
                    let download = Download { body, exchange: self.clone(), measure, over: false };
                    let pieces = stream::try_unfold(download, async |mut download| {
                        let frame = download.next().await?;
                        Ok::<_, BodyError>(frame.map(|frame| (frame, download)))
                    });
                    let body = StreamBody::new(pieces).boxed_unsync();
                    self.answer(head.status, head.headers, body);
                }
            },
        }
    }

    /// The guest of a 0.2 call has returned.
    pub(super) fn returned(&self) {
        if !self.open().answered {
            self.fail(self.no_response(&Error::HttpResponseIncomplete));
        }
    }

    /// A 0.2 call has no response, so there will be no body.
    fn fail(&self, fault: Fault) {
        self.open().answered = true;
        self.session.answer(&self.run, Answer::Failed(fault.clone()));
        self.part_over(Some(fault), None);
    }
}

/// The body of a 0.2 guest's response on its way to the client.
struct Download {
    body: WasiBody,
    exchange: Arc<Exchange>,
    measure: Measure,
    over: bool,
}

impl Download {
    /// What comes next.
    async fn next(&mut self) -> Result<Option<Frame<Bytes>>, BodyError> {
        let Exchange { session, run, .. } = &*self.exchange.clone();
        let frame = tokio::select! {
            biased;
            () = run.cancelled() => return Err(self.end(Fault::Cancelled)),
            frame = self.body.frame() => frame,
        };
        let Some(frame) = frame else {
            if session.is_closed() {
                // Whoever had the store go has seen to the run.
                self.over = true;
                return Err(Truncated.into());
            }
            self.measure.end().map_err(|why| self.wrong(why))?;
            self.over = true;
            self.exchange.part_over(None, None);
            return Ok(None);
        };
        let frame = frame.map_err(|error| self.wrong(error.to_string()))?;
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        self.measure.pass(bytes).map_err(|why| self.wrong(why))?;
        session.flush().await?;
        Ok(Some(frame))
    }

    fn wrong(&mut self, why: String) -> BodyError {
        let fault = self.exchange.wrong(why);
        self.end(fault)
    }

    fn end(&mut self, fault: Fault) -> BodyError {
        self.over = true;
        self.exchange.part_over(Some(fault), None);
        Truncated.into()
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if self.over || self.exchange.session.is_closed() {
            return;
        }
        // A client need not ask for an end that it knows.
        let whole = self.measure.is_over() || self.body.is_end_stream();
        self.exchange.part_over((!whole).then_some(Fault::Cancelled), None);
    }
}
