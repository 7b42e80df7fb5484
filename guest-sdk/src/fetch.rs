//! Requests to other servers, where the operator has granted them.
//!
//! **Problem.** `wasi:http` has a request as four resources, a stream and two futures; an agent wants a request and a response.
//!
//! **Mechanism.** The types of the `http` crate. A request's body is sent while its response is awaited and, as a server may answer before
//! it has read all, while the response's body is read.
//!
//! **Limits.** The host's: who may be asked, how many requests at once, how long each may take. Redirects are not followed, bodies are not
//! decompressed, and nothing is tried twice.
//!
//! **Cost.** A component imports `wasi:http` only if it uses this.
//!
//! ```no_run
//! use bureau_sdk::{fetch, http, prelude::*};
//!
//! # async fn example() -> Result<()> {
//! let request = http::Request::get("https://api.example.org/weather").body(Vec::new())?;
//! let weather: Value = fetch::send(request).await?.into_body().json().await?;
//! # Ok(())
//! # }
//! ```

use std::fmt;
use std::future::pending;
use std::pin::{Pin, pin};
use std::time::Duration;

use futures_util::future::{Either, select};
use http::{HeaderName, HeaderValue, header};
use serde::de::DeserializeOwned;
use wit_bindgen::{FutureReader, StreamReader, StreamResult};

use crate::bindings::outbound::wasi::http::client;
use crate::bindings::outbound::wasi::http::types::{
    ErrorCode, Fields, Method, Request, RequestOptions, Response, Scheme, Trailers,
};
use crate::bindings::outbound::{wit_future, wit_stream};

/// What is read at once of a body.
const CHUNK: usize = 16 << 10;

/// Sends a request and waits for the head of its response. The URL is absolute.
///
/// A response of any status is a response; an error is one of the way to it. Dropping the future gives the request up.
pub async fn send(request: http::Request<Vec<u8>>) -> Result<http::Response<Body>, FetchError> {
    send_within(Timeouts::default(), request).await
}

/// The same, waiting no longer than this. The host has limits of its own, which hold as well.
pub async fn send_within(
    timeouts: Timeouts,
    request: http::Request<Vec<u8>>,
) -> Result<http::Response<Body>, FetchError> {
    let target = request.uri().authority().map(ToString::to_string).unwrap_or_default();
    let failed = |reason| FetchError { target: target.clone(), reason };
    let (request, sending) = outgoing(timeouts, request).map_err(failed)?;
    let (response, sending) = match select(pin!(client::send(request)), sending).await {
        Either::Left((response, sending)) => (response, Some(sending)),
        Either::Right(((), response)) => (response.await, None),
    };
    let response = response.map_err(|error| failed(error.into()))?;
    incoming(response, sending, &target).map_err(failed)
}

/// How long to wait, where it is not for as long as the host does.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// For the connection.
    pub connect: Option<Duration>,
    /// For the head of the response.
    pub first_byte: Option<Duration>,
    /// For the next bytes of its body.
    pub between_bytes: Option<Duration>,
}

/// The body of a response, as it comes. Dropping it closes the connection, if there is more to come.
pub struct Body {
    stream: StreamReader<u8>,
    /// What says how the body ended, until it has.
    end: Option<FutureReader<Result<Option<Trailers>, ErrorCode>>>,
    sending: Option<Sending>,
    target: String,
}

/// The rest of the request's body on its way.
type Sending = Pin<Box<dyn Future<Output = ()>>>;

impl Body {
    /// The next bytes, or `None` at the end. A body that is cut off ends with an error.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>, FetchError> {
        while self.end.is_some() {
            let sending = async {
                match &mut self.sending {
                    Some(sending) => sending.await,
                    None => pending().await,
                }
            };
            let reading = self.stream.read(Vec::with_capacity(CHUNK));
            let (result, bytes) = match select(pin!(reading), pin!(sending)).await {
                Either::Left((read, _)) => read,
                Either::Right(((), reading)) => {
                    let read = reading.await;
                    self.sending = None;
                    read
                }
            };
            if !bytes.is_empty() {
                return Ok(Some(bytes));
            }
            if let (StreamResult::Dropped, Some(end)) = (result, self.end.take()) {
                end.await.map_err(|error| self.failed(error.into()))?;
            }
        }
        Ok(None)
    }

    /// All bytes that are left.
    pub async fn bytes(mut self) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            bytes.extend(chunk);
        }
        Ok(bytes)
    }

    /// All that is left, as text. What is not UTF-8 is an error.
    pub async fn text(self) -> Result<String, FetchError> {
        let target = self.target.clone();
        String::from_utf8(self.bytes().await?).map_err(|error| FetchError::content(target, error))
    }

    /// All that is left, as a value of JSON.
    pub async fn json<T: DeserializeOwned>(self) -> Result<T, FetchError> {
        let target = self.target.clone();
        serde_json::from_slice(&self.bytes().await?)
            .map_err(|error| FetchError::content(target, error))
    }

    fn failed(&self, reason: FetchFailure) -> FetchError {
        FetchError { target: self.target.clone(), reason }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a body from {}", self.target)
    }
}

/// Why there is no response, or no more of its body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a request to {target:?} failed: {reason}")]
#[non_exhaustive]
pub struct FetchError {
    /// The host and port of the request's URL.
    pub target: String,
    /// What went wrong.
    pub reason: FetchFailure,
}

impl FetchError {
    fn content(target: String, error: impl fmt::Display) -> Self {
        Self { target, reason: FetchFailure::Content(error.to_string()) }
    }
}

/// What went wrong with a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FetchFailure {
    /// It is none that could be sent; the message says why.
    #[error("it cannot be sent: {0}")]
    Invalid(String),
    /// The operator has not granted it.
    #[error("the agent is not granted that; the operator grants hosts with `allow_hosts`")]
    Denied,
    /// Too many requests of the agent are under way.
    #[error("too many requests of the agent are under way")]
    Busy,
    /// The name is not known.
    #[error("there is no address of that name")]
    Name,
    /// There is no connection; the message says why.
    #[error("there is no connection: {0}")]
    Connection(&'static str),
    /// TLS failed; the message says how.
    #[error("TLS failed: {0}")]
    Tls(&'static str),
    /// The server did not answer, or not go on, in time.
    #[error("the server did not answer in time")]
    Timeout,
    /// The connection ended before the response did.
    #[error("the connection ended before the response did")]
    CutOff,
    /// The server does not speak HTTP; the message is the host's.
    #[error("the server does not keep to HTTP: {0}")]
    Protocol(String),
    /// The body of the response is not what was asked for.
    #[error("the response does not fit: {0}")]
    Content(String),
}

impl From<ErrorCode> for FetchFailure {
    fn from(error: ErrorCode) -> Self {
        match error {
            ErrorCode::HttpRequestDenied | ErrorCode::DestinationIpProhibited => Self::Denied,
            ErrorCode::ConnectionLimitReached => Self::Busy,
            ErrorCode::DnsError(_) | ErrorCode::DnsTimeout | ErrorCode::DestinationNotFound => {
                Self::Name
            }
            ErrorCode::ConnectionRefused => Self::Connection("it was refused"),
            ErrorCode::DestinationIpUnroutable => Self::Connection("no way leads there"),
            ErrorCode::DestinationUnavailable => Self::Connection("the server is not there"),
            ErrorCode::TlsCertificateError => Self::Tls("the certificate is not trusted"),
            ErrorCode::TlsProtocolError | ErrorCode::TlsAlertReceived(_) => {
                Self::Tls("the server and the host do not agree")
            }
            ErrorCode::ConnectionTimeout
            | ErrorCode::ConnectionReadTimeout
            | ErrorCode::ConnectionWriteTimeout
            | ErrorCode::HttpResponseTimeout => Self::Timeout,
            ErrorCode::ConnectionTerminated | ErrorCode::HttpResponseIncomplete => Self::CutOff,
            ErrorCode::HttpRequestMethodInvalid => {
                Self::Invalid("the method is not allowed".into())
            }
            ErrorCode::HttpRequestUriInvalid => Self::Invalid("the URL is not valid".into()),
            ErrorCode::HttpRequestUriTooLong => Self::Invalid("the URL is too long".into()),
            ErrorCode::InternalError(Some(message)) => Self::Protocol(message),
            other => Self::Protocol(format!("{other:?}")),
        }
    }
}

/// A request for the host, and what sends its body.
fn outgoing(
    timeouts: Timeouts,
    request: http::Request<Vec<u8>>,
) -> Result<(Request, Sending), FetchFailure> {
    let (mut head, body) = request.into_parts();
    let invalid = |what: &str| FetchFailure::Invalid(format!("{what} is not valid"));
    let (Some(scheme), Some(authority)) = (head.uri.scheme(), head.uri.authority()) else {
        let why = format!("{} is not a whole URL, as in https://example.org/", head.uri);
        return Err(FetchFailure::Invalid(why));
    };
    if !body.is_empty() {
        head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    }
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        (name.as_str().to_owned(), value.as_bytes().to_owned())
    };
    let fields: Vec<_> = head.headers.iter().map(field).collect();
    let fields = Fields::from_list(&fields)
        .map_err(|error| FetchFailure::Invalid(format!("its header fields: {error}")))?;
    let (writer, contents) = match body.is_empty() {
        true => (None, None),
        false => {
            let (writer, contents) = wit_stream::new();
            (Some(writer), Some(contents))
        }
    };
    // Its writer is dropped at once: there are no trailers.
    let (_, trailers) = wit_future::new(|| Ok(None));
    let options = options(timeouts).map_err(|_| invalid("a timeout"))?;
    let (request, _) = Request::new(fields, contents, trailers, Some(options));
    let path = head.uri.path_and_query().map(http::uri::PathAndQuery::as_str);
    request.set_method(&method(&head.method)).map_err(|()| invalid("the method"))?;
    request.set_scheme(Some(&scheme_of(scheme))).map_err(|()| invalid("the scheme"))?;
    request.set_authority(Some(authority.as_str())).map_err(|()| invalid("the host"))?;
    request.set_path_with_query(path).map_err(|()| invalid("the path"))?;
    let sending = async move {
        if let Some(mut writer) = writer {
            // What the server does not read it does not want.
            writer.write_all(body).await;
        }
    };
    Ok((request, Box::pin(sending)))
}

fn options(
    Timeouts { connect, first_byte, between_bytes }: Timeouts,
) -> Result<RequestOptions, impl fmt::Debug> {
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    let options = RequestOptions::new();
    options.set_connect_timeout(connect.map(nanoseconds))?;
    options.set_first_byte_timeout(first_byte.map(nanoseconds))?;
    options.set_between_bytes_timeout(between_bytes.map(nanoseconds))?;
    Ok::<_, crate::bindings::outbound::wasi::http::types::RequestOptionsError>(options)
}

fn incoming(
    response: Response,
    sending: Option<Sending>,
    target: &str,
) -> Result<http::Response<Body>, FetchFailure> {
    let protocol = |error: &dyn fmt::Display| FetchFailure::Protocol(error.to_string());
    let status = response.get_status_code();
    let fields = response.get_headers().copy_all();
    // Its writer is dropped at once: whatever comes of the body, the server is not told.
    let (_, read) = wit_future::new(|| Ok(()));
    let (stream, end) = Response::consume_body(response, read);
    let mut incoming =
        http::Response::new(Body { stream, end: Some(end), sending, target: target.into() });
    *incoming.status_mut() = status.try_into().map_err(|error| protocol(&error))?;
    for (name, value) in fields {
        let name = HeaderName::try_from(name).map_err(|error| protocol(&error))?;
        let value = HeaderValue::try_from(value).map_err(|error| protocol(&error))?;
        incoming.headers_mut().append(name, value);
    }
    Ok(incoming)
}

fn method(method: &http::Method) -> Method {
    match method.as_str() {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "DELETE" => Method::Delete,
        "CONNECT" => Method::Connect,
        "OPTIONS" => Method::Options,
        "TRACE" => Method::Trace,
        "PATCH" => Method::Patch,
        other => Method::Other(other.into()),
    }
}

fn scheme_of(scheme: &http::uri::Scheme) -> Scheme {
    match scheme.as_str() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => Scheme::Other(other.into()),
    }
}
