//! How runs and events are written down in a store.
//!
//! Turns come to the log in *batches* and go on from there: events to *segments* of their run, under the number of
//! the last of them, runs to their *records*. A batch is `version u8, time in ms u64`, then its writes, each a tag and
//! its fields; one that says which instance or which run the next ones are of spares them to say it. A segment is `version u8, flags u8,
//! count u32, total u64`, then its events. An event is `flags u8`, and for each of its texts `length u32, bytes`; in
//! a segment numbers are not repeated, as they follow from the last. `total` counts the bytes of the run's segments
//! up to and including this one, so that the size of a run is known from its end. A run's record is `version u8, state u8,
//! flags u8`, and a deployment's `version u8, flags u8`, then their fields in a fixed order. Everything is little-endian.
//! Decoding is checked: what is damaged is an error, never a panic.

use std::borrow::Borrow;
use std::sync::Arc;

use bytes::Bytes;

use super::{DeploymentRecord, Event, Outcome, RunRecord, RunState, Submitted, Write};
use crate::id::{AgentName, Digest, InstanceKey, RunId, Seq};

const VERSION: u8 = 1;
const HEADER: usize = 1 + 1 + 4 + 8;
const HAS_NAME: u8 = 1;
const HAS_ID: u8 = 2;
const HAS_CODE: u8 = 1;
const HAS_ENDED: u8 = 2;
const HAS_MODULE: u8 = 1;

/// The most that a segment of more than one event has. A page of redb is a power of two, and what is a little larger than
/// one wastes most of the next.
const SEGMENT: usize = (32 << 10) - 256;

/// The tags of a batch's writes; they stay.
const INSTANCE: u8 = 0;
const START: u8 = 1;
const START_WITH_REQUEST: u8 = 2;
const EVENT: u8 = 3;
/// An event of the same run as the one before it, with the next number.
const NEXT_EVENT: u8 = 4;
const END: u8 = 5;
const STATE: u8 = 6;
const SET: u8 = 7;
const DELETE: u8 = 8;
const NO_STATE: u8 = 9;
const MODULE: u8 = 10;
const KEY: u8 = 11;
const REPLY: u8 = 12;

/// A row that does not decode.
#[derive(Debug, thiserror::Error)]
#[error("a row is damaged")]
pub(super) struct Damaged;

/// Cuts events of a run into what becomes one segment each: at most [`SEGMENT`] bytes, and without a gap.
pub(super) fn split<E: Borrow<Event>>(events: &[E]) -> impl Iterator<Item = &[E]> {
    let mut rest = events;
    std::iter::from_fn(move || {
        let mut next = rest.first()?.borrow().seq;
        let mut bytes = HEADER;
        let fits = rest.iter().map(E::borrow).take_while(|event| {
            bytes += encoded_event(event);
            let follows = event.seq == next;
            next = event.seq.next();
            follows && bytes <= SEGMENT
        });
        let (segment, after) = rest.split_at(fits.count().max(1));
        rest = after;
        Some(segment)
    })
}

/// Encodes one segment. `before` counts the bytes of the run's segments before this one.
pub(super) fn encode_segment<E: Borrow<Event>>(events: &[E], before: u64) -> Vec<u8> {
    let events = events.iter().map(E::borrow);
    let size = HEADER + events.clone().map(encoded_event).sum::<usize>();
    let has_ids = events.clone().any(|event| event.id.is_some());
    let mut out = Vec::with_capacity(size);
    out.extend([VERSION, if has_ids { HAS_ID } else { 0 }]);
    out.extend(length(events.len()));
    out.extend([0; 8]);
    for event in events {
        encode_event(&mut out, event);
    }
    let total = before + out.len() as u64;
    out[HEADER - 8..HEADER].copy_from_slice(&total.to_le_bytes());
    out
}

/// A write of a batch, as it is read back.
#[derive(Debug, PartialEq)]
pub(super) enum Op {
    Start { run: RunId, module: Digest, request: Option<Bytes> },
    Event { run: RunId, event: Arc<Event> },
    End { run: RunId, outcome: Outcome },
    State(Option<Arc<str>>),
    Storage { key: Box<str>, value: Option<Bytes> },
    Module(Digest),
    Key { run: RunId, key: Box<str>, fingerprint: Digest },
    Reply { run: RunId, reply: Bytes },
}

impl From<&Write> for Op {
    fn from(write: &Write) -> Self {
        match write {
            Write::Start { tail, module, request } => {
                Self::Start { run: tail.run(), module: *module, request: request.clone() }
            }
            Write::Event { tail, event } => {
                Self::Event { run: tail.run(), event: Arc::clone(event) }
            }
            Write::End { tail, outcome } => Self::End { run: tail.run(), outcome: outcome.clone() },
            Write::State(document) => Self::State(document.clone()),
            Write::Storage { key, value } => {
                Self::Storage { key: key.clone(), value: value.clone() }
            }
            Write::Module(module) => Self::Module(*module),
            Write::Key { tail, key, fingerprint } => {
                Self::Key { run: tail.run(), key: key.clone(), fingerprint: *fingerprint }
            }
            Write::Reply { tail, reply } => Self::Reply { run: tail.run(), reply: reply.clone() },
        }
    }
}

/// Appends these turns as one batch, made at this time.
pub(super) fn encode_batch(out: &mut Vec<u8>, turns: &[Submitted], at_ms: u64) {
    out.push(VERSION);
    out.extend(at_ms.to_le_bytes());
    let mut of = None;
    let mut before = None;
    for Submitted { lane, turn, .. } in turns {
        let instance = lane.instance();
        if of.replace(instance) != Some(instance) {
            out.push(INSTANCE);
            encode_text(out, instance.agent().as_str());
            encode_text(out, instance.name());
        }
        for write in &turn.0 {
            let tagged = |out: &mut Vec<u8>, tag, run: RunId| {
                out.push(tag);
                out.extend(run.as_u128().to_le_bytes());
            };
            match write {
                Write::Start { tail, module, request } => {
                    let tag = if request.is_some() { START_WITH_REQUEST } else { START };
                    tagged(out, tag, tail.run());
                    out.extend(module.as_bytes());
                    request.iter().for_each(|request| encode_bytes(out, request));
                }
                Write::Event { tail, event } => {
                    let place = (tail.run(), event.seq);
                    if before.replace((place.0, event.seq.next())) == Some(place) {
                        out.push(NEXT_EVENT);
                    } else {
                        tagged(out, EVENT, tail.run());
                        out.extend(event.seq.0.to_le_bytes());
                    }
                    encode_event(out, event);
                }
                Write::End { tail, outcome } => {
                    tagged(out, END, tail.run());
                    out.push(state_tag(outcome.state));
                    out.push(flag(outcome.code.as_ref(), HAS_CODE));
                    outcome.code.iter().for_each(|code| encode_text(out, code));
                }
                Write::State(Some(document)) => {
                    out.push(STATE);
                    encode_text(out, document);
                }
                Write::State(None) => out.push(NO_STATE),
                Write::Storage { key, value: Some(value) } => {
                    out.push(SET);
                    encode_text(out, key);
                    encode_bytes(out, value);
                }
                Write::Storage { key, value: None } => {
                    out.push(DELETE);
                    encode_text(out, key);
                }
                Write::Module(module) => {
                    out.push(MODULE);
                    out.extend(module.as_bytes());
                }
                Write::Key { tail, key, fingerprint } => {
                    tagged(out, KEY, tail.run());
                    encode_text(out, key);
                    out.extend(fingerprint.as_bytes());
                }
                Write::Reply { tail, reply } => {
                    tagged(out, REPLY, tail.run());
                    encode_bytes(out, reply);
                }
            }
        }
    }
}

/// Reads a batch back: hands on its time, and each write with its instance.
pub(super) fn decode_batch(
    mut bytes: &[u8],
    mut each: impl FnMut(u64, &InstanceKey, Op),
) -> Result<(), Damaged> {
    let bytes = &mut bytes;
    let [version] = take(bytes)?;
    if version != VERSION {
        return Err(Damaged);
    }
    let at_ms = u64::from_le_bytes(take(bytes)?);
    let mut of = None;
    let mut before = None;
    while !bytes.is_empty() {
        let [tag] = take(bytes)?;
        let op = match tag {
            INSTANCE => {
                let agent = text(bytes)?.parse().map_err(|_| Damaged)?;
                of = Some(InstanceKey::new(agent, text(bytes)?).map_err(|_| Damaged)?);
                continue;
            }
            START | START_WITH_REQUEST => {
                let run = run_id(bytes)?;
                let module = Digest::from_bytes(take(bytes)?);
                let has_request = tag == START_WITH_REQUEST;
                let request = if has_request { Some(blob(bytes)?) } else { None };
                Op::Start { run, module, request: request.map(Bytes::copy_from_slice) }
            }
            EVENT | NEXT_EVENT => {
                let (run, seq) = match before {
                    Some(place) if tag == NEXT_EVENT => place,
                    _ if tag == EVENT => (run_id(bytes)?, Seq(u64::from_le_bytes(take(bytes)?))),
                    _ => return Err(Damaged),
                };
                let event = Stored::take(seq, bytes)?.to_event();
                before = Some((run, Seq(seq.0.checked_add(1).ok_or(Damaged)?)));
                Op::Event { run, event }
            }
            END => {
                let run = run_id(bytes)?;
                let [state, flags] = take(bytes)?;
                let state = state_of(state).ok_or(Damaged)?;
                let code = if flags & HAS_CODE != 0 { Some(text(bytes)?.to_owned()) } else { None };
                Op::End { run, outcome: Outcome { state, code } }
            }
            STATE => Op::State(Some(text(bytes)?.into())),
            NO_STATE => Op::State(None),
            SET => {
                let key = text(bytes)?.into();
                Op::Storage { key, value: Some(Bytes::copy_from_slice(blob(bytes)?)) }
            }
            DELETE => Op::Storage { key: text(bytes)?.into(), value: None },
            MODULE => Op::Module(Digest::from_bytes(take(bytes)?)),
            KEY => {
                let (run, key) = (run_id(bytes)?, text(bytes)?.into());
                Op::Key { run, key, fingerprint: Digest::from_bytes(take(bytes)?) }
            }
            REPLY => {
                let run = run_id(bytes)?;
                Op::Reply { run, reply: Bytes::copy_from_slice(blob(bytes)?) }
            }
            _ => return Err(Damaged),
        };
        each(at_ms, of.as_ref().ok_or(Damaged)?, op);
    }
    Ok(())
}

/// The bytes of an event.
fn encoded_event(event: &Event) -> usize {
    let text = |part: Option<&str>| part.map_or(0, |text| 4 + text.len());
    1 + text(event.name.as_deref()) + text(event.id.as_deref()) + text(Some(&event.data))
}

fn encode_event(out: &mut Vec<u8>, event: &Event) {
    let (name, id) = (event.name.as_deref(), event.id.as_deref());
    out.push(flag(name, HAS_NAME) | flag(id, HAS_ID));
    for text in [name, id, Some(&*event.data)].into_iter().flatten() {
        encode_text(out, text);
    }
}

fn encode_text(out: &mut Vec<u8>, text: &str) {
    encode_bytes(out, text.as_bytes());
}

fn encode_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(length(bytes.len()));
    out.extend_from_slice(bytes);
}

fn flag<T>(part: Option<T>, flag: u8) -> u8 {
    if part.is_some() { flag } else { 0 }
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).expect("the configuration bounds what is written at once").to_le_bytes()
}

/// A segment as read.
pub(super) struct Segment<'a> {
    flags: u8,
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
        let [version, flags] = take(&mut bytes)?;
        let count = u32::from_le_bytes(take(&mut bytes)?);
        let total = u64::from_le_bytes(take(&mut bytes)?);
        let before = last.0.checked_sub(count.into()).ok_or(Damaged)?;
        let next = Seq(before.checked_add(1).ok_or(Damaged)?);
        if version != VERSION {
            return Err(Damaged);
        }
        Ok(Self { flags, next, left: count, total, rest: bytes })
    }

    /// The bytes of the run's segments up to and including this one.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Whether an event of it has an id of the agent's own.
    pub(super) fn has_ids(&self) -> bool {
        self.flags & HAS_ID != 0
    }

    /// Whether nothing follows what was read.
    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    fn event(&mut self) -> Result<Stored<'a>, Damaged> {
        let stored = Stored::take(self.next, &mut self.rest)?;
        self.next = Seq(stored.seq.0.checked_add(1).ok_or(Damaged)?);
        Ok(stored)
    }
}

fn text<'a>(bytes: &mut &'a [u8]) -> Result<&'a str, Damaged> {
    str::from_utf8(blob(bytes)?).map_err(|_| Damaged)
}

fn blob<'a>(bytes: &mut &'a [u8]) -> Result<&'a [u8], Damaged> {
    let length = u32::from_le_bytes(take(bytes)?);
    let length = usize::try_from(length).map_err(|_| Damaged)?;
    let (blob, rest) = bytes.split_at_checked(length).ok_or(Damaged)?;
    *bytes = rest;
    Ok(blob)
}

fn run_id(bytes: &mut &[u8]) -> Result<RunId, Damaged> {
    Ok(RunId::from_u128(u128::from_le_bytes(take(bytes)?)))
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

impl<'a> Stored<'a> {
    fn take(seq: Seq, bytes: &mut &'a [u8]) -> Result<Self, Damaged> {
        let [flags] = take(bytes)?;
        let name = if flags & HAS_NAME != 0 { Some(text(bytes)?) } else { None };
        let id = if flags & HAS_ID != 0 { Some(text(bytes)?) } else { None };
        Ok(Self { seq, name, id, data: text(bytes)? })
    }

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

/// Encodes a deployment, all but its agent and its generation, which are its key.
pub(super) fn encode_deployment(record: &DeploymentRecord) -> Vec<u8> {
    let mut out = Vec::with_capacity(64 + record.source.len());
    out.extend([VERSION, flag(record.module, HAS_MODULE)]);
    out.extend(record.module.map_or([0; 32], |module| *module.as_bytes()));
    out.extend(record.at_ms.to_le_bytes());
    encode_text(&mut out, &record.source);
    out
}

/// Decodes a deployment of this agent.
pub(super) fn decode_deployment(
    agent: AgentName,
    generation: u64,
    mut bytes: &[u8],
) -> Result<DeploymentRecord, Damaged> {
    let bytes = &mut bytes;
    let [version, flags] = take(bytes)?;
    if version != VERSION {
        return Err(Damaged);
    }
    let module = Digest::from_bytes(take(bytes)?);
    let at_ms = u64::from_le_bytes(take(bytes)?);
    let source = text(bytes)?.to_owned();
    let module = (flags & HAS_MODULE != 0).then_some(module);
    Ok(DeploymentRecord { agent, generation, module, at_ms, source })
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

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
