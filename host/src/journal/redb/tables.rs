//! The tables of the file, and what a commit does to them.
//!
//! A batch of turns is applied by [`Tables::apply`], whose every write is a put or a delete that changes nothing when it
//! is done twice; [`Tables::trim`] then lets go a bounded number of rows of what retention no longer keeps. Both
//! belong to the caller's transaction. The cost is one row for all that goes to the log, and one per segment, state, value
//! and end. A table that a commit does not need is not opened, as that has a cost of its own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::redb::{Error, Key, ReadableTable, Table, TableDefinition, Value, WriteTransaction};

use super::super::codec::{Damaged, Segment, decode_run, encode_run, encode_segment, split};
use super::super::{Event, Outcome, RunRecord, RunState, Submitted, Tail, Write};
use super::recent::{Change, Live, Recent, enough};
use crate::id::{Digest, InstanceKey, RunId, Seq};

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const RUNS: TableDefinition<u128, &[u8]> = TableDefinition::new("runs");
pub(super) const UNFINISHED: TableDefinition<u128, ()> = TableDefinition::new("unfinished");
pub(super) const REQUESTS: TableDefinition<u128, &[u8]> = TableDefinition::new("requests");
pub(super) const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
pub(super) const EVENTS: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("events");
pub(super) const IDS: TableDefinition<(&str, &str, &str), (u128, u64)> =
    TableDefinition::new("ids");
pub(super) const STATES: TableDefinition<(&str, &str), &str> = TableDefinition::new("states");
pub(super) const STORAGE: TableDefinition<(&str, &str, &str), &[u8]> =
    TableDefinition::new("storage");
pub(super) const ENDED: TableDefinition<(u64, u128), u64> = TableDefinition::new("ended");
pub(super) const TRIMMING: TableDefinition<u128, (&str, &str)> = TableDefinition::new("trimming");

/// The layout above. Another one gets another number, and a file is only read by who knows its number.
pub(super) const FORMAT: u64 = 2;
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_ENDED_BYTES: &str = "ended_bytes";
pub(super) const META_TRIMMED_UNTIL: &str = "trimmed_until_ms";

/// What an ended run counts beyond its events, so that a flood of runs without any is trimmed too.
pub(super) const RUN_OVERHEAD: u64 = 512;

/// Steps that one commit takes to clear the log, and rows that it deletes for retention, or twice what it
/// wrote if that is more: both keep up with any load, and neither ever holds up a commit for long.
pub(super) const STEP: usize = 64;

/// Which ended runs go.
#[derive(Clone, Copy)]
pub(super) struct Retention {
    pub(super) age: Duration,
    pub(super) bytes: u64,
}

impl Retention {
    pub(super) fn is_due(&self, oldest_ended_ms: u64, ended_bytes: u64, now: SystemTime) -> bool {
        let age_ms = millis(now).saturating_sub(oldest_ended_ms);
        ended_bytes > self.bytes || u128::from(age_ms) > self.age.as_millis()
    }

    /// When a run that ended then is too old.
    fn due_ms(&self, ended_ms: u64) -> u64 {
        let age_ms = u64::try_from(self.age.as_millis()).unwrap_or(u64::MAX);
        ended_ms.saturating_add(age_ms).saturating_add(1)
    }
}

/// What a step of retention did.
pub(super) struct Trimmed {
    /// The runs that it took from what clients can see.
    pub(super) runs: u64,
    /// From when on there is more to do, as far as no other run ends.
    pub(super) next_ms: u64,
}

/// Everything, for writing.
pub(super) struct Tables<'t> {
    pub(super) meta: Lazy<'t, &'static str, u64>,
    pub(super) runs: Lazy<'t, u128, &'static [u8]>,
    pub(super) unfinished: Lazy<'t, u128, ()>,
    pub(super) requests: Lazy<'t, u128, &'static [u8]>,
    pub(super) log: Lazy<'t, u64, &'static [u8]>,
    pub(super) events: Lazy<'t, (u128, u64), &'static [u8]>,
    pub(super) ids: Lazy<'t, (&'static str, &'static str, &'static str), (u128, u64)>,
    pub(super) states: Lazy<'t, (&'static str, &'static str), &'static str>,
    pub(super) storage: Lazy<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    pub(super) ended: Lazy<'t, (u64, u128), u64>,
    pub(super) trimming: Lazy<'t, u128, (&'static str, &'static str)>,
}

/// What came of a batch.
pub(super) struct Applied {
    /// What is to be done in memory when the batch is durable.
    pub(super) change: Change,
    /// How many runs and segments were written.
    pub(super) written: usize,
    /// Whether a run ended.
    pub(super) ended: bool,
}

/// A table that is opened when it is first needed.
pub(super) struct Lazy<'t, K: Key + 'static, V: Value + 'static> {
    transaction: &'t WriteTransaction,
    definition: TableDefinition<'static, K, V>,
    table: Option<Table<'t, K, V>>,
}

impl<'t, K: Key + 'static, V: Value + 'static> Lazy<'t, K, V> {
    fn new(transaction: &'t WriteTransaction, definition: TableDefinition<'static, K, V>) -> Self {
        Self { transaction, definition, table: None }
    }

    pub(super) fn open(&mut self) -> Result<&mut Table<'t, K, V>, Error> {
        match &mut self.table {
            Some(table) => Ok(table),
            none => Ok(none.insert(self.transaction.open_table(self.definition)?)),
        }
    }
}

/// What a batch has for one run.
#[derive(Default)]
struct Part<'a> {
    /// The run was not on record before, so no table has anything of it.
    new: bool,
    /// The run must leave the log.
    due: bool,
    events: Vec<Arc<Event>>,
    outcome: Option<&'a Outcome>,
}

impl<'t> Tables<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Self {
        Self {
            meta: Lazy::new(transaction, META),
            runs: Lazy::new(transaction, RUNS),
            unfinished: Lazy::new(transaction, UNFINISHED),
            requests: Lazy::new(transaction, REQUESTS),
            log: Lazy::new(transaction, LOG),
            events: Lazy::new(transaction, EVENTS),
            ids: Lazy::new(transaction, IDS),
            states: Lazy::new(transaction, STATES),
            storage: Lazy::new(transaction, STORAGE),
            ended: Lazy::new(transaction, ENDED),
            trimming: Lazy::new(transaction, TRIMMING),
        }
    }

    /// Makes all tables, so that those who read find them.
    pub(super) fn make(&mut self) -> Result<(), Error> {
        self.meta.open()?.insert(META_FORMAT, FORMAT)?;
        self.runs.open()?;
        self.unfinished.open()?;
        self.requests.open()?;
        self.log.open()?;
        self.events.open()?;
        self.ids.open()?;
        self.states.open()?;
        self.storage.open()?;
        self.ended.open()?;
        self.trimming.open()?;
        Ok(())
    }

    /// Applies turns. Whatever an earlier attempt at the same turns wrote, it replaces or leaves as it is.
    pub(super) fn apply(
        &mut self,
        turns: &[Submitted],
        recent: &Recent,
        now: SystemTime,
    ) -> Result<Applied, Error> {
        let mut parts: BTreeMap<RunId, Part> = BTreeMap::new();
        for submitted in turns {
            let (agent, name) = pair(submitted.lane.instance());
            for write in &submitted.turn.0 {
                match write {
                    Write::Start { tail, module, request } => {
                        let new = self.start(tail, *module, request.as_deref(), now)?;
                        parts.entry(tail.run()).or_default().new |= new;
                    }
                    Write::Event { tail, event } => {
                        if let Some(id) = &event.id {
                            let place = (tail.run().as_u128(), event.seq.0);
                            self.ids.open()?.insert((agent, name, &**id), place)?;
                        }
                        parts.entry(tail.run()).or_default().events.push(Arc::clone(event));
                    }
                    Write::End { tail, outcome } => {
                        parts.entry(tail.run()).or_default().outcome = Some(outcome);
                    }
                    Write::State(document) => {
                        self.states.open()?.insert((agent, name), &**document)?;
                    }
                    Write::Storage { key, value: Some(value) } => {
                        self.storage.open()?.insert((agent, name, &**key), &**value)?;
                    }
                    Write::Storage { key, value: None } => {
                        self.storage.open()?.remove((agent, name, &**key))?;
                    }
                }
            }
        }
        let (mut change, due) = recent.change(STEP.max(2 * parts.len()));
        for run in due {
            parts.entry(run).or_default().due = true;
        }
        let (mut written, mut ended) = (0, false);
        for (run, part) in parts {
            written += 1;
            ended |= part.outcome.is_some();
            written += self.advance(run, part, recent, &mut change, now)?;
        }
        for (position, row) in change.rows() {
            self.log.open()?.insert(position, row)?;
        }
        for position in recent.cleared(&change) {
            self.log.open()?.remove(position)?;
        }
        Ok(Applied { change, written, ended })
    }

    /// Puts a run on record, and returns whether it was not.
    fn start(
        &mut self,
        tail: &Tail,
        module: Digest,
        request: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<bool, Error> {
        let run = tail.run();
        let known = record(self.runs.open()?, run)?;
        let new = known.is_none();
        let record = RunRecord {
            module,
            state: RunState::Running,
            ..known.unwrap_or_else(|| RunRecord {
                run,
                instance: tail.instance().clone(),
                module,
                state: RunState::Running,
                code: None,
                started_ms: millis(now),
                ended_ms: None,
                last: Seq::ZERO,
                interruptions: 0,
                interrupted_at: Seq::ZERO,
            })
        };
        self.put(&record)?;
        self.unfinished.open()?.insert(run.as_u128(), ())?;
        if let Some(request) = request {
            self.requests.open()?.insert(run.as_u128(), request)?;
        }
        Ok(new)
    }

    /// Takes a run further, and returns how many segments that took.
    fn advance(
        &mut self,
        run: RunId,
        mut part: Part<'_>,
        recent: &Recent,
        change: &mut Change,
        now: SystemTime,
    ) -> Result<usize, Error> {
        let unknown;
        let live = match recent.live(run) {
            Some(live) => live,
            None => {
                let (last, bytes) = if part.new {
                    (Seq::ZERO, 0)
                } else if record(self.runs.open()?, run)?.is_some() {
                    extent(self.events.open()?, run)?
                } else {
                    // Retention deleted it, by an earlier attempt at this batch.
                    tracing::warn!(%run, "a run goes on that is not on record");
                    return Ok(0);
                };
                change.store(run, last, bytes);
                unknown = Live::stored(last, bytes);
                &unknown
            }
        };
        // An earlier attempt at this batch may have brought them already.
        part.events.retain(|event| event.seq > live.last);
        let size = part.events.iter().map(|event| event.size()).sum::<usize>();
        let mut segments = 0;
        let mut segment_bytes = live.segment_bytes;
        let last = part.events.last().map_or(live.last, |event| event.seq);
        if part.due || part.outcome.is_some() || live.size + size >= enough(run) {
            let events: Vec<&Event> =
                live.events.iter().chain(&part.events).map(|event| &**event).collect();
            for events in split(&events) {
                let Some(last) = events.last() else { continue };
                let segment = encode_segment(events, segment_bytes);
                segment_bytes += segment.len() as u64;
                self.events.open()?.insert((run.as_u128(), last.seq.0), &*segment)?;
                segments += 1;
            }
            change.store(run, last, segment_bytes);
        } else if !part.events.is_empty() {
            change.log(run, part.events);
        }
        if let Some(outcome) = part.outcome {
            self.end(run, outcome, (last, segment_bytes), now)?;
            change.end(run);
        }
        Ok(segments)
    }

    fn end(
        &mut self,
        run: RunId,
        outcome: &Outcome,
        (last, segment_bytes): (Seq, u64),
        now: SystemTime,
    ) -> Result<(), Error> {
        let record = record(self.runs.open()?, run)?;
        let mut record = record.ok_or_else(|| damaged(Damaged))?;
        let ended_table = self.ended.open()?;
        let meta = self.meta.open()?;
        let mut ended_bytes = number(meta, META_ENDED_BYTES)?;
        // An earlier attempt may have ended it, at another time.
        if let Some(ended_ms) = record.ended_ms {
            let replaced = ended_table.remove((ended_ms, run.as_u128()))?;
            ended_bytes -= replaced.map_or(0, |bytes| bytes.value().min(ended_bytes));
        }
        let bytes = segment_bytes + RUN_OVERHEAD;
        ended_table.insert((millis(now), run.as_u128()), bytes)?;
        meta.insert(META_ENDED_BYTES, ended_bytes + bytes)?;
        record.last = last;
        record.state = outcome.state;
        record.code = outcome.code.clone();
        record.ended_ms = Some(millis(now));
        self.put(&record)?;
        self.unfinished.open()?.remove(run.as_u128())?;
        self.requests.open()?.remove(run.as_u128())?;
        Ok(())
    }

    pub(super) fn put(&mut self, record: &RunRecord) -> Result<(), Error> {
        self.runs.open()?.insert(record.run.as_u128(), &*encode_run(record))?;
        Ok(())
    }

    /// Deletes about `budget` rows of runs that retention lets go, and says when there is more to do.
    pub(super) fn trim(
        &mut self,
        retention: Retention,
        now: SystemTime,
        mut budget: usize,
    ) -> Result<Trimmed, Error> {
        let mut trimmed_runs = 0;
        while budget > 0 {
            let run = self.trimming.open()?.first()?.map(|(run, _)| run.value());
            if let Some(run) = run {
                budget = self.delete_segments(RunId::from_u128(run), budget)?;
            } else if self.begin_trim(retention, now)? {
                trimmed_runs += 1;
                budget -= 1;
            } else {
                break;
            }
        }
        let next_ms = if budget == 0 {
            0
        } else {
            let oldest = self.ended.open()?.first()?.map(|(key, _)| key.value().0);
            oldest.map_or(u64::MAX, |ended_ms| retention.due_ms(ended_ms))
        };
        Ok(Trimmed { runs: trimmed_runs, next_ms })
    }

    /// Takes the oldest ended run out of what clients can see, if it must go.
    fn begin_trim(&mut self, retention: Retention, now: SystemTime) -> Result<bool, Error> {
        let oldest = self.ended.open()?.first()?;
        let Some((key, bytes)) = oldest.map(|(key, bytes)| (key.value(), bytes.value())) else {
            return Ok(false);
        };
        let ended_bytes = number(self.meta.open()?, META_ENDED_BYTES)?;
        if !retention.is_due(key.0, ended_bytes, now) {
            return Ok(false);
        }
        let run = RunId::from_u128(key.1);
        let record = record(self.runs.open()?, run)?.ok_or_else(|| damaged(Damaged))?;
        self.ended.open()?.remove(key)?;
        self.runs.open()?.remove(run.as_u128())?;
        self.trimming.open()?.insert(run.as_u128(), pair(&record.instance))?;
        self.meta.open()?.insert(META_ENDED_BYTES, ended_bytes.saturating_sub(bytes))?;
        let until = number(self.meta.open()?, META_TRIMMED_UNTIL)?.max(run.timestamp_ms());
        self.meta.open()?.insert(META_TRIMMED_UNTIL, until)?;
        Ok(true)
    }

    /// Deletes segments of a run that clients no longer see, and the ids that still lead to it; returns what
    /// is left of the budget.
    fn delete_segments(&mut self, run: RunId, mut budget: usize) -> Result<usize, Error> {
        let (agent, name) = {
            let of = self.trimming.open()?.get(run.as_u128())?;
            let of = of.ok_or_else(|| damaged(Damaged))?;
            let (agent, name) = of.value();
            (agent.to_owned(), name.to_owned())
        };
        let all = (run.as_u128(), 0)..=(run.as_u128(), u64::MAX);
        while budget > 0 {
            let next = self.events.open()?.range(all.clone())?.next().transpose()?;
            let Some((key, segment)) = next.map(|(key, row)| (key.value(), row.value().to_vec()))
            else {
                self.trimming.open()?.remove(run.as_u128())?;
                return Ok(budget - 1);
            };
            for stored in Segment::open(Seq(key.1), &segment).map_err(damaged)? {
                let stored = stored.map_err(damaged)?;
                let Some(id) = stored.id else { continue };
                let id = (&*agent, &*name, id);
                let place = self.ids.open()?.get(id)?.map(|place| place.value());
                if place == Some((run.as_u128(), stored.seq.0)) {
                    self.ids.open()?.remove(id)?;
                }
            }
            self.events.open()?.remove(key)?;
            budget -= 1;
        }
        Ok(0)
    }
}

pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, Error> {
    Ok(meta.get(name)?.map_or(0, |number| number.value()))
}

pub(super) fn record(
    runs: &impl ReadableTable<u128, &'static [u8]>,
    run: RunId,
) -> Result<Option<RunRecord>, Error> {
    let Some(row) = runs.get(run.as_u128())? else {
        return Ok(None);
    };
    decode_run(run, row.value()).map(Some).map_err(damaged)
}

/// The last event of a run that is in a segment, and the bytes of the run's segments.
pub(super) fn extent(
    events: &impl ReadableTable<(u128, u64), &'static [u8]>,
    run: RunId,
) -> Result<(Seq, u64), Error> {
    let run = run.as_u128();
    let last = events.range((run, 0)..=(run, u64::MAX))?.next_back();
    let Some((key, segment)) = last.transpose()? else {
        return Ok((Seq::ZERO, 0));
    };
    let last = Seq(key.value().1);
    let segment = Segment::open(last, segment.value()).map_err(damaged)?;
    Ok((last, segment.total()))
}

pub(super) fn pair(instance: &InstanceKey) -> (&str, &str) {
    (instance.agent().as_str(), instance.name())
}

pub(super) fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

pub(super) fn damaged(damaged: Damaged) -> Error {
    Error::Corrupted(damaged.to_string())
}
