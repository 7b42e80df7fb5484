//! The response of a 0.3 guest.
//!
//! **Problem.** Its body and its trailers come from the guest on two ways, each of which ends when the guest likes.
//!
//! **Mechanism.** The body goes the [way](crate::wasm::chunks) of a body in chunks, and is measured as it passes; the trailers are kept until it has ended. Each of the two is a part of the
//! exchange. The guest hears that its response was sent when both are over and nothing went wrong.
//!
//! **Limits.** Those of the way. **Cost.** A channel for the body and one for the guest's word.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Waking, Poll};

use bytes::Bytes;
use futures_util::stream;
use http::header::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::oneshot;
use wasmtime::component::{Access, FutureConsumer, FutureReader, Resource, Source};
use wasmtime::{AsContextMut as _, StoreContextMut};
use wasmtime_wasi_http::p3::bindings::http::types::{self as p3, HostResponseWithStore as _};
use wasmtime_wasi_http::{Error, WasiHttp, WasiHttpView as _};

use super::{BodyError, Exchange, Measure};
use crate::fault::Fault;
use crate::wasm::chunks::{self, Chunks, End, Passage, Truncated};
use crate::wasm::context::Context;
use crate::wasm::run::{Answer, Run};

impl Exchange {
    /// The guest of a 0.3 call answers.
    pub(super) fn respond_03(
        self: Arc<Self>,
        mut access: Access<'_, Context>,
        response: Resource<p3::Response>,
    ) -> wasmtime::Result<()> {
        let table = access.get().http().table;
        let p3::Response { status, headers, .. } = table.get(&response)?;
        let (status, headers) = (*status, headers.clone());
        let (sent, is_sent) = oneshot::channel();
        let told = async {
            let sent = is_sent.await.map_err(|_| p3::ErrorCode::ConnectionTerminated);
            wasmtime::error::Ok(sent)
        };
        let told = FutureReader::new(&mut access, told)?;
        let http = Access::<_, WasiHttp>::new(access.as_context_mut(), Context::http);
        let (mut body, mut trailers) = WasiHttp::consume_body(http, response, told)?;
        let measure = match self.measure(status, &headers) {
            Ok(measure) => measure,
            Err(fault) => {
                // The guest's next write fails.
                body.close(&mut access)?;
                trailers.close(&mut access)?;
                self.session.finish(&self.run, Answer::Failed(fault));
                return Ok(());
            }
        };
        self.open().sent = Some(sent);
        let last = Arc::<Mutex<_>>::default();
        trailers.pipe(&mut access, Trailers { exchange: self.clone(), to: last.clone() })?;
        let passage = OfExchange { exchange: self.clone(), measure, fault: None };
        let (pipe, chunks) = chunks::channel(self.session.clone(), passage);
        body.pipe(&mut access, pipe)?;
        let run = self.run.clone();
        let pieces = stream::try_unfold((chunks, last, run), async |(mut chunks, last, run)| {
            let frame = next_03(&mut chunks, &last, &run).await?;
            Ok::<_, BodyError>(frame.map(|frame| (frame, (chunks, last, run))))
        });
        self.answer(status, headers.into(), StreamBody::new(pieces).boxed_unsync());
        Ok(())
    }
}

/// The body of a 0.3 guest's response, as it passes.
struct OfExchange {
    exchange: Arc<Exchange>,
    measure: Measure,
    fault: Option<Fault>,
}

impl Passage for OfExchange {
    fn passes(&mut self, bytes: usize) -> bool {
        let Err(why) = self.measure.pass(bytes) else { return true };
        self.fault = Some(self.exchange.wrong(why));
        false
    }

    fn left(&mut self) {
        self.fault = (!self.measure.is_over()).then_some(Fault::Cancelled);
    }

    fn ended(&mut self, end: End) {
        let too_short = || Some(self.exchange.wrong(self.measure.end().err()?));
        let fault = self.fault.take().or_else(too_short);
        self.exchange.part_over(fault, Some(end));
    }
}

/// Takes the trailers of a 0.3 guest's response.
struct Trailers {
    exchange: Arc<Exchange>,
    to: Arc<Mutex<Option<HeaderMap>>>,
}

impl FutureConsumer<Context> for Trailers {
    type Item = Result<Option<Resource<p3::Trailers>>, p3::ErrorCode>;

    fn poll_consume(
        self: Pin<&mut Self>,
        _: &mut Waking<'_>,
        mut store: StoreContextMut<'_, Context>,
        mut source: Source<'_, Self::Item>,
        _: bool,
    ) -> Poll<wasmtime::Result<()>> {
        let mut given = None;
        source.read(&mut store, &mut given)?;
        let fault = match given {
            Some(Ok(Some(trailers))) => {
                let trailers = store.data_mut().http().table.delete(trailers)?;
                *self.to.lock().unwrap_or_else(PoisonError::into_inner) = Some(trailers.into());
                None
            }
            Some(Ok(None)) | None => None,
            Some(Err(code)) => Some(self.exchange.wrong(Error::from(code).to_string())),
        };
        self.exchange.part_over(fault, None);
        Poll::Ready(Ok(()))
    }
}

/// What comes next of the body of a 0.3 guest's response.
async fn next_03(
    chunks: &mut Chunks,
    trailers: &Mutex<Option<HeaderMap>>,
    run: &Run,
) -> Result<Option<Frame<Bytes>>, BodyError> {
    let chunk = tokio::select! {
        biased;
        () = run.cancelled() => return Err(Truncated.into()),
        chunk = chunks.next() => chunk.transpose()?,
    };
    let Some((bytes, after)) = chunk else {
        let last = trailers.lock().unwrap_or_else(PoisonError::into_inner).take();
        return Ok(last.map(Frame::trailers));
    };
    after.durable().await?;
    Ok(Some(Frame::data(bytes)))
}
