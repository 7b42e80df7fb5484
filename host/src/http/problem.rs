//! The one place where errors become HTTP.
//!
//! Whatever refuses a request, on any floor, ends here as a [`Problem`] and leaves as an RFC 9457 document with a
//! stable `code`. The match has no wildcard: a new problem does not compile until its status is chosen. A
//! browser's `EventSource` gives up for good on anything but 200, so what a retry would mend is, for a client
//! that asks for an event stream by name, an event stream that only says when to come back.

use std::time::Duration;

use http::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use http::{Response, StatusCode};
use serde::{Deserialize, Serialize};

use super::accept::Accept;
use super::{Body, sse};
use crate::fault::{Facts, Fault, Source};
use crate::wasm::Gate;

/// Why a request is refused or has failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Nothing is at this target.
    NotFound,
    /// No run of this id is on record or in flight.
    NoSuchRun,
    /// The target names an agent, an instance or a run in a way that no name has.
    BadName(String),
    /// The method is not one of those that the target takes, which are these.
    MethodNotAllowed { allow: String },
    /// The client takes nothing that an agent could answer.
    NotAcceptable,
    /// The request's head has more fields than this.
    TooManyFields { limit: usize },
    /// The request's body is larger than this many bytes.
    PayloadTooLarge { limit: usize },
    /// Too much of other requests' bodies is being read.
    BodiesBusy,
    /// The request's body took too long.
    BodyTimeout,
    /// The request's body broke off.
    BadBody,
    /// The run is not under way, so it cannot be cancelled.
    RunEnded,
    /// What the query or the body asks for cannot be asked for; the text says why.
    BadRequest(String),
    /// The request shows no token that is taken, or, if none is `shown`, none at all.
    Unauthorized { shown: bool },
    /// Whoever says which requests may pass did not say it.
    AuthUnavailable,
    /// A web page may have sent it; the text says how that shows.
    CrossOrigin(&'static str),
    /// The agent is not served by the module that the request expects.
    DigestMismatch(String),
    /// A module was stopped at a gate; the text says why.
    ModuleRefused(Gate, String),
    /// No deployment that is kept has this module.
    UnknownModule(String),
    /// There is no earlier module to go back to.
    NothingToRollBackTo,
    /// A module could not be kept, or could not be loaded from where it is kept; the text says why.
    ModuleNotStored(String),
    /// The key of the request was that of another request.
    KeyReused,
    /// What the run answered that the request's key stands for is not kept.
    ReplyNotKept,
    /// The run could not begin, or did not end well.
    Fault(Fault),
    /// What a run that has failed said of it, as it is kept.
    Again { status: StatusCode, document: String },
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Problem {
    /// The status of the response.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NotFound | Self::NoSuchRun | Self::UnknownModule(_) => StatusCode::NOT_FOUND,
            Self::BadName(_) | Self::BadBody | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Unauthorized { .. } => StatusCode::UNAUTHORIZED,
            Self::AuthUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::CrossOrigin(_) => StatusCode::FORBIDDEN,
            Self::DigestMismatch(_) => StatusCode::PRECONDITION_FAILED,
            Self::ModuleRefused(..) | Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::ModuleNotStored(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Self::NotAcceptable => StatusCode::NOT_ACCEPTABLE,
            Self::TooManyFields { .. } => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::PayloadTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::BodiesBusy => StatusCode::SERVICE_UNAVAILABLE,
            Self::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::RunEnded | Self::NothingToRollBackTo | Self::ReplyNotKept => StatusCode::CONFLICT,
            Self::Again { status, .. } => *status,
            Self::Fault(fault) => match fault {
                Fault::UnknownAgent => StatusCode::NOT_FOUND,
                Fault::InstanceBusy { .. } | Fault::AgentBusy { .. } => {
                    StatusCode::TOO_MANY_REQUESTS
                }
                Fault::HostBusy { .. }
                | Fault::AgentFull { .. }
                | Fault::Draining
                | Fault::JournalUnavailable
                | Fault::AgentUnavailable
                | Fault::MigrationFailed => StatusCode::SERVICE_UNAVAILABLE,
                Fault::BadRequest(_) => StatusCode::BAD_REQUEST,
                Fault::AgentTrapped | Fault::Limit(_) | Fault::BadResponse(_) => {
                    StatusCode::BAD_GATEWAY
                }
                // A 503 would have clients run again what someone cancelled.
                Fault::Cancelled => StatusCode::CONFLICT,
                // The last two end runs that no client waits for any more, and are here to be complete.
                Fault::AgentFailed | Fault::Internal | Fault::Interrupted | Fault::GaveUp => {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            },
        }
    }

    /// The problem that a run has failed with, from the document that is kept of it, which has no status.
    pub fn again(document: &str) -> Self {
        #[derive(Default, Serialize, Deserialize)]
        #[serde(default)]
        struct Document {
            r#type: String,
            title: String,
            status: u16,
            detail: String,
            code: String,
            source: String,
        }
        let mut document: Document = serde_json::from_str(document).unwrap_or_default();
        let status = status_of_failed(&document.code);
        document.status = status.as_u16();
        let document = serde_json::to_string(&document);
        Self::Again { status, document: document.expect("strings and a number always serialize") }
    }

    /// Whether the same request may well succeed a little later.
    pub fn is_passing(&self) -> bool {
        matches!(self.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
    }

    /// The document of this problem.
    pub fn json(&self) -> String {
        if let Self::Again { document, .. } = self {
            return document.clone();
        }
        self.facts().json(Some(self.status().as_u16()))
    }

    /// The response to a client that accepts this and that should come back, if it does, after `retry`.
    pub fn response(&self, accept: Accept, retry: Duration) -> Response<Body> {
        if self.is_passing() && accept.names_events() {
            return sse::come_back(retry);
        }
        let mut response = Response::new(Body::full(self.json()));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if self.is_passing() {
            headers.insert(RETRY_AFTER, HeaderValue::from(retry.as_secs_f64().ceil() as u64));
        }
        if let Self::MethodNotAllowed { allow } = self
            && let Ok(allow) = HeaderValue::from_str(allow)
        {
            headers.insert(ALLOW, allow);
        }
        if let Self::Unauthorized { shown } = self {
            let challenge = if *shown { "Bearer error=\"invalid_token\"" } else { "Bearer" };
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        response
    }

    fn facts(&self) -> Facts {
        let (code, title, detail) = match self {
            Self::NotFound => (
                "not-found",
                "Not found",
                "nothing is here; agents answer at /agents/{agent}/{instance} on the public address".into(),
            ),
            Self::NoSuchRun => (
                "not-found",
                "Not found",
                "no run of this id is known: there was none, it has emitted nothing that is on record, or it is no longer kept".into(),
            ),
            Self::BadName(message) => ("bad-name", "Bad name", message.clone().into()),
            Self::MethodNotAllowed { allow } => {
                ("method-not-allowed", "Method not allowed", format!("this takes {allow}").into())
            }
            Self::NotAcceptable => (
                "not-acceptable",
                "Not acceptable",
                "the request accepts neither events nor documents".into(),
            ),
            Self::TooManyFields { limit } => (
                "too-many-header-fields",
                "Too many header fields",
                format!("a request's head takes at most {limit} fields").into(),
            ),
            Self::PayloadTooLarge { limit } => (
                "payload-too-large",
                "Payload too large",
                format!("a request's body takes at most {limit} bytes").into(),
            ),
            Self::BodiesBusy => (
                "bodies-busy",
                "Bodies busy",
                "the bodies of too many requests are being read".into(),
            ),
            Self::BodyTimeout => {
                ("body-timeout", "Body timeout", "the request's body took too long".into())
            }
            Self::BadBody => ("bad-body", "Bad body", "the request's body broke off".into()),
            Self::RunEnded => ("run-ended", "Run ended", "the run is not under way".into()),
            Self::BadRequest(why) => ("bad-request", "Bad request", why.clone().into()),
            Self::Unauthorized { .. } => (
                "unauthorized",
                "Unauthorized",
                "the request must carry a token that is taken here, as `Authorization: Bearer ..`"
                    .into(),
            ),
            Self::AuthUnavailable => (
                "auth-unavailable",
                "Authentication unavailable",
                "whether the request may pass could not be found out, so it was not passed on"
                    .into(),
            ),
            Self::CrossOrigin(how) => (
                "cross-origin",
                "Cross-origin request",
                format!("the request {how}, so a web page may have sent it; operate the host with a token, or without a browser").into(),
            ),
            Self::DigestMismatch(why) => {
                ("digest-mismatch", "Digest mismatch", why.clone().into())
            }
            Self::ModuleRefused(gate, why) => {
                let (code, title) = match gate {
                    Gate::Size => ("module-too-large", "Module too large"),
                    Gate::Compilation => ("module-not-compiled", "Module not compiled"),
                    Gate::Interface => ("module-does-not-fit", "Module does not fit"),
                    Gate::Capabilities => ("module-not-granted", "Module not granted"),
                    Gate::Instantiation => ("module-not-instantiated", "Module not instantiated"),
                    Gate::Health => ("module-unhealthy", "Module unhealthy"),
                };
                return Facts { code, title, detail: why.clone().into(), source: Source::Agent };
            }
            Self::UnknownModule(why) => ("unknown-module", "Unknown module", why.clone().into()),
            Self::NothingToRollBackTo => (
                "nothing-to-roll-back-to",
                "Nothing to roll back to",
                "no deployment of the agent that is kept has another module than the one that serves".into(),
            ),
            Self::ModuleNotStored(why) => {
                ("module-not-stored", "Module not stored", why.clone().into())
            }
            Self::KeyReused => (
                "key-reused",
                "Key reused",
                "another request to this instance had this Idempotency-Key; a new request takes a new one".into(),
            ),
            Self::ReplyNotKept => (
                "reply-not-kept",
                "Reply not kept",
                "the run that this key began has answered, with a body that is not kept".into(),
            ),
            Self::Fault(fault) => return fault.facts(),
            Self::Again { .. } => return Fault::Internal.facts(),
        };
        Facts { code, title, detail, source: Source::Host }
    }
}

/// The status of a run that failed with this code after it had begun.
fn status_of_failed(code: &str) -> StatusCode {
    match code {
        "bad-request" => StatusCode::BAD_REQUEST,
        "cancelled" => StatusCode::CONFLICT,
        "agent-trapped" | "bad-response" => StatusCode::BAD_GATEWAY,
        limit if limit.ends_with("-limit") => StatusCode::BAD_GATEWAY,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Limit;
    use http::HeaderMap;
    use http::header::ACCEPT;
    use http_body_util::BodyExt as _;

    const RETRY: Duration = Duration::from_millis(1500);

    fn event_source() -> Accept {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("text/event-stream"));
        Accept::of(&headers)
    }

    async fn text(response: Response<Body>) -> String {
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        String::from_utf8(bytes.into()).unwrap()
    }

    fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[tokio::test]
    async fn a_problem_is_an_rfc_9457_document() {
        let response = Problem::PayloadTooLarge { limit: 10 }.response(Accept::ANY, RETRY);
        assert_eq!(response.status(), 413);
        assert_eq!(header(&response, "content-type"), Some("application/problem+json"));
        assert_eq!(header(&response, "cache-control"), Some("no-store"));
        assert_eq!(header(&response, "x-content-type-options"), Some("nosniff"));
        assert_eq!(header(&response, "retry-after"), None);
        assert_eq!(
            text(response).await,
            r#"{"type":"about:blank","title":"Payload too large","status":413,"detail":"a request's body takes at most 10 bytes","code":"payload-too-large","source":"host"}"#,
        );
    }

    #[test]
    fn every_problem_has_its_status_and_code() {
        let limit = |limit| Problem::Fault(Fault::Limit(limit));
        let refused = |gate| Problem::ModuleRefused(gate, String::new());
        let table = [
            (Problem::NotFound, 404, "not-found"),
            (Problem::NoSuchRun, 404, "not-found"),
            (Problem::BadName(String::new()), 400, "bad-name"),
            (Problem::MethodNotAllowed { allow: "GET".into() }, 405, "method-not-allowed"),
            (Problem::NotAcceptable, 406, "not-acceptable"),
            (Problem::TooManyFields { limit: 1 }, 431, "too-many-header-fields"),
            (Problem::PayloadTooLarge { limit: 1 }, 413, "payload-too-large"),
            (Problem::BodiesBusy, 503, "bodies-busy"),
            (Problem::BodyTimeout, 408, "body-timeout"),
            (Problem::BadBody, 400, "bad-body"),
            (Problem::RunEnded, 409, "run-ended"),
            (Problem::BadRequest(String::new()), 400, "bad-request"),
            (Problem::Unauthorized { shown: true }, 401, "unauthorized"),
            (Problem::AuthUnavailable, 503, "auth-unavailable"),
            (Problem::CrossOrigin(""), 403, "cross-origin"),
            (Problem::DigestMismatch(String::new()), 412, "digest-mismatch"),
            (refused(Gate::Size), 422, "module-too-large"),
            (refused(Gate::Compilation), 422, "module-not-compiled"),
            (refused(Gate::Interface), 422, "module-does-not-fit"),
            (refused(Gate::Capabilities), 422, "module-not-granted"),
            (refused(Gate::Instantiation), 422, "module-not-instantiated"),
            (refused(Gate::Health), 422, "module-unhealthy"),
            (Problem::UnknownModule(String::new()), 404, "unknown-module"),
            (Problem::NothingToRollBackTo, 409, "nothing-to-roll-back-to"),
            (Problem::ModuleNotStored(String::new()), 500, "module-not-stored"),
            (Fault::UnknownAgent.into(), 404, "unknown-agent"),
            (Fault::InstanceBusy { limit: 1 }.into(), 429, "instance-busy"),
            (Fault::AgentBusy { limit: 1 }.into(), 429, "agent-busy"),
            (Fault::AgentFull { limit: 1 }.into(), 503, "agent-full"),
            (Fault::HostBusy { limit: 1 }.into(), 503, "host-busy"),
            (Fault::Draining.into(), 503, "draining"),
            (Fault::JournalUnavailable.into(), 503, "journal-unavailable"),
            (Fault::AgentUnavailable.into(), 503, "agent-unavailable"),
            (Fault::MigrationFailed.into(), 503, "migration-failed"),
            (Fault::Internal.into(), 500, "internal"),
            (Fault::BadRequest(String::new()).into(), 400, "bad-request"),
            (Fault::AgentFailed.into(), 500, "agent-failed"),
            (Fault::AgentTrapped.into(), 502, "agent-trapped"),
            (limit(Limit::Cpu(Duration::ZERO)), 502, "cpu-limit"),
            (limit(Limit::Memory(1)), 502, "memory-limit"),
            (limit(Limit::Turn(1)), 502, "turn-limit"),
            (limit(Limit::CoreInstances(1)), 502, "core-instance-limit"),
            (limit(Limit::Memories(1)), 502, "memories-limit"),
            (limit(Limit::Tables(1)), 502, "table-limit"),
            (limit(Limit::Handles(1)), 502, "handle-limit"),
            (limit(Limit::RunTime(Duration::ZERO)), 502, "run-time-limit"),
            (limit(Limit::RunCpu(Duration::ZERO)), 502, "run-cpu-limit"),
            (limit(Limit::RunEvents(1)), 502, "run-events-limit"),
            (limit(Limit::RunBytes(1)), 502, "run-bytes-limit"),
            (Fault::BadResponse(String::new()).into(), 502, "bad-response"),
            (Fault::Cancelled.into(), 409, "cancelled"),
            (Fault::Interrupted.into(), 500, "interrupted"),
            (Fault::GaveUp.into(), 500, "gave-up"),
        ];
        for (problem, status, code) in table {
            assert_eq!((problem.status().as_u16(), problem.facts().code), (status, code));
            let retry_after =
                header(&problem.response(Accept::ANY, RETRY), "retry-after").map(str::to_owned);
            let expected = matches!(status, 429 | 503).then(|| "2".to_owned());
            assert_eq!(retry_after, expected, "{code}");
        }
    }

    #[test]
    fn a_wrong_method_is_told_the_right_ones() {
        let response =
            Problem::MethodNotAllowed { allow: "GET, HEAD".into() }.response(Accept::ANY, RETRY);
        assert_eq!(header(&response, "allow"), Some("GET, HEAD"));
    }

    #[tokio::test]
    async fn any_other_non_200_is_never_for_something_that_a_retry_would_mend() {
        for fault in [Fault::Draining, Fault::InstanceBusy { limit: 1 }, Fault::JournalUnavailable]
        {
            let response = Problem::from(fault).response(event_source(), RETRY);
            assert_eq!(response.status(), 200);
            assert_eq!(header(&response, "content-type"), Some("text/event-stream"));
            assert_eq!(text(response).await, "retry: 1500\n");
        }
        let response = Problem::from(Fault::UnknownAgent).response(event_source(), RETRY);
        assert_eq!(response.status(), 404, "what no retry mends stays final");
    }

    #[test]
    fn a_failure_that_is_told_again_has_the_status_that_it_had() {
        let faults = [
            Fault::BadRequest("no".into()),
            Fault::AgentFailed,
            Fault::AgentTrapped,
            Fault::Limit(Limit::Turn(5)),
            Fault::BadResponse("no".into()),
            Fault::Cancelled,
            Fault::Interrupted,
            Fault::GaveUp,
            Fault::Internal,
        ];
        for fault in faults {
            let again = Problem::again(&fault.json());
            let first = Problem::from(fault);
            assert_eq!(again.status(), first.status());
            assert_eq!(again.json(), first.json());
        }
    }
}
