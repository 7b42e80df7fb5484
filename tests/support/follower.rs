//! A client of a run, through whatever becomes of the host.

use reqwest::{Method, RequestBuilder, StatusCode};

use super::client::Client;
use super::stream::{Event, Stream};

/// A client that comes back as an `EventSource` does, and keeps all it was ever given.
pub struct Follower {
    pub path: String,
    /// The run it follows, once it was told which.
    pub run: Option<String>,
    pub events: Vec<Event>,
    pub stream: Option<Stream>,
    /// Whether the stream came to its end.
    pub ended: bool,
}

impl Follower {
    pub fn new(path: &str) -> Self {
        Self { path: path.into(), run: None, events: Vec::new(), stream: None, ended: false }
    }

    /// What it sends to begin, or to come back.
    pub fn request(&self, host: &Client) -> RequestBuilder {
        let request = host.request(Method::GET, &self.path);
        let before_the_first = || self.run.as_ref().map(|run| format!("{run}-0"));
        match self.events.last().map(|event| event.id.clone()).or_else(before_the_first) {
            Some(last) => request.header("last-event-id", last),
            None => request,
        }
    }

    pub async fn open(&mut self, host: &Client) {
        self.opened(Stream::open(self.request(host)).await);
    }

    /// Takes the answer of a host.
    pub fn opened(&mut self, stream: Stream) {
        let run = stream.headers.get("bureau-run");
        let run =
            run.unwrap_or_else(|| panic!("{}: {} {:?}", self.path, stream.status, stream.headers));
        let run = run.to_str().unwrap().to_owned();
        assert_eq!(*self.run.get_or_insert(run.clone()), run, "{}: another run", self.path);
        match stream.status {
            StatusCode::NO_CONTENT => self.ended = true,
            status => {
                assert_eq!(status, StatusCode::OK, "{}", self.path);
                self.stream = Some(stream);
            }
        }
    }

    /// Reads to the end of the stream, or to that of the host.
    pub async fn read(&mut self, request: RequestBuilder, seen: impl Fn()) {
        if self.ended {
            return;
        }
        if self.stream.is_none() {
            let Ok(stream) = Stream::try_open(request).await else { return };
            self.opened(stream);
        }
        self.rest(seen).await;
    }

    /// Reads on in the stream that is open, if one is.
    pub async fn rest(&mut self, seen: impl Fn()) {
        let Some(mut stream) = self.stream.take() else { return };
        loop {
            match stream.try_next().await {
                Some(Ok(event)) => {
                    self.events.push(event);
                    seen();
                }
                Some(Err(_)) => return,
                None => break self.ended = true,
            }
        }
    }

    /// It was given all that is in the journal, each event once and in order, and nothing that is not.
    pub fn saw(&self, journal: &[Event]) {
        assert_eq!(ids(&self.events), ids(journal), "{}: seen, and in the journal", self.path);
        assert!(self.events == journal, "{}: other events under the same ids", self.path);
    }

    /// The run from its beginning, after which there is nothing more.
    pub async fn replay(&self, host: &Client) -> Vec<Event> {
        let run = self.run.as_deref().expect("the client was answered");
        let events = host.resume(&self.path, &format!("{run}-0")).await.rest().await;
        let after = host.resume(&self.path, &format!("{run}-{}", events.len())).await;
        assert_eq!(after.status, StatusCode::NO_CONTENT, "{}: the run is over", self.path);
        events
    }
}

/// The ids of events.
pub fn ids(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.id.as_str()).collect()
}
