//! A run's events as a UI message stream of the AI SDK, version 1, which `useChat` reads.
//!
//! The protocol has blocks with a beginning and an end, where the journal has what was emitted and no more; this view puts
//! in what is implied. Text is the data of events without a name and of `text-delta`, reasoning that of `reasoning-delta`;
//! `tool-call`, `tool-result`, `step` and `finish` carry JSON, as the SDK's `ai` emits them. An event of another name is a
//! data part of that name, so an agent can send its own. The last word of a run that failed is an error, and of one that was
//! cancelled an abort.
//!
//! The protocol is that of <https://ai-sdk.dev/docs/ai-sdk-ui/stream-protocol>. Its first clients refuse a part that has
//! a member too many, so what an agent put into its JSON is picked out and not passed on.

use serde_json::{Value, json};

use super::sse::Broken;
use super::views::{View, is_text};
use crate::id::RunId;
use crate::journal::{Event, Outcome, RunState};

#[derive(Default)]
pub(super) struct UiMessages {
    block: Option<Block>,
    /// The blocks that there have been.
    blocks: u64,
    /// What the agent said of its end.
    metadata: Option<Value>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Block {
    Text,
    Reasoning,
}

impl Block {
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Reasoning => "reasoning",
        }
    }
}

impl View for UiMessages {
    fn begin(&mut self, run: RunId, out: &mut Vec<u8>) {
        part(&json!({ "type": "start", "messageId": run.to_string() }), out);
        part(&json!({ "type": "start-step" }), out);
    }

    fn event(&mut self, _: RunId, event: &Event, out: &mut Vec<u8>) {
        let data = &*event.data;
        let name = event.name.as_deref().unwrap_or_default();
        if is_text(event) {
            return self.delta(Block::Text, data, out);
        }
        if name == "reasoning-delta" {
            return self.delta(Block::Reasoning, data, out);
        }
        self.close(out);
        let json = serde_json::from_str(data).unwrap_or_else(|_| Value::from(data));
        match (name, tool(name, &json)) {
            (_, Some(tool)) => part(&tool, out),
            ("step", _) => {
                part(&json!({ "type": "finish-step" }), out);
                part(&json!({ "type": "start-step" }), out);
            }
            ("finish", _) => self.metadata = Some(json),
            // The end says so in a word of its own.
            ("failed", _) if json["code"] == "cancelled" => {}
            ("failed", _) => {
                let text = json["detail"].as_str().unwrap_or(data);
                part(&json!({ "type": "error", "errorText": text }), out);
            }
            (name, _) => part(&json!({ "type": format!("data-{name}"), "data": json }), out),
        }
    }

    fn end(&mut self, outcome: &Outcome, out: &mut Vec<u8>) -> Result<(), Broken> {
        self.close(out);
        match outcome.state {
            RunState::Cancelled => part(&json!({ "type": "abort" }), out),
            RunState::Failed => {}
            _ => {
                part(&json!({ "type": "finish-step" }), out);
                let mut finish = json!({ "type": "finish" });
                if let Some(metadata) = self.metadata.take() {
                    finish["messageMetadata"] = metadata;
                }
                part(&finish, out);
            }
        }
        out.extend_from_slice(b"data: [DONE]\n\n");
        Ok(())
    }

    fn heartbeat(&self) -> Option<&'static [u8]> {
        Some(b":\n")
    }
}

impl UiMessages {
    /// More of a block's text, which begins the block if it is not the one that is open.
    fn delta(&mut self, block: Block, delta: &str, out: &mut Vec<u8>) {
        if self.block != Some(block) {
            self.close(out);
            self.block = Some(block);
            self.blocks += 1;
            part(&json!({ "type": format!("{}-start", block.name()), "id": self.id() }), out);
        }
        let name = format!("{}-delta", block.name());
        part(&json!({ "type": name, "id": self.id(), "delta": delta }), out);
    }

    fn close(&mut self, out: &mut Vec<u8>) {
        if let Some(block) = self.block.take() {
            part(&json!({ "type": format!("{}-end", block.name()), "id": self.id() }), out);
        }
    }

    /// The id of the latest block.
    fn id(&self) -> String {
        self.blocks.to_string()
    }
}

/// The part of a tool's call or result, if it is one.
fn tool(name: &str, json: &Value) -> Option<Value> {
    let id = json.get("toolCallId")?.as_str()?;
    match name {
        "tool-call" => {
            let (tool, input) = (json.get("toolName")?.as_str()?, json.get("input")?);
            Some(json!({
                "type": "tool-input-available", "toolCallId": id, "toolName": tool, "input": input
            }))
        }
        "tool-result" => Some(match json.get("errorText").and_then(Value::as_str) {
            Some(text) => {
                json!({ "type": "tool-output-error", "toolCallId": id, "errorText": text })
            }
            None => {
                let output = json.get("output")?;
                json!({ "type": "tool-output-available", "toolCallId": id, "output": output })
            }
        }),
        _ => None,
    }
}

fn part(json: &Value, out: &mut Vec<u8>) {
    out.extend_from_slice(format!("data: {json}\n\n").as_bytes());
}
