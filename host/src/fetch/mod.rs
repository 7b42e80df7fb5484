//! Requests to others, by agents that are granted where to.
//!
//! **Problem.** A guest that may send requests is inside the operator's network. A name that it may ask can lead anywhere, and
//! somewhere else each time it is looked up; a server may never answer, or answer without end.
//!
//! **Mechanism.** A request's URL is [parsed](Target) and held against the agent's [grants](Grants), then written anew from what was
//! parsed. hyper's client sends it on a connection of this very agent, one that waits or a new one. New ones are made by the
//! [connector], which looks a name up once, holds each address against the grants, and connects to those only. Redirects are not
//! followed: they are the agent's, and its next request.
//!
//! ```text
//!   URL -> target -> granted? -> place -> kept connection -----------------> request, response
//!                                    `--> addresses -> permitted? -> TCP -> TLS --'
//! ```
//!
//! **Limits.** [`OutboundLimits`], for each agent by itself, as is the pool: no agent's requests go where another's grants have led. What
//! is past a limit is refused and does not wait. Proxies of the environment are not used; what is asked for is where it goes.
//!
//! **Cost.** A connection that is kept costs a file descriptor and its buffers, for half a minute by default. The machine's
//! certificates are read once, when the first agent needs them.

mod address;
mod connector;
mod grants;

use std::error::Error as _;
use std::io::{self, ErrorKind};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response, Uri};
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};

use self::connector::Connector;
pub use self::connector::{ConnectError, Lookup, Network};
pub use self::grants::{Grants, Host, NoHost, Pattern, Scheme, Target};
use crate::config::OutboundLimits;

/// The body of a request.
pub type Sending = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How often an HTTP/2 connection with requests on it is asked whether it is still there, and how long it has to answer.
const STILL_THERE: Duration = Duration::from_secs(20);

/// The largest head of a response on HTTP/2; on HTTP/1 it is hyper's own limit, some 400 KiB.
const HEADER_BYTES: u32 = 64 << 10;

/// What sends one agent's requests. Clones are the same one.
#[derive(Clone)]
pub struct Client {
    client: legacy::Client<Connector, Sending>,
    grants: Arc<Grants>,
    limits: OutboundLimits,
    places: Arc<Semaphore>,
}

/// How long an agent wants to wait, if it says so. It waits no longer than the host does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Patience {
    /// For the connection.
    pub connect: Option<Duration>,
    /// For the head of the response.
    pub head: Option<Duration>,
    /// For the next bytes of its body.
    pub bytes: Option<Duration>,
}

/// Why there is no response, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    NoHost(#[from] NoHost),
    #[error("{0} is not for requests: it would make the server a way to others")]
    Method(Method),
    #[error("{0} is not granted")]
    NotGranted(Target),
    #[error("{limit} requests are under way already, which is the limit")]
    TooManyRequests { limit: usize },
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the response did not come in time")]
    ResponseTimeout,
    #[error("the body of the response did not go on in time")]
    ReadTimeout,
    #[error("the request failed: {0}")]
    Request(legacy::Error),
    #[error("the response failed: {0}")]
    Response(hyper::Error),
}

impl FetchError {
    /// What the operator would have to grant for this not to happen, if it is that.
    pub fn missing(&self) -> Option<Target> {
        match self {
            Self::NotGranted(target) => Some(target.clone()),
            Self::Connect(ConnectError::Prohibited { target, address }) => {
                Some(target.at(*address))
            }
            _ => None,
        }
    }

    /// Whether the connection ended in the middle of it.
    pub fn is_cut_off(&self) -> bool {
        let of_hyper = match self {
            Self::Request(error) => error.source().and_then(|source| source.downcast_ref()),
            Self::Response(error) => Some(error),
            _ => None,
        };
        let breaks = [
            ErrorKind::UnexpectedEof,
            ErrorKind::ConnectionReset,
            ErrorKind::ConnectionAborted,
            ErrorKind::BrokenPipe,
        ];
        of_hyper.is_some_and(|error: &hyper::Error| {
            let of_system = error.source().and_then(|cause| cause.downcast_ref::<io::Error>());
            error.is_incomplete_message()
                || error.is_closed()
                || error.is_canceled()
                || of_system.is_some_and(|cause| breaks.contains(&cause.kind()))
        })
    }
}

impl Client {
    /// A client for an agent with these grants.
    pub fn new(network: Arc<Network>, grants: Grants, limits: OutboundLimits) -> Self {
        let grants = Arc::new(grants);
        let connector = Connector::new(network, grants.clone(), &limits);
        let client = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(limits.idle)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_keep_alive_interval(STILL_THERE)
            .http2_keep_alive_timeout(STILL_THERE)
            .build(connector);
        let places = Arc::new(Semaphore::new(limits.requests));
        Self { client, grants, limits, places }
    }

    /// Sends a request and waits for the head of its response. What the request says of its host is its URL.
    pub async fn send(
        &self,
        mut request: Request<Sending>,
        patience: Patience,
    ) -> Result<Response<Received>, FetchError> {
        let target = Target::of(request.uri())?;
        if request.method() == Method::CONNECT {
            return Err(FetchError::Method(Method::CONNECT));
        }
        if !self.grants.allow(&target) {
            return Err(FetchError::NotGranted(target));
        }
        let limit = self.limits.requests;
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| FetchError::TooManyRequests { limit })?;
        *request.uri_mut() = rewritten(request.uri(), &target)?;
        request.headers_mut().remove(HOST);
        let at_most = |limit: Duration, wanted: Option<Duration>| {
            wanted.map_or(limit, |wanted| wanted.min(limit))
        };
        let head = at_most(self.limits.connect_timeout, patience.connect)
            .saturating_add(at_most(self.limits.response_timeout, patience.head));
        let response = match tokio::time::timeout(head, self.client.request(request)).await {
            Err(_) => return Err(FetchError::ResponseTimeout),
            Ok(Err(error)) => return Err(of_client(error)),
            Ok(Ok(response)) => response,
        };
        let stall = at_most(self.limits.read_stall, patience.bytes);
        Ok(response.map(|incoming| Received::new(incoming, stall, place)))
    }
}

/// A URL with the target as it was understood, so that no one understands it otherwise.
fn rewritten(uri: &Uri, target: &Target) -> Result<Uri, FetchError> {
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let slash = if path.starts_with('/') { "" } else { "/" };
    let text = format!("{target}{slash}{path}");
    text.parse().map_err(|_| NoHost::new(text, "its path is none").into())
}

/// What went wrong, which is the connector's error where it is one.
fn of_client(error: legacy::Error) -> FetchError {
    match error.source().and_then(|source| source.downcast_ref::<ConnectError>()) {
        Some(of_connector) => of_connector.clone().into(),
        None => FetchError::Request(error),
    }
}

/// The body of a response. The request's place is taken until it is dropped.
pub struct Received {
    incoming: Incoming,
    stall: Duration,
    timer: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Received {
    fn new(incoming: Incoming, stall: Duration, place: OwnedSemaphorePermit) -> Self {
        let timer = Box::pin(tokio::time::sleep(stall));
        Self { incoming, stall, timer, _place: place }
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.incoming).poll_frame(cx) {
            let next = Instant::now().checked_add(self.stall);
            if let Some(next) = next {
                self.timer.as_mut().reset(next);
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(FetchError::Response)));
        }
        ready!(self.timer.as_mut().poll(cx));
        Poll::Ready(Some(Err(FetchError::ReadTimeout)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

#[cfg(test)]
mod tests;
