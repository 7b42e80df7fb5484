//! Server-Sent Events: what an event is on the wire, and the body that sends them.
//!
//! **Problem.** A stream must come through proxies, be resumable after every single event, survive clients
//! that read the specification in their own way, and cost next to nothing while nothing happens.
//!
//! **Mechanism.** Framing is a set of pure functions. [`EventsBody`] is a function of a [`Reader`] and a clock:
//! it opens with a comment, so that headers and a first byte leave at once, then sends what the reader has,
//! and a comment when there is nothing for a while. Comments and `retry` are never followed by a blank line:
//! some clients would dispatch an event for it.
//!
//! **Limits.** A body is only asked for more when the connection has room, so a slow client holds one page of
//! events at a time. On HTTP/1 a stuck one is cut by the server's write timeout; on HTTP/2 a client may keep
//! one stream stuck while it answers pings, at the cost of that page.
//!
//! **Cost.** An idle body is a reader, two timers' worth of memory and no task. An event that many wait for is
//! framed once and shared; a page that one reader fetches is framed into one buffer.

use std::future::Future as _;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::Response;
use http::header::{
    CACHE_CONTROL, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, X_CONTENT_TYPE_OPTIONS,
};
use http_body::Frame;
use memchr::memchr2;
use pin_project_lite::pin_project;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::Body;
use crate::id::{Cursor, RunId, Seq};
use crate::journal::{Event, NotResumable, Page, Reader, Step};
use crate::shutdown::Begun;

/// A comment, which keeps the connection open and reveals a client that has gone.
const HEARTBEAT: Bytes = Bytes::from_static(b":\n");

/// Puts on the headers of an event stream.
pub fn insert_headers(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    insert_stream_headers(headers);
}

/// Puts on the headers of whatever comes bit by bit.
pub(super) fn insert_stream_headers(headers: &mut HeaderMap) {
    // A proxy that compresses or buffers would hold events back.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, no-transform"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// The response to a client that should come back after `retry`: an event stream that says so and ends.
pub fn come_back(retry: Duration) -> Response<Body> {
    let mut response = Response::new(Body::full(retry_field(retry)));
    insert_headers(response.headers_mut());
    response
}

/// The first bytes of a stream. The comment comes first so that nothing an agent sends can be taken for a
/// byte order mark.
pub fn preamble(retry: Duration) -> Bytes {
    format!(":\nretry: {}\n", retry.as_millis()).into()
}

/// The event that opens a stream whose client sent a `Last-Event-ID` that cannot be resumed. Its own id stands
/// before the first event of the run that is streamed instead.
pub fn reset(run: RunId, last_event_id: &str, reason: NotResumable) -> Bytes {
    #[derive(Serialize)]
    struct Reset<'a> {
        id: &'a str,
        reason: NotResumable,
    }
    let data = serde_json::to_string(&Reset { id: last_event_id, reason })
        .expect("a string and a unit variant always serialize");
    frame(run, &Event::new(Seq::ZERO, Some("reset".into()), None, data))
}

/// What keeps a stream open on which nothing happens.
pub fn heartbeat() -> Bytes {
    HEARTBEAT
}

/// A message of the host's own, which no one resumes from.
pub fn message(name: &str, data: &str) -> Bytes {
    let mut bytes = Vec::new();
    field("event", name, &mut bytes);
    lines(data).for_each(|line| field("data", line, &mut bytes));
    bytes.extend_from_slice(b"\n");
    bytes.into()
}

/// An event of a run on the wire.
pub fn frame(run: RunId, event: &Event) -> Bytes {
    let mut bytes = Vec::with_capacity(frame_len(event));
    write_frame(run, event, &mut bytes);
    bytes.into()
}

pub(super) fn retry_field(retry: Duration) -> Bytes {
    format!("retry: {}\n", retry.as_millis()).into()
}

/// At least the bytes of an event's frame, and few more.
fn frame_len(event: &Event) -> usize {
    let id = event.id.as_ref().map_or(Cursor::MAX_LEN, |id| id.len());
    let name = event.name.as_ref().map_or(0, |name| name.len());
    let data: usize = lines(&event.data).map(|line| "data: \n".len() + line.len()).sum();
    "id: \nevent: \n\n".len() + id + name + data
}

fn write_frame(run: RunId, event: &Event, out: &mut Vec<u8>) {
    // Each event has its id, since some clients do not carry the last one forward.
    match &event.id {
        Some(id) => field("id", id, out),
        None => {
            let cursor = Cursor { run, seq: event.seq };
            writeln!(out, "id: {cursor}").expect("a buffer that grows takes every write");
        }
    }
    if let Some(name) = event.name.as_deref().filter(|name| !name.is_empty()) {
        field("event", name, out);
    }
    for line in lines(&event.data) {
        field("data", line, out);
    }
    out.extend_from_slice(b"\n");
}

fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    // A client strips one space, so a value that starts with one keeps it.
    out.extend_from_slice(if value.is_empty() { b":" } else { b": " });
    out.extend_from_slice(value.as_bytes());
    out.extend_from_slice(b"\n");
}

/// The lines of an event's data. LF, CR and CRLF each are one break, as a client reads them.
fn lines(data: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(data);
    std::iter::from_fn(move || {
        let text = rest?;
        let Some(end) = memchr2(b'\r', b'\n', text.as_bytes()) else {
            rest = None;
            return Some(text);
        };
        let width = if text[end..].starts_with("\r\n") { 2 } else { 1 };
        rest = Some(&text[end + width..]);
        Some(&text[..end])
    })
}

/// When a stream writes of itself.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// How long a stream is idle before it sends a comment.
    pub heartbeat: Duration,
    /// When a client should come back that lost the stream.
    pub retry: Duration,
}

/// The journal could not give what follows. The connection breaks off, which makes the client come back.
#[derive(Debug, thiserror::Error)]
#[error("the stream broke: {0}")]
pub struct Broken(pub(super) String);

pin_project! {
    /// The body of an event stream.
    pub struct EventsBody {
        run: RunId,
        pace: Pace,
        // What is sent before anything else.
        opening: Option<Bytes>,
        ended: bool,
        reader: Reader,
        // When something was sent last.
        sent: Instant,
        // Set again only when it rings, so that an event does not touch the timer.
        #[pin]
        idle: Sleep,
        #[pin]
        drain: Begun,
    }
}

impl EventsBody {
    /// Sends what `reader` reads, after a preamble and, if there is one, a [`reset`] event. When `drain`
    /// begins the stream ends after a whole event.
    pub fn new(reader: Reader, reset: Option<Bytes>, pace: Pace, drain: Begun) -> Self {
        let mut opening = BytesMut::from(preamble(pace.retry));
        opening.extend_from_slice(&reset.unwrap_or_default());
        Self {
            run: reader.tail().run(),
            pace,
            opening: Some(opening.freeze()),
            ended: false,
            reader,
            sent: Instant::now(),
            idle: tokio::time::sleep(pace.heartbeat),
            drain,
        }
    }
}

impl http_body::Body for EventsBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut this = self.project();
        if *this.ended {
            return Poll::Ready(None);
        }
        if let Some(opening) = this.opening.take() {
            return Poll::Ready(Some(Ok(Frame::data(opening))));
        }
        // Before the events, or a run that never pauses would never drain.
        if this.drain.poll(cx).is_ready() {
            *this.ended = true;
            return Poll::Ready(Some(Ok(Frame::data(retry_field(this.pace.retry)))));
        }
        let sent = match this.reader.poll_next(cx) {
            Poll::Ready(step) => match step {
                Step::Events(events) => frames(*this.run, &events),
                Step::End(_) => {
                    *this.ended = true;
                    return Poll::Ready(None);
                }
                Step::Broken(reason) => {
                    *this.ended = true;
                    return Poll::Ready(Some(Err(Broken(reason))));
                }
            },
            Poll::Pending => loop {
                ready!(this.idle.as_mut().poll(cx));
                let due = *this.sent + this.pace.heartbeat;
                if due <= Instant::now() {
                    this.idle.as_mut().reset(Instant::now() + this.pace.heartbeat);
                    break HEARTBEAT;
                }
                this.idle.as_mut().reset(due);
            },
        };
        *this.sent = Instant::now();
        Poll::Ready(Some(Ok(Frame::data(sent))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// A page of events on the wire. A page of one is most likely live, and its frame is shared with the other readers.
pub(super) fn frames(run: RunId, page: &Page) -> Bytes {
    match &**page {
        [event] => event.frame(|event| frame(run, event)),
        events => page.sending(framed(run, events)),
    }
}

fn framed(run: RunId, events: &[Arc<Event>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(events.iter().map(|event| frame_len(event)).sum());
    for event in events {
        write_frame(run, event, &mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests;
