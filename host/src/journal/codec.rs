//! How runs and events are written down in a store.
//!
//! A run's record is JSON under names that stay. Events lie in *segments*: rows of one event each would cost
//! more in keys than in data, so the events that a run emitted since the last commit lie together, up
//! to [`TARGET`] bytes, under the number of the last of them. A segment is `version u8, count u32,
//! total u64`, then per event `flags u8`, and for each of its texts `length u32, bytes`, all little-endian;
//! numbers are not repeated, as they follow from the last. `total` counts the bytes of the run's segments up
//! to and including this one, so that the size of a run is known from its end. Decoding is checked: what is
//! damaged is an error, never a panic.

use std::sync::Arc;

use super::{Event, RunRecord, RunState};
use crate::id::{AgentName, InstanceKey, RunId, Seq};

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 8;
const HAS_NAME: u8 = 1;
const HAS_ID: u8 = 2;

/// Where a segment is cut: a reader decodes whole segments, so they stay well below its page.
const TARGET: usize = 64 << 10;

/// A row that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a row is damaged")]
pub(super) struct Damaged;

/// Cuts events into what becomes one segment each. The cuts depend on the events alone, so that a commit
/// that is tried again writes the same keys.
pub(super) fn split<'a>(events: &'a [&'a Event]) -> impl Iterator<Item = &'a [&'a Event]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take_while(|event| {
            bytes += event.size();
            bytes <= TARGET
        });
        let count = fits.count().max(1).min(rest.len());
        let (segment, after) = rest.split_at(count);
        rest = after;
        (!segment.is_empty()).then_some(segment)
    })
}

/// Encodes one segment. `before` counts the bytes of the run's segments before this one.
pub(super) fn encode_segment(events: &[&Event], before: u64) -> Vec<u8> {
    let size = HEADER + events.iter().map(|event| event.size()).sum::<usize>();
    let mut out = Vec::with_capacity(size);
    out.push(VERSION);
    out.extend(length(events.len()));
    out.extend([0; 8]);
    for event in events {
        let (name, id) = (event.name.as_deref(), event.id.as_deref());
        let flag = |part: Option<&str>, flag| if part.is_some() { flag } else { 0 };
        out.push(flag(name, HAS_NAME) | flag(id, HAS_ID));
        for text in [name, id, Some(&*event.data)].into_iter().flatten() {
            out.extend(length(text.len()));
            out.extend(text.as_bytes());
        }
    }
    let total = before + out.len() as u64;
    out[HEADER - 8..HEADER].copy_from_slice(&total.to_le_bytes());
    out
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("a turn is far smaller than 4 GiB").to_le_bytes()
}

/// A segment as read.
pub(super) struct Segment<'a> {
    next: Seq,
    left: u32,
    total: u64,
    rest: &'a [u8],
}

/// An event that still lies in its segment.
pub(super) struct Stored<'a> {
    pub(super) seq: Seq,
    pub(super) name: Option<&'a str>,
    pub(super) id: Option<&'a str>,
    pub(super) data: &'a str,
}

impl<'a> Segment<'a> {
    /// Reads the head of the segment whose last event is `last`.
    pub(super) fn open(last: Seq, mut bytes: &'a [u8]) -> Result<Self, Damaged> {
        let [version] = take(&mut bytes)?;
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let total = u64::from_le_bytes(take(&mut bytes)?);
        let before = last.0.checked_sub(count.into()).ok_or(Damaged)?;
        if version != VERSION {
            return Err(Damaged);
        }
        Ok(Self { next: Seq(before).next(), left: count, total, rest: bytes })
    }

    /// The bytes of the run's segments up to and including this one.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    fn event(&mut self) -> Result<Stored<'a>, Damaged> {
        let [flags] = take(&mut self.rest)?;
        let name = if flags & HAS_NAME != 0 { Some(self.text()?) } else { None };
        let id = if flags & HAS_ID != 0 { Some(self.text()?) } else { None };
        let data = self.text()?;
        let seq = self.next;
        self.next = seq.next();
        Ok(Stored { seq, name, id, data })
    }

    fn text(&mut self) -> Result<&'a str, Damaged> {
        let length = u32::from_le_bytes(take(&mut self.rest)?);
        let length = usize::try_from(length).map_err(|_| Damaged)?;
        let (text, rest) = self.rest.split_at_checked(length).ok_or(Damaged)?;
        self.rest = rest;
        str::from_utf8(text).map_err(|_| Damaged)
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], Damaged> {
    let (head, rest) = bytes.split_first_chunk().ok_or(Damaged)?;
    *bytes = rest;
    Ok(*head)
}

impl<'a> Iterator for Segment<'a> {
    type Item = Result<Stored<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let event = self.event();
        if event.is_err() {
            self.left = 0;
        }
        Some(event)
    }
}

impl Stored<'_> {
    /// The event on its own.
    pub(super) fn to_event(&self) -> Arc<Event> {
        let (name, id) = (self.name.map(String::from), self.id.map(String::from));
        Arc::new(Event::new(self.seq, name, id, self.data.into()))
    }
}

/// Encodes a run's record, all but its id, which is its key.
pub(super) fn encode_run(record: &RunRecord) -> Vec<u8> {
    serde_json::to_vec(&StoredRun::from(record)).expect("a struct of texts and numbers is JSON")
}

/// Decodes the record of a run.
pub(super) fn decode_run(run: RunId, bytes: &[u8]) -> Result<RunRecord, Damaged> {
    let stored: StoredRun = serde_json::from_slice(bytes).map_err(|_| Damaged)?;
    stored.into_record(run).ok_or(Damaged)
}

/// A [`RunRecord`] as it is stored, under names that stay.
#[derive(serde::Serialize, serde::Deserialize)]
struct StoredRun {
    agent: String,
    instance: String,
    module: String,
    state: RunState,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    code: Option<String>,
    started_ms: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    ended_ms: Option<u64>,
    last: u64,
    interruptions: u32,
    interrupted_at: u64,
}

impl From<&RunRecord> for StoredRun {
    fn from(record: &RunRecord) -> Self {
        Self {
            agent: record.instance.agent().to_string(),
            instance: record.instance.name().to_owned(),
            module: record.module.to_string(),
            state: record.state,
            code: record.code.clone(),
            started_ms: record.started_ms,
            ended_ms: record.ended_ms,
            last: record.last.0,
            interruptions: record.interruptions,
            interrupted_at: record.interrupted_at.0,
        }
    }
}

impl StoredRun {
    fn into_record(self, run: RunId) -> Option<RunRecord> {
        let agent: AgentName = self.agent.parse().ok()?;
        Some(RunRecord {
            run,
            instance: InstanceKey::new(agent, &self.instance).ok()?,
            module: self.module.parse().ok()?,
            state: self.state,
            code: self.code,
            started_ms: self.started_ms,
            ended_ms: self.ended_ms,
            last: Seq(self.last),
            interruptions: self.interruptions,
            interrupted_at: Seq(self.interrupted_at),
        })
    }
}
