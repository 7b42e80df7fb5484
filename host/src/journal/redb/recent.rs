//! The log: the latest events of runs that go on, until they fill a segment.
//!
//! **Problem.** A row per run and commit rewrites a page, and the path to it, for each run that said a
//! word. A row per commit rewrites one path, but spreads a run over thousands of rows.
//!
//! **Mechanism.** What a commit brings for a run goes into the commit's row at the right edge of the log,
//! until the run has [`enough`] there for a segment. What a run has in the log is also kept here, so the
//! log is read only when the store is opened. When it is larger than [`LOG_BYTES`], each commit writes a
//! few of the runs that need its oldest rows to segments, and deletes the rows that no run needs. All this
//! moves on only when a commit is durable: it is always what [`Recent::load`] would make of the file, so a
//! batch that is applied again meets either what its first attempt met, or that attempt's result.
//!
//! **Limits.** The log has at most [`LOG_BYTES`] and what two commits bring, and a run less than twice
//! [`SEGMENT_MIN`] of it.
//!
//! Opening reads it, and the last segment of each run that is not over.
//!
//! **Cost.** A map entry for each live run, so that its extent is never looked up, and a pointer to each
//! event in the log.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use ::redb::{Error, ReadTransaction, ReadableTable};

use super::super::Event;
use super::super::codec::{decode_row, encode_sections};
use super::tables::{EVENTS, LOG, UNFINISHED, damaged, extent};
use crate::id::{RunId, Seq};

/// What a run has in the log before it becomes a segment. Less would rewrite more paths of pages, more
/// would hold more of the log and of memory. Tests have small bounds, so that each meets all states.
const SEGMENT_MIN: usize = if cfg!(test) { 1 << 10 } else { 8 << 10 };

/// Where a row of the log is cut. What is a little larger than a power of two wastes most of its pages.
const ROW_BYTES: usize = if cfg!(test) { 2 << 10 } else { 12 << 10 };

/// What the log may have before its oldest rows are cleared: it is read when the store is opened.
const LOG_BYTES: usize = if cfg!(test) { 16 << 10 } else { 8 << 20 };

/// For how much of what the log has too much the cleaner takes one step more.
const STEP_BYTES: usize = SEGMENT_MIN / 8;

/// How much of a run is enough for a segment. Runs differ, as those that began together would otherwise
/// fill theirs together, all in one slow commit.
pub(super) fn enough(run: RunId) -> usize {
    // Less than `SEGMENT_MIN` by the remainder.
    let spread = run.as_u128() % SEGMENT_MIN as u128;
    SEGMENT_MIN + spread as usize
}

/// What is in the log.
#[derive(Default)]
pub(super) struct Recent {
    /// All runs that are not over, whether or not they have something in the log.
    runs: HashMap<RunId, Live>,
    rows: VecDeque<Row>,
    bytes: usize,
    /// The position of the next row.
    next: u64,
}

/// How far a run has come.
#[derive(Default, Clone)]
pub(super) struct Live {
    /// The last durable event.
    pub(super) last: Seq,
    /// The bytes of the run's segments.
    pub(super) segment_bytes: u64,
    /// The events that no segment has yet.
    pub(super) events: Vec<Arc<Event>>,
    /// Their sizes together.
    pub(super) size: usize,
    /// The row that has the first of them.
    since: u64,
}

/// A row of the log.
struct Row {
    position: u64,
    bytes: usize,
    runs: Vec<RunId>,
}

/// What a commit does to the log, to be [applied](Recent::apply) when it is durable.
pub(super) struct Change {
    runs: Vec<(RunId, Moved)>,
    rows: Vec<Row>,
    /// The bytes of these rows.
    written: Vec<Vec<u8>>,
    next: u64,
    cleared: usize,
}

/// What a commit does to a run.
enum Moved {
    /// It has come so far, and all of it is in segments.
    Stored { last: Seq, segment_bytes: u64 },
    /// The row of this position has these events too.
    Logged { position: u64, events: Vec<Arc<Event>> },
    /// It is over.
    Ended,
}

impl Recent {
    /// What the file has.
    pub(super) fn load(transaction: &ReadTransaction) -> Result<Self, Error> {
        let mut recent = Self::default();
        let events = transaction.open_table(EVENTS)?;
        for row in transaction.open_table(UNFINISHED)?.iter()? {
            let run = RunId::from_u128(row?.0.value());
            let (last, segment_bytes) = extent(&events, run)?;
            recent.runs.insert(run, Live::stored(last, segment_bytes));
        }
        for row in transaction.open_table(LOG)?.iter()? {
            let (position, row) = row?;
            let (position, row) = (position.value(), row.value());
            let mut runs = Vec::new();
            for (run, event) in decode_row(row).map_err(damaged)? {
                if let Some(live) = recent.runs.get_mut(&run)
                    && event.seq > live.last
                {
                    live.push(position, event);
                    runs.push(run);
                }
            }
            runs.dedup();
            recent.push(Row { position, bytes: row.len(), runs });
        }
        Ok(recent)
    }

    /// How far a run has come that is not over.
    pub(super) fn live(&self, run: RunId) -> Option<&Live> {
        self.runs.get(&run)
    }

    /// What the log has of a run after an event.
    pub(super) fn after(&self, run: RunId, after: Seq) -> Vec<Arc<Event>> {
        let events = self.live(run).map_or(&[][..], |live| &live.events);
        events.iter().filter(|event| event.seq > after).cloned().collect()
    }

    /// Begins a change that clears the log in about `budget` steps, if that is due: by the rows that
    /// it deletes, and by the returned runs, which it must store.
    pub(super) fn change(&self, mut budget: usize) -> (Change, Vec<RunId>) {
        let mut change = Change {
            runs: Vec::new(),
            rows: Vec::new(),
            written: Vec::new(),
            next: self.next,
            cleared: 0,
        };
        let mut due = Vec::new();
        if self.bytes <= LOG_BYTES {
            return (change, due);
        }
        // The further it is over, the more: a step may clear a run that has little there, while others bring much.
        budget += (self.bytes - LOG_BYTES) / STEP_BYTES;
        for row in &self.rows {
            // A run that needs an older row is among the due ones already.
            let begins = |run: &&RunId| self.live(**run).is_some_and(|live| live.begins_in(row));
            let runs = row.runs.iter().filter(begins);
            let before = due.len();
            due.extend(runs.take(budget));
            budget -= due.len() - before;
            if budget == 0 {
                break;
            }
            budget -= 1;
            change.cleared += 1;
        }
        (change, due)
    }

    /// The positions of the rows that the change clears.
    pub(super) fn cleared(&self, change: &Change) -> impl Iterator<Item = u64> {
        self.rows.iter().take(change.cleared).map(|row| row.position)
    }

    /// Moves on by what has become durable.
    pub(super) fn apply(&mut self, change: Change) {
        for (run, moved) in change.runs {
            match moved {
                Moved::Ended => {
                    self.runs.remove(&run);
                }
                Moved::Stored { last, segment_bytes } => {
                    self.runs.insert(run, Live::stored(last, segment_bytes));
                }
                Moved::Logged { position, events } => {
                    let live = self.runs.entry(run).or_default();
                    events.into_iter().for_each(|event| live.push(position, event));
                }
            }
        }
        for row in self.rows.drain(..change.cleared) {
            self.bytes -= row.bytes;
        }
        change.rows.into_iter().for_each(|row| self.push(row));
    }

    fn push(&mut self, row: Row) {
        self.bytes += row.bytes;
        self.next = row.position + 1;
        self.rows.push_back(row);
    }
}

impl Live {
    /// A run that has nothing in the log.
    pub(super) fn stored(last: Seq, segment_bytes: u64) -> Self {
        Self { last, segment_bytes, ..Self::default() }
    }

    fn push(&mut self, position: u64, event: Arc<Event>) {
        if self.events.is_empty() {
            self.since = position;
        }
        self.last = event.seq;
        self.size += event.size();
        self.events.push(event);
    }

    /// Whether the run's first event of the log is in this row.
    fn begins_in(&self, row: &Row) -> bool {
        !self.events.is_empty() && self.since == row.position
    }
}

impl Change {
    /// Puts these events of a run into the log.
    pub(super) fn log(&mut self, run: RunId, events: Vec<Arc<Event>>) {
        if self.written.last().is_none_or(|row| row.len() >= ROW_BYTES) {
            self.rows.push(Row { position: self.next, bytes: 0, runs: Vec::new() });
            self.written.push(Vec::new());
            self.next += 1;
        }
        if let (Some(row), Some(written)) = (self.rows.last_mut(), self.written.last_mut()) {
            encode_sections(written, run, &events);
            row.bytes = written.len();
            row.runs.push(run);
            self.runs.push((run, Moved::Logged { position: row.position, events }));
        }
    }

    /// All of the run up to `last` is in segments.
    pub(super) fn store(&mut self, run: RunId, last: Seq, segment_bytes: u64) {
        self.runs.push((run, Moved::Stored { last, segment_bytes }));
    }

    /// The run is over.
    pub(super) fn end(&mut self, run: RunId) {
        self.runs.push((run, Moved::Ended));
    }

    /// The rows, with their positions.
    pub(super) fn rows(&self) -> impl Iterator<Item = (u64, &[u8])> {
        let bytes = self.written.iter().map(Vec::as_slice);
        self.rows.iter().map(|row| row.position).zip(bytes)
    }
}

#[cfg(test)]
impl Recent {
    /// The bytes of the log.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// All of it that must be the same however it came about, to be compared.
    pub(super) fn outline(&self) -> String {
        let mut runs: Vec<String> = Vec::new();
        for (run, live) in &self.runs {
            let since = (!live.events.is_empty()).then_some(live.since);
            let seqs = live.events.iter().map(|event| event.seq).collect::<Vec<_>>();
            let Live { last, segment_bytes, size, .. } = live;
            runs.push(format!("{run} {last} {segment_bytes} {size} {since:?} {seqs:?}"));
        }
        runs.sort();
        let rows = self.rows.iter().map(|row| (row.position, row.bytes)).collect::<Vec<_>>();
        format!("{runs:#?} {rows:?} {}", self.bytes)
    }
}

#[cfg(test)]
pub(super) const BOUND: usize = LOG_BYTES;
