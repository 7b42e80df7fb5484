//! The tables of the file, and what a commit does to them.
//!
//! A batch of turns is applied by [`Tables::apply`], whose every write is a put or a delete that changes nothing when it
//! is done twice; [`Tables::trim`] then lets go a bounded number of rows of what retention no longer keeps. Both
//! belong to the caller's transaction. The cost is one row per active run of the batch, and one per state, value and end.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use ::redb::{Error, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::super::codec::{Damaged, Segment, decode_run, encode_run, encode_segment, split};
use super::super::{Committed, Event, Outcome, RunRecord, RunState, Submitted, Tail, Write};
use crate::id::{Digest, InstanceKey, RunId, Seq};

pub(super) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(super) const RUNS: TableDefinition<u128, &[u8]> = TableDefinition::new("runs");
pub(super) const UNFINISHED: TableDefinition<u128, ()> = TableDefinition::new("unfinished");
pub(super) const REQUESTS: TableDefinition<u128, &[u8]> = TableDefinition::new("requests");
pub(super) const EVENTS: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("events");
pub(super) const IDS: TableDefinition<(&str, &str, &str), (u128, u64)> =
    TableDefinition::new("ids");
pub(super) const STATES: TableDefinition<(&str, &str), &str> = TableDefinition::new("states");
pub(super) const STORAGE: TableDefinition<(&str, &str, &str), &[u8]> =
    TableDefinition::new("storage");
pub(super) const ENDED: TableDefinition<(u64, u128), u64> = TableDefinition::new("ended");
pub(super) const TRIMMING: TableDefinition<u128, (&str, &str)> = TableDefinition::new("trimming");

/// The layout above. Another one gets another number, and a file is only read by who knows its number.
pub(super) const FORMAT: u64 = 1;
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_ENDED_BYTES: &str = "ended_bytes";
pub(super) const META_TRIMMED_UNTIL: &str = "trimmed_until_ms";

/// What an ended run counts beyond its events, so that a flood of runs without any is trimmed too.
pub(super) const RUN_OVERHEAD: u64 = 512;

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
}

/// Everything, open for writing.
pub(super) struct Tables<'t> {
    pub(super) meta: Table<'t, &'static str, u64>,
    pub(super) runs: Table<'t, u128, &'static [u8]>,
    pub(super) unfinished: Table<'t, u128, ()>,
    pub(super) requests: Table<'t, u128, &'static [u8]>,
    pub(super) events: Table<'t, (u128, u64), &'static [u8]>,
    pub(super) ids: Table<'t, (&'static str, &'static str, &'static str), (u128, u64)>,
    pub(super) states: Table<'t, (&'static str, &'static str), &'static str>,
    pub(super) storage: Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    pub(super) ended: Table<'t, (u64, u128), u64>,
    pub(super) trimming: Table<'t, u128, (&'static str, &'static str)>,
}

impl<'t> Tables<'t> {
    pub(super) fn open(transaction: &'t WriteTransaction) -> Result<Self, Error> {
        Ok(Self {
            meta: transaction.open_table(META)?,
            runs: transaction.open_table(RUNS)?,
            unfinished: transaction.open_table(UNFINISHED)?,
            requests: transaction.open_table(REQUESTS)?,
            events: transaction.open_table(EVENTS)?,
            ids: transaction.open_table(IDS)?,
            states: transaction.open_table(STATES)?,
            storage: transaction.open_table(STORAGE)?,
            ended: transaction.open_table(ENDED)?,
            trimming: transaction.open_table(TRIMMING)?,
        })
    }

    /// Applies turns, and returns how many segments and ends it wrote. Whatever an earlier attempt at the same
    /// turns wrote, it replaces.
    pub(super) fn apply(&mut self, turns: &[Submitted], now: SystemTime) -> Result<usize, Error> {
        let mut written = 0;
        let mut events: BTreeMap<RunId, Vec<&Event>> = BTreeMap::new();
        let mut ends: Vec<(&Tail, &Outcome)> = Vec::new();
        for submitted in turns {
            let (agent, name) = pair(submitted.lane.instance());
            for write in &submitted.turn.0 {
                match write {
                    Write::Start { tail, module, request } => {
                        self.start(tail, *module, request.as_deref(), now)?
                    }
                    Write::Event { tail, event } => {
                        if let Some(id) = &event.id {
                            let place = (tail.run().as_u128(), event.seq.0);
                            self.ids.insert((agent, name, &**id), place)?;
                        }
                        events.entry(tail.run()).or_default().push(event);
                    }
                    Write::End { tail, outcome } => ends.push((tail, outcome)),
                    Write::State(document) => {
                        self.states.insert((agent, name), &**document)?;
                    }
                    Write::Storage { key, value: Some(value) } => {
                        self.storage.insert((agent, name, &**key), &**value)?;
                    }
                    Write::Storage { key, value: None } => {
                        self.storage.remove((agent, name, &**key))?;
                    }
                }
            }
        }
        for (run, events) in events {
            written += self.append(run, &events)?;
        }
        written += ends.len();
        for (tail, outcome) in ends {
            self.end(tail.run(), outcome, now)?;
        }
        Ok(written)
    }

    fn start(
        &mut self,
        tail: &Tail,
        module: Digest,
        request: Option<&[u8]>,
        now: SystemTime,
    ) -> Result<(), Error> {
        let run = tail.run();
        let known = record(&self.runs, run)?;
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
        self.unfinished.insert(run.as_u128(), ())?;
        if let Some(request) = request {
            self.requests.insert(run.as_u128(), request)?;
        }
        Ok(())
    }

    fn append(&mut self, run: RunId, events: &[&Event]) -> Result<usize, Error> {
        let mut segments = 0;
        for events in split(events) {
            let (Some(first), Some(last)) = (events.first(), events.last()) else {
                continue;
            };
            let (_, before) = extent(&self.events, run, Seq(first.seq.0.saturating_sub(1)))?;
            let segment = encode_segment(events, before);
            self.events.insert((run.as_u128(), last.seq.0), &*segment)?;
            segments += 1;
        }
        Ok(segments)
    }

    fn end(&mut self, run: RunId, outcome: &Outcome, now: SystemTime) -> Result<(), Error> {
        let Some(mut record) = record(&self.runs, run)? else {
            tracing::error!(%run, "a run has ended that never started");
            return Ok(());
        };
        let mut ended_bytes = number(&self.meta, META_ENDED_BYTES)?;
        // An earlier attempt may have ended it, at another time.
        if let Some(ended_ms) = record.ended_ms {
            let replaced = self.ended.remove((ended_ms, run.as_u128()))?;
            ended_bytes -= replaced.map_or(0, |bytes| bytes.value().min(ended_bytes));
        }
        let (last, bytes) = extent(&self.events, run, Seq(u64::MAX))?;
        let bytes = bytes + RUN_OVERHEAD;
        record.last = last;
        record.state = outcome.state;
        record.code = outcome.code.clone();
        record.ended_ms = Some(millis(now));
        self.put(&record)?;
        self.unfinished.remove(run.as_u128())?;
        self.requests.remove(run.as_u128())?;
        self.ended.insert((millis(now), run.as_u128()), bytes)?;
        self.meta.insert(META_ENDED_BYTES, ended_bytes + bytes)?;
        Ok(())
    }

    pub(super) fn put(&mut self, record: &RunRecord) -> Result<(), Error> {
        self.runs.insert(record.run.as_u128(), &*encode_run(record))?;
        Ok(())
    }

    /// Deletes about `budget` rows of runs that retention lets go.
    pub(super) fn trim(
        &mut self,
        retention: Retention,
        now: SystemTime,
        mut budget: usize,
    ) -> Result<Committed, Error> {
        let mut trimmed_runs = 0;
        while budget > 0 {
            let run = self.trimming.first()?.map(|(run, _)| run.value());
            if let Some(run) = run {
                budget = self.delete_segments(RunId::from_u128(run), budget)?;
            } else if self.begin_trim(retention, now)? {
                trimmed_runs += 1;
                budget -= 1;
            } else {
                break;
            }
        }
        Ok(Committed { trimmed_runs, trim_due: budget == 0 })
    }

    /// Takes the oldest ended run out of what clients can see, if it must go.
    fn begin_trim(&mut self, retention: Retention, now: SystemTime) -> Result<bool, Error> {
        let oldest = self.ended.first()?;
        let Some((key, bytes)) = oldest.map(|(key, bytes)| (key.value(), bytes.value())) else {
            return Ok(false);
        };
        let ended_bytes = number(&self.meta, META_ENDED_BYTES)?;
        if !retention.is_due(key.0, ended_bytes, now) {
            return Ok(false);
        }
        let run = RunId::from_u128(key.1);
        let record = record(&self.runs, run)?.ok_or_else(|| damaged(Damaged))?;
        self.ended.remove(key)?;
        self.runs.remove(run.as_u128())?;
        self.trimming.insert(run.as_u128(), pair(&record.instance))?;
        self.meta.insert(META_ENDED_BYTES, ended_bytes.saturating_sub(bytes))?;
        let until = number(&self.meta, META_TRIMMED_UNTIL)?.max(run.timestamp_ms());
        self.meta.insert(META_TRIMMED_UNTIL, until)?;
        Ok(true)
    }

    /// Deletes segments of a run that clients no longer see, and the ids that still lead to it; returns what
    /// is left of the budget.
    fn delete_segments(&mut self, run: RunId, mut budget: usize) -> Result<usize, Error> {
        let (agent, name) = {
            let of = self.trimming.get(run.as_u128())?;
            let of = of.ok_or_else(|| damaged(Damaged))?;
            let (agent, name) = of.value();
            (agent.to_owned(), name.to_owned())
        };
        let all = (run.as_u128(), 0)..=(run.as_u128(), u64::MAX);
        while budget > 0 {
            let next = self.events.range(all.clone())?.next().transpose()?;
            let Some((key, segment)) = next.map(|(key, row)| (key.value(), row.value().to_vec()))
            else {
                self.trimming.remove(run.as_u128())?;
                return Ok(budget - 1);
            };
            for stored in Segment::open(Seq(key.1), &segment).map_err(damaged)? {
                let stored = stored.map_err(damaged)?;
                let Some(id) = stored.id else { continue };
                let id = (&*agent, &*name, id);
                let place = self.ids.get(id)?.map(|place| place.value());
                if place == Some((run.as_u128(), stored.seq.0)) {
                    self.ids.remove(id)?;
                }
            }
            self.events.remove(key)?;
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

/// The last event of a run up to `until`, and the bytes of the run's segments to there.
pub(super) fn extent(
    events: &impl ReadableTable<(u128, u64), &'static [u8]>,
    run: RunId,
    until: Seq,
) -> Result<(Seq, u64), Error> {
    let run = run.as_u128();
    let last = events.range((run, 0)..=(run, until.0))?.next_back();
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
