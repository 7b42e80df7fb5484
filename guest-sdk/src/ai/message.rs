//! What is said in a conversation, as the provider's protocol has it, and from what the AI SDK's front ends send.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, Result};

/// One message of a conversation. As JSON it is what the protocol says, so a list of them is what an agent keeps of a chat.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "lowercase")]
#[non_exhaustive]
pub enum Message {
    /// What the model is to do and to know.
    System {
        /// The text.
        content: String,
    },
    /// What the user says.
    User {
        /// The text.
        content: String,
    },
    /// What the model says.
    Assistant {
        /// The text, if there is any.
        content: Option<String>,
        /// The tools that it calls.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        tool_calls: Vec<MessageCall>,
    },
    /// What a tool says to the model.
    Tool {
        /// The call that it answers.
        tool_call_id: String,
        /// Its result, or its error.
        content: String,
    },
}

impl Message {
    /// A message of the user.
    pub fn user(text: impl Into<String>) -> Self {
        Self::User { content: text.into() }
    }

    /// A message of the system.
    pub fn system(text: impl Into<String>) -> Self {
        Self::System { content: text.into() }
    }

    /// A message of the model that calls nothing.
    pub fn assistant(text: impl Into<String>) -> Self {
        Self::Assistant { content: Some(text.into()), tool_calls: Vec::new() }
    }

    /// What a tool made of a call, as the model is told.
    pub(super) fn result(id: &str, output: &Result<Value, String>) -> Self {
        let content = match output {
            Ok(Value::String(text)) => text.clone(),
            Ok(output) => output.to_string(),
            Err(error) => format!("Error: {error}"),
        };
        Self::Tool { tool_call_id: id.into(), content }
    }
}

/// A call of a tool within a [`Message`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename = "function")]
#[non_exhaustive]
pub struct MessageCall {
    /// The call's id.
    pub id: String,
    /// What is called.
    pub function: MessageFunction,
}

/// What is called, and with what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MessageFunction {
    /// The tool's name.
    pub name: String,
    /// The input, as JSON in a string.
    pub arguments: String,
}

impl MessageCall {
    pub(super) fn new(id: String, name: String, arguments: String) -> Self {
        Self { id, function: MessageFunction { name, arguments } }
    }
}

/// A message as the AI SDK's front ends (`useChat`) send it: a `UIMessage`. [`messages`](Self::messages) makes of it what a model is told.
#[derive(Debug, Clone, Deserialize)]
#[non_exhaustive]
pub struct UiMessage {
    /// The front end's id of it.
    #[serde(default)]
    pub id: String,
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its parts, of any kind.
    #[serde(default)]
    pub parts: Vec<Value>,
}

impl UiMessage {
    /// The message as those that a model is told: one, or more if tools were called in it. Calls without a result are left out, as are
    /// reasoning, sources and data. Files are refused.
    pub fn messages(&self) -> Result<Vec<Message>> {
        match &*self.role {
            "system" => Ok(vec![Message::system(self.text()?)]),
            "user" => Ok(vec![Message::user(self.text()?)]),
            "assistant" => Ok(self.steps()),
            other => Err(Error::BadRequest(format!(
                "{other:?} is no role: it is system, user or assistant"
            ))),
        }
    }

    fn text(&self) -> Result<String> {
        if self.parts.iter().any(|part| part["type"] == "file") {
            return Err(Error::bad_request("files are not taken here, only text"));
        }
        Ok(self.parts.iter().filter_map(text).collect())
    }

    /// What the model said: a message for each step, and one for each result of a tool.
    fn steps(&self) -> Vec<Message> {
        let mut messages = Vec::new();
        let (mut said, mut calls, mut results) = (String::new(), Vec::new(), Vec::new());
        let mut end = |said: &mut String, calls: &mut Vec<_>, results: &mut Vec<_>| {
            if !said.is_empty() || !calls.is_empty() {
                let content = Some(std::mem::take(said)).filter(|said| !said.is_empty());
                messages.push(Message::Assistant { content, tool_calls: std::mem::take(calls) });
                messages.append(results);
            }
        };
        for part in &self.parts {
            if let Some(text) = text(part) {
                // Text after results is the next step's, marked or not.
                if !calls.is_empty() {
                    end(&mut said, &mut calls, &mut results);
                }
                said.push_str(text);
            } else if part["type"] == "step-start" {
                end(&mut said, &mut calls, &mut results);
            } else if let Some((call, result)) = called(part) {
                calls.push(call);
                results.push(result);
            }
        }
        end(&mut said, &mut calls, &mut results);
        messages
    }
}

/// The text of a part that is text.
fn text(part: &Value) -> Option<&str> {
    part["text"].as_str().filter(|_| part["type"] == "text")
}

/// A call of a tool that has its result.
fn called(part: &Value) -> Option<(MessageCall, Message)> {
    let name = match part["type"].as_str()? {
        "dynamic-tool" => part["toolName"].as_str()?,
        kind => kind.strip_prefix("tool-")?,
    };
    let id = part["toolCallId"].as_str()?;
    let output = match part["state"].as_str()? {
        "output-available" => Ok(part["output"].clone()),
        "output-error" => Err(part["errorText"].as_str().unwrap_or_default().to_owned()),
        _ => return None,
    };
    let call = MessageCall::new(id.into(), name.into(), part["input"].to_string());
    Some((call, Message::result(id, &output)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ui(message: Value) -> UiMessage {
        UiMessage::deserialize(message).expect("it is a message")
    }

    #[test]
    fn a_message_is_what_the_protocol_says() {
        let call = MessageCall::new("c1".into(), "time".into(), "{}".into());
        let said = Message::Assistant { content: None, tool_calls: vec![call] };
        let wire = json!({
            "role": "assistant",
            "content": null,
            "tool_calls": [
                { "type": "function", "id": "c1", "function": { "name": "time", "arguments": "{}" } },
            ],
        });
        assert_eq!(serde_json::to_value(&said).unwrap(), wire);
        assert_eq!(Message::deserialize(&wire).unwrap(), said);
        let said = json!({ "role": "assistant", "content": "hi" });
        assert_eq!(serde_json::to_value(Message::assistant("hi")).unwrap(), said);
    }

    #[test]
    fn what_the_user_wrote_is_its_text() {
        let parts = json!([{ "type": "text", "text": "a" }, { "type": "data-x" }, { "type": "text", "text": "b" }]);
        let message = ui(json!({ "id": "1", "role": "user", "parts": parts }));
        assert_eq!(message.messages().unwrap(), [Message::user("ab")]);
        for refused in [
            json!({ "role": "user", "parts": [{ "type": "file", "url": "data:" }] }),
            json!({ "role": "robot", "parts": [] }),
        ] {
            assert!(matches!(ui(refused).messages(), Err(Error::BadRequest(_))));
        }
    }

    #[test]
    fn what_the_model_did_is_a_message_for_each_step_and_result() {
        let parts = json!([
            { "type": "step-start" },
            { "type": "reasoning", "text": "hm" },
            { "type": "text", "text": "Let me see." },
            { "type": "tool-time", "toolCallId": "c1", "state": "output-available", "input": {}, "output": "noon" },
            { "type": "dynamic-tool", "toolName": "dice", "toolCallId": "c2", "state": "output-error", "input": { "n": 1 }, "errorText": "no" },
            { "type": "tool-time", "toolCallId": "c3", "state": "input-available", "input": {} },
            { "type": "step-start" },
            { "type": "text", "text": "It is noon." },
        ]);
        let messages = ui(json!({ "id": "1", "role": "assistant", "parts": parts })).messages();
        let calls = vec![
            MessageCall::new("c1".into(), "time".into(), "{}".into()),
            MessageCall::new("c2".into(), "dice".into(), "{\"n\":1}".into()),
        ];
        let expected = [
            Message::Assistant { content: Some("Let me see.".into()), tool_calls: calls },
            Message::Tool { tool_call_id: "c1".into(), content: "noon".into() },
            Message::Tool { tool_call_id: "c2".into(), content: "Error: no".into() },
            Message::assistant("It is noon."),
        ];
        assert_eq!(messages.unwrap(), expected);
    }
}
