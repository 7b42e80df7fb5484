//! What an agent answers: its events, or a response of the `http` crate's types.
//!
//! A response leaves with its whole body, or with a stream that a task of the same call goes on writing after the
//! call has returned. That task holds the client's bytes only while a write of them is under way, and ends with the body.

use std::fmt;

use http::{HeaderName, HeaderValue, StatusCode, header};
use serde::Serialize;
use wit_bindgen::{StreamReader, StreamWriter};

use crate::bindings::bureau::agent::types as raw;
use crate::bindings::wit_stream;
use crate::error::{Error, Result};
use crate::rt;

/// What a call answers: the events that its run emitted, or an HTTP response.
///
/// A run that has emitted, or opened its stream, has already answered; a response is dropped then.
///
/// ```
/// use bureau_sdk::prelude::*;
///
/// fn not_found() -> Reply {
///     Reply::text("Not found").with_status(StatusCode::NOT_FOUND)
/// }
/// ```
#[derive(Debug)]
pub struct Reply(Answer);

#[derive(Debug)]
enum Answer {
    Events,
    Response(Response),
}

/// A response on its way to the host: most have a field or two, which need no map.
#[derive(Debug)]
struct Response {
    status: StatusCode,
    headers: Vec<(HeaderName, HeaderValue)>,
    body: Body,
}

impl Reply {
    /// The run's events are the answer. A run without any answers `204 No Content`.
    pub fn events() -> Self {
        Self(Answer::Events)
    }

    /// `200` with this value as JSON.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    ///
    /// fn status() -> Result<Reply> {
    ///     Reply::json(&json!({ "status": "ok" }))
    /// }
    /// ```
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        let body = serde_json::to_vec(value)?;
        Ok(Self::of_type("application/json", body))
    }

    /// `200` with this text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::of_type("text/plain; charset=utf-8", text.into())
    }

    /// This status and an empty body.
    pub fn status(status: StatusCode) -> Self {
        Self::ok(()).with_status(status)
    }

    /// `200` with a body of raw bytes, which the closure goes on writing after the call has returned.
    ///
    /// The bytes are passed on as they come and are not journaled, so a client cannot resume them, and one that
    /// leaves ends the body: see [`Chunks::write`]. The run goes on until the body ends, but the call
    /// has returned, so the closure takes what it needs with it. An error that it returns ends the body early and is logged.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    ///
    /// fn clock() -> Reply {
    ///     Reply::chunks(async |mut body| {
    ///         loop {
    ///             body.write("tick\n").await?;
    ///             sleep(Duration::from_secs(1)).await;
    ///         }
    ///     })
    /// }
    /// ```
    pub fn chunks(write: impl AsyncFnOnce(Chunks) -> Result<()> + 'static) -> Self {
        // Only here is the stream's type named, so that an agent without such bodies imports nothing for them.
        Self::ok(Body(Content::Chunks(Box::new(|| {
            let (writer, reader) = wit_stream::new();
            // The task of the call lasts until what it spawned has ended, also after its reply is on its way.
            rt::spawn(async move {
                match write(Chunks(writer)).await {
                    Ok(()) => {}
                    Err(Error::Other(error)) if error.is::<ClientLeft>() => {}
                    Err(error) => eprintln!("the body ended early: {error}"),
                }
            });
            reader
        }))))
    }

    /// The same with another status. The answer of events keeps its own.
    #[must_use]
    pub fn with_status(mut self, status: StatusCode) -> Self {
        if let Answer::Response(response) = &mut self.0 {
            response.status = status;
        }
        self
    }

    /// The same with this header field, in place of any other of that name. The answer of events keeps its own.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    ///
    /// let reply = Reply::status(StatusCode::METHOD_NOT_ALLOWED)
    ///     .with_header(header::ALLOW, HeaderValue::from_static("GET, POST"));
    /// ```
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        if let Answer::Response(response) = &mut self.0 {
            response.headers.retain(|(other, _)| *other != name);
            response.headers.push((name, value));
        }
        self
    }

    fn of_type(content_type: &'static str, body: impl Into<Body>) -> Self {
        Self::ok(body).with_header(header::CONTENT_TYPE, HeaderValue::from_static(content_type))
    }

    fn ok(body: impl Into<Body>) -> Self {
        let (status, headers) = (StatusCode::OK, Vec::new());
        Self(Answer::Response(Response { status, headers, body: body.into() }))
    }
}

/// Any response of the `http` crate is a reply.
///
/// ```
/// use bureau_sdk::{http, prelude::*};
///
/// fn moved() -> Result<Reply> {
///     let response = http::Response::builder().status(303).header("location", "/").body(())?;
///     Ok(response.into())
/// }
/// ```
impl<B: Into<Body>> From<http::Response<B>> for Reply {
    fn from(response: http::Response<B>) -> Self {
        let (head, body) = response.into_parts();
        let header = |(name, value): (&HeaderName, &HeaderValue)| (name.clone(), value.clone());
        let headers = head.headers.iter().map(header).collect();
        Self(Answer::Response(Response { status: head.status, headers, body: body.into() }))
    }
}

/// The body of a response: empty, text or bytes, by conversion; or what [`Reply::chunks`] writes.
#[derive(Debug)]
pub struct Body(Content);

enum Content {
    Bytes(Vec<u8>),
    /// Begins to write, and returns what the host is to read.
    Chunks(Box<dyn FnOnce() -> StreamReader<u8>>),
}

impl From<()> for Body {
    fn from((): ()) -> Self {
        Self(Content::Bytes(Vec::new()))
    }
}

impl From<&str> for Body {
    fn from(text: &str) -> Self {
        Self(Content::Bytes(text.into()))
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self(Content::Bytes(text.into()))
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self(Content::Bytes(bytes))
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Chunks(_) => f.write_str("chunks"),
        }
    }
}

/// The writing end of a body, which [`Reply::chunks`] hands out. The body ends when it is dropped.
#[derive(Debug)]
pub struct Chunks(StreamWriter<u8>);

/// Nobody reads the body any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the client has left")]
pub struct ClientLeft;

impl Chunks {
    /// Writes these bytes, and returns when the host has taken them all. Fails when nobody reads any more.
    pub async fn write(&mut self, bytes: impl Into<Vec<u8>>) -> Result<(), ClientLeft> {
        let unsent = self.0.write_all(bytes.into()).await;
        if unsent.is_empty() { Ok(()) } else { Err(ClientLeft) }
    }
}

impl From<Reply> for raw::Reply {
    fn from(reply: Reply) -> Self {
        let Response { status, headers, body } = match reply.0 {
            Answer::Events => return Self::Events,
            Answer::Response(response) => response,
        };
        let header = |(name, value): (HeaderName, HeaderValue)| raw::Header {
            name: name.as_str().into(),
            value: match value.to_str() {
                Ok(text) => text.into(),
                Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
            },
        };
        Self::Response(raw::Response {
            status: status.as_u16(),
            headers: headers.into_iter().map(header).collect(),
            body: body.into(),
        })
    }
}

impl From<Body> for raw::Body {
    fn from(body: Body) -> Self {
        match body.0 {
            Content::Bytes(bytes) => Self::Bytes(bytes),
            Content::Chunks(begin) => Self::Chunks(begin()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(reply: Reply) -> (u16, Vec<(String, String)>, Vec<u8>) {
        let raw::Reply::Response(raw::Response { status, headers, body }) = reply.into() else {
            panic!("the reply is no response");
        };
        let raw::Body::Bytes(body) = body else {
            panic!("the body is streamed");
        };
        (
            status,
            headers.into_iter().map(|raw::Header { name, value }| (name, value)).collect(),
            body,
        )
    }

    #[test]
    fn json_says_what_it_is() {
        let (status, headers, body) = response(Reply::json(&[1, 2]).expect("numbers are JSON"));
        assert_eq!(status, 200);
        assert_eq!(headers, [("content-type".into(), "application/json".into())]);
        assert_eq!(body, b"[1,2]");
    }

    #[test]
    fn a_response_passes_unchanged() {
        let value = HeaderValue::from_bytes(b"J\xfcrgen").expect("the value is valid");
        let reply = http::Response::builder()
            .status(418)
            .header("x-name", &value)
            .header("x-name", &value)
            .body(vec![0, 255])
            .expect("the response is valid");
        let (status, headers, body) = response(reply.into());
        assert_eq!(status, 418);
        assert_eq!(headers, vec![("x-name".to_owned(), "J\u{fc}rgen".to_owned()); 2]);
        assert_eq!(body, [0, 255]);
    }

    #[test]
    fn events_have_neither_status_nor_headers() {
        let reply = Reply::events()
            .with_status(StatusCode::NOT_FOUND)
            .with_header(header::ALLOW, HeaderValue::from_static("GET"));
        assert!(matches!(raw::Reply::from(reply), raw::Reply::Events));
    }
}
