//! Views of a run's events other than Server-Sent Events, and the body that sends them.
//!
//! **Problem.** Not every client speaks Server-Sent Events: a terminal wants text, a script lines of JSON, a `fetch` one
//! document. All read the same journal.
//!
//! **Mechanism.** A [`View`] turns events into bytes, one after the other, and says how the end of the run looks.
//! [`ViewBody`] is a [`Reader`] with a view. A run that did not end well, or that the host's end cuts off, breaks off a view that
//! has no word for that: no client takes half a text for a whole one.
//!
//! **Limits.** Those of the reader: one page at a time. Most of these formats have no place for heartbeats; what a
//! proxy cuts can be read again, and by lines from where it stopped.
//!
//! **Cost.** A page is put into bytes for each reader.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http_body::Frame;
use pin_project_lite::pin_project;
use serde::Serialize;
use tokio::time::{Instant, Sleep};

use super::sse::{self, Broken};
use super::ui_messages::UiMessages;
use crate::format::Format;
use crate::id::{Cursor, RunId};
use crate::journal::{Event, Outcome, Reader, RunState, Step};
use crate::shutdown::Begun;

/// How events become bytes. What one writes is whole: it may be sent before the next is asked for.
pub(super) trait View: Send {
    /// What comes before all events.
    fn begin(&mut self, run: RunId, out: &mut Vec<u8>);

    /// One event.
    fn event(&mut self, run: RunId, event: &Event, out: &mut Vec<u8>);

    /// The end of the run; an error is one that the body ends with.
    fn end(&mut self, outcome: &Outcome, out: &mut Vec<u8>) -> Result<(), Broken>;

    /// What says that the stream is alive when nothing happens, if the format has a word for it.
    fn heartbeat(&self) -> Option<&'static [u8]> {
        None
    }
}

/// The view of a format, which is none for events: they have a body of their own.
fn view(format: Format) -> Option<Box<dyn View>> {
    Some(match format {
        Format::Events => return None,
        Format::Text => Box::new(Text),
        Format::Lines => Box::new(Lines),
        Format::Document => Box::new(Document { events: 0 }),
        Format::UiMessages => Box::new(UiMessages::default()),
    })
}

/// Puts on the headers of a view.
pub(super) fn insert_headers(format: Format, headers: &mut HeaderMap) {
    let content_type = match format {
        Format::Events | Format::UiMessages => "text/event-stream",
        Format::Text => "text/plain; charset=utf-8",
        Format::Lines => "application/x-ndjson",
        Format::Document => "application/json",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    sse::insert_stream_headers(headers);
    if format == Format::UiMessages {
        let protocol = HeaderName::from_static("x-vercel-ai-ui-message-stream");
        headers.insert(protocol, HeaderValue::from_static("v1"));
    }
}

/// What is text to who reads text: events without a name, and the pieces of a model's answer.
pub(super) fn is_text(event: &Event) -> bool {
    event.name.as_deref().is_none_or(|name| matches!(name, "" | "message" | "text-delta"))
}

struct Text;

impl View for Text {
    fn begin(&mut self, _: RunId, _: &mut Vec<u8>) {}

    fn event(&mut self, _: RunId, event: &Event, out: &mut Vec<u8>) {
        if is_text(event) {
            out.extend_from_slice(event.data.as_bytes());
        }
    }

    fn end(&mut self, outcome: &Outcome, _: &mut Vec<u8>) -> Result<(), Broken> {
        match outcome.state {
            RunState::Finished => Ok(()),
            _ => {
                Err(Broken(outcome.code.clone().unwrap_or_else(|| "the run did not finish".into())))
            }
        }
    }
}

/// An event as JSON.
#[derive(Serialize)]
struct Object<'a> {
    seq: u64,
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    event: Option<&'a str>,
    data: &'a str,
}

fn object(run: RunId, event: &Event, out: &mut Vec<u8>) {
    let id = match &event.id {
        Some(id) => id.to_string(),
        None => Cursor { run, seq: event.seq }.to_string(),
    };
    let object = Object { seq: event.seq.0, id, event: event.name.as_deref(), data: &event.data };
    serde_json::to_writer(out, &object).expect("strings and a number always serialize");
}

struct Lines;

impl View for Lines {
    fn begin(&mut self, _: RunId, _: &mut Vec<u8>) {}

    fn event(&mut self, run: RunId, event: &Event, out: &mut Vec<u8>) {
        object(run, event, out);
        out.push(b'\n');
    }

    fn end(&mut self, _: &Outcome, _: &mut Vec<u8>) -> Result<(), Broken> {
        Ok(())
    }
}

struct Document {
    events: usize,
}

impl View for Document {
    fn begin(&mut self, run: RunId, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{{\"run\":\"{run}\",\"events\":[").as_bytes());
    }

    fn event(&mut self, run: RunId, event: &Event, out: &mut Vec<u8>) {
        if self.events > 0 {
            out.push(b',');
        }
        self.events += 1;
        object(run, event, out);
    }

    fn end(&mut self, outcome: &Outcome, out: &mut Vec<u8>) -> Result<(), Broken> {
        #[derive(Serialize)]
        struct End<'a> {
            state: RunState,
            #[serde(skip_serializing_if = "Option::is_none")]
            code: Option<&'a str>,
        }
        let end = End { state: outcome.state, code: outcome.code.as_deref() };
        let end = serde_json::to_vec(&end).expect("a word and a string always serialize");
        out.extend_from_slice(b"],");
        // Without its opening brace, as it goes on in the document's.
        out.extend_from_slice(end.get(1..).unwrap_or_default());
        Ok(())
    }
}

pin_project! {
    /// The body of a view.
    pub struct ViewBody {
        reader: Reader,
        view: Box<dyn View>,
        begun: bool,
        end: Option<Result<(), Broken>>,
        heartbeat: Duration,
        // Rings when nothing was sent for as long.
        #[pin]
        idle: Sleep,
        #[pin]
        drain: Begun,
    }
}

impl ViewBody {
    /// Sends what `reader` reads in this format, if it is not that of events. When `drain` begins the body breaks off after a
    /// whole event.
    pub(super) fn new(
        reader: Reader,
        format: Format,
        heartbeat: Duration,
        drain: Begun,
    ) -> Result<Self, Reader> {
        let Some(view) = view(format) else { return Err(reader) };
        let idle = tokio::time::sleep(heartbeat);
        Ok(Self { reader, view, begun: false, end: None, heartbeat, idle, drain })
    }
}

impl http_body::Body for ViewBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut this = self.project();
        let run = this.reader.tail().run();
        let mut out = Vec::new();
        if !std::mem::replace(this.begun, true) {
            this.view.begin(run, &mut out);
        }
        if this.end.is_none() && this.drain.as_mut().poll(cx).is_ready() {
            *this.end = Some(Err(Broken("the host is shutting down".into())));
        }
        while out.is_empty() && this.end.is_none() {
            match this.reader.poll_next(cx) {
                Poll::Ready(Step::Events(page)) => {
                    page.iter().for_each(|event| this.view.event(run, event, &mut out));
                }
                Poll::Ready(Step::End(outcome)) => {
                    *this.end = Some(this.view.end(&outcome, &mut out));
                }
                Poll::Ready(Step::Broken(reason)) => *this.end = Some(Err(Broken(reason))),
                Poll::Pending => {
                    let Some(heartbeat) = this.view.heartbeat() else { return Poll::Pending };
                    ready!(this.idle.as_mut().poll(cx));
                    out.extend_from_slice(heartbeat);
                }
            }
        }
        if out.is_empty() {
            // An error is told once.
            let end = this.end.replace(Ok(()));
            return Poll::Ready(end.and_then(Result::err).map(Err));
        }
        this.idle.as_mut().reset(Instant::now() + *this.heartbeat);
        Poll::Ready(Some(Ok(Frame::data(out.into()))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.end, Some(Ok(())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::Seq;

    fn run() -> RunId {
        "01J8Z2V9F6T3X0K4M5N7P8Q9RS".parse().unwrap()
    }

    fn event(seq: u64, name: &str, data: &str) -> Event {
        let name = (!name.is_empty()).then(|| name.to_owned());
        Event::new(Seq(seq), name, None, data.into())
    }

    fn outcome(state: RunState, code: Option<&str>) -> Outcome {
        Outcome { state, code: code.map(Into::into) }
    }

    /// All that a view makes of a run.
    fn viewed(format: Format, events: &[Event], end: Outcome) -> (String, Result<(), Broken>) {
        let mut view = view(format).expect("it is not that of events");
        let mut out = Vec::new();
        view.begin(run(), &mut out);
        events.iter().for_each(|event| view.event(run(), event, &mut out));
        let ended = view.end(&end, &mut out);
        (String::from_utf8(out).unwrap(), ended)
    }

    #[test]
    fn text_is_what_is_text_and_breaks_off_where_the_run_did_not_finish() {
        let events = [
            event(1, "", "Hel\r\n"),
            event(2, "progress", "50 %"),
            event(3, "text-delta", "lo"),
            event(4, "message", "!"),
        ];
        let (text, ended) = viewed(Format::Text, &events, outcome(RunState::Finished, None));
        assert_eq!((text.as_str(), ended.is_ok()), ("Hel\r\nlo!", true));
        let failed = outcome(RunState::Failed, Some("cpu-limit"));
        let (_, ended) = viewed(Format::Text, &[event(1, "failed", "{}")], failed);
        assert!(ended.unwrap_err().to_string().contains("cpu-limit"));
    }

    #[test]
    fn each_line_is_an_object_that_says_where_to_go_on() {
        let mut own = event(2, "", "two\nlines");
        own.id = Some("mine".into());
        let end = outcome(RunState::Failed, Some("agent-failed"));
        let (text, ended) = viewed(Format::Lines, &[event(1, "a", "\"x\""), own], end);
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let first = serde_json::json!(
            { "seq": 1, "id": format!("{}-1", run()), "event": "a", "data": "\"x\"" }
        );
        let second = serde_json::json!({ "seq": 2, "id": "mine", "data": "two\nlines" });
        assert_eq!(lines, [first, second]);
        assert!(ended.is_ok() && text.ends_with('\n'));
    }

    #[test]
    fn a_document_is_one_however_many_events_there_are() {
        for count in 0..3 {
            let events: Vec<_> = (1..=count).map(|seq| event(seq, "", "x")).collect();
            let end = outcome(RunState::Failed, Some("agent-failed"));
            let (text, ended) = viewed(Format::Document, &events, end);
            let document: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(document["run"], run().to_string());
            assert_eq!(document["events"].as_array().unwrap().len() as u64, count);
            assert_eq!(
                (&document["state"], &document["code"]),
                (&"failed".into(), &"agent-failed".into())
            );
            assert!(ended.is_ok());
        }
    }

    /// The parts of a UI message stream.
    fn parts(events: &[Event], end: Outcome) -> Vec<serde_json::Value> {
        let (text, ended) = viewed(Format::UiMessages, events, end);
        assert!(ended.is_ok());
        let frames = text.strip_suffix("data: [DONE]\n\n").expect("it says that it is over");
        let frames = frames.split_terminator("\n\n").map(|frame| frame.strip_prefix("data: "));
        frames.map(|frame| serde_json::from_str(frame.unwrap()).unwrap()).collect()
    }

    #[test]
    fn ui_messages_have_the_blocks_that_are_implied() {
        let events = [
            event(1, "reasoning-delta", "hm"),
            event(2, "text-delta", "It is "),
            event(3, "tool-call", r#"{"toolCallId":"1","toolName":"time","input":{},"more":1}"#),
            event(4, "tool-result", r#"{"toolCallId":"1","output":"noon"}"#),
            event(5, "tool-result", r#"{"toolCallId":"2","errorText":"no"}"#),
            event(6, "step", "{}"),
            event(7, "", "noon"),
            event(8, "", "."),
            event(9, "weather", "{\"sun\":true}"),
            event(10, "tool-call", "not JSON"),
            event(11, "finish", r#"{"finishReason":"stop"}"#),
        ];
        let expected = serde_json::json!([
            { "type": "start", "messageId": run().to_string() },
            { "type": "start-step" },
            { "type": "reasoning-start", "id": "1" },
            { "type": "reasoning-delta", "id": "1", "delta": "hm" },
            { "type": "reasoning-end", "id": "1" },
            { "type": "text-start", "id": "2" },
            { "type": "text-delta", "id": "2", "delta": "It is " },
            { "type": "text-end", "id": "2" },
            { "type": "tool-input-available", "toolCallId": "1", "toolName": "time", "input": {} },
            { "type": "tool-output-available", "toolCallId": "1", "output": "noon" },
            { "type": "tool-output-error", "toolCallId": "2", "errorText": "no" },
            { "type": "finish-step" },
            { "type": "start-step" },
            { "type": "text-start", "id": "3" },
            { "type": "text-delta", "id": "3", "delta": "noon" },
            { "type": "text-delta", "id": "3", "delta": "." },
            { "type": "text-end", "id": "3" },
            { "type": "data-weather", "data": { "sun": true } },
            { "type": "data-tool-call", "data": "not JSON" },
            { "type": "finish-step" },
            { "type": "finish", "messageMetadata": { "finishReason": "stop" } },
        ]);
        let parts = parts(&events, outcome(RunState::Finished, None));
        assert_eq!(serde_json::Value::from(parts), expected);
    }

    #[test]
    fn ui_messages_say_how_a_run_ended_that_did_not_finish() {
        let types = |parts: Vec<serde_json::Value>| -> Vec<String> {
            parts.iter().map(|part| part["type"].as_str().unwrap().to_owned()).collect()
        };
        let failed = [event(1, "", "x"), event(2, "failed", r#"{"detail":"the agent crashed"}"#)];
        let parts_of = parts(&failed, outcome(RunState::Failed, Some("agent-trapped")));
        assert_eq!(parts_of.last().unwrap()["errorText"], "the agent crashed");
        let ends = ["start", "start-step", "text-start", "text-delta", "text-end", "error"];
        assert_eq!(types(parts_of), ends);
        let last = event(1, "failed", r#"{"code":"cancelled","detail":"the run was cancelled"}"#);
        let cancelled = parts(&[last], outcome(RunState::Cancelled, Some("cancelled")));
        assert_eq!(types(cancelled), ["start", "start-step", "abort"]);
    }
}
