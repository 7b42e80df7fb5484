//! Asking a host's admin API.
//!
//! **Problem.** A request can fail in a dozen ways, and whoever typed a command needs one sentence: what was wrong, and what to do.
//!
//! **Mechanism.** [`Client`] sends requests below one URL, with the token if there is one. What is not an answer is a
//! [`ClientError`]: the host's own problem with its code, or what is there instead of a host. One that may pass is told
//! from one that will not, for those who come back.
//!
//! **Limits.** A host that takes a connection and then says nothing is given [`PATIENCE`], and a stream [`SILENCE`], which is more than the host's
//! heartbeats leave between them; what a deployment takes is not bounded, as compiling may take long. Nothing is sent through a proxy or to where
//! a redirect points, since a token goes with it.
//!
//! **Cost.** A connection, kept while the command runs.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::{Stream, StreamExt as _};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sse_stream::{Sse, SseByteStream};

use super::arguments::Remote;

/// How long a connection may take to be made: one to nowhere would otherwise take minutes.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a stream may say nothing, not even a heartbeat: its connection may be dead without anyone having said so.
const SILENCE: Duration = Duration::from_secs(60);

/// The environment's variable with the host's admin token.
const TOKEN: &str = "BUREAU_ADMIN_TOKEN";

/// A host's admin API.
#[derive(Clone)]
pub struct Client {
    url: Url,
    http: reqwest::Client,
    streams: reqwest::Client,
    has_token: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no host answers at {url} ({why}); `bureau serve` or `bureau dev` starts one, and --admin or BUREAU_ADMIN says where it is"
    )]
    Unreachable { url: Url, why: String },
    /// The connection was there.
    #[error("the connection to {url} broke off: {why}")]
    Broken { url: Url, why: String },
    /// The host's own problem.
    #[error("{detail} ({code}){}", .hint.unwrap_or_default())]
    Refused { status: StatusCode, code: String, detail: String, hint: Option<&'static str> },
    #[error("{url} answered {status}, and not as a host does: is it the address of `--admin`?")]
    Strange { url: Url, status: StatusCode },
}

impl ClientError {
    /// Whether the same request may well be answered later.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Broken { .. } => true,
            Self::Refused { status, .. } | Self::Strange { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
        }
    }
}

/// What a problem's document has for people and programs.
#[derive(Deserialize)]
struct Problem {
    detail: String,
    code: String,
}

impl Client {
    /// A client of this host.
    pub fn new(remote: &Remote) -> anyhow::Result<Self> {
        let mut headers = HeaderMap::new();
        let token = std::env::var_os(TOKEN).filter(|token| !token.is_empty());
        let has_token = token.is_some();
        if let Some(token) = token {
            let token = token.into_string().ok();
            let header =
                token.and_then(|token| HeaderValue::try_from(format!("Bearer {token}")).ok());
            let mut header = header.with_context(|| {
                format!(
                    "{TOKEN} has characters that no header carries; is there a line break in it?"
                )
            })?;
            header.set_sensitive(true);
            headers.insert(AUTHORIZATION, header);
        }
        let builder = || {
            let builder = reqwest::Client::builder().default_headers(headers.clone());
            builder.connect_timeout(CONNECTING).no_proxy().redirect(Policy::none())
        };
        Ok(Self {
            url: remote.admin.url().clone(),
            http: builder().build()?,
            streams: builder().read_timeout(SILENCE).build()?,
            has_token,
        })
    }

    /// The URL of a path below the admin address.
    fn at(&self, path: &[&str], query: &[(&str, &str)]) -> Url {
        let mut url = self.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path);
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        url
    }

    /// A request that may take as long as it takes.
    pub fn request(&self, method: Method, path: &[&str]) -> RequestBuilder {
        self.http.request(method, self.at(path, &[]))
    }

    /// The document at a path.
    pub async fn get(&self, path: &[&str], query: &[(&str, &str)]) -> Result<Value, ClientError> {
        let request = self.http.get(self.at(path, query)).timeout(PATIENCE);
        self.document(request).await
    }

    /// What a request is answered with, which is a document.
    pub async fn document(&self, request: RequestBuilder) -> Result<Value, ClientError> {
        let response = self.send(request).await?;
        let (url, status) = (response.url().clone(), response.status());
        let body = response.bytes().await.map_err(|error| self.failed(&error))?;
        serde_json::from_slice(&body).map_err(|_| ClientError::Strange { url, status })
    }

    /// The answer to a request, which is a good one.
    pub async fn send(&self, request: RequestBuilder) -> Result<Response, ClientError> {
        let response = request.send().await.map_err(|error| self.failed(&error))?;
        let (url, status) = (response.url().clone(), response.status());
        if status.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.map_err(|error| self.failed(&error))?;
        let Ok(Problem { detail, code }) = serde_json::from_slice(&body) else {
            return Err(ClientError::Strange { url, status });
        };
        let hint = match (status, self.has_token) {
            (StatusCode::UNAUTHORIZED, false) => Some("; BUREAU_ADMIN_TOKEN is not set"),
            (StatusCode::UNAUTHORIZED, true) => Some("; BUREAU_ADMIN_TOKEN is another one"),
            _ => None,
        };
        Err(ClientError::Refused { status, code, detail, hint })
    }

    /// The events at a path, after one of them. `None` if nothing follows it.
    pub async fn events(
        &self,
        path: &[&str],
        after: Option<&str>,
    ) -> Result<Option<Events>, ClientError> {
        let mut request =
            self.streams.get(self.at(path, &[])).header("accept", "text/event-stream");
        if let Some(id) = after {
            request = request.header("last-event-id", id);
        }
        let response = self.send(request).await?;
        let (url, status) = (response.url().clone(), response.status());
        if status == StatusCode::NO_CONTENT {
            return Ok(None);
        }
        let kind = response.headers().get(CONTENT_TYPE).map_or(&[][..], HeaderValue::as_bytes);
        if !kind.starts_with(b"text/event-stream") {
            return Err(ClientError::Strange { url, status });
        }
        Ok(Some(Events(Box::pin(SseByteStream::new(response.bytes_stream())))))
    }

    fn failed(&self, error: &reqwest::Error) -> ClientError {
        let url = error.url().unwrap_or(&self.url).clone();
        // The outer ones only say that it was a request.
        let mut cause: &dyn std::error::Error = error;
        while let Some(inner) = cause.source() {
            cause = inner;
        }
        let why = match error.is_timeout() {
            true => "it takes too long".to_owned(),
            false => cause.to_string(),
        };
        if error.is_connect() || error.is_timeout() {
            return ClientError::Unreachable { url: self.url.clone(), why };
        }
        ClientError::Broken { url, why }
    }
}

/// An open stream of events.
pub struct Events(std::pin::Pin<Box<dyn Stream<Item = Result<Sse, sse_stream::Error>> + Send>>);

impl Events {
    /// The next event. `None` when the stream has ended, in whichever way: one that broke off is as good to come back to
    /// as one that was closed.
    pub async fn next(&mut self) -> Option<Sse> {
        loop {
            let block = self.0.next().await?.ok()?;
            // A block without data, such as one with `retry`, is no event.
            if block.data.is_some() {
                return Some(block);
            }
        }
    }
}

/// A document as what it should be.
pub fn read<T: DeserializeOwned>(document: &Value) -> anyhow::Result<T> {
    T::deserialize(document).context("the host's answer is not what this version of bureau knows")
}
