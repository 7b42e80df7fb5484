//! One call on an instance, and what the instance keeps.
//!
//! A thin cover over the host's functions: it turns values to JSON and back, and waits where the host would say
//! that too much is not durable yet. It keeps nothing, so each read of the state parses the document anew.

use std::rc::Rc;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::bindings::bureau::agent::{identity, runs, state, types};
use crate::error::Result;
use crate::event::{EmitError, Event};
use crate::storage::{Storage, StoreError};

/// One call on an instance: it emits events, and reaches what the instance keeps.
///
/// What an agent does between two points where it waits is a *turn*. The events and the state of a turn become
/// durable together or not at all. [`emit`](Self::emit) may wait before it takes the event but never after, so
/// an event and the state that goes with it are one turn in this order:
///
/// ```no_run
/// # use bureau_sdk::prelude::*;
/// # async fn example(run: &Run, steps: u32) -> Result<()> {
/// run.emit(format!("step {steps}")).await?;
/// run.set_state(&steps)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Run(Rc<runs::Run>);

/// How clients get a run's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Server-Sent Events: the default.
    Events,
    /// Plain text: the data of events without a name and of those named `text-delta`, with nothing between.
    Text,
    /// A line of JSON for each event.
    Lines,
    /// One JSON document with all events.
    Document,
    /// The AI SDK's UI message stream, which `useChat` reads.
    UiMessages,
}

impl Run {
    pub(crate) fn new(run: Rc<runs::Run>) -> Self {
        Self(run)
    }

    /// The run's id, a ULID.
    pub fn id(&self) -> String {
        self.0.id()
    }

    /// The agent's name.
    pub fn agent(&self) -> String {
        identity::agent()
    }

    /// The instance's name.
    pub fn instance(&self) -> String {
        identity::instance()
    }

    /// The SHA-256 digest of the running module, in lower-case hexadecimal.
    pub fn module(&self) -> String {
        identity::module()
    }

    /// The `Last-Event-ID` that the client sent and the host could not resume, if there was one.
    pub fn last_event_id(&self) -> Option<String> {
        self.0.last_event_id()
    }

    /// Declares the answer an event stream before there is an event, so that the client sees headers and
    /// heartbeats while the agent thinks.
    pub fn open(&self) {
        self.0.open();
    }

    /// Says in which format a client that takes any gets the run's events. It counts until the stream opens, with the
    /// first event at the latest; a client that names a format in `Accept` gets that one.
    ///
    /// ```no_run
    /// # use bureau_sdk::prelude::*;
    /// # async fn example(run: &Run) -> Result<()> {
    /// run.present_as(Format::Text);
    /// run.emit("Hello ").await?;
    /// run.emit("world").await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn present_as(&self, format: Format) {
        self.0.present_as(match format {
            Format::Events => types::Format::Events,
            Format::Text => types::Format::Text,
            Format::Lines => types::Format::Lines,
            Format::Document => types::Format::Document,
            Format::UiMessages => types::Format::UiMessages,
        });
    }

    /// Emits an event and returns its number within the run. Waits first while too much of the run is not
    /// durable yet.
    ///
    /// ```no_run
    /// # use bureau_sdk::prelude::*;
    /// # async fn example(run: &Run) -> Result<()> {
    /// run.emit("Starting...").await?;
    /// run.emit(Event::json(&json!({ "percent": 42 }))?.name("progress")).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub async fn emit(&self, event: impl Into<Event>) -> Result<u64, EmitError> {
        let Event(event) = event.into();
        loop {
            match self.0.emit_event(&event) {
                // In a box, as few events wait, and all would have place for it.
                Err(runs::EmitError::Backlogged) => Box::pin(self.flush()).await?,
                taken => return Ok(taken?),
            };
        }
    }

    /// Emits an event without ever waiting, or says that it cannot be now.
    pub fn try_emit(&self, event: impl Into<Event>) -> Result<u64, EmitError> {
        Ok(self.0.emit_event(&event.into().0)?)
    }

    /// Waits until everything emitted so far is durable; returns the number of the last event, 0 for none.
    pub async fn flush(&self) -> Result<u64, EmitError> {
        Ok(self.0.flush().await?)
    }

    /// Whether the run has been cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the run is cancelled.
    ///
    /// ```no_run
    /// # use bureau_sdk::prelude::*;
    /// # async fn think() -> String { String::new() }
    /// # async fn example(run: &Run) -> Result<()> {
    /// match select(run.cancelled(), think()).await {
    ///     Either::Left(()) => return Err(Error::Cancelled),
    ///     Either::Right(thought) => run.emit(thought).await?,
    /// };
    /// # Ok(())
    /// # }
    /// ```
    pub async fn cancelled(&self) {
        self.0.cancelled().await;
    }

    /// The instance's state: what was last set, in this run or any other, or the default.
    ///
    /// ```no_run
    /// # use bureau_sdk::prelude::*;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Default, Serialize, Deserialize)]
    /// struct Visits {
    ///     count: u64,
    /// }
    ///
    /// # fn example(run: &Run) -> Result<()> {
    /// let mut visits: Visits = run.state()?;
    /// visits.count += 1;
    /// run.set_state(&visits)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn state<T: DeserializeOwned + Default>(&self) -> Result<T> {
        match state::get() {
            Some(json) => Ok(serde_json::from_str(&json)?),
            None => Ok(T::default()),
        }
    }

    /// Replaces the instance's state, which is kept as one JSON document.
    pub fn set_state<T: Serialize + ?Sized>(&self, state: &T) -> Result<()> {
        let json = serde_json::to_string(state)?;
        state::set(&json).map_err(StoreError::from)?;
        Ok(())
    }

    /// The instance's keyed storage, for what does not fit one document.
    pub fn storage(&self) -> Storage {
        Storage
    }
}
