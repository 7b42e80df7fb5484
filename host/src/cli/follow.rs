//! Following a run: all of its events, each once, however often the connection breaks.
//!
//! **Problem.** Connections break and hosts restart, in the middle of a stream or between two; whoever reads the events of a run
//! must not notice.
//!
//! **Mechanism.** [`Seen`] knows the number of the last event that was shown. Events of a run are numbered without a gap, so one that has
//! an id of the agent's own is the one after the last. A [`Follow`] asks for what comes after that, again and again, with
//! pauses that grow to [`Pauses::LONGEST`] while nothing comes, until the host says that nothing follows and the run is over.
//!
//! ```text
//!   ask --events--> read --an event--> read
//!    ^ |             |
//!    | |204          | broken, or ended
//!    | v             |
//!    | state --over--|--> the run as it ended
//!    |   |           |
//!    +---+---pause---+
//! ```
//!
//! **Limits.** A host that refuses, for a reason that does not pass, ends it. One that is away is waited for without end, so whoever
//! follows a run has asked the host something before.
//!
//! **Cost.** A connection, and a number.

use std::time::Duration;

use bureau::id::{Cursor, RunId, Seq};
use serde::Deserialize;
use sse_stream::Sse;

use super::client::{Client, ClientError, Events, read};

/// An event of a run, to be shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place.
    pub cursor: Cursor,
    /// Its id as the host sent it: the cursor, or the agent's own.
    pub id: String,
    pub name: String,
    pub data: String,
}

/// What became of a run.
#[derive(Debug, Clone, Deserialize)]
pub struct Ended {
    pub state: String,
    pub code: Option<String>,
}

impl Ended {
    /// Whether nothing more will come of the run: the other states are under way, or will be again.
    pub fn is_over(&self) -> bool {
        !matches!(self.state.as_str(), "running" | "interrupted")
    }
}

/// The events of a run, as they come.
pub struct Follow {
    client: Client,
    seen: Seen,
    events: Option<Events>,
    pauses: Pauses,
}

/// What following a run comes upon.
pub enum Step {
    Event(Event),
    /// The run is over, and all of its events were shown.
    Ended(Ended),
}

impl Follow {
    /// Follows a run from its beginning.
    pub fn new(client: Client, run: RunId) -> Self {
        Self { client, seen: Seen::new(run), events: None, pauses: Pauses::default() }
    }

    /// The next step. `notice` is told, once in a row, that the host is away.
    pub async fn next(&mut self, notice: impl Fn(&ClientError)) -> anyhow::Result<Step> {
        loop {
            let Some(events) = &mut self.events else {
                match self.ask().await {
                    Ok(Some(ended)) => return Ok(Step::Ended(ended)),
                    Ok(None) => {}
                    Err(error) => match error.downcast_ref::<ClientError>() {
                        Some(passing) if passing.is_passing() => {
                            if self.pauses.is_first() {
                                notice(passing);
                            }
                            self.pauses.pause().await;
                        }
                        _ => return Err(error),
                    },
                }
                continue;
            };
            match events.next().await {
                Some(event) => {
                    if let Some(event) = self.seen.take(event) {
                        self.pauses = Pauses::default();
                        return Ok(Step::Event(event));
                    }
                }
                None => {
                    self.events = None;
                    // A stream that has brought something most likely ended with its run, and then the answer is near.
                    if !std::mem::take(&mut self.seen.advanced) {
                        self.pauses.pause().await;
                    }
                }
            }
        }
    }

    /// Asks for what follows; how the run ended, if nothing does.
    async fn ask(&mut self) -> anyhow::Result<Option<Ended>> {
        let run = self.seen.run.to_string();
        let after = self.seen.cursor().map(|cursor| cursor.to_string());
        self.events = self.client.events(&["v1", "runs", &run, "events"], after.as_deref()).await?;
        if self.events.is_some() {
            return Ok(None);
        }
        let ended: Ended = read(&self.client.get(&["v1", "runs", &run], &[]).await?)?;
        if ended.is_over() {
            return Ok(Some(ended));
        }
        self.pauses.pause().await;
        Ok(None)
    }
}

/// How far a run has been shown.
struct Seen {
    run: RunId,
    last: Seq,
    /// Something was shown since this was last cleared.
    advanced: bool,
}

impl Seen {
    fn new(run: RunId) -> Self {
        Self { run, last: Seq::ZERO, advanced: false }
    }

    /// Where to go on, if not at the beginning.
    fn cursor(&self) -> Option<Cursor> {
        (self.last > Seq::ZERO).then_some(Cursor { run: self.run, seq: self.last })
    }

    /// The event, unless it was shown already.
    fn take(&mut self, event: Sse) -> Option<Event> {
        let Sse { event: name, data, id, .. } = event;
        let named = id.as_deref().and_then(|id| id.parse::<Cursor>().ok());
        let seq = named.filter(|cursor| cursor.run == self.run).map(|cursor| cursor.seq);
        let seq = seq.unwrap_or_else(|| self.last.next());
        if seq <= self.last {
            return None;
        }
        self.last = seq;
        self.advanced = true;
        let cursor = Cursor { run: self.run, seq };
        Some(Event {
            cursor,
            id: id.unwrap_or_else(|| cursor.to_string()),
            name: name.filter(|name| !name.is_empty()).unwrap_or_else(|| "message".into()),
            data: data.unwrap_or_default(),
        })
    }
}

/// Pauses between tries, each longer than the one before.
#[derive(Debug, Default)]
pub struct Pauses(u32);

impl Pauses {
    const SHORTEST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    /// Whether there was no pause yet.
    pub fn is_first(&self) -> bool {
        self.0 == 0
    }

    /// Waits for the next one.
    pub async fn pause(&mut self) {
        tokio::time::sleep(self.next()).await;
    }

    fn next(&mut self) -> Duration {
        let pause = Self::SHORTEST.saturating_mul(1 << self.0.min(16)).min(Self::LONGEST);
        self.0 = self.0.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

    fn seen() -> Seen {
        Seen::new(RUN.parse().unwrap())
    }

    fn taken(seen: &mut Seen, id: &str) -> Option<u64> {
        seen.take(Sse::default().id(id).data("x")).map(|event| event.cursor.seq.0)
    }

    #[test]
    fn an_event_is_shown_once_however_often_it_comes() {
        let mut seen = seen();
        let ids = [1, 2, 2, 1, 3].map(|seq| format!("{RUN}-{seq}"));
        let shown: Vec<_> = ids.iter().map(|id| taken(&mut seen, id)).collect();
        assert_eq!(shown, [Some(1), Some(2), None, None, Some(3)]);
        assert_eq!(seen.cursor().unwrap().to_string(), format!("{RUN}-3"));
    }

    #[test]
    fn an_id_of_the_agents_own_stands_for_the_event_after_the_last() {
        let mut seen = seen();
        let other = "01ARZ3NDEKTSV4RRFFQ69G5FAW-9";
        let ids = [format!("{RUN}-1"), "order-17".into(), "order-17".into(), other.into()];
        let shown: Vec<_> = ids.iter().map(|id| taken(&mut seen, id)).collect();
        assert_eq!(shown, [Some(1), Some(2), Some(3), Some(4)]);
        // The host is asked by a cursor, which it knows for as long as it has the run.
        assert_eq!(seen.cursor().unwrap().to_string(), format!("{RUN}-4"));
        assert_eq!(taken(&mut seen, &format!("{RUN}-5")), Some(5));
    }

    #[test]
    fn a_run_is_asked_for_from_its_beginning() {
        let mut seen = seen();
        assert_eq!(seen.cursor(), None);
        // What tells of the stream itself stands before the first event.
        assert_eq!(taken(&mut seen, &format!("{RUN}-0")), None);
        assert_eq!(seen.cursor(), None);
    }

    #[test]
    fn an_event_without_a_name_is_a_message() {
        let event = seen().take(Sse::default().event("").data("x")).unwrap();
        assert_eq!((event.name.as_str(), event.id), ("message", format!("{RUN}-1")));
    }

    #[test]
    fn pauses_grow_to_the_longest() {
        let mut pauses = Pauses::default();
        assert!(pauses.is_first());
        let all: Vec<_> = (0..100).map(|_| pauses.next()).collect();
        assert!(all.is_sorted() && !pauses.is_first());
        assert_eq!((all[0], all[99]), (Pauses::SHORTEST, Pauses::LONGEST));
    }

    #[test]
    fn a_run_that_will_be_resumed_is_not_over() {
        for (state, over) in [
            ("running", false),
            ("interrupted", false),
            ("finished", true),
            ("failed", true),
            ("cancelled", true),
        ] {
            assert_eq!(Ended { state: state.into(), code: None }.is_over(), over, "{state}");
        }
    }
}
