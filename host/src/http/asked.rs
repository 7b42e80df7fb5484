//! What a request asks an instance for, without a hold on the buffer that it came in.
//!
//! **Problem.** Many requests wait at once, and what each keeps of itself while it waits is memory; what their clients send may be without end.
//!
//! **Mechanism.** The head is copied, as far as anyone will ask for it, and let go of. The body stays where it is until it is known whose it is; then it is
//! gathered whole, taking room among the bytes of all bodies that are being gathered as it comes.
//!
//! **Limits.** `request_body_bytes` a body, `bodies_bytes` of all together. **Cost.** A copy of the head, and one of the body; what few requests have is in
//! boxes, so that the others do not keep the place for it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::auth;
use super::problem::Problem;
use super::repeat::Terms;
use super::runs::LAST_EVENT_ID;
use crate::config::{Config, Hook};
use crate::id::InstanceKey;
use crate::wasm::RequestHead;

/// A request to an instance.
pub(super) struct Asked {
    pub(super) instance: InstanceKey,
    pub(super) method: Method,
    /// What follows the instance's name, with the query.
    pub(super) path: String,
    pub(super) head: RequestHead,
    /// Who is to be asked first, if anyone is.
    pub(super) hook: Option<Arc<Hook>>,
    /// Not empty. In a box, as few have one.
    pub(super) last_event_id: Option<Box<HeaderValue>>,
    pub(super) terms: Option<Box<Terms>>,
    pub(super) body: Incoming,
}

impl Asked {
    pub(super) fn of(
        request: Request<Incoming>,
        instance: InstanceKey,
        path: String,
        config: &Config,
    ) -> Result<Self, Problem> {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        // HTTP/2 and proxies' clients send the host in the target as well; what follows it is the same for all.
        let url = uri.path_and_query().map_or("/", |target| target.as_str());
        // HTTP/2 has it in the target.
        let host = uri.authority().filter(|_| !headers.contains_key(header::HOST));
        let host = host.map(|host| (header::HOST.as_str(), host.as_str().into()));
        let auth = config.auth(instance.agent());
        let hook = auth::check(auth, &headers)?;
        let passed = |(name, _): &(&HeaderName, &HeaderValue)| auth::passes(auth, name);
        let fields = || {
            let fields = headers.iter().filter(passed);
            let fields = fields.map(|(name, value)| (name.as_str(), text_of(value)));
            host.clone().into_iter().chain(fields)
        };
        let head = RequestHead::new(url, fields);
        let last_event_id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()).map(copy_of);
        let last_event_id = last_event_id.map(Box::new);
        let terms = Terms::of(&headers)?;
        Ok(Self { instance, method, path, head, hook, last_event_id, terms, body })
    }
}

/// Gathers a body while there is room for its bytes among those of all. One that is announced to be too large is refused before
/// its client is asked for it.
pub(super) async fn gather(
    body: &mut Incoming,
    limit: usize,
    room: &Semaphore,
) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    let mut taken: Option<SemaphorePermit<'_>> = None;
    if body.size_hint().lower() > limit as u64 {
        return Err(Problem::PayloadTooLarge { limit });
    }
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Problem::BadBody)?.into_data() else { continue };
        if data.len() > limit - whole.len() {
            return Err(Problem::PayloadTooLarge { limit });
        }
        let more = u32::try_from(data.len()).ok().and_then(|more| room.try_acquire_many(more).ok());
        let more = more.ok_or(Problem::BodiesBusy)?;
        match &mut taken {
            Some(taken) => taken.merge(more),
            None => taken = Some(more),
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// A header's value in memory of its own.
pub(super) fn copy_of(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("the bytes of a header's value make one")
}

/// A header's value as agents get it: one character per byte.
pub(super) fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    let bytes = value.as_bytes();
    match str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => text.into(),
        _ => bytes.iter().copied().map(char::from).collect(),
    }
}
