//! The forms in which a run's events can be read.
//!
//! What an agent emits is one sequence of events, and how a client gets them is a view of it. An agent may say which view
//! suits a client that takes any; the client's word goes over it.

/// A view of a run's events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Server-Sent Events, one for each event.
    Events,
    /// The data of what is text, and nothing between.
    Text,
    /// One JSON object for each event, on a line of its own.
    Lines,
    /// One JSON document with all events, complete when the run is over.
    Document,
    /// The AI SDK's UI message stream.
    UiMessages,
}

impl Format {
    /// All of them; of those that a client takes equally the first is what it gets.
    pub const ALL: [Self; 5] =
        [Self::Events, Self::Text, Self::Lines, Self::Document, Self::UiMessages];

    /// Whether a client can go on where it stopped. The others are read from the start.
    pub fn resumes(self) -> bool {
        matches!(self, Self::Events | Self::Lines)
    }
}
