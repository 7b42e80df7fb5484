//! A provider's answer to one request, from its event stream.
//!
//! **Problem.** Servers that call themselves compatible differ: in line ends and comments, in a last blank line, in `[DONE]`, in whether
//! calls of tools are numbered, in how an error comes. A byte stream is cut anywhere.
//!
//! **Mechanism.** A parser of event streams takes the bytes as they come; [`Completion`] takes its documents one at a time and says what
//! is new. An answer is whole when it has said why it finished.

use std::collections::BTreeMap;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt as _};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use super::Part;
use super::error::{ModelError, ProviderError};
use super::message::MessageCall;
use crate::fetch::FetchError;

/// The data of each event, in order.
pub(super) fn documents(
    chunks: impl Stream<Item = Result<Bytes, FetchError>>,
) -> impl Stream<Item = Result<String, ModelError>> {
    // Some servers leave out the blank line that ends the last event.
    let chunks = chunks.chain(stream::iter([Ok(Bytes::from_static(b"\n\n"))]));
    SseByteStream::new(chunks).filter_map(|event| {
        std::future::ready(match event {
            Ok(Sse { data, .. }) => data.map(Ok),
            Err(sse_stream::Error::Body(error)) => Some(Err(match error.downcast() {
                Ok(error) => ModelError::BrokenOff(Some(*error)),
                Err(error) => ModelError::Protocol(error.to_string()),
            })),
            Err(error) => Some(Err(ModelError::Protocol(error.to_string()))),
        })
    })
}

/// Why a model stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum FinishReason {
    /// It has said all.
    Stop,
    /// It may not say more: its own limit, or `max_tokens`.
    Length,
    /// It wants tools to be called, and no more steps are allowed.
    ToolCalls,
    /// The provider's filter stopped it.
    ContentFilter,
    /// It failed.
    Error,
    /// Anything else.
    Other,
}

impl FinishReason {
    fn of(told: &str) -> Self {
        match told {
            "stop" => Self::Stop,
            "length" => Self::Length,
            "tool_calls" | "function_call" => Self::ToolCalls,
            "content_filter" => Self::ContentFilter,
            "error" => Self::Error,
            _ => Self::Other,
        }
    }
}

/// What an answer has cost, in tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "camelCase"))]
#[non_exhaustive]
pub struct Usage {
    /// Of what the model was told.
    #[serde(default, rename(deserialize = "prompt_tokens"))]
    pub input_tokens: u64,
    /// Of what it said.
    #[serde(default, rename(deserialize = "completion_tokens"))]
    pub output_tokens: u64,
    /// Of both.
    #[serde(default)]
    pub total_tokens: u64,
}

impl Usage {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            input_tokens: self.input_tokens.saturating_add(other.input_tokens),
            output_tokens: self.output_tokens.saturating_add(other.output_tokens),
            total_tokens: self.total_tokens.saturating_add(other.total_tokens),
        }
    }
}

/// What is known of an answer so far.
#[derive(Debug, Default)]
pub(super) struct Completion {
    pub(super) text: String,
    calls: BTreeMap<usize, Call>,
    pub(super) finish: Option<FinishReason>,
    pub(super) usage: Option<Usage>,
}

#[derive(Debug, Default)]
struct Call {
    id: String,
    name: String,
    arguments: String,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    #[serde(default)]
    index: usize,
    #[serde(default)]
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Default, Deserialize)]
struct Delta {
    content: Option<String>,
    /// What the model says when it will not do what it is asked: it is for the user as well.
    refusal: Option<String>,
    /// Two names of the same; some servers send both.
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<CallDelta>>,
}

#[derive(Deserialize)]
struct CallDelta {
    index: Option<usize>,
    id: Option<String>,
    #[serde(default)]
    function: FunctionDelta,
}

#[derive(Default, Deserialize)]
struct FunctionDelta {
    name: Option<String>,
    arguments: Option<String>,
}

impl Completion {
    /// Takes the data of the next event, and hands on what is new to say.
    pub(super) fn take(&mut self, data: &str, mut say: impl FnMut(Part)) -> Result<(), ModelError> {
        let strange =
            |fault| ModelError::Protocol(format!("an event is not what it should be: {fault}"));
        let document: Value = serde_json::from_str(data).map_err(strange)?;
        if let Some(error) = ProviderError::said(&document) {
            return Err(error.into());
        }
        let Chunk { choices, usage } = Chunk::deserialize(document).map_err(strange)?;
        self.usage = usage.or(self.usage);
        // One answer was asked for, which has the number 0.
        for Choice { delta, finish_reason, .. } in choices.into_iter().filter(|of| of.index == 0) {
            let Delta { content, refusal, reasoning_content, reasoning, tool_calls } = delta;
            let reasoning = reasoning_content.or(reasoning);
            if let Some(reasoning) = reasoning.filter(|text| !text.is_empty()) {
                say(Part::Reasoning(reasoning));
            }
            for text in [content, refusal].into_iter().flatten().filter(|text| !text.is_empty()) {
                self.text.push_str(&text);
                say(Part::Text(text));
            }
            for call in tool_calls.into_iter().flatten() {
                self.take_call(call);
            }
            if let Some(told) = finish_reason {
                self.finish = Some(FinishReason::of(&told));
            }
        }
        Ok(())
    }

    /// Takes a piece of a call. Where calls are not numbered, an id begins the next one.
    fn take_call(&mut self, CallDelta { index, id, function }: CallDelta) {
        let id = id.filter(|id| !id.is_empty());
        let last = self.calls.last_key_value().map(|(index, _)| *index);
        let index = index.unwrap_or(match (last, &id) {
            (None, _) => 0,
            (Some(last), Some(id)) if self.calls[&last].id != *id => last.saturating_add(1),
            (Some(last), _) => last,
        });
        let call = self.calls.entry(index).or_default();
        // Some servers repeat both with every piece.
        if let Some(id) = id {
            call.id = id;
        }
        if let Some(name) = function.name.filter(|name| !name.is_empty()) {
            call.name = name;
        }
        call.arguments.push_str(&function.arguments.unwrap_or_default());
    }

    /// The calls that the model wants made, once it has finished. One that stopped before its end may not have said all of them.
    pub(super) fn calls(&mut self) -> Vec<MessageCall> {
        let calls = std::mem::take(&mut self.calls);
        if matches!(
            self.finish,
            Some(FinishReason::Length | FinishReason::ContentFilter | FinishReason::Error)
        ) {
            return Vec::new();
        }
        let call = |(index, Call { id, name, arguments })| {
            let id = if id.is_empty() { format!("call-{index}") } else { id };
            let arguments = if arguments.trim().is_empty() { "{}".into() } else { arguments };
            MessageCall::new(id, name, arguments)
        };
        calls.into_iter().map(call).collect()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::fetch::FetchFailure;

    const DONE: &str = "[DONE]";

    /// The documents of these chunks.
    fn read(chunks: Vec<Result<Bytes, FetchError>>) -> Vec<Result<String, ModelError>> {
        documents(stream::iter(chunks)).collect::<Vec<_>>().now_or_never().expect("nothing waits")
    }

    fn texts(chunks: &[&[u8]]) -> Vec<String> {
        let chunks = chunks.iter().map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        read(chunks).into_iter().map(|document| document.expect("it is whole")).collect()
    }

    fn said(completion: &mut Completion, data: &[&str]) -> Result<Vec<Part>, ModelError> {
        let mut parts = Vec::new();
        for data in data {
            completion.take(data, |part| parts.push(part))?;
        }
        Ok(parts)
    }

    #[test]
    fn wherever_the_bytes_are_cut_the_documents_are_the_same() {
        let expected = ["{\"a\":\"Grüße 🦀\"}", "two\nlines", DONE];
        for (line, last) in [("\n", "\n\n"), ("\r\n", "\r\n\r\n"), ("\n", ""), ("\r\n", "\r\n")] {
            let wire = format!(
                ": hello{line}{line}data: {}{line}{line}event: x{line}data: two{line}data:lines{line}: c{line}{line}retry: 1{line}{line}data: {DONE}{last}",
                expected[0]
            );
            let wire = wire.as_bytes();
            for first in 0..=wire.len() {
                assert_eq!(texts(&[&wire[..first], &wire[first..]]), expected, "cut at {first}");
            }
            let bytes: Vec<_> = wire.chunks(1).collect();
            assert_eq!(texts(&bytes), expected, "cut at every byte");
        }
    }

    #[test]
    fn a_connection_that_is_cut_is_told_after_what_came_before() {
        let cut = FetchError { target: "model".into(), reason: FetchFailure::CutOff };
        let read = read(vec![Ok(Bytes::from_static(b"data: 1\n\ndata: 2")), Err(cut.clone())]);
        assert_eq!(read.len(), 2, "half an event is none: {read:?}");
        assert!(matches!(&read[0], Ok(one) if one == "1"));
        assert!(matches!(&read[1], Err(ModelError::BrokenOff(Some(error))) if *error == cut));
    }

    #[test]
    fn text_reasoning_finish_and_usage_are_told_apart() {
        let mut completion = Completion::default();
        let parts = said(
            &mut completion,
            &[
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}],"usage":null}"#,
                r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"reasoning":"so"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"x"}}]}"#,
                r#"{"choices":[{"delta":{"content":"b","tool_calls":null}}]}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
                r#"{"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"details":{}}}"#,
            ],
        );
        let expected = [
            Part::Reasoning("hm".into()),
            Part::Reasoning("so".into()),
            Part::Text("a".into()),
            Part::Text("b".into()),
        ];
        assert_eq!(parts.unwrap(), expected);
        assert_eq!((&*completion.text, completion.finish), ("ab", Some(FinishReason::Stop)));
        let usage = Usage { input_tokens: 3, output_tokens: 4, total_tokens: 7 };
        assert_eq!(completion.usage, Some(usage));
    }

    fn calls(deltas: &[&str]) -> Vec<(String, String, String)> {
        let mut completion = Completion::default();
        for delta in deltas {
            let data = format!(r#"{{"choices":[{{"delta":{{"tool_calls":[{delta}]}}}}]}}"#);
            assert_eq!(said(&mut completion, &[&data]).unwrap(), []);
        }
        completion.finish = Some(FinishReason::ToolCalls);
        let call = |call: MessageCall| (call.id, call.function.name, call.function.arguments);
        completion.calls().into_iter().map(call).collect()
    }

    fn call(id: &str, name: &str, arguments: &str) -> (String, String, String) {
        (id.into(), name.into(), arguments.into())
    }

    #[test]
    fn calls_are_gathered_by_their_number() {
        let gathered = calls(&[
            r#"{"index":0,"id":"a","type":"function","function":{"name":"time","arguments":""}}"#,
            r#"{"index":1,"id":"b","function":{"name":"dice","arguments":"{\"n"}}"#,
            r#"{"index":0,"function":{"arguments":"{}"}}"#,
            r#"{"index":1,"function":{"arguments":"\":2}"}}"#,
        ]);
        assert_eq!(gathered, [call("a", "time", "{}"), call("b", "dice", "{\"n\":2}")]);
    }

    #[test]
    fn calls_without_a_number_an_id_or_an_input_are_gathered_too() {
        let gathered = calls(&[
            r#"{"id":"a","function":{"name":"time"}}"#,
            r#"{"id":"b","function":{"name":"dice","arguments":"{"}}"#,
            r#"{"function":{"arguments":"}"}}"#,
        ]);
        assert_eq!(gathered, [call("a", "time", "{}"), call("b", "dice", "{}")]);
        let gathered = calls(&[r#"{"index":3,"function":{"name":"time","arguments":" "}}"#]);
        assert_eq!(gathered, [call("call-3", "time", "{}")]);
    }

    #[test]
    fn calls_of_an_answer_that_stopped_early_are_not_made() {
        let mut completion = Completion::default();
        completion.take_call(CallDelta {
            index: Some(0),
            id: Some("a".into()),
            function: FunctionDelta::default(),
        });
        completion.finish = Some(FinishReason::Length);
        assert_eq!(completion.calls(), []);
    }

    #[test]
    fn errors_in_the_stream_are_the_providers() {
        let mut completion = Completion::default();
        let error = said(&mut completion, &[r#"{"error":{"message":"overloaded","code":"busy"}}"#]);
        assert!(
            matches!(&error, Err(ModelError::Provider(error)) if error.message == "overloaded"),
            "{error:?}"
        );
        for strange in ["", "x", "[1]", r#"{"choices":{}}"#] {
            let error = said(&mut completion, &[strange]);
            assert!(matches!(error, Err(ModelError::Protocol(_))), "{strange}: {error:?}");
        }
    }
}
