//! Cross-origin requests (WHATWG Fetch, "CORS protocol"), by configuration.
//!
//! A browser's page may call an agent on another origin only if the host says so. Which origins may is a list;
//! any method and any header then may, since what they mean is the agent's affair; credentials may not. What an agent
//! says of its own about who may read an answer is then dropped. Without configured origins nothing here acts, and an agent may
//! do its own CORS. The cost is one comparison per configured origin.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};

use super::Body;
use super::asked::copy_of;
use crate::config::Cors;

/// Response headers that a page may read beyond the safe-listed ones.
const EXPOSED: HeaderValue = HeaderValue::from_static("bureau-run, bureau-module, retry-after");

/// How long a browser may remember a preflight's answer: Chromium's own ceiling, in seconds.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// Answers a preflight of an allowed origin. Any other request is not one for here.
pub(super) fn preflight<B>(cors: &Cors, request: &Request<B>) -> Option<Response<Body>> {
    if cors.origins.is_empty() {
        return None;
    }
    let headers = request.headers();
    let method = headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let origin = headers.get(header::ORIGIN).filter(|origin| allows(cors, origin))?;
    if request.method() != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let answer = response.headers_mut();
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, method.clone());
    if let Some(fields) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields.clone());
    }
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    allow(cors, Some(origin.clone()), answer);
    Some(response)
}

/// The origin of a request, if it matters.
pub(super) fn origin(cors: &Cors, headers: &HeaderMap) -> Option<HeaderValue> {
    if cors.origins.is_empty() { None } else { headers.get(header::ORIGIN).map(copy_of) }
}

/// Lets a page of an allowed origin read the response.
pub(super) fn allow(cors: &Cors, origin: Option<HeaderValue>, answer: &mut HeaderMap) {
    if cors.origins.is_empty() {
        return;
    }
    // Caches must not give one origin what was said to another.
    answer.append(header::VARY, HeaderValue::from_name(HeaderName::from_static("origin")));
    answer.remove(header::ACCESS_CONTROL_ALLOW_ORIGIN);
    if let Some(origin) = origin.filter(|origin| allows(cors, origin)) {
        answer.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        answer.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    }
}

fn allows(cors: &Cors, origin: &HeaderValue) -> bool {
    origin.to_str().is_ok_and(|origin| cors.allows(origin))
}
