//! The tables of the file, and what is done to them.
//!
//! A layer of the log is settled by [`Tables::settle`], whose every write is a put or a delete that changes nothing when it
//! is done twice; [`Tables::trim`] lets go a bounded number of rows of what retention no longer keeps. Both
//! belong to the caller's transaction. A layer costs a row for each run that began or ended, for each segment, document,
//! value and id, in the order of the keys. A table that a transaction does not need is not opened, as that has a
//! cost of its own.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, SystemTime};

use ::redb::{
    Database, Error, Key, ReadableTable, Table, TableDefinition, Value, WriteTransaction,
};

use super::super::codec::{
    Damaged, Segment, decode_run, encode_deployment, encode_run, encode_segment, split,
};
use super::super::{DeploymentRecord, Keyed, RunRecord};
use super::log::Place;
use super::recent::{Kept, Layer, Part};
use crate::id::{InstanceKey, RunId, Seq};

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
pub(super) const MODULES: TableDefinition<(&str, &str), &[u8; 32]> =
    TableDefinition::new("modules");
pub(super) const DEPLOYMENTS: TableDefinition<(&str, u64), &[u8]> =
    TableDefinition::new("deployments");
/// The runs of each instance.
pub(super) const INSTANCE_RUNS: TableDefinition<(&str, &str, u128), ()> =
    TableDefinition::new("instance_runs");
/// What each key of an instance stands for: a run, and the fingerprint of the request that began it.
pub(super) const KEYS: TableDefinition<(&str, &str, &str), (u128, &[u8; 32])> =
    TableDefinition::new("keys");
/// The key of each run that has one.
pub(super) const KEYED: TableDefinition<u128, &str> = TableDefinition::new("keyed");
/// What runs answered.
pub(super) const REPLIES: TableDefinition<u128, &[u8]> = TableDefinition::new("replies");
pub(super) const ENDED: TableDefinition<(u64, u128), u64> = TableDefinition::new("ended");
pub(super) const TRIMMING: TableDefinition<u128, (&str, &str)> = TableDefinition::new("trimming");

/// The layout above. Another one gets another number, and a file is only read by who knows its number.
pub(super) const FORMAT: u64 = 5;
/// The oldest layout that is taken over. Format 3 has neither `modules` nor `deployments`, and both it and format 4 have no
/// `instance_runs`, `keys`, `keyed` and `replies`.
pub(super) const OLDEST_FORMAT: u64 = 3;
pub(super) const META_FORMAT: &str = "format";
pub(super) const META_ENDED_BYTES: &str = "ended_bytes";
pub(super) const META_TRIMMED_UNTIL: &str = "trimmed_until_ms";
/// The mark of the log that belongs to the tables, and what of it they have: see [`Place`].
pub(super) const META_LOG_MARK: &str = "log_mark";
const META_LOG_HALF: &str = "log_half";
const META_LOG_EPOCH: &str = "log_epoch";
const META_LOG_SETTLED: &str = "log_settled";

/// What an ended run counts beyond its events, so that a flood of runs without any is trimmed too.
pub(super) const RUN_OVERHEAD: u64 = 512;

/// Rows that one transaction deletes for retention, or twice what it wrote if that is more: so retention keeps up with any
/// load, and never holds up the next layer for long.
pub(super) const STEP: usize = if cfg!(test) { 64 } else { 256 };

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
    pub(super) events: Lazy<'t, (u128, u64), &'static [u8]>,
    pub(super) ids: Lazy<'t, (&'static str, &'static str, &'static str), (u128, u64)>,
    pub(super) states: Lazy<'t, (&'static str, &'static str), &'static str>,
    pub(super) storage: Lazy<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    pub(super) modules: Lazy<'t, (&'static str, &'static str), &'static [u8; 32]>,
    pub(super) deployments: Lazy<'t, (&'static str, u64), &'static [u8]>,
    pub(super) instance_runs: Lazy<'t, (&'static str, &'static str, u128), ()>,
    pub(super) keys:
        Lazy<'t, (&'static str, &'static str, &'static str), (u128, &'static [u8; 32])>,
    pub(super) keyed: Lazy<'t, u128, &'static str>,
    pub(super) replies: Lazy<'t, u128, &'static [u8]>,
    pub(super) ended: Lazy<'t, (u64, u128), u64>,
    pub(super) trimming: Lazy<'t, u128, (&'static str, &'static str)>,
}

/// What came of a layer.
#[derive(Default)]
pub(super) struct Settled {
    /// How many runs and segments were written.
    pub(super) written: usize,
    /// Whether a run ended.
    pub(super) ended: bool,
}

/// Begins a transaction that writes. Each one saves which pages are in use, so that the file need not be walked through when it is
/// opened after a crash: that holds as long as none was committed without.
pub(super) fn begin(database: &Database) -> Result<WriteTransaction, Error> {
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    Ok(transaction)
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

impl<'t> Tables<'t> {
    pub(super) fn new(transaction: &'t WriteTransaction) -> Self {
        Self {
            meta: Lazy::new(transaction, META),
            runs: Lazy::new(transaction, RUNS),
            unfinished: Lazy::new(transaction, UNFINISHED),
            requests: Lazy::new(transaction, REQUESTS),
            events: Lazy::new(transaction, EVENTS),
            ids: Lazy::new(transaction, IDS),
            states: Lazy::new(transaction, STATES),
            storage: Lazy::new(transaction, STORAGE),
            modules: Lazy::new(transaction, MODULES),
            deployments: Lazy::new(transaction, DEPLOYMENTS),
            instance_runs: Lazy::new(transaction, INSTANCE_RUNS),
            keys: Lazy::new(transaction, KEYS),
            keyed: Lazy::new(transaction, KEYED),
            replies: Lazy::new(transaction, REPLIES),
            ended: Lazy::new(transaction, ENDED),
            trimming: Lazy::new(transaction, TRIMMING),
        }
    }

    /// Makes all tables, so that those who read find them, for the log that has this mark.
    pub(super) fn make(&mut self, mark: u64) -> Result<(), Error> {
        self.meta.open()?.insert(META_LOG_MARK, mark)?;
        self.runs.open()?;
        self.unfinished.open()?;
        self.requests.open()?;
        self.events.open()?;
        self.ids.open()?;
        self.states.open()?;
        self.storage.open()?;
        self.ended.open()?;
        self.trimming.open()?;
        self.take_over()
    }

    /// Makes what the formats before did not have, and the format this one, as far as they are not so already.
    pub(super) fn take_over(&mut self) -> Result<(), Error> {
        if number(self.meta.open()?, META_FORMAT)? == FORMAT {
            return Ok(());
        }
        self.modules.open()?;
        self.deployments.open()?;
        self.keys.open()?;
        self.keyed.open()?;
        self.replies.open()?;
        let instance_runs = self.instance_runs.open()?;
        for row in self.runs.open()?.iter()? {
            let (run, record) = row?;
            let record = decoded(RunId::from_u128(run.value()), record.value())?;
            let (agent, name) = pair(&record.instance);
            instance_runs.insert((agent, name, run.value()), ())?;
        }
        self.meta.open()?.insert(META_FORMAT, FORMAT)?;
        Ok(())
    }

    /// Notes what the tables have of the log.
    pub(super) fn set_place(&mut self, place: Place) -> Result<(), Error> {
        let meta = self.meta.open()?;
        meta.insert(META_LOG_HALF, place.half as u64)?;
        meta.insert(META_LOG_EPOCH, place.epoch)?;
        self.set_settled(place.settled)
    }

    /// Notes up to which record the tables have what the log has.
    pub(super) fn set_settled(&mut self, record: u64) -> Result<(), Error> {
        self.meta.open()?.insert(META_LOG_SETTLED, record)?;
        Ok(())
    }

    /// Writes a layer. Whatever of it the tables have already, it replaces or leaves as it is.
    pub(super) fn settle(&mut self, layer: &Layer) -> Result<Settled, Error> {
        let mut settled = Settled::default();
        for (instance, kept) in sorted(&layer.instances) {
            self.keep(instance, kept)?;
        }
        for (run, part) in sorted(&layer.runs) {
            settled.written += 1 + self.advance(*run, part)?;
            settled.ended |= part.progress.end.is_some();
        }
        Ok(settled)
    }

    fn keep(&mut self, instance: &InstanceKey, kept: &Kept) -> Result<(), Error> {
        let (agent, name) = pair(instance);
        if let Some(document) = &kept.document {
            match document {
                Some(document) => drop(self.states.open()?.insert((agent, name), &**document)?),
                None => drop(self.states.open()?.remove((agent, name))?),
            }
        }
        if let Some(module) = &kept.module {
            self.modules.open()?.insert((agent, name), module.as_bytes())?;
        }
        for (key, value) in &kept.storage {
            match value {
                Some(value) => drop(self.storage.open()?.insert((agent, name, &**key), &**value)?),
                None => drop(self.storage.open()?.remove((agent, name, &**key))?),
            }
        }
        for (id, place) in sorted(&kept.ids) {
            let place = (place.run.as_u128(), place.seq.0);
            self.ids.open()?.insert((agent, name, &**id), place)?;
        }
        for (key, Keyed { run, fingerprint }) in sorted(&kept.keys) {
            let run = run.as_u128();
            self.keys.open()?.insert((agent, name, &**key), (run, fingerprint.as_bytes()))?;
            self.keyed.open()?.insert(run, &**key)?;
        }
        Ok(())
    }

    /// Takes a run further, and returns how many segments that took.
    fn advance(&mut self, run: RunId, part: &Part) -> Result<usize, Error> {
        let known = record(self.runs.open()?, run)?;
        let (mut last, mut bytes) = match &known {
            Some(_) => extent(self.events.open()?, run)?,
            None => (Seq::ZERO, 0),
        };
        let Some(mut record) = part.progress.onto(run, known.clone()) else {
            // Retention deleted it, after an earlier attempt at the same batch.
            tracing::warn!(%run, "a run goes on that is not on record");
            return Ok(0);
        };
        // An earlier attempt at the same batch may have brought some already.
        let new = part.events.partition_point(|event| event.seq <= last);
        let mut segments = 0;
        for events in split(&part.events[new..]) {
            let segment = encode_segment(events, bytes);
            bytes += segment.len() as u64;
            last = events.last().map_or(last, |event| event.seq);
            self.events.open()?.insert((run.as_u128(), last.0), &*segment)?;
            segments += 1;
        }
        if let Some(reply) = &part.reply {
            self.replies.open()?.insert(run.as_u128(), &**reply)?;
        }
        if known.is_none() {
            let (agent, name) = pair(&record.instance);
            self.instance_runs.open()?.insert((agent, name, run.as_u128()), ())?;
        }
        if let Some(end) = &part.progress.end {
            record.last = last;
            self.end(&record, known.as_ref(), end.at_ms, bytes + RUN_OVERHEAD)?;
        } else if let Some(start) = &part.progress.start {
            self.put(&record)?;
            self.unfinished.open()?.insert(run.as_u128(), ())?;
            if let Some(request) = &start.request {
                self.requests.open()?.insert(run.as_u128(), &**request)?;
            }
        }
        Ok(segments)
    }

    /// Puts the end of a run on record, which counts so many bytes for retention from then on.
    fn end(
        &mut self,
        record: &RunRecord,
        known: Option<&RunRecord>,
        ended_ms: u64,
        bytes: u64,
    ) -> Result<(), Error> {
        let run = record.run.as_u128();
        let ended = self.ended.open()?;
        let meta = self.meta.open()?;
        let mut ended_bytes = number(meta, META_ENDED_BYTES)?;
        // An earlier attempt at the same batch may have ended it, at another time.
        if let Some(ended_ms) = known.and_then(|known| known.ended_ms) {
            let replaced = ended.remove((ended_ms, run))?;
            ended_bytes -= replaced.map_or(0, |bytes| bytes.value().min(ended_bytes));
        }
        ended.insert((ended_ms, run), bytes)?;
        meta.insert(META_ENDED_BYTES, ended_bytes + bytes)?;
        if known.is_some() {
            self.unfinished.open()?.remove(run)?;
            self.requests.open()?.remove(run)?;
        }
        self.put(record)
    }

    /// Puts a deployment on record, and lets go of these generations of its agent.
    pub(super) fn deploy(
        &mut self,
        record: &DeploymentRecord,
        forget: &[u64],
    ) -> Result<(), Error> {
        let deployments = self.deployments.open()?;
        let agent = record.agent.as_str();
        for generation in forget {
            deployments.remove((agent, *generation))?;
        }
        deployments.insert((agent, record.generation), &*encode_deployment(record))?;
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
        let (agent, name) = pair(&record.instance);
        self.instance_runs.open()?.remove((agent, name, run.as_u128()))?;
        if let Some(key) = self.keyed.open()?.remove(run.as_u128())? {
            let key = (agent, name, key.value());
            let of = self.keys.open()?.get(key)?.map(|of| of.value().0);
            if of == Some(run.as_u128()) {
                self.keys.open()?.remove(key)?;
            }
        }
        self.replies.open()?.remove(run.as_u128())?;
        self.trimming.open()?.insert(run.as_u128(), (agent, name))?;
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
        while budget > 0 {
            let Some((key, ids)) = self.first_segment(run)? else {
                self.trimming.open()?.remove(run.as_u128())?;
                return Ok(budget - 1);
            };
            for (id, seq) in ids {
                let id = (&*agent, &*name, &*id);
                let place = self.ids.open()?.get(id)?.map(|place| place.value());
                if place == Some((run.as_u128(), seq.0)) {
                    self.ids.open()?.remove(id)?;
                }
            }
            self.events.open()?.remove(key)?;
            budget -= 1;
        }
        Ok(0)
    }

    /// The key of the first segment of a run, and the ids that its events have of the agent's own.
    #[expect(clippy::type_complexity, reason = "a key and what is to go with it")]
    fn first_segment(
        &mut self,
        run: RunId,
    ) -> Result<Option<((u128, u64), Vec<(String, Seq)>)>, Error> {
        let all = (run.as_u128(), 0)..=(run.as_u128(), u64::MAX);
        let Some((key, row)) = self.events.open()?.range(all)?.next().transpose()? else {
            return Ok(None);
        };
        let segment = Segment::open(Seq(key.value().1), row.value()).map_err(damaged)?;
        let mut ids = Vec::new();
        // Most have none, and need not be looked through.
        if segment.has_ids() {
            for stored in segment {
                let stored = stored.map_err(damaged)?;
                ids.extend(stored.id.map(|id| (id.to_owned(), stored.seq)));
            }
        }
        Ok(Some((key.value(), ids)))
    }
}

/// The entries of a map, in the order of their keys, which is that of the tables.
fn sorted<K: Ord + Hash, V>(map: &HashMap<K, V>) -> Vec<(&K, &V)> {
    let mut entries: Vec<(&K, &V)> = map.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| *key);
    entries
}

pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, Error> {
    Ok(meta.get(name)?.map_or(0, |number| number.value()))
}

/// What the tables have of the log.
pub(super) fn place(meta: &impl ReadableTable<&'static str, u64>) -> Result<Place, Error> {
    let half = usize::try_from(number(meta, META_LOG_HALF)?).map_err(|_| damaged(Damaged))?;
    let (epoch, settled) = (number(meta, META_LOG_EPOCH)?, number(meta, META_LOG_SETTLED)?);
    Ok(Place { half, epoch, settled })
}

pub(super) fn record(
    runs: &impl ReadableTable<u128, &'static [u8]>,
    run: RunId,
) -> Result<Option<RunRecord>, Error> {
    let Some(row) = runs.get(run.as_u128())? else {
        return Ok(None);
    };
    decoded(run, row.value()).map(Some)
}

/// The record of a run, as its row has it.
pub(super) fn decoded(run: RunId, row: &[u8]) -> Result<RunRecord, Error> {
    decode_run(run, row).map_err(damaged)
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
