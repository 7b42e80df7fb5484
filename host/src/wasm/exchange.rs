//! Agents that are plain `wasi:http`: a request streams in, a response streams out, and nothing of it is journaled.
//!
//! **Problem.** A component that knows nothing of this host has neither runs nor turns, its request and its response go on for
//! as long as both sides like, its client may leave at any time, and it is to live within the same limits as all others.
//!
//! **Mechanism.** An exchange is a run that is never on record. The guest's response goes to the client as it is, with the turn in which it was given; its body is
//! wasmtime's, with a channel of one piece between the guest and the client, so each waits for the other. The run ends when the last
//! *part* of the exchange is over: in 0.3 the response's body, in 0.2 the guest's call too. A client that leaves drops the body,
//! so that the guest's next write fails; one that leaves, or is refused, before there is a response drops that. A run that is cancelled has both of its bodies
//! broken off, and the guest the grace to end its call; then, as for all agents, its store is stopped. When a store goes before its time, the bodies
//! of wasmtime end as if their guests had ended them; so the end of a body counts only while the session is not closed.
//!
//! ```text
//!               response                  body ended, broken off, let go; 0.2: call returned too
//!   called ----------------> answered ------------------------------------------------------------> over
//!     |                                                                                              ^
//!     +-- error, no response, one that HTTP cannot carry --------------------------------------------+
//! ```
//!
//! **Limits.** [`MAX_CHUNK`] bytes a piece, a few pieces a body; what else an agent has. Calls on an instance interleave in 0.3, and take turns in 0.2,
//! whose guests hold their store while they wait. What a 0.3 guest goes on with after its response is over is no run; it ends with
//! its instance. State that the guest writes is durable before its response's head leaves, but not before each piece of its body.
//!
//! **Cost.** A dozen allocations an exchange, and a copy of each piece.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context as Waking, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Either::{Left, Right};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, StatusCode, Uri};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use tokio::sync::oneshot;
use wasmtime::Store;
use wasmtime::component::{Accessor, Instance, InstancePre, Resource};
use wasmtime_wasi_http::p2::bindings::exports::wasi::http::incoming_handler;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::exports::wasi::http::handler;
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _, p3::Request as RequestOf03};

use crate::fault::Fault;
use crate::wasm::chunks::Truncated;
use crate::wasm::context::Context;
use crate::wasm::module::Kind;
use crate::wasm::run::{Answer, Run, check_status};
use crate::wasm::session::Session;
use crate::wasm::store::Request;

/// The most that one piece of a body takes on its way out.
pub(super) const MAX_CHUNK: usize = 64 * 1024;

/// The body of a request, as its client sends it.
pub struct Upload {
    /// What the client spoke.
    pub scheme: Scheme,
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
    #[error("the run was cancelled")]
    Cancelled,
}

impl From<UploadError> for Error {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::TooLarge(limit) => Self::HttpRequestBodySize(Some(limit as u64)),
            UploadError::Late => Self::ConnectionReadTimeout,
            UploadError::BrokenOff | UploadError::Cancelled => Self::ConnectionTerminated,
        }
    }
}

/// A response whose body comes as the guest writes it. Its status is one that HTTP knows.
pub type Response = http::Response<UnsyncBoxBody<Bytes, Truncated>>;

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
                    let exchange = Exchange::new(session, run.clone(), request.method(), 1);
                    let (request, _) = RequestOf03::from_http(http.hooks, request);
                    let request = http.table.push(request)?;
                    let export = guest.func_handle();
                    let call = export.start_call_concurrent(access, (request,))?;
                    let returned = export.finish_call_concurrent(accessor, call);
                    Left(returned.map(|returned| {
                        returned.map(|(response,)| Handled::V03(exchange, response))
                    }))
                }
                Export::V02(guest) => {
                    let exchange = Exchange::new(session, run.clone(), request.method(), 2);
                    let answered = exchange.clone();
                    let mut http = http;
                    let answer = http.new_response_outparam_from_callback(move |given| {
                        answered.answer(given.map_err(Error::from));
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
        Handled::V03(exchange, Err(code)) => exchange.answer(Err(code.into())),
        Handled::V03(exchange, Ok(response)) => {
            let (sent, is_sent) = oneshot::channel();
            // What the guest hears of how its response was sent.
            let told = async { is_sent.await.unwrap_or(Err(Error::ConnectionTerminated)) };
            let response = accessor.with(|mut access| {
                let response = access.get().http().table.delete(response)?;
                response.into_http(access, told)
            })?;
            exchange.respond(response, Some(sent));
        }
        Handled::V02(exchange) => {
            if !exchange.answered.load(Ordering::Relaxed) {
                exchange.answer(Err(Error::HttpResponseIncomplete));
            }
            exchange.part_over(None);
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
    let (scheme, body) = match upload {
        Some(upload) => (upload.scheme, upload.body.map_err(Error::from).boxed_unsync()),
        None => (Scheme::HTTP, Full::new(body).map_err(Error::from).boxed_unsync()),
    };
    let uri = Uri::builder()
        .scheme(scheme)
        // A request without one is of a client from before there were names.
        .authority(host.unwrap_or_else(|| Authority::from_static("localhost")))
        .path_and_query(PathAndQuery::try_from(path)?)
        .build()?;
    let body = UntilCancelled::new(body, run, || UploadError::Cancelled.into());
    let mut request = http::Request::new(body.boxed_unsync());
    *request.method_mut() = Method::try_from(method.as_str())?;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    Ok(request)
}

/// A request and its response, for as long as a part of it is not over.
pub(super) struct Exchange {
    session: Arc<Session>,
    run: Run,
    /// Those that are not over.
    parts: AtomicU8,
    answered: AtomicBool,
    /// Whether it is the head of a response that was asked for.
    of_head: bool,
    /// The first thing that went wrong.
    fault: OnceLock<Fault>,
}

impl Exchange {
    fn new(session: Arc<Session>, run: Run, method: &Method, parts: u8) -> Arc<Self> {
        let (parts, answered) = (AtomicU8::new(parts), AtomicBool::new(false));
        let of_head = method == Method::HEAD;
        Arc::new(Self { session, run, parts, answered, of_head, fault: OnceLock::new() })
    }

    /// Answers with the guest's response, or why there is none.
    fn answer(self: &Arc<Self>, given: Result<http::Response<WasiBody>, Error>) {
        match given {
            Ok(response) => self.respond(response, None),
            Err(error) => {
                tracing::warn!(
                    instance = %self.session.ledger().key(), run = %self.run.id(),
                    "the agent gave no response: {error}"
                );
                self.fail(Fault::AgentFailed);
            }
        }
    }

    fn fail(&self, fault: Fault) {
        self.answered.store(true, Ordering::Relaxed);
        self.session.answer(&self.run, Answer::Failed(fault.clone()));
        self.part_over(Some(fault));
    }

    /// Answers with the guest's response, if HTTP can carry it.
    fn respond(
        self: &Arc<Self>,
        response: http::Response<WasiBody>,
        sent: Option<oneshot::Sender<Result<(), Error>>>,
    ) {
        let (head, body) = response.into_parts();
        let bodiless = self.of_head
            || matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let length = head.headers.get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse().ok());
        if let Err(fault) = check_status(head.status.as_u16()) {
            return self.fail(fault);
        }
        if !bodiless && body.is_end_stream() && length.is_some_and(|length| length > 0) {
            let why = format!("its content-length is {}, and it has no body", length.unwrap_or(0));
            return self.fail(Fault::BadResponse(why));
        }
        self.answered.store(true, Ordering::Relaxed);
        let body = UntilCancelled::new(body, &self.run, || UploadError::Cancelled.into());
        let left = length.filter(|_| !bodiless);
        let download = Download { body, exchange: self.clone(), bodiless, left, sent, over: false };
        let response = http::Response::from_parts(head, download.boxed_unsync());
        self.session.answer(&self.run, Answer::Exchange(Box::new(response)));
    }

    /// A part is over, by this fault if by one.
    fn part_over(&self, fault: Option<Fault>) {
        if let Some(fault) = fault {
            // The first one counts.
            let _ = self.fault.set(fault);
        }
        if self.parts.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.session.leave(&self.run, self.fault.get());
        }
    }
}

/// A response's body on its way to the client.
struct Download {
    body: UntilCancelled<WasiBody>,
    exchange: Arc<Exchange>,
    /// Whether there is nothing to send, whatever the guest writes.
    bodiless: bool,
    /// What is left of the length that the head says.
    left: Option<u64>,
    /// Tells the guest how it went.
    sent: Option<oneshot::Sender<Result<(), Error>>>,
    over: bool,
}

impl Download {
    /// The part of the exchange is over.
    fn end(&mut self, fault: Option<Fault>) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        if let Some(sent) = self.sent.take().filter(|_| fault.is_none()) {
            // A guest that does not ask hears nothing.
            let _ = sent.send(Ok(()));
        }
        self.exchange.part_over(fault);
    }

    fn bad(&mut self, why: String) -> Truncated {
        let Exchange { session, run, .. } = &*self.exchange;
        tracing::warn!(
            instance = %session.ledger().key(), run = %run.id(), "the agent's response breaks off: {why}"
        );
        self.end(Some(Fault::BadResponse(why)));
        Truncated
    }
}

impl http_body::Body for Download {
    type Data = Bytes;
    type Error = Truncated;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Truncated>>> {
        let this = &mut *self;
        if this.over {
            return Poll::Ready(None);
        }
        let polled = ready!(Pin::new(&mut this.body).poll_frame(cx));
        let lacks = this.left.filter(|left| *left > 0);
        Poll::Ready(match (polled, lacks) {
            (Some(Ok(frame)), _) => {
                let length = frame.data_ref().map_or(0, |data| data.len() as u64);
                match this.left.map(|left| left.checked_sub(length)) {
                    Some(None) => Some(Err(this.bad("it is longer than it said".into()))),
                    left => {
                        this.left = left.flatten();
                        Some(Ok(frame))
                    }
                }
            }
            (Some(Err(_)), _) if this.exchange.run.is_cancelled() => {
                this.end(Some(Fault::Cancelled));
                Some(Err(Truncated))
            }
            (Some(Err(error)), _) => Some(Err(this.bad(error.to_string()))),
            // The store went, and whoever had it go has seen to the run.
            (None, _) if this.exchange.session.is_closed() => {
                this.over = true;
                Some(Err(Truncated))
            }
            (None, Some(left)) => Some(Err(this.bad(format!("{left} bytes are missing")))),
            (None, None) => {
                this.end(None);
                None
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.left.is_none_or(|left| left == 0) && self.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        // What has nothing more to say need not be asked for its end.
        let whole = self.bodiless || self.left == Some(0) || self.is_end_stream();
        if !self.exchange.session.is_closed() {
            self.end((!whole).then_some(Fault::Cancelled));
        }
    }
}

/// A body that breaks off when its run is cancelled.
struct UntilCancelled<B: http_body::Body> {
    body: B,
    cancelled: Pin<Box<dyn Future<Output = ()> + Send>>,
    broken: fn() -> B::Error,
}

impl<B: http_body::Body> UntilCancelled<B> {
    fn new(body: B, run: &Run, broken: fn() -> B::Error) -> Self {
        let run = run.clone();
        Self { body, cancelled: Box::pin(async move { run.cancelled().await }), broken }
    }
}

impl<B: http_body::Body + Unpin> http_body::Body for UntilCancelled<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Waking<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        if self.cancelled.poll_unpin(cx).is_ready() {
            // So that it is not polled again.
            self.cancelled = Box::pin(std::future::ready(()));
            return Poll::Ready(Some(Err((self.broken)())));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
