//! Whether a journal is consistent.
//!
//! **Problem.** A disk that lies, a copy that was made at the wrong moment or a mistake of ours leaves a journal that opens and says something
//! else than was written; nobody notices before a client reads it.
//!
//! **Mechanism.** The files are opened through an [overlay](super::overlay), as a host would open them: redb verifies every page and repairs
//! what a crash has left, the log is settled; and on disk nothing changes. Then each table is gone through once and held against the
//! others. These hold between any two transactions:
//!
//! - the log: no record of its epoch comes after the last one that is whole;
//! - `meta`: the format is this one; `ended_bytes` is the sum of `ended`;
//! - `runs`: each decodes. It has an end if and only if its state is final; it is then in `ended`, under that end, and else in `unfinished`.
//!   Only who failed or was cancelled has a code. The last event of a final run is the last of its segments, and that of
//!   another is at most that; an interruption is at most there;
//! - `unfinished`, `requests`: each is of a run on record that is not over; `replies`: each is of a run on record;
//! - `instance_runs`: each is a run on record, of that instance, and each run on record is there;
//! - `keys`, `keyed`: each key leads to a run on record of that instance, whose key it is; from each run that has one, to it or, if
//!   the key was used again, to another, which retention may have taken;
//! - `ended`: each is of a run on record that ended then, and counts the bytes of the run's segments and [`RUN_OVERHEAD`];
//! - `events`: each segment decodes, to its last byte, and is of a run on record, or of one in `trimming`. A run's segments follow each
//!   other without a gap, from 1 on unless they are being trimmed, and each has the total of those up to it;
//! - `ids`: each leads to an event that is there, of that instance and with that id; and from each event that has one, to it or, if the
//!   agent has used the id again, to another. Retention may have taken that one and the entry with it;
//! - `trimming`: each run of it is not on record, and began before `trimmed_until_ms`;
//! - `states`, `storage`, `modules`, `deployments`: each key names what may have that name, and each deployment decodes.
//!
//! **Limits.** Times are not compared, since clocks jump. Which of two runs used an id last is not on record. What retention or a transaction has taken
//! whole is not missed, apart from records of the log. What a batch brought a second time, after a failed write, for a run that retention took
//! in between is named, and harms nothing. At most [`MOST`] violations are named.
//!
//! **Cost.** Each page is read twice, each event is decoded once, and once more for an id of its own; the name of each
//! instance is kept in memory.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;

use ::redb::{
    Database, Error, ReadOnlyTable, ReadTransaction, ReadableDatabase, ReadableTable, Value,
};
use serde::Serialize;

use super::super::codec::{Segment, decode_deployment};
use super::super::{DeploymentRecord, RunRecord, RunState, StoreError};
use super::failed;
use super::log::Log;
use super::open::{Backend, JournalFile, log_of, open_both, recover, there};
use super::overlay::Overlay;
use super::tables::{
    DEPLOYMENTS, ENDED, EVENTS, FORMAT, IDS, INSTANCE_RUNS, KEYED, KEYS, META, META_ENDED_BYTES,
    META_FORMAT, META_TRIMMED_UNTIL, MODULES, REPLIES, REQUESTS, RUN_OVERHEAD, RUNS, STATES,
    STORAGE, TRIMMING, UNFINISHED, decoded, extent, number, pair, place, record,
};
use crate::id::{AgentName, InstanceKey, RunId, Seq};

/// Violations that are named; others are counted. A journal that is damaged all over has as many as it has rows.
const MOST: usize = 1000;

/// What redb may keep of the file in memory.
const CACHE: usize = 64 << 20;

/// What is in a journal, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Report {
    pub counts: Counts,
    /// The first of them, in the order in which they were found.
    pub violations: Vec<Violation>,
    /// How many more there are.
    pub more: u64,
    /// What is deployed and was.
    pub deployments: Vec<DeploymentRecord>,
}

/// What a journal has.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub runs: u64,
    /// Those of the runs that are not over.
    pub unfinished: u64,
    pub events: u64,
    /// Instances that have a run, a document, a value or a mark of their module.
    pub instances: u64,
    /// Ids that agents have given to events.
    pub ids: u64,
    pub documents: u64,
    pub values: u64,
    pub deployments: u64,
    /// Records that only the log has.
    pub log_records: u64,
    /// The bytes of all events, as they lie in the file.
    pub event_bytes: u64,
    /// The bytes of both files.
    pub file_bytes: u64,
}

/// Something that cannot be so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// The table that it is in, or the file.
    pub place: &'static str,
    /// The row's key, if it is about one.
    pub key: String,
    /// What is wrong.
    pub what: String,
}

impl Report {
    /// Whether nothing is wrong.
    pub fn is_consistent(&self) -> bool {
        self.violations.is_empty()
    }

    /// Notes that something is wrong.
    pub fn violation(
        &mut self,
        place: &'static str,
        key: impl std::fmt::Display,
        what: impl Into<String>,
    ) {
        if self.violations.len() == MOST {
            self.more += 1;
            return;
        }
        self.violations.push(Violation { place, key: key.to_string(), what: what.into() });
    }
}

/// Checks the journal of this file, which changes nothing. Fails when it cannot be read, as when a host has it open.
pub fn check(file: &Path) -> Result<Report, StoreError> {
    let log = log_of(file);
    let bytes = [file, &log].map(|file| file.metadata().map_or(0, |file| file.len()));
    let open = {
        let file = file.to_owned();
        move |which| {
            Overlay::new(match which {
                JournalFile::Tables => there(OpenOptions::new().read(true), &file)?,
                JournalFile::Log => OpenOptions::new().read(true).open(&log)?,
            })
        }
    };
    let mut report = check_on(&Backend::new(open), file)?;
    report.counts.file_bytes = bytes.iter().sum();
    Ok(report)
}

/// Checks the journal of this backend, which is written to.
pub(in super::super) fn check_on(backend: &Backend, file: &Path) -> Result<Report, StoreError> {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    // A host that was killed at its first start may have left an empty one.
    let (database, mut log) = open_both(backend, file, &builder, true)?;
    let mut check = Check::default();
    check.log(&database, &mut log).map_err(failed)?;
    let transaction = database.begin_read().map_err(failed)?;
    check.tables(&transaction).map_err(failed)?;
    Ok(check.report)
}

#[derive(Default)]
struct Check {
    report: Report,
    instances: HashSet<InstanceKey>,
    trimmed_until_ms: u64,
}

/// All tables that belong together, for reading.
struct Tables {
    meta: ReadOnlyTable<&'static str, u64>,
    runs: ReadOnlyTable<u128, &'static [u8]>,
    instance_runs: ReadOnlyTable<(&'static str, &'static str, u128), ()>,
    keys: ReadOnlyTable<(&'static str, &'static str, &'static str), (u128, &'static [u8; 32])>,
    keyed: ReadOnlyTable<u128, &'static str>,
    replies: ReadOnlyTable<u128, &'static [u8]>,
    unfinished: ReadOnlyTable<u128, ()>,
    requests: ReadOnlyTable<u128, &'static [u8]>,
    events: ReadOnlyTable<(u128, u64), &'static [u8]>,
    ids: ReadOnlyTable<(&'static str, &'static str, &'static str), (u128, u64)>,
    ended: ReadOnlyTable<(u64, u128), u64>,
    trimming: ReadOnlyTable<u128, (&'static str, &'static str)>,
}

/// Whose a segment is.
enum Owner {
    Run(InstanceKey),
    /// Of a run that retention has taken from clients and has not deleted yet.
    Trimmed(InstanceKey),
    /// Its record, or that it has none, is a violation of its own.
    Unknown,
}

impl Owner {
    fn instance(&self) -> Option<&InstanceKey> {
        match self {
            Self::Run(instance) | Self::Trimmed(instance) => Some(instance),
            Self::Unknown => None,
        }
    }
}

/// A run whose segments are gone through.
struct Following {
    run: RunId,
    owner: Owner,
    last: Seq,
    bytes: u64,
}

impl Check {
    /// Goes through what only the log has, and settles it.
    fn log(&mut self, database: &Database, log: &mut Log) -> Result<(), Error> {
        let place = place(&database.begin_read()?.open_table(META)?)?;
        let mut records = 0;
        log.replay(place, |_| {
            records += 1;
            Ok::<_, io::Error>(())
        })?;
        self.report.counts.log_records = records;
        match recover(database, log, place.half) {
            Err(Error::Corrupted(what)) => self.report.violation("log", "", what),
            recovered => recovered?,
        }
        Ok(())
    }

    fn tables(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        self.states(transaction)?;
        self.deployments(transaction)?;
        let tables = Tables {
            meta: transaction.open_table(META)?,
            runs: transaction.open_table(RUNS)?,
            instance_runs: transaction.open_table(INSTANCE_RUNS)?,
            keys: transaction.open_table(KEYS)?,
            keyed: transaction.open_table(KEYED)?,
            replies: transaction.open_table(REPLIES)?,
            unfinished: transaction.open_table(UNFINISHED)?,
            requests: transaction.open_table(REQUESTS)?,
            events: transaction.open_table(EVENTS)?,
            ids: transaction.open_table(IDS)?,
            ended: transaction.open_table(ENDED)?,
            trimming: transaction.open_table(TRIMMING)?,
        };
        self.trimmed_until_ms = number(&tables.meta, META_TRIMMED_UNTIL)?;
        let format = number(&tables.meta, META_FORMAT)?;
        if format != FORMAT {
            self.report.violation("meta", META_FORMAT, format!("it is {format}, not {FORMAT}"));
        }
        self.runs(&tables)?;
        self.of_runs(&tables)?;
        self.instance_runs(&tables)?;
        self.keys(&tables)?;
        self.ended(&tables)?;
        self.trimming(&tables)?;
        self.events(&tables)?;
        self.ids(&tables)?;
        self.report.counts.instances = self.instances.len() as u64;
        Ok(())
    }

    fn runs(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.runs.iter()? {
            let (run, row) = row?;
            let run = RunId::from_u128(run.value());
            self.report.counts.runs += 1;
            match decoded(run, row.value()) {
                Ok(record) => {
                    self.run(tables, &record)?;
                    self.instances.insert(record.instance);
                }
                Err(_) => self.report.violation("runs", run, "it does not decode"),
            }
        }
        Ok(())
    }

    fn run(&mut self, tables: &Tables, record: &RunRecord) -> Result<(), Error> {
        let run = record.run;
        let mut wrong = |what: String| self.report.violation("runs", run, what);
        let state = record.state;
        if state.is_final() != record.ended_ms.is_some() {
            let end = if state.is_final() { "no end" } else { "an end" };
            wrong(format!("it is {state:?} and has {end}"));
        }
        if record.code.is_some() && !matches!(state, RunState::Failed | RunState::Cancelled) {
            wrong(format!("it is {state:?} and has a code"));
        }
        if let Some(ended_ms) = record.ended_ms
            && tables.ended.get((ended_ms, run.as_u128()))?.is_none()
        {
            wrong(format!("it ended at {ended_ms} and is not in ended"));
        }
        let (agent, name) = pair(&record.instance);
        if tables.instance_runs.get((agent, name, run.as_u128()))?.is_none() {
            wrong("it is not in instance_runs".into());
        }
        if !state.is_final() {
            self.report.counts.unfinished += 1;
            if tables.unfinished.get(run.as_u128())?.is_none() {
                self.report.violation("runs", run, "it is not over and not in unfinished");
            }
        }
        // One that does not decode is told where it is.
        let Ok((last, _)) = extent(&tables.events, run) else { return Ok(()) };
        let is_there = if state.is_final() { record.last == last } else { record.last <= last };
        let mut wrong = |what: String| self.report.violation("runs", run, what);
        if !is_there {
            wrong(format!("its last event is {}, and that of its segments {last}", record.last));
        }
        if record.interrupted_at > last {
            wrong(format!("it was interrupted at {}, after {last}", record.interrupted_at));
        }
        Ok(())
    }

    /// What is kept of runs beside their records.
    fn of_runs(&mut self, tables: &Tables) -> Result<(), Error> {
        let unfinished = keys(&tables.unfinished)?.map(|run| ("unfinished", run));
        let requests = keys(&tables.requests)?.map(|run| ("requests", run));
        let replies = keys(&tables.replies)?.map(|run| ("replies", run));
        for (table, run) in unfinished.chain(requests).chain(replies) {
            let run = run?;
            match record(&tables.runs, run) {
                Ok(Some(record)) if record.state.is_final() && table != "replies" => {
                    self.report.violation(table, run, "the run is over");
                }
                Ok(None) => self.report.violation(table, run, "the run is not on record"),
                Ok(Some(_)) | Err(Error::Corrupted(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn instance_runs(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.instance_runs.iter()? {
            let (key, _) = row?;
            let (agent, name, run) = key.value();
            self.of_instance(tables, "instance_runs", (agent, name), RunId::from_u128(run), "")?;
        }
        Ok(())
    }

    fn keys(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.keys.iter()? {
            let (key, of) = row?;
            let ((agent, name, key), run) = (key.value(), RunId::from_u128(of.value().0));
            self.of_instance(tables, "keys", (agent, name), run, key)?;
            let own = tables.keyed.get(run.as_u128())?;
            if own.is_none_or(|own| own.value() != key) {
                let of = format!("{agent}/{name} {key:?}");
                self.report.violation("keys", of, format!("it is not the key of run {run}"));
            }
        }
        for row in tables.keyed.iter()? {
            let (run, key) = row?;
            let (run, key) = (RunId::from_u128(run.value()), key.value());
            match record(&tables.runs, run) {
                Ok(Some(record)) => {
                    let (agent, name) = pair(&record.instance);
                    let is_there = tables.keys.get((agent, name, key))?.is_some();
                    if !is_there && self.trimmed_until_ms == 0 {
                        self.report.violation("keyed", run, format!("{key:?} is not in keys"));
                    }
                }
                Ok(None) => self.report.violation("keyed", run, "the run is not on record"),
                Err(Error::Corrupted(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Something of this instance that leads to a run.
    fn of_instance(
        &mut self,
        tables: &Tables,
        table: &'static str,
        (agent, name): (&str, &str),
        run: RunId,
        key: &str,
    ) -> Result<(), Error> {
        let what = match record(&tables.runs, run) {
            Ok(Some(record)) if pair(&record.instance) == (agent, name) => return Ok(()),
            Ok(Some(_)) => format!("run {run} is of another instance"),
            Ok(None) => format!("run {run} is not on record"),
            Err(Error::Corrupted(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        let key = format!("{agent}/{name} {key}");
        self.report.violation(table, key.trim_end(), what);
        Ok(())
    }

    fn ended(&mut self, tables: &Tables) -> Result<(), Error> {
        let mut sum = 0_u64;
        for row in tables.ended.iter()? {
            let (key, bytes) = row?;
            let ((ended_ms, run), bytes) = (key.value(), bytes.value());
            let run = RunId::from_u128(run);
            sum = sum.saturating_add(bytes);
            let mut wrong = |what: String| {
                self.report.violation("ended", format!("{ended_ms} {run}"), what);
            };
            match record(&tables.runs, run) {
                Ok(Some(record)) if record.ended_ms == Some(ended_ms) => {}
                Ok(Some(record)) => wrong(format!("the run ended at {:?}", record.ended_ms)),
                Ok(None) => wrong("the run is not on record".into()),
                Err(Error::Corrupted(_)) => {}
                Err(error) => return Err(error),
            }
            if let Ok((_, total)) = extent(&tables.events, run)
                && bytes != total + RUN_OVERHEAD
            {
                wrong(format!("it counts {bytes} bytes, and its segments have {total}"));
            }
        }
        let counted = number(&tables.meta, META_ENDED_BYTES)?;
        if counted != sum {
            let what = format!("it is {counted}, and all of ended have {sum}");
            self.report.violation("meta", META_ENDED_BYTES, what);
        }
        Ok(())
    }

    fn trimming(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.trimming.iter()? {
            let (run, of) = row?;
            let run = RunId::from_u128(run.value());
            let (agent, name) = of.value();
            let instance = instance_of(agent, name);
            if let Err(what) = instance {
                self.report.violation("trimming", run, what);
            }
            if tables.runs.get(run.as_u128())?.is_some() {
                self.report.violation("trimming", run, "the run is on record still");
            }
            if run.timestamp_ms() > self.trimmed_until_ms {
                let what =
                    format!("the run began after trimmed_until_ms, {}", self.trimmed_until_ms);
                self.report.violation("trimming", run, what);
            }
        }
        Ok(())
    }

    fn events(&mut self, tables: &Tables) -> Result<(), Error> {
        let mut following: Option<Following> = None;
        for row in tables.events.iter()? {
            let (key, row) = row?;
            let (run, last) = key.value();
            let run = RunId::from_u128(run);
            let mut of_run = match following.take() {
                Some(of_run) if of_run.run == run => of_run,
                _ => self.follow(tables, run)?,
            };
            self.segment(tables, &mut of_run, Seq(last), row.value())?;
            following = Some(of_run);
        }
        Ok(())
    }

    /// Comes to the first segment of a run.
    fn follow(&mut self, tables: &Tables, run: RunId) -> Result<Following, Error> {
        let owner = owner(tables, run)?.unwrap_or_else(|| {
            self.report.violation("events", run, "the run is not on record");
            Owner::Unknown
        });
        Ok(Following { run, owner, last: Seq::ZERO, bytes: 0 })
    }

    fn segment(
        &mut self,
        tables: &Tables,
        of_run: &mut Following,
        last: Seq,
        row: &[u8],
    ) -> Result<(), Error> {
        let run = of_run.run;
        let key = format!("{run}-{last}");
        let Some((events, total)) = read(last, row) else {
            self.report.violation("events", key, "it does not decode");
            of_run.last = last;
            return Ok(());
        };
        let counts = &mut self.report.counts;
        counts.events += events.len() as u64;
        counts.event_bytes += row.len() as u64;
        let first = events.first().map_or(last.next(), |event| event.0);
        let begins = of_run.last == Seq::ZERO && matches!(of_run.owner, Owner::Trimmed(_));
        if begins {
            // Those before it are gone.
            of_run.bytes = total.saturating_sub(row.len() as u64);
        } else if first != of_run.last.next() {
            let what = format!("it begins with event {first}, after {}", of_run.last);
            self.report.violation("events", &key, what);
        }
        of_run.bytes += row.len() as u64;
        if total != of_run.bytes {
            let what = format!("its total is {total}, and it is {} bytes up to here", of_run.bytes);
            self.report.violation("events", &key, what);
            of_run.bytes = total;
        }
        of_run.last = last;
        let Some(instance) = of_run.owner.instance() else { return Ok(()) };
        let (agent, name) = pair(instance);
        for (seq, id) in events.into_iter().filter_map(|(seq, id)| Some((seq, id?))) {
            let entry = tables.ids.get((agent, name, id))?.map(|entry| entry.value());
            let what = match entry {
                None if self.trimmed_until_ms == 0 => "its id is not in ids",
                Some((of, newest)) if of == run.as_u128() && newest < seq.0 => {
                    "its id leads to an older event"
                }
                _ => continue,
            };
            self.report.violation("events", format!("{run}-{seq}"), what);
        }
        Ok(())
    }

    fn ids(&mut self, tables: &Tables) -> Result<(), Error> {
        for row in tables.ids.iter()? {
            let (key, place) = row?;
            let ((agent, name, id), (run, seq)) = (key.value(), place.value());
            self.report.counts.ids += 1;
            let segment = tables.events.range((run, seq)..=(run, u64::MAX))?.next().transpose()?;
            let found = segment.is_some_and(|(key, row)| {
                // One that does not decode has been told.
                read(Seq(key.value().1), row.value())
                    .is_none_or(|(events, _)| events.contains(&(Seq(seq), Some(id))))
            });
            let run = RunId::from_u128(run);
            let mut wrong = |what: String| {
                self.report.violation("ids", format!("{agent}/{name} {id:?}"), what);
            };
            if !found {
                wrong(format!("there is no event {run}-{seq} of that id"));
                continue;
            }
            let owner = owner(tables, run)?;
            let instance = owner.as_ref().and_then(Owner::instance);
            if instance.is_some_and(|instance| pair(instance) != (agent, name)) {
                wrong(format!("run {run} is of another instance"));
            }
        }
        Ok(())
    }

    /// What is kept of instances, runs aside.
    fn states(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        for row in transaction.open_table(STATES)?.iter()? {
            let (key, _) = row?;
            let (agent, name) = key.value();
            self.report.counts.documents += 1;
            self.kept("states", agent, name);
        }
        for row in transaction.open_table(MODULES)?.iter()? {
            let (key, _) = row?;
            let (agent, name) = key.value();
            self.kept("modules", agent, name);
        }
        for row in transaction.open_table(STORAGE)?.iter()? {
            let (key, _) = row?;
            let (agent, name, _) = key.value();
            self.report.counts.values += 1;
            self.kept("storage", agent, name);
        }
        Ok(())
    }

    fn kept(&mut self, table: &'static str, agent: &str, name: &str) {
        match instance_of(agent, name) {
            Ok(instance) => drop(self.instances.insert(instance)),
            Err(what) => self.report.violation(table, format!("{agent:?}/{name:?}"), what),
        }
    }

    fn deployments(&mut self, transaction: &ReadTransaction) -> Result<(), Error> {
        for row in transaction.open_table(DEPLOYMENTS)?.iter()? {
            let (key, row) = row?;
            let (agent, generation) = key.value();
            self.report.counts.deployments += 1;
            let decoded = agent.parse::<AgentName>().map_err(|error| error.to_string());
            let decoded = decoded.and_then(|agent| {
                let row = decode_deployment(agent, generation, row.value());
                row.map_err(|_| "it does not decode".into())
            });
            match decoded {
                Ok(record) => self.report.deployments.push(record),
                Err(what) => {
                    self.report.violation("deployments", format!("{agent:?} {generation}"), what);
                }
            }
        }
        Ok(())
    }
}

/// Whose the segments of a run are, if the run is on record or was.
fn owner(tables: &Tables, run: RunId) -> Result<Option<Owner>, Error> {
    Ok(match record(&tables.runs, run) {
        Ok(Some(record)) => Some(Owner::Run(record.instance)),
        Ok(None) => tables.trimming.get(run.as_u128())?.map(|of| {
            let (agent, name) = of.value();
            instance_of(agent, name).map_or(Owner::Unknown, Owner::Trimmed)
        }),
        Err(Error::Corrupted(_)) => Some(Owner::Unknown),
        Err(error) => return Err(error),
    })
}

/// The events of a segment, with their ids, and its total; none if it does not decode to its last byte.
#[expect(clippy::type_complexity, reason = "numbers and ids of events, and a total")]
fn read(last: Seq, row: &[u8]) -> Option<(Vec<(Seq, Option<&str>)>, u64)> {
    let mut segment = Segment::open(last, row).ok()?;
    let (total, has_ids) = (segment.total(), segment.has_ids());
    let events = segment.by_ref().map(|event| event.map(|event| (event.seq, event.id)));
    let events = events.collect::<Result<Vec<_>, _>>().ok()?;
    let all = segment.is_at_end() && !events.is_empty();
    let ids = events.iter().any(|(_, id)| id.is_some());
    (all && ids == has_ids).then_some((events, total))
}

/// The runs that are the keys of a table.
fn keys<V: Value + 'static>(
    table: &ReadOnlyTable<u128, V>,
) -> Result<impl Iterator<Item = Result<RunId, Error>>, Error> {
    Ok(table.iter()?.map(|row| Ok(RunId::from_u128(row?.0.value()))))
}

fn instance_of(agent: &str, name: &str) -> Result<InstanceKey, String> {
    let agent = agent.parse::<AgentName>().map_err(|error| error.to_string())?;
    InstanceKey::new(agent, name).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
