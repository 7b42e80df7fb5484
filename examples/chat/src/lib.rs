//! A chat with a model: each word is an event as it comes, and what was said is kept.
//!
//!     curl -N http://127.0.0.1:8787/agents/chat/demo -d '{"prompt": "What time is it?"}'
//!     curl http://127.0.0.1:8787/agents/chat/demo
//!
//! The messages of the AI SDK's `useChat` are taken as well. `[agents.chat.config]` says which `model` is asked, and at which `base_url`.

use std::hash::{BuildHasher as _, RandomState};
use std::time::SystemTime;

use bureau_sdk::ai::{self, Message, UiMessage};
use bureau_sdk::prelude::*;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Default)]
struct ChatAgent;

/// What was said so far.
#[derive(Default, Serialize, Deserialize)]
struct History {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Said {
    Prompt {
        prompt: String,
    },
    /// A front end sends the whole conversation.
    Conversation {
        messages: Vec<UiMessage>,
    },
}

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

#[derive(Deserialize, JsonSchema)]
struct Dice {
    /// How many sides the die has, at least 2.
    sides: u32,
}

impl Agent for ChatAgent {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        match *request.method() {
            Method::GET => Reply::json(&run.state::<History>()?),
            Method::POST => answer(run, request.json()?).await,
            _ => Ok(Reply::text("Method not allowed")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
                .with_header(header::ALLOW, HeaderValue::from_static("GET, POST"))),
        }
    }
}

async fn answer(run: &Run, said: Said) -> Result<Reply> {
    let mut history: History = run.state()?;
    match said {
        Said::Prompt { prompt } => {
            run.present_as(Format::Text);
            history.messages.push(Message::user(prompt));
        }
        Said::Conversation { messages } => {
            run.present_as(Format::UiMessages);
            history.messages.clear();
            for message in messages {
                history.messages.extend(message.messages()?);
            }
        }
    }
    let time = ai::tool("time", "The time now, in seconds since 1970", async |_: Nothing| {
        Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs())
    });
    let dice = ai::tool("roll_dice", "Rolls a die", async |dice: Dice| match dice.sides {
        0 | 1 => Err(Error::bad_request("a die has at least 2 sides")),
        sides => Ok(RandomState::new().hash_one(0) % u64::from(sides) + 1),
    });
    let mut chat = ai::model(config("model")?.unwrap_or_else(|| "gpt-4o".into()))
        .system("You are a helpful assistant.")
        .messages(history.messages.clone())
        .tool(time)
        .tool(dice);
    if let Some(url) = config("base_url")? {
        chat = chat.base_url(url);
    }
    // A provider on the same machine may want no key.
    if config("OPENAI_API_KEY")?.is_some() {
        chat = chat.api_key(secret("OPENAI_API_KEY")?);
    }
    run.open();
    let answer = chat.stream_text().emit_to(run).await?;
    history.messages.extend(answer.messages);
    run.set_state(&history)?;
    Ok(Reply::events())
}

bureau_sdk::export!(ChatAgent);
