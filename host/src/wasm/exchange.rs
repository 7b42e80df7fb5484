//! Agents that are plain `wasi:http`: a request streams in, a response streams out, and nothing of it is journaled.
//!
//! **Problem.** A component that knows nothing of this host has neither runs nor turns, its request and its response go on for
//! as long as both sides like, its client may leave at any time, and it is to live within the same limits as all others.
//!
//! **Mechanism.** An exchange is a run that is never on record. Its response's head leaves like any answer. In 0.3 the body is
//! a stream of the guest's and goes the [way](crate::wasm::chunks) of a body in chunks; in 0.2 it comes out of wasmtime, and each piece waits
//! until what the guest has written is durable. The run ends when the last *part* of the exchange is over: in 0.3 the body and its
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
//! When a store goes before its time, wasmtime's body of a 0.2 guest ends as if the guest had ended it; so its end counts
//! only while the session is not closed.
//!
//! **Limits.** [`MAX_CHUNK`](crate::wasm::chunks::MAX_CHUNK) bytes a piece, a few pieces a body, and what else an agent has. Calls on an instance interleave in 0.3. In
//! 0.2 they take turns, from the request to the end of the response: such a guest waits inside of its call, and wasmtime lets no other one in.
//!
//! **Cost.** A dozen allocations an exchange, and a copy of each piece.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context as Waking, Poll};

use bytes::Bytes;
use futures_util::future::Either::{Left, Right};
use futures_util::{FutureExt as _, stream};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use tokio::sync::oneshot;
use wasmtime::component::{
    Access, Accessor, FutureConsumer, FutureReader, Instance, InstancePre, Resource, Source,
};
use wasmtime::{AsContextMut as _, Store, StoreContextMut};
use wasmtime_wasi_http::p2::bindings::exports::wasi::http::incoming_handler;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::exports::wasi::http::handler;
use wasmtime_wasi_http::p3::bindings::http::types::{self as p3, HostResponseWithStore as _};
use wasmtime_wasi_http::{Error, WasiBody, WasiHttp, WasiHttpView as _};

use crate::fault::Fault;
use crate::wasm::chunks::{self, Chunks, End, Passage, Truncated};
use crate::wasm::context::Context;
use crate::wasm::module::Kind;
use crate::wasm::run::{Answer, Run, check_status};
use crate::wasm::session::Session;
use crate::wasm::store::Request;

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

/// Where a module exports its handler.
pub(super) enum HandlerIndices {
    V03(handler::GuestIndices),
    V02(incoming_handler::GuestIndices),
}

impl HandlerIndices {
    pub(super) fn v03(pre: &InstancePre<Context>) -> wasmtime::Result<Self> {
        handler::GuestIndices::new(pre).map(Self::V03)
    }

    pub(super) fn v02(pre: &InstancePre<Context>) -> wasmtime::Result<Self> {
        incoming_handler::GuestIndices::new(pre).map(Self::V02)
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Self::V03(_) => Kind::WasiHttp03,
            Self::V02(_) => Kind::WasiHttp02,
        }
    }

    pub(super) fn load(
        &self,
        store: &mut Store<Context>,
        instance: &Instance,
        session: Arc<Session>,
    ) -> wasmtime::Result<Handler> {
        let export = match self {
            Self::V03(indices) => Export::V03(indices.load(store, instance)?),
            Self::V02(indices) => Export::V02(indices.load(store, instance)?),
        };
        Ok(Handler { export, _closing: Closing(session) })
    }
}

/// The handler of a live instance. It must be dropped before its store.
pub(super) struct Handler {
    export: Export,
    _closing: Closing,
}

enum Export {
    V03(handler::Guest),
    V02(incoming_handler::Guest),
}

/// Closes the session before the store goes.
struct Closing(Arc<Session>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What a guest's call came to.
pub(super) enum Handled {
    V03(Arc<Exchange>, Result<Resource<p3::Response>, p3::ErrorCode>),
    /// The response came by another way, if one did.
    V02(Arc<Exchange>),
}

impl Handler {
    /// Begins an exchange.
    pub(super) fn begin<'a>(
        &self,
        run: &Run,
        request: Request,
        upload: Option<Box<Upload>>,
        accessor: &'a Accessor<Context>,
    ) -> wasmtime::Result<impl Future<Output = wasmtime::Result<Handled>> + use<'a>> {
        let request = assemble(run, request, upload)?;
        accessor.with(|mut access| {
            let context = access.get();
            let session = context.session().clone();
            let http = context.http();
            wasmtime::error::Ok(match &self.export {
                Export::V03(guest) => {
                    let exchange = Exchange::new(session, run.clone(), request.method());
                    let (request, _) = p3::Request::from_http(http.hooks, request);
                    let request = http.table.push(request)?;
                    let export = guest.func_handle();
                    let call = export.start_call_concurrent(access, (request,))?;
                    let returned = export.finish_call_concurrent(accessor, call);
                    Left(returned.map(|returned| {
                        returned.map(|(response,)| Handled::V03(exchange, response))
                    }))
                }
                Export::V02(guest) => {
                    let exchange = Exchange::new(session, run.clone(), request.method());
                    let answered = exchange.clone();
                    let mut http = http;
                    let answer = http.new_response_outparam_from_callback(move |given| {
                        answered.respond_02(given.map_err(Error::from));
                    })?;
                    let scheme = match request.uri().scheme() == Some(&Scheme::HTTPS) {
                        true => p2::Scheme::Https,
                        false => p2::Scheme::Http,
                    };
                    let request = http.new_incoming_request(scheme, request)?;
                    let export = guest.func_handle();
                    let call = export.start_call_concurrent(access, (request, answer))?;
                    let returned = export.finish_call_concurrent(accessor, call);
                    Right(returned.map(|returned| returned.map(|_| Handled::V02(exchange))))
                }
            })
        })
    }
}

/// Sees to what a call came to.
pub(super) fn finish(handled: Handled, accessor: &Accessor<Context>) -> wasmtime::Result<()> {
    match handled {
        Handled::V03(exchange, Err(code)) => {
            let fault = exchange.no_response(&code.into());
            exchange.session.finish(&exchange.run, Answer::Failed(fault));
        }
        Handled::V03(exchange, Ok(response)) => {
            return accessor.with(|access| exchange.respond_03(access, response));
        }
        Handled::V02(exchange) => {
            exchange.returned();
            exchange.part_over(None, None);
        }
    }
    Ok(())
}

/// The request as the guest is to have it: what it asks for is what follows the instance's name.
fn assemble(
    run: &Run,
    Request { method, path, body }: Request,
    upload: Option<Box<Upload>>,
) -> wasmtime::Result<http::Request<WasiBody>> {
    let head = &run.origin().head;
    let mut headers = HeaderMap::new();
    for (name, value) in head.fields() {
        let bytes: Option<Vec<_>> = value.chars().map(|char| u8::try_from(char).ok()).collect();
        let value = bytes.and_then(|bytes| HeaderValue::try_from(bytes).ok());
        // They came as fields.
        if let (Ok(name), Some(value)) = (HeaderName::try_from(name), value) {
            headers.append(name, value);
        }
    }
    let host = headers.get(header::HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let path = if path.starts_with('/') { path } else { format!("/{path}") };
    let scheme = if run.origin().secure { Scheme::HTTPS } else { Scheme::HTTP };
    let body = match upload {
        Some(upload) => upload.body.map_err(Error::from).boxed_unsync(),
        None => Full::new(body).map_err(Error::from).boxed_unsync(),
    };
    let uri = Uri::builder()
        .scheme(scheme)
        // A request without one is of a client from before there were names.
        .authority(host.unwrap_or_else(|| Authority::from_static("localhost")))
        .path_and_query(PathAndQuery::try_from(path)?)
        .build()?;
    let mut request = http::Request::new(Received::new(body, run).boxed_unsync());
    *request.method_mut() = Method::try_from(method.as_str())?;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

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

    /// The guest of a 0.3 call answers.
    fn respond_03(
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

    /// The guest of a 0.2 call answers.
    fn respond_02(self: &Arc<Self>, given: Result<http::Response<WasiBody>, Error>) {
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
    fn returned(&self) {
        if !self.open().answered {
            self.fail(self.no_response(&Error::HttpResponseIncomplete));
        }
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

    /// A 0.2 call has no response, so there will be no body.
    fn fail(&self, fault: Fault) {
        self.open().answered = true;
        self.session.answer(&self.run, Answer::Failed(fault.clone()));
        self.part_over(Some(fault), None);
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

/// The body of a 0.3 guest's response, as it passes.
struct OfExchange {
    exchange: Arc<Exchange>,
    measure: Measure,
    fault: Option<Fault>,
}

impl Passage for OfExchange {
    fn passes(&mut self, bytes: usize) -> bool {
        let Some(left) = &mut self.measure.left else { return true };
        let Some(less) = left.checked_sub(bytes as u64) else {
            self.fault = Some(self.exchange.wrong("it is longer than it said".into()));
            return false;
        };
        *left = less;
        true
    }

    fn left(&mut self) {
        let whole = self.measure.bodiless || self.measure.left == Some(0);
        self.fault = (!whole).then_some(Fault::Cancelled);
    }

    fn ended(&mut self, end: End) {
        let missing = self.measure.left.filter(|left| *left > 0 && self.fault.is_none());
        let missing = missing.map(|left| self.exchange.wrong(format!("{left} bytes are missing")));
        self.exchange.part_over(self.fault.take().or(missing), Some(end));
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
            return match self.measure.left.filter(|left| *left > 0) {
                Some(left) => Err(self.wrong(format!("{left} bytes are missing"))),
                None => {
                    self.over = true;
                    self.exchange.part_over(None, None);
                    Ok(None)
                }
            };
        };
        let frame = frame.map_err(|error| self.wrong(error.to_string()))?;
        if let Some(left) = &mut self.measure.left {
            let length = frame.data_ref().map_or(0, |data| data.len() as u64);
            match left.checked_sub(length) {
                Some(less) => *left = less,
                None => return Err(self.wrong("it is longer than it said".into())),
            }
        }
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
        let Measure { bodiless, left } = self.measure;
        let whole = bodiless || left == Some(0) || self.body.is_end_stream();
        self.exchange.part_over((!whole).then_some(Fault::Cancelled), None);
    }
}

/// The body of a request, until its run is cancelled.
struct Received {
    body: WasiBody,
    cancelled: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

impl Received {
    fn new(body: WasiBody, run: &Run) -> Self {
        let run = run.clone();
        Self { body, cancelled: Box::pin(async move { run.cancelled().await }), over: false }
    }
}

impl http_body::Body for Received {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.cancelled.poll_unpin(cx).is_ready() {
            self.over = true;
            return Poll::Ready(Some(Err(Error::ConnectionTerminated)));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
