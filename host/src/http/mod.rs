//! The HTTP side: what comes in is parsed into a [`Route`](route::Route), what goes out is a [`Body`].
//!
//! Only this floor knows of HTTP. Everything in it but the server loop and the API is a pure function, so that
//! routing, framing, negotiation and the errors are tested without a socket.

pub mod route;
pub mod accept;
pub mod problem;
pub mod sse;
mod documents;
mod repeat;
mod runs;
mod ui_messages;
mod views;
mod cors;
mod upload;
mod bearer;
mod auth;
mod asked;
mod answer;
pub mod api;
pub mod admin;
pub mod connections;
pub mod tls;
mod strict;
pub mod server;

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;

pub use hyper::body::Incoming;

use self::sse::EventsBody;
use self::views::ViewBody;

/// Why a body broke off.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// The body of a response.
pub enum Body {
    /// All of it; `None` once it has been sent.
    Full(Option<Bytes>),
    /// A run's events.
    Events(Pin<Box<EventsBody>>),
    /// A run's events in another format.
    View(Pin<Box<ViewBody>>),
    /// What a guest writes as it goes.
    Chunks(UnsyncBoxBody<Bytes, BodyError>),
}

impl Body {
    /// A body that is there as a whole.
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        Self::Full(Some(bytes.into()))
    }

    /// No body.
    pub fn empty() -> Self {
        Self::Full(None)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Events(events) => events.as_mut().poll_frame(cx).map_err(Into::into),
            Self::View(view) => view.as_mut().poll_frame(cx).map_err(Into::into),
            Self::Chunks(chunks) => Pin::new(chunks).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.as_ref().is_none_or(Bytes::is_empty),
            Self::Events(events) => events.is_end_stream(),
            Self::View(view) => view.is_end_stream(),
            Self::Chunks(chunks) => chunks.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Events(events) => events.size_hint(),
            Self::View(view) => view.size_hint(),
            Self::Chunks(chunks) => chunks.size_hint(),
        }
    }
}
