//! How a component of wasi:http is called: what it exports, and its request.
//!
//! **Problem.** Two versions export the same thing in two ways, and a guest of either may be waiting for its client when its run is to end.
//!
//! **Mechanism.** Which version it is, is known by where the handler is exported. A call begins an exchange; what it came to is seen to when it returns, by the
//! version's own rules. The request is what the client sent, but for what it asks for, which is what follows the instance's name. Its body breaks off when the run is
//! cancelled.
//!
//! **Limits.** Those of the [`Upload`]. **Cost.** A map of the header fields, and two boxes for the body.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Waking, Poll};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Either::{Left, Right};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Uri};
use http_body::{Frame, SizeHint};
use http_body_util::{BodyExt as _, Full};
use wasmtime::Store;
use wasmtime::component::{Accessor, Instance, InstancePre, Resource};
use wasmtime_wasi_http::p2::bindings::exports::wasi::http::incoming_handler;
use wasmtime_wasi_http::p2::bindings::http::types as p2;
use wasmtime_wasi_http::p3::bindings::exports::wasi::http::handler;
use wasmtime_wasi_http::p3::bindings::http::types as p3;
use wasmtime_wasi_http::{Error, WasiBody, WasiHttpView as _};

use super::{Exchange, Upload};
use crate::wasm::context::Context;
use crate::wasm::module::Kind;
use crate::wasm::run::{Answer, Run};
use crate::wasm::session::Session;
use crate::wasm::store::Request;

/// Where a module exports its handler.
pub(in crate::wasm) enum HandlerIndices {
    V03(handler::GuestIndices),
    V02(incoming_handler::GuestIndices),
}

impl HandlerIndices {
    pub(in crate::wasm) fn v03(pre: &InstancePre<Context>) -> wasmtime::Result<Self> {
        handler::GuestIndices::new(pre).map(Self::V03)
    }

    pub(in crate::wasm) fn v02(pre: &InstancePre<Context>) -> wasmtime::Result<Self> {
        incoming_handler::GuestIndices::new(pre).map(Self::V02)
    }

    pub(in crate::wasm) fn kind(&self) -> Kind {
        match self {
            Self::V03(_) => Kind::WasiHttp03,
            Self::V02(_) => Kind::WasiHttp02,
        }
    }

    pub(in crate::wasm) fn load(
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
pub(in crate::wasm) struct Handler {
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
pub(in crate::wasm) enum Handled {
    V03(Arc<Exchange>, Result<Resource<p3::Response>, p3::ErrorCode>),
    /// The response came by another way, if one did.
    V02(Arc<Exchange>),
}

impl Handler {
    /// Begins an exchange.
    pub(in crate::wasm) fn begin<'a>(
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
pub(in crate::wasm) fn finish(
    handled: Handled,
    accessor: &Accessor<Context>,
) -> wasmtime::Result<()> {
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
