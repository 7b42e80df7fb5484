//! Reading an event stream with a parser crate that the host knows nothing of.

use std::pin::Pin;

use eventsource_stream::Eventsource as _;
use futures_util::StreamExt as _;
use reqwest::{RequestBuilder, StatusCode, header::HeaderMap};

use super::patience::PATIENCE;

/// One event, as a client has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    pub id: String,
    pub name: String,
    pub data: String,
}

/// An open event stream.
pub struct Stream {
    pub status: StatusCode,
    pub headers: HeaderMap,
    events: Pin<Box<dyn futures_util::Stream<Item = Result<Event, String>> + Send>>,
}

impl Stream {
    /// Sends the request and reads the answer as an event stream.
    pub async fn open(request: RequestBuilder) -> Self {
        Self::try_open(request).await.expect("the host answers")
    }

    /// Sends the request to a host that may be gone, and reads the answer as an event stream.
    pub async fn try_open(request: RequestBuilder) -> Result<Self, reqwest::Error> {
        let response = request.send().await?;
        let (status, headers) = (response.status(), response.headers().clone());
        let events = response.bytes_stream().eventsource().map(|event| match event {
            Ok(event) => Ok(Event { id: event.id, name: event.event, data: event.data }),
            Err(error) => Err(error.to_string()),
        });
        Ok(Self { status, headers, events: Box::pin(events) })
    }

    /// The next event, or the stream's clean end.
    pub async fn next(&mut self) -> Option<Event> {
        self.try_next().await.map(|event| event.expect("the stream does not break"))
    }

    /// The next event, or how the stream ended: cleanly, or broken off.
    pub async fn try_next(&mut self) -> Option<Result<Event, String>> {
        let next = tokio::time::timeout(PATIENCE, self.events.next()).await;
        next.expect("an event comes, or the end")
    }

    /// This many events.
    pub async fn take(&mut self, count: usize) -> Vec<Event> {
        let mut taken = Vec::with_capacity(count);
        while taken.len() < count {
            taken.push(self.next().await.expect("the stream goes on"));
        }
        taken
    }

    /// All that is left.
    pub async fn rest(mut self) -> Vec<Event> {
        let mut rest = Vec::new();
        while let Some(event) = self.next().await {
            rest.push(event);
        }
        rest
    }
}

/// The data of events.
pub fn data(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.data.as_str()).collect()
}
