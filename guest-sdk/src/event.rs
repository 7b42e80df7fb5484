//! Events: what a run emits, and why one may be refused. The host checks them; nothing is checked twice.

use serde::Serialize;

use crate::bindings::bureau::agent::types as raw;
use crate::error::Result;

/// One event of a run: data, and if it needs them a name and an id of its own.
///
/// The data may have several lines. The host numbers the event, and makes it durable before any client sees it.
///
/// ```
/// use bureau_sdk::prelude::*;
///
/// let event = Event::data("42 %").name("progress");
/// let plain: Event = "Starting...".into();
/// ```
#[derive(Debug, Clone)]
pub struct Event(pub(crate) raw::Event);

impl Event {
    /// An event with this data.
    pub fn data(data: impl Into<String>) -> Self {
        Self(raw::Event { name: None, data: data.into(), id: None })
    }

    /// An event with this value as JSON for its data.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    ///
    /// # fn example() -> Result<()> {
    /// let event = Event::json(&json!({ "n": 1 }))?.name("progress");
    /// # Ok(())
    /// # }
    /// ```
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self> {
        Ok(Self::data(serde_json::to_string(value)?))
    }

    /// Names the event: a browser's `EventSource` hands it to the listeners of that type, and an event
    /// without a name to those of `message`. A name has no CR, LF or NUL.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.0.name = Some(name.into());
        self
    }

    /// Gives the event an id of the agent's own, in place of the host's: 1 to 128 visible ASCII characters, not of the
    /// form of the host's own. A client that comes back with it is resumed after the last event of the instance that
    /// has it. Browsers send an id of `[0-9A-Za-z._-]` to another origin without asking first.
    #[must_use]
    pub fn id(mut self, id: impl Into<String>) -> Self {
        self.0.id = Some(id.into());
        self
    }
}

impl From<&str> for Event {
    fn from(data: &str) -> Self {
        Self::data(data)
    }
}

impl From<String> for Event {
    fn from(data: String) -> Self {
        Self::data(data)
    }
}

/// Why an event was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EmitError {
    /// The run is over.
    #[error("the run is over")]
    Closed,
    /// Too much of the run is not durable yet. Only [`try_emit`](crate::Run::try_emit) says so;
    /// [`emit`](crate::Run::emit) waits.
    #[error("too much of the run is not durable yet")]
    Backlogged,
    /// The event is too large.
    #[error("the event is larger than {limit} bytes, the limit")]
    TooLarge {
        /// What an event may have, in bytes.
        limit: u64,
    },
    /// The event cannot be framed; the message says what is wrong with it.
    #[error("the event is not valid: {0}")]
    Invalid(String),
}

impl From<raw::EmitError> for EmitError {
    fn from(error: raw::EmitError) -> Self {
        match error {
            raw::EmitError::Closed => Self::Closed,
            raw::EmitError::Backlogged => Self::Backlogged,
            raw::EmitError::TooLarge(limit) => Self::TooLarge { limit },
            raw::EmitError::Invalid(message) => Self::Invalid(message),
        }
    }
}
