//! What a run does, as a response.
//!
//! **Problem.** An agent answers with anything: a status that is none, header fields that no header may have or that are the connection's, events, nothing. What
//! a client gets of it is a response that HTTP can carry, or a problem, and it must not get it before what the answer depends on is durable.
//!
//! **Mechanism.** The [first thing](first_act) that a run does comes with a ticket, and is waited for with it. A response is checked field by field; what belongs to the
//! connection is dropped. Events become a stream in the format that the client or the agent wished for. Each response says which run on which
//! module gave it.
//!
//! **Limits.** What was sent cannot be taken back: a body that breaks off is known by its missing end. **Cost.** A copy of an agent's header fields.

use std::fmt::{Display, Write as _};
use std::pin::pin;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use http_body_util::{BodyExt as _, StreamBody};
use tokio::sync::oneshot;

use super::accept::Accept;
use super::api::{Api, Reset};
use super::problem::Problem;
use super::sse::{self, EventsBody, Pace};
use super::views::{self, ViewBody};
use super::{Body, BodyError};
use crate::fault::Fault;
use crate::format::Format;
use crate::id::{Digest, RunId};
use crate::journal::Reader;
use crate::wasm::{Answer, Answered, Chunks, Head, Response as AgentResponse, check_status};

const RUN: HeaderName = HeaderName::from_static("bureau-run");
const MODULE: HeaderName = HeaderName::from_static("bureau-module");

/// How many characters of an id are repeated to the client that sent it.
const MAX_ECHO: usize = 128;

/// Header fields that belong to a connection and not to what is sent over it (RFC 9110, 7.6.1), or that the
/// host writes itself. An agent's are dropped.
const NOT_THE_AGENTS: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

impl Api {
    /// The response of what a run did.
    pub(super) fn response(
        &self,
        answer: Answer,
        accept: Accept,
        reset: Option<Reset>,
    ) -> Result<Response<Body>, Fault> {
        match answer {
            Answer::Response(head, body) => respond(head, Body::full(body)),
            Answer::Chunks(head, chunks) => respond(head, chunked(chunks)),
            Answer::Exchange(response) => Ok(exchanged(*response)),
            Answer::Events(reader, wish) => Ok(self.stream(reader, accept.format(wish), reset)),
            Answer::NoContent => Ok(no_content()),
            Answer::Failed(fault) => Err(fault),
        }
    }

    /// A run's events in a format.
    pub(super) fn stream(
        &self,
        reader: Reader,
        format: Format,
        reset: Option<Reset>,
    ) -> Response<Body> {
        let (heartbeat, drain) = (self.config.http.heartbeat, self.shutdown.drain.begun());
        let body = match ViewBody::new(reader, format, heartbeat, drain) {
            Ok(view) => Body::View(Box::pin(view)),
            Err(reader) => self.events(reader, reset),
        };
        let mut response = Response::new(body);
        views::insert_headers(format, response.headers_mut());
        response
    }

    /// A run's events as a body of Server-Sent Events.
    fn events(&self, reader: Reader, reset: Option<Reset>) -> Body {
        let run = reader.tail().run();
        let reset = reset.map(|(id, why)| {
            let shown: String = id.chars().take(MAX_ECHO).collect();
            sse::reset(run, &shown, why)
        });
        let http = &self.config.http;
        let pace = Pace { heartbeat: http.heartbeat, retry: http.retry };
        let drain = self.shutdown.drain.begun();
        Body::Events(Box::pin(EventsBody::new(reader, reset, pace, drain)))
    }
}

/// The first thing that a run does, once it is durable.
pub(super) async fn first_act(
    answered: oneshot::Receiver<Answered>,
) -> Result<(Answer, Digest), Fault> {
    // The sender goes without an answer only when the host is forced to end.
    let Answered { answer, module, after } = answered.await.map_err(|_| Fault::Draining)?;
    after.durable().await.map_err(|_| Fault::JournalUnavailable)?;
    Ok((answer, module))
}

/// The first thing that a run does, unless the body of its request is refused before.
pub(super) async fn unless_refused(
    refused: oneshot::Receiver<Problem>,
    answered: oneshot::Receiver<Answered>,
) -> Result<(Answer, Digest), Problem> {
    let mut acted = pin!(first_act(answered));
    tokio::select! {
        biased;
        Ok(problem) = refused => Err(problem),
        acted = &mut acted => Ok(acted?),
    }
}

/// An agent's response, as far as HTTP can carry it.
pub(super) fn respond(head: Head, body: Body) -> Result<Response<Body>, Fault> {
    let bad = |why: String| Fault::BadResponse(why);
    check_status(head.status)?;
    let status = StatusCode::from_u16(head.status).map_err(|why| bad(why.to_string()))?;
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 2);
    for (name, value) in head.headers {
        let field = HeaderName::try_from(&name).map_err(|_| {
            bad(format!(
                "{:?} is not a header field's name",
                name.chars().take(80).collect::<String>()
            ))
        })?;
        let value = header_value(value).ok_or_else(|| {
            bad(format!("the value of {field} has a character that no header may have"))
        })?;
        if !NOT_THE_AGENTS.contains(&field) {
            headers.append(field, value);
        }
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A header's value that an agent gave: one byte per character.
fn header_value(text: String) -> Option<HeaderValue> {
    if text.is_ascii() {
        return HeaderValue::try_from(text).ok();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(char).ok()).collect();
    HeaderValue::try_from(bytes?).ok()
}

/// The response of an agent that speaks HTTP itself, which may say how long its body is and which trailers follow.
pub(super) fn exchanged(response: AgentResponse) -> Response<Body> {
    let mut response = response.map(Body::Chunks);
    for field in NOT_THE_AGENTS {
        if field != header::CONTENT_LENGTH && field != header::TRAILER {
            response.headers_mut().remove(field);
        }
    }
    response
}

/// A body that goes out as the guest writes it.
pub(super) fn chunked(chunks: Chunks) -> Body {
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async {
        let sent: Result<Bytes, BodyError> = match chunks.next().await? {
            Ok((bytes, after)) => after.durable().await.map(|()| bytes).map_err(Into::into),
            Err(truncated) => Err(truncated.into()),
        };
        Some((sent.map(http_body::Frame::data), chunks))
    });
    Body::Chunks(StreamBody::new(stream).boxed_unsync())
}

pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// The response for a request of this method: without its body for `HEAD`.
pub(super) fn for_method(method: &Method, mut response: Response<Body>) -> Response<Body> {
    if *method == Method::HEAD {
        *response.body_mut() = Body::empty();
    }
    response
}

/// Says which run on which module answered.
pub(super) fn identify(response: &mut Response<Body>, run: RunId, module: Digest) {
    response.headers_mut().insert(RUN, value(run, RunId::LEN));
    identify_module(response, module);
}

/// Says which module would answer.
pub(super) fn identify_module(response: &mut Response<Body>, module: Digest) {
    response.headers_mut().insert(MODULE, value(module, Digest::LEN));
}

/// An id that is so long, in a buffer of its size, which the value then keeps.
fn value(id: impl Display, len: usize) -> HeaderValue {
    let mut text = String::with_capacity(len);
    write!(text, "{id}").expect("a string takes any text");
    HeaderValue::try_from(text).expect("ids and digests are ASCII letters and digits")
}
