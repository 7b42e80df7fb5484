//! JSON documents that both addresses answer with, and what they are made of.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use serde::Serialize;
use serde::ser::Serializer;

use super::Body;
use crate::agent::LiveRun;
use crate::id::{AgentName, Digest, RunId};
use crate::journal::{RunRecord, RunState};

/// A time, written as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy)]
pub(super) struct Time(SystemTime);

impl Time {
    pub(super) fn of(time: SystemTime) -> Self {
        Self(time)
    }

    pub(super) fn now() -> Self {
        Self(SystemTime::now())
    }

    pub(super) fn of_ms(ms: u64) -> Self {
        // What is past the end of the year 9999 cannot be written, and no clock says it.
        const LAST: u64 = 253_402_300_799_999;
        Self(SystemTime::UNIX_EPOCH + Duration::from_millis(ms.min(LAST)))
    }
}

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_rfc3339_millis(self.0))
    }
}

/// What is written as its text.
pub(super) struct Text<T>(pub(super) T);

impl<T: std::fmt::Display> Serialize for Text<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

/// A run, as it is told of.
#[derive(Serialize)]
pub(super) struct RunView {
    run: Text<RunId>,
    agent: Text<AgentName>,
    instance: String,
    digest: Text<Digest>,
    state: RunState,
    code: Option<String>,
    started: Time,
    ended: Option<Time>,
    last_seq: u64,
    interruptions: u32,
}

impl From<RunRecord> for RunView {
    fn from(record: RunRecord) -> Self {
        Self {
            run: Text(record.run),
            agent: Text(record.instance.agent().clone()),
            instance: record.instance.name().to_owned(),
            digest: Text(record.module),
            state: record.state,
            code: record.code,
            started: Time::of_ms(record.started_ms),
            ended: record.ended_ms.map(Time::of_ms),
            last_seq: record.last.0,
            interruptions: record.interruptions,
        }
    }
}

impl From<LiveRun> for RunView {
    fn from(live: LiveRun) -> Self {
        Self {
            run: Text(live.run),
            agent: Text(live.instance.agent().clone()),
            instance: live.instance.name().to_owned(),
            digest: Text(live.module),
            state: RunState::Running,
            code: None,
            started: Time::of_ms(live.run.timestamp_ms()),
            ended: None,
            last_seq: 0,
            interruptions: 0,
        }
    }
}

impl RunView {
    pub(super) fn id(&self) -> RunId {
        self.run.0
    }
}

/// A document as text.
pub(super) fn json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("a document has string keys and finite numbers only")
}

/// The response of a document.
pub(super) fn respond(status: StatusCode, document: &impl Serialize) -> Response<Body> {
    of_type(status, json(document), "application/json")
}

/// A response that is not for keeping.
pub(super) fn of_type(
    status: StatusCode,
    text: impl Into<Bytes>,
    kind: &'static str,
) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
