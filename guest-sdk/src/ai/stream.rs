//! An answer as it comes.
//!
//! One future asks, reads, calls tools and asks again; it leaves what is to be said in a queue, from which the stream takes it before the
//! future goes on. So nothing is read before what came earlier has been taken, and an error comes after all that came before it.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::SystemTime;

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::stream::{self, FuturesOrdered, Stream, StreamExt as _};
use http::{Request, Response, header};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Chat;
use super::completion::{Completion, FinishReason, Usage, documents};
use super::error::{ModelError, ProviderError};
use super::message::{Message, MessageCall};
use super::retry;
use crate::error::{Error, Result};
use crate::fetch::{self, Body, FetchError};
use crate::run::Run;
use crate::wasi::sleep;

/// What is read at most of a response that says what went wrong.
const ERROR_BYTES: usize = 64 << 10;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Part {
    /// The next piece of the text.
    Text(String),
    /// The next piece of what the model thinks.
    Reasoning(String),
    /// The model has a tool called.
    ToolCall {
        /// The call's id.
        id: String,
        /// The tool's name.
        name: String,
        /// The input. What is not JSON is a string.
        input: Value,
    },
    /// What came of it.
    ToolResult {
        /// The call's id.
        id: String,
        /// The output, or the error that the model is told.
        output: Result<Value, String>,
    },
    /// A further request begins.
    Step,
    /// The end of an answer that is whole.
    Finish {
        /// Why the model stopped.
        reason: FinishReason,
        /// What all requests have cost, if the provider says so.
        usage: Option<Usage>,
    },
}

/// An answer, as far as it has come.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Answer {
    /// The text of all steps.
    pub text: String,
    /// What goes after the messages that the model was told, for the next time: what it said, what it called, and what came of it.
    /// Of a step that is not over there is nothing here.
    pub messages: Vec<Message>,
    /// Why the model stopped, once it has.
    pub finish_reason: Option<FinishReason>,
    /// What all requests have cost, if the provider says so.
    pub usage: Option<Usage>,
}

impl Answer {
    /// The text of the last step as a value, for an answer that was to be [of its type](Chat::output).
    pub fn object<T: DeserializeOwned>(&self) -> Result<T, ModelError> {
        let text = match self.messages.last() {
            Some(Message::Assistant { content: Some(text), .. }) => text,
            _ => "",
        };
        serde_json::from_str(text).map_err(ModelError::Output)
    }
}

/// A model's answer as a stream of [`Part`]s. It ends with [`Part::Finish`], or with an error.
pub struct TextStream<'a> {
    asking: Option<Pin<Box<dyn Future<Output = Result<()>> + 'a>>>,
    failed: Option<Error>,
    so_far: Rc<RefCell<SoFar>>,
}

#[derive(Default)]
struct SoFar {
    answer: Answer,
    unsaid: VecDeque<Part>,
}

impl<'a> TextStream<'a> {
    pub(super) fn new(chat: Chat<'a>) -> Self {
        let so_far = Rc::<RefCell<SoFar>>::default();
        let asking = ask(chat, Rc::clone(&so_far));
        Self { asking: Some(Box::pin(asking)), failed: None, so_far }
    }

    /// Emits each part as a durable event of the run as it comes, and returns the whole answer. Ends with [`Error::Cancelled`], and closes
    /// the connection, when the run is cancelled; after that or another error, [`answer`](Self::answer) has what was emitted.
    pub async fn emit_to(&mut self, run: &Run) -> Result<Answer> {
        self.drain(run, async |part| {
            run.emit(part.event()?).await?;
            Ok(())
        })
        .await
    }

    pub(super) async fn all(mut self, run: &Run) -> Result<Answer> {
        self.drain(run, async |_| Ok(())).await
    }

    async fn drain(&mut self, run: &Run, say: impl AsyncFn(Part) -> Result<()>) -> Result<Answer> {
        let all = async {
            while let Some(part) = self.next().await {
                say(part?).await?;
            }
            Ok(())
        };
        let ended = match select(pin!(run.cancelled()), pin!(all)).await {
            Either::Left(((), _)) => Err(Error::Cancelled),
            Either::Right((ended, _)) => ended,
        };
        // Whatever it was, nothing more is asked.
        self.asking = None;
        ended.map(|()| self.answer())
    }

    /// The answer as far as it has been read.
    pub fn answer(&self) -> Answer {
        self.so_far.borrow().answer.clone()
    }
}

impl Stream for TextStream<'_> {
    type Item = Result<Part>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Part>>> {
        if let Some(part) = self.so_far.borrow_mut().say() {
            return Poll::Ready(Some(Ok(part)));
        }
        let Some(asking) = &mut self.asking else {
            return Poll::Ready(self.failed.take().map(Err));
        };
        let asked = asking.as_mut().poll(cx);
        if let Poll::Ready(ended) = asked {
            self.asking = None;
            self.failed = ended.err();
        }
        if let Some(part) = self.so_far.borrow_mut().say() {
            return Poll::Ready(Some(Ok(part)));
        }
        match self.asking {
            Some(_) => Poll::Pending,
            None => Poll::Ready(self.failed.take().map(Err)),
        }
    }
}

impl SoFar {
    fn say(&mut self) -> Option<Part> {
        let part = self.unsaid.pop_front()?;
        if let Part::Text(text) = &part {
            self.answer.text.push_str(text);
        }
        Some(part)
    }
}

/// Asks until the model calls nothing more, or may not.
async fn ask(chat: Chat<'_>, so_far: Rc<RefCell<SoFar>>) -> Result<()> {
    let say = |part| so_far.borrow_mut().unsaid.push_back(part);
    let mut usage: Option<Usage> = None;
    for step in 1.. {
        let request = chat.request(&so_far.borrow().answer.messages)?;
        let response = send(&chat, &request).await?;
        let mut completion = read(response, say).await?;
        usage = match (usage, completion.usage) {
            (Some(before), Some(now)) => Some(before.plus(now)),
            (before, now) => before.or(now),
        };
        let reason = completion.finish.unwrap_or(FinishReason::Other);
        let calls = completion.calls();
        let said = Some(completion.text).filter(|text| !text.is_empty());
        let mut messages = vec![Message::Assistant { content: said, tool_calls: calls.clone() }];
        messages.extend(call(&chat, &calls, say).await?);
        so_far.borrow_mut().answer.messages.append(&mut messages);
        if calls.is_empty() || step >= chat.max_steps {
            let SoFar { answer, unsaid } = &mut *so_far.borrow_mut();
            (answer.finish_reason, answer.usage) = (Some(reason), usage);
            unsaid.push_back(Part::Finish { reason, usage });
            return Ok(());
        }
        say(Part::Step);
    }
    Ok(())
}

/// Sends a request, again if it fails in a way that may pass, and returns the response that is an answer.
async fn send(chat: &Chat<'_>, request: &Request<Vec<u8>>) -> Result<Response<Body>, ModelError> {
    let mut failures = 0;
    loop {
        let error = match send_once(chat, request).await {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        failures += 1;
        match retry::wait(&error, failures, chat.max_retries, retry::chance()) {
            Some(wait) => sleep(wait).await,
            None => return Err(error),
        }
    }
}

async fn send_once(
    chat: &Chat<'_>,
    request: &Request<Vec<u8>>,
) -> Result<Response<Body>, ModelError> {
    let sent = fetch::send_within(chat.timeouts, request.clone()).await;
    let response = sent.map_err(ModelError::Unreachable)?;
    let status = response.status();
    if !status.is_success() {
        let retry_after = retry::retry_after(response.headers(), SystemTime::now());
        let body = beginning(response.into_body()).await;
        return Err(ProviderError::of(status, retry_after, &body).into());
    }
    let content_type = response.headers().get(header::CONTENT_TYPE);
    let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !content_type.starts_with("text/event-stream") {
        let content_type = content_type.to_owned();
        let body = beginning(response.into_body()).await;
        let said = serde_json::from_slice(&body).ok().and_then(|body| ProviderError::said(&body));
        return Err(match said {
            Some(error) => error.into(),
            None => ModelError::Protocol(format!(
                "the answer is {content_type:?} and not text/event-stream"
            )),
        });
    }
    Ok(response)
}

/// The beginning of a body that says what went wrong, as far as it comes.
async fn beginning(mut body: Body) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < ERROR_BYTES
        && let Ok(Some(chunk)) = body.chunk().await
    {
        bytes.extend(chunk);
    }
    bytes
}

/// Reads an answer to its end.
async fn read(response: Response<Body>, say: impl Fn(Part)) -> Result<Completion, ModelError> {
    let chunks = stream::try_unfold(response.into_body(), async |mut body| {
        Ok::<_, FetchError>(body.chunk().await?.map(|chunk| (Bytes::from(chunk), body)))
    });
    let mut documents = pin!(documents(chunks));
    let mut completion = Completion::default();
    while let Some(document) = documents.next().await {
        match document {
            Ok(data) if data.trim() == "[DONE]" => return Ok(completion),
            Ok(data) => completion.take(&data, &say)?,
            // It has said all; only what it has cost may be missing.
            Err(_) if completion.finish.is_some() => return Ok(completion),
            Err(error) => return Err(error),
        }
    }
    match completion.finish {
        Some(_) => Ok(completion),
        None => Err(ModelError::BrokenOff(None)),
    }
}

/// Has the tools called, all at once, and returns what the model is told of each.
async fn call(chat: &Chat<'_>, calls: &[MessageCall], say: impl Fn(Part)) -> Result<Vec<Message>> {
    let mut calling = FuturesOrdered::new();
    for MessageCall { id, function } in calls {
        let input = serde_json::from_str(&function.arguments);
        let (id, name) = (id.clone(), function.name.clone());
        let shown = input.as_ref().map_or_else(|_| function.arguments.clone().into(), Value::clone);
        say(Part::ToolCall { id: id.clone(), name: name.clone(), input: shown });
        calling.push_back(async move {
            let tool = chat.tools.iter().find(|tool| tool.name == name);
            let output = match (tool, input) {
                (None, _) => Err(Error::BadRequest(format!("there is no tool {name:?}"))),
                (_, Err(fault)) => {
                    Err(Error::BadRequest(format!("the input is not JSON: {fault}")))
                }
                (Some(tool), Ok(input)) => tool.call(input).await,
            };
            (id, name, output)
        });
    }
    let mut messages = Vec::new();
    while let Some((id, name, output)) = calling.next().await {
        let output = match output {
            Err(Error::Cancelled) => return Err(Error::Cancelled),
            Err(Error::BadRequest(message)) => Err(message),
            Err(error @ Error::Other(_)) => {
                eprintln!("the tool {name:?} failed: {error}");
                Err("the tool failed".into())
            }
            Ok(output) => Ok(output),
        };
        messages.push(Message::result(&id, &output));
        say(Part::ToolResult { id, output });
    }
    Ok(messages)
}
