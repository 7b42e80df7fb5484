//! How runs and events are written down in a store.
//!
//! Events lie in *segments* of one run, under the number of the last of them, and before that in *rows* of the
//! log, together with those of other runs. A segment is `version u8, count u32, total u64`, then its events; a
//! row is `version u8`, then sections of `run u128, first u64, count u32` and events. An event is `flags u8`, and for each of its
//! texts `length u32, bytes`; numbers are not repeated, as they follow from the last or the first. `total` counts the bytes of the run's segments up
//! to and including this one, so that the size of a run is known from its end. A run's record is `version u8, state u8,
//! flags u8`, then its fields in a fixed order. Everything is little-endian. Decoding is checked: what is
//! damaged is an error, never a panic.

use std::borrow::Borrow;
use std::sync::Arc;

use super::{Event, RunRecord, RunState};
use crate::id::{Digest, InstanceKey, RunId, Seq};

const VERSION: u8 = 1;
const HEADER: usize = 1 + 4 + 8;
const HAS_NAME: u8 = 1;
const HAS_ID: u8 = 2;
const HAS_CODE: u8 = 1;
const HAS_ENDED: u8 = 2;

/// Where a segment is cut: a reader decodes whole segments, so they stay well below its page.
const TARGET: usize = 64 << 10;

/// A row that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a row is damaged")]
pub(super) struct Damaged;

/// Cuts events of a run into what becomes one segment each: below [`TARGET`], and without a gap.
pub(super) fn split<E: Borrow<Event>>(events: &[E]) -> impl Iterator<Item = &[E]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut next = rest.first()?.borrow().seq;
        let mut bytes = 0;
        let fits = rest.iter().map(E::borrow).take_while(|event| {
            bytes += event.size();
            let follows = event.seq == next;
            next = event.seq.next();
            follows && bytes <= TARGET
        });
        let (segment, after) = rest.split_at(fits.count().max(1));
        rest = after;
        Some(segment)
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
        encode_event(&mut out, event);
    }
    let total = before + out.len() as u64;
    out[HEADER - 8..HEADER].copy_from_slice(&total.to_le_bytes());
    out
}

/// Appends a section for each stretch of these events of a run that has no gap. A row begins empty.
pub(super) fn encode_sections(row: &mut Vec<u8>, run: RunId, events: &[Arc<Event>]) {
    if row.is_empty() {
        row.push(VERSION);
    }
    for events in split(events) {
        row.extend(run.as_u128().to_le_bytes());
        row.extend(events[0].seq.0.to_le_bytes());
        row.extend(length(events.len()));
        for event in events {
            encode_event(row, event);
        }
    }
}

/// Decodes a row of the log: its events, in order, each with its run.
pub(super) fn decode_row(mut bytes: &[u8]) -> Result<Vec<(RunId, Arc<Event>)>, Damaged> {
    let [version] = take(&mut bytes)?;
    if version != VERSION {
        return Err(Damaged);
    }
    let mut events = Vec::new();
    while !bytes.is_empty() {
        let run = RunId::from_u128(u128::from_le_bytes(take(&mut bytes)?));
        let next = Seq(u64::from_le_bytes(take(&mut bytes)?));
        let left = u32::from_le_bytes(take(&mut bytes)?);
        let mut section = Segment { next, left, total: 0, rest: bytes };
        for stored in &mut section {
            events.push((run, stored?.to_event()));
        }
        bytes = section.rest;
    }
    Ok(events)
}

fn encode_event(out: &mut Vec<u8>, event: &Event) {
    let (name, id) = (event.name.as_deref(), event.id.as_deref());
    out.push(flag(name, HAS_NAME) | flag(id, HAS_ID));
    for text in [name, id, Some(&*event.data)].into_iter().flatten() {
        encode_text(out, text);
    }
}

fn encode_text(out: &mut Vec<u8>, text: &str) {
    out.extend(length(text.len()));
    out.extend(text.as_bytes());
}

fn flag<T>(part: Option<T>, flag: u8) -> u8 {
    if part.is_some() { flag } else { 0 }
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
        let name = if flags & HAS_NAME != 0 { Some(text(&mut self.rest)?) } else { None };
        let id = if flags & HAS_ID != 0 { Some(text(&mut self.rest)?) } else { None };
        let data = text(&mut self.rest)?;
        let seq = self.next;
        self.next = Seq(seq.0.checked_add(1).ok_or(Damaged)?);
        Ok(Stored { seq, name, id, data })
    }
}

fn text<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, Damaged> {
    let length = u32::from_le_bytes(take(bytes)?);
    let length = usize::try_from(length).map_err(|_| Damaged)?;
    let (text, rest) = bytes.split_at_checked(length).ok_or(Damaged)?;
    *bytes = rest;
    str::from_utf8(text).map_err(|_| Damaged)
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
    let (agent, name) = (record.instance.agent().as_str(), record.instance.name());
    let code = record.code.as_deref();
    let mut out = Vec::with_capacity(128);
    out.extend([VERSION, state_tag(record.state)]);
    out.push(flag(code, HAS_CODE) | flag(record.ended_ms, HAS_ENDED));
    out.extend(record.module.as_bytes());
    out.extend(record.started_ms.to_le_bytes());
    out.extend(record.ended_ms.unwrap_or_default().to_le_bytes());
    out.extend(record.last.0.to_le_bytes());
    out.extend(record.interruptions.to_le_bytes());
    out.extend(record.interrupted_at.0.to_le_bytes());
    for text in [agent, name, code.unwrap_or_default()] {
        encode_text(&mut out, text);
    }
    out
}

/// Decodes the record of a run.
pub(super) fn decode_run(run: RunId, mut bytes: &[u8]) -> Result<RunRecord, Damaged> {
    let bytes = &mut bytes;
    let [version, state, flags] = take(bytes)?;
    if version != VERSION {
        return Err(Damaged);
    }
    let module = Digest::from_bytes(take(bytes)?);
    let mut number = || take(bytes).map(u64::from_le_bytes);
    let (started_ms, ended_ms, last) = (number()?, number()?, number()?);
    let interruptions = u32::from_le_bytes(take(bytes)?);
    let interrupted_at = u64::from_le_bytes(take(bytes)?);
    let agent = text(bytes)?.parse().map_err(|_| Damaged)?;
    let instance = InstanceKey::new(agent, text(bytes)?).map_err(|_| Damaged)?;
    let code = text(bytes)?.to_owned();
    Ok(RunRecord {
        run,
        instance,
        module,
        state: state_of(state).ok_or(Damaged)?,
        code: (flags & HAS_CODE != 0).then_some(code),
        started_ms,
        ended_ms: (flags & HAS_ENDED != 0).then_some(ended_ms),
        last: Seq(last),
        interruptions,
        interrupted_at: Seq(interrupted_at),
    })
}

/// The tags of states; they stay.
fn state_tag(state: RunState) -> u8 {
    match state {
        RunState::Running => 0,
        RunState::Finished => 1,
        RunState::Failed => 2,
        RunState::Interrupted => 3,
        RunState::Cancelled => 4,
    }
}

fn state_of(tag: u8) -> Option<RunState> {
    Some(match tag {
        0 => RunState::Running,
        1 => RunState::Finished,
        2 => RunState::Failed,
        3 => RunState::Interrupted,
        4 => RunState::Cancelled,
        _ => return None,
    })
}

#[cfg(test)]
mod tests;
