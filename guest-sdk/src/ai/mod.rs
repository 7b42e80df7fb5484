//! Asking models, and streaming what they say: a client of chat completions as OpenAI and those compatible with it serve them.
//!
//! **Problem.** An answer comes a word at a time, for minutes, over a connection that may break; it may ask for tools to be called, and
//! go on after that. Clients are to see each word once, and an answer that failed must not look like one that ended.
//!
//! **Mechanism.** A [`Chat`] is what is asked. Its answer is a [stream](TextStream) of [`Part`]s, made by one loop: a request, its events, the
//! tools that they call, and the next request, for at most [`max_steps`](Chat::max_steps). [`emit_to`](TextStream::emit_to) makes each part a durable event
//! of the run as it comes.
//!
//! | event | data |
//! | --- | --- |
//! | `text-delta`, `reasoning-delta` | the text itself |
//! | `tool-call` | `{"toolCallId": "..", "toolName": "..", "input": ..}` |
//! | `tool-result` | `{"toolCallId": "..", "output": ..}` or `{"toolCallId": "..", "errorText": ".."}` |
//! | `step` | `{}`: a further request begins |
//! | `finish` | `{"finishReason": "..", "usage": {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}}`, without `usage` if it is not told |
//!
//! **Limits.** A request that fails before its response begins is tried again if that may help: after 429, 5xx and a connection that failed, as often
//! as [`max_retries`](Chat::max_retries) says, with growing waits or the one that the provider asks for, up to a minute. What fails after that is never tried again. Text only.
//!
//! **Cost.** One event for each piece that the provider sends; nothing is gathered first. What an agent does not use of this is not in its component.
//!
//! ```no_run
//! use bureau_sdk::{ai, prelude::*};
//!
//! # async fn example(run: &Run) -> Result<Reply> {
//! let answer = ai::model("gpt-4o")
//!     .api_key(secret("OPENAI_API_KEY")?)
//!     .system("Be brief.")
//!     .prompt("Why is the sky blue?")
//!     .stream_text()
//!     .emit_to(run)
//!     .await?;
//! println!("{:?}", answer.usage);
//! # Ok(Reply::events())
//! # }
//! ```

mod completion;
mod error;
mod message;
mod retry;
mod stream;
mod tool;

use http::{HeaderMap, HeaderValue, Request, header};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

pub use self::completion::{FinishReason, Usage};
pub use self::error::{ModelError, ProviderError};
pub use self::message::{Message, MessageCall, MessageFunction, UiMessage};
pub use self::stream::{Answer, Part, TextStream};
pub use self::tool::{Tool, tool};
use crate::error::Result;
use crate::event::Event;
use crate::fetch::Timeouts;
use crate::run::Run;
use crate::wasi::Secret;

/// What a model is asked, and how.
pub struct Chat<'a> {
    base_url: String,
    api_key: Option<Secret>,
    /// The request's members but for its messages and tools.
    settings: Map<String, Value>,
    messages: Vec<Message>,
    tools: Vec<Tool<'a>>,
    max_steps: u32,
    max_retries: u32,
    timeouts: Timeouts,
}

/// A chat with this model of OpenAI's, or of another [provider](Chat::base_url)'s.
pub fn model<'a>(name: impl Into<String>) -> Chat<'a> {
    let settings = [
        ("model", Value::String(name.into())),
        ("stream", true.into()),
        ("stream_options", json!({ "include_usage": true })),
    ];
    Chat {
        base_url: "https://api.openai.com/v1".into(),
        api_key: None,
        settings: settings.map(|(name, value)| (name.into(), value)).into_iter().collect(),
        messages: Vec::new(),
        tools: Vec::new(),
        max_steps: 8,
        max_retries: 2,
        timeouts: Timeouts::default(),
    }
}

impl<'a> Chat<'a> {
    /// Where the provider is, with all that comes before `/chat/completions`.
    #[must_use]
    pub fn base_url(mut self, url: impl Into<String>) -> Self {
        self.base_url = url.into();
        self
    }

    /// The key that the provider knows the operator by.
    #[must_use]
    pub fn api_key(mut self, key: Secret) -> Self {
        self.api_key = Some(key);
        self
    }

    /// Adds a message of the system, before all others.
    #[must_use]
    pub fn system(mut self, text: impl Into<String>) -> Self {
        self.messages.insert(0, Message::system(text));
        self
    }

    /// Adds a message of the user.
    #[must_use]
    pub fn prompt(self, text: impl Into<String>) -> Self {
        self.messages([Message::user(text)])
    }

    /// Adds messages.
    #[must_use]
    pub fn messages(mut self, messages: impl IntoIterator<Item = Message>) -> Self {
        self.messages.extend(messages);
        self
    }

    /// Lets the model call this tool.
    #[must_use]
    pub fn tool(mut self, tool: Tool<'a>) -> Self {
        self.tools.push(tool);
        self
    }

    /// How many requests an answer may take, each after the first with the results of tools: 8 if it is not said.
    #[must_use]
    pub fn max_steps(mut self, steps: u32) -> Self {
        self.max_steps = steps;
        self
    }

    /// How often a request that fails is tried again: twice if it is not said.
    #[must_use]
    pub fn max_retries(mut self, retries: u32) -> Self {
        self.max_retries = retries;
        self
    }

    /// How long to wait for the provider, if it is not for as long as the host does.
    #[must_use]
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// How freely the model chooses its words.
    #[must_use]
    pub fn temperature(self, temperature: f64) -> Self {
        self.setting("temperature", temperature)
    }

    /// Of how likely words together the model chooses.
    #[must_use]
    pub fn top_p(self, top_p: f64) -> Self {
        self.setting("top_p", top_p)
    }

    /// How much the model may say, in tokens. Some of OpenAI's models want it as [`setting`](Self::setting)
    /// `max_completion_tokens`.
    #[must_use]
    pub fn max_tokens(self, tokens: u32) -> Self {
        self.setting("max_tokens", tokens)
    }

    /// What the model stops before.
    #[must_use]
    pub fn stop<S: Into<String>>(self, stops: impl IntoIterator<Item = S>) -> Self {
        let stops: Vec<String> = stops.into_iter().map(Into::into).collect();
        self.setting("stop", stops)
    }

    /// Where chance starts, so that the same request gets much the same answer.
    #[must_use]
    pub fn seed(self, seed: i64) -> Self {
        self.setting("seed", seed)
    }

    /// Any other member of the request, such as `tool_choice` or `reasoning_effort`.
    #[must_use]
    pub fn setting(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.settings.insert(name.into(), value.into());
        self
    }

    /// Has the model answer with JSON of this type. Its properties are all required: one that may be missing is an `Option`, and then null.
    #[must_use]
    pub fn output<T: JsonSchema>(self) -> Self {
        let name: String = T::schema_name()
            .chars()
            .map(|char| if char.is_ascii_alphanumeric() { char } else { '_' })
            .take(64)
            .collect();
        let schema = tool::strict_schema::<T>();
        let schema = json!({ "name": name, "schema": schema, "strict": true });
        self.setting("response_format", json!({ "type": "json_schema", "json_schema": schema }))
    }

    /// Asks, once the stream is polled. Dropping it drops the connection.
    ///
    /// A stream by itself knows nothing of the run, so whoever reads it looks whether that is cancelled:
    ///
    /// ```no_run
    /// # use bureau_sdk::{ai, prelude::*};
    /// use futures_util::StreamExt as _;
    ///
    /// # async fn example(run: &Run) -> Result<()> {
    /// let mut answer = ai::model("gpt-4o").prompt("Why is the sky blue?").stream_text();
    /// loop {
    ///     match select(run.cancelled(), answer.next()).await {
    ///         Either::Left(()) => return Err(Error::Cancelled),
    ///         Either::Right(None) => break,
    ///         Either::Right(Some(part)) => println!("{:?}", part?),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn stream_text(self) -> TextStream<'a> {
        TextStream::new(self)
    }

    /// Asks, and waits for the whole answer. Ends with [`Error::Cancelled`](crate::Error::Cancelled) when the run is cancelled.
    pub async fn generate_text(self, run: &Run) -> Result<Answer> {
        self.stream_text().all(run).await
    }

    /// Asks for a value of this type, and waits for it. Ends with [`Error::Cancelled`](crate::Error::Cancelled) when the run is cancelled.
    ///
    /// ```no_run
    /// # use bureau_sdk::{ai, prelude::*};
    /// use schemars::JsonSchema;
    /// use serde::Deserialize;
    ///
    /// #[derive(Deserialize, JsonSchema)]
    /// struct Recipe {
    ///     title: String,
    ///     ingredients: Vec<String>,
    /// }
    ///
    /// # async fn example(run: &Run) -> Result<()> {
    /// let recipe: Recipe = ai::model("gpt-4o").prompt("A soup").generate_object(run).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn generate_object<T: JsonSchema + DeserializeOwned>(self, run: &Run) -> Result<T> {
        let answer = self.output::<T>().generate_text(run).await?;
        Ok(answer.object()?)
    }

    /// The request with these messages after those of the chat.
    fn request(&self, more: &[Message]) -> Result<Request<Vec<u8>>, ModelError> {
        #[derive(Serialize)]
        struct Body<'a> {
            #[serde(flatten)]
            settings: &'a Map<String, Value>,
            messages: Vec<&'a Message>,
            #[serde(skip_serializing_if = "Vec::is_empty")]
            tools: Vec<Value>,
        }
        let body = Body {
            settings: &self.settings,
            messages: self.messages.iter().chain(more).collect(),
            tools: self.tools.iter().map(Tool::told).collect(),
        };
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::ACCEPT, HeaderValue::from_static("text/event-stream"));
        if let Some(key) = &self.api_key {
            let value = HeaderValue::try_from(format!("Bearer {}", key.reveal()));
            let mut value =
                value.map_err(|_| ModelError::Invalid("the key is no value of a field".into()))?;
            value.set_sensitive(true);
            headers.insert(header::AUTHORIZATION, value);
        }
        let invalid = |error: &dyn std::fmt::Display| ModelError::Invalid(error.to_string());
        let body = serde_json::to_vec(&body).map_err(|error| invalid(&error))?;
        let url = format!("{}/chat/completions", self.base_url.trim_end_matches('/'));
        let mut request = Request::post(url).body(body).map_err(|error| invalid(&error))?;
        *request.headers_mut() = headers;
        Ok(request)
    }
}

impl Part {
    /// The event of a run that says so.
    fn event(&self) -> Result<Event> {
        Ok(match self {
            Self::Text(text) => Event::data(text).name("text-delta"),
            Self::Reasoning(text) => Event::data(text).name("reasoning-delta"),
            Self::ToolCall { id, name, input } => {
                let call = json!({ "toolCallId": id, "toolName": name, "input": input });
                Event::json(&call)?.name("tool-call")
            }
            Self::ToolResult { id, output } => {
                let result = match output {
                    Ok(output) => json!({ "toolCallId": id, "output": output }),
                    Err(error) => json!({ "toolCallId": id, "errorText": error }),
                };
                Event::json(&result)?.name("tool-result")
            }
            Self::Step => Event::data("{}").name("step"),
            Self::Finish { reason, usage: None } => {
                Event::json(&json!({ "finishReason": reason }))?.name("finish")
            }
            Self::Finish { reason, usage } => {
                Event::json(&json!({ "finishReason": reason, "usage": usage }))?.name("finish")
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_says_all_that_was_set() {
        let chat = model("small")
            .base_url("http://localhost:1/v1/")
            .api_key(Secret::from("sesame".to_owned()))
            .prompt("hi")
            .system("Be brief.")
            .temperature(0.5)
            .stop(["END"])
            .setting("seed", 7)
            .tool(tool("time", "The time", async |(): ()| Ok("noon")));
        let request = chat.request(&[Message::assistant("hello")]).expect("it can be made");
        assert_eq!(request.uri(), "http://localhost:1/v1/chat/completions");
        assert_eq!(request.headers()["authorization"], "Bearer sesame");
        assert!(!format!("{request:?}").contains("sesame"));
        let body: Value = serde_json::from_slice(request.body()).expect("it is JSON");
        let said = json!([
            { "role": "system", "content": "Be brief." },
            { "role": "user", "content": "hi" },
            { "role": "assistant", "content": "hello" },
        ]);
        assert_eq!(body["messages"], said);
        assert_eq!((&body["model"], &body["stream"]), (&json!("small"), &json!(true)));
        assert_eq!((&body["temperature"], &body["stop"]), (&json!(0.5), &json!(["END"])));
        assert_eq!(body["tools"][0]["function"]["name"], "time");
    }

    #[test]
    fn events_are_as_documented() {
        let event = |part: Part| {
            let Event(event) = part.event().expect("it can be said");
            (event.name.expect("each has a name"), event.data)
        };
        let is = |name: &str, data: &str| (name.to_owned(), data.to_owned());
        assert_eq!(event(Part::Text("a \"b\"".into())), is("text-delta", "a \"b\""));
        let call = Part::ToolCall { id: "1".into(), name: "t".into(), input: json!({}) };
        assert_eq!(event(call), is("tool-call", r#"{"input":{},"toolCallId":"1","toolName":"t"}"#));
        let result = |output| Part::ToolResult { id: "1".into(), output };
        assert_eq!(
            event(result(Ok(Value::Null))),
            is("tool-result", r#"{"output":null,"toolCallId":"1"}"#)
        );
        assert_eq!(
            event(result(Err("no".into()))),
            is("tool-result", r#"{"errorText":"no","toolCallId":"1"}"#)
        );
        let finish = |usage| Part::Finish { reason: FinishReason::ToolCalls, usage };
        assert_eq!(event(finish(None)), is("finish", r#"{"finishReason":"tool-calls"}"#));
        let usage = Usage { input_tokens: 1, output_tokens: 2, total_tokens: 3 };
        assert_eq!(
            event(finish(Some(usage))).1,
            r#"{"finishReason":"tool-calls","usage":{"inputTokens":1,"outputTokens":2,"totalTokens":3}}"#
        );
    }
}
