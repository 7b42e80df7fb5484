//! The journal in one redb file.
//!
//! **Problem.** A turn must become durable whole, in microseconds of work beside the one disk sync; a client
//! may ask for any event of any run; and what is old must go without ever holding up what is new.
//!
//! **Mechanism.** One write transaction per batch of turns, over the tables below, whose keys are in the
//! order in which they are read. Events lie in [segments](super::codec) under the number of their last,
//! so that the first segment at or after a cursor is the one that continues it. An ended run enters
//! `ended`, which retention eats from its old end: a run is taken out of `runs` at once, and so
//! gone for clients, while its segments and ids go over as many commits as it takes; `trimming` remembers
//! where that stands.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | number: `format`, `ended_bytes`, `trimmed_until_ms` |
//! | `runs` | run | record, as JSON |
//! | `unfinished` | run | |
//! | `requests` | run | what resumption needs |
//! | `events` | run, last number | segment |
//! | `ids` | agent, instance, id | run, number |
//! | `states` | agent, instance | document |
//! | `storage` | agent, instance, key | value |
//! | `ended` | end in ms, run | bytes |
//! | `trimming` | run | agent, instance |
//!
//! **Limits.** After a failed write or sync redb refuses to go on, as no one knows what the disk has; so the
//! database is dropped and opened again, and the batch applied again, which changes nothing that
//! it has already changed. A read holds the database open for its own, bounded, time.
//!
//! **Cost.** A lone commit is one sync. After a crash redb walks the whole file once when it is opened, at
//! some seconds per GiB; its quick repair would spare that, and make every commit twice as slow.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, Database, DatabaseError, Error, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageError, Table, TableDefinition, WriteTransaction,
};
use bytes::Bytes;

use super::codec::{Damaged, Segment, decode_run, encode_run, encode_segment, split};
use super::{
    Committed, Event, Options, Outcome, Pair, RunRecord, RunState, Store, StoreError, Submitted,
    Tail, Write,
};
use crate::id::{Cursor, Digest, InstanceKey, RunId, Seq};

pub use ::redb::StorageBackend;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const RUNS: TableDefinition<u128, &[u8]> = TableDefinition::new("runs");
const UNFINISHED: TableDefinition<u128, ()> = TableDefinition::new("unfinished");
const REQUESTS: TableDefinition<u128, &[u8]> = TableDefinition::new("requests");
const EVENTS: TableDefinition<(u128, u64), &[u8]> = TableDefinition::new("events");
const IDS: TableDefinition<(&str, &str, &str), (u128, u64)> = TableDefinition::new("ids");
const STATES: TableDefinition<(&str, &str), &str> = TableDefinition::new("states");
const STORAGE: TableDefinition<(&str, &str, &str), &[u8]> = TableDefinition::new("storage");
const ENDED: TableDefinition<(u64, u128), u64> = TableDefinition::new("ended");
const TRIMMING: TableDefinition<u128, (&str, &str)> = TableDefinition::new("trimming");

/// The layout above. Another one gets another number, and a file is only read by who knows its number.
const FORMAT: u64 = 1;
const META_FORMAT: &str = "format";
const META_ENDED_BYTES: &str = "ended_bytes";
const META_TRIMMED_UNTIL: &str = "trimmed_until_ms";

/// What an ended run counts beyond its events, so that a flood of runs without any is trimmed too.
const RUN_OVERHEAD: u64 = 512;

/// Rows that one commit deletes for retention, or twice what it wrote if that is more: retention keeps up
/// with any load, and a large run that goes never holds up a commit for long.
const TRIM_STEP: usize = 64;

/// Where redb keeps its bytes: something that makes a disk for it, again after each failure.
#[derive(Clone)]
pub struct Backend(Arc<Open>);

type Open = dyn Fn(&Builder) -> Result<Database, DatabaseError> + Send + Sync;

impl Backend {
    /// A backend on whatever `disk` makes. Each call stands for the same bytes.
    pub fn new<B: StorageBackend>(
        disk: impl Fn() -> io::Result<B> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(move |builder| builder.create_with_backend(disk()?)))
    }

    /// The file of these options, which is made if it does not exist.
    pub(super) fn file(options: &Options) -> Result<Self, StoreError> {
        let file = &options.file;
        if !file.exists() {
            create(file).map_err(|error| explain(file, error))?;
        }
        let file = file.clone();
        let open = move || OpenOptions::new().read(true).write(true).open(&file);
        Ok(Self(Arc::new(move |builder| builder.create_with_backend(FileBackend::new(open()?)?))))
    }
}

/// Makes an empty database that is there whole or not at all: redb takes a half-made one for a foreign file.
fn create(file: &Path) -> Result<(), DatabaseError> {
    let draft = file.with_added_extension("new");
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
        _ => drop(Database::create(&draft)?),
    }
    // A link, as a rename would replace the file of a host that started at the same time.
    match fs::hard_link(&draft, file) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => fs::remove_file(&draft)?,
    }
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty());
    File::open(directory.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(())
}

fn explain(file: &Path, error: DatabaseError) -> StoreError {
    let file = file.display();
    StoreError(match error {
        DatabaseError::DatabaseAlreadyOpen => format!("{file} is in use by another host"),
        DatabaseError::UpgradeRequired(version) => {
            format!("{file} is of redb's file format {version}, which this version does not read")
        }
        DatabaseError::Storage(StorageError::Corrupted(what)) => {
            format!("{file} is damaged: {what}")
        }
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() == io::ErrorKind::InvalidData =>
        {
            format!("{file} is not a journal: {error}")
        }
        error => format!("{file} cannot be opened: {error}"),
    })
}

/// The store.
pub(super) struct RedbStore {
    backend: Backend,
    file: PathBuf,
    cache_bytes: usize,
    retention: Retention,
    /// Locked for reading by each transaction for as long as it lasts, and for writing to exchange a database
    /// that has failed. None while there is none.
    database: RwLock<Option<Database>>,
}

/// Which ended runs go.
#[derive(Clone, Copy)]
struct Retention {
    age: Duration,
    bytes: u64,
}

impl Retention {
    fn is_due(&self, oldest_ended_ms: u64, ended_bytes: u64, now: SystemTime) -> bool {
        let age_ms = millis(now).saturating_sub(oldest_ended_ms);
        ended_bytes > self.bytes || u128::from(age_ms) > self.age.as_millis()
    }
}

/// A run that the host's end cut off, and its request.
type Interrupted = (RunRecord, Option<Bytes>);

impl RedbStore {
    /// Opens the store and turns each run that was `running` into an `interrupted` one.
    pub(super) fn open(
        backend: Backend,
        options: &Options,
    ) -> Result<(Self, Vec<Interrupted>), StoreError> {
        let store = Self {
            backend,
            file: options.file.clone(),
            cache_bytes: options.cache_bytes,
            retention: Retention { age: options.retain_for, bytes: options.retain_bytes },
            database: RwLock::new(None),
        };
        let database = store.open_database()?;
        store.check_format(&database, true)?;
        let interrupted = interrupt(&database).map_err(failed)?;
        *store.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok((store, interrupted))
    }

    fn open_database(&self) -> Result<Database, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        (self.backend.0)(&builder).map_err(|error| explain(&self.file, error))
    }

    /// Refuses what is not a journal of this format. An empty database becomes one, if it may.
    fn check_format(&self, database: &Database, may_be_new: bool) -> Result<(), StoreError> {
        let file = self.file.display();
        let transaction = database.begin_write().map_err(failed)?;
        let tables = transaction.list_tables().map_err(failed)?.count();
        if tables == 0 && may_be_new {
            let mut tables = Tables::open(&transaction).map_err(failed)?;
            tables.meta.insert(META_FORMAT, FORMAT).map_err(failed)?;
            drop(tables);
            return transaction.commit().map_err(failed);
        }
        let meta = transaction
            .open_table(META)
            .map_err(|_| StoreError(format!("{file} is not a journal")))?;
        let format = meta.get(META_FORMAT).map_err(failed)?;
        match format.map(|format| format.value()) {
            Some(FORMAT) => Ok(()),
            Some(format) => Err(StoreError(format!(
                "{file} is a journal of format {format}, and this version reads format {FORMAT}"
            ))),
            None => Err(StoreError(format!("{file} is not a journal"))),
        }
    }

    fn with_database<T>(
        &self,
        body: impl FnOnce(&Database) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let database =
            database.as_ref().ok_or_else(|| StoreError("the data file is not open".into()))?;
        body(database).map_err(failed)
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&ReadTransaction) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        self.with_database(|database| body(&database.begin_read()?))
    }
}

impl Store for RedbStore {
    fn commit(&self, turns: &[Submitted], now: SystemTime) -> Result<Committed, StoreError> {
        self.with_database(|database| {
            let transaction = database.begin_write()?;
            let mut tables = Tables::open(&transaction)?;
            let written = tables.apply(turns, now)?;
            let budget = TRIM_STEP.max(2 * written);
            let committed = tables.trim(self.retention, now, budget)?;
            drop(tables);
            transaction.commit()?;
            Ok(committed)
        })
    }

    fn trim_due(&self, now: SystemTime) -> Result<bool, StoreError> {
        self.read(|transaction| {
            if transaction.open_table(TRIMMING)?.first()?.is_some() {
                return Ok(true);
            }
            let ended = transaction.open_table(ENDED)?;
            let Some((oldest, _)) = ended.first()? else {
                return Ok(false);
            };
            let ended_bytes = number(&transaction.open_table(META)?, META_ENDED_BYTES)?;
            let (ended_ms, _) = oldest.value();
            Ok(self.retention.is_due(ended_ms, ended_bytes, now))
        })
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.close();
        let database = self.open_database()?;
        self.check_format(&database, false)?;
        *self.database.write().unwrap_or_else(PoisonError::into_inner) = Some(database);
        Ok(())
    }

    fn close(&self) {
        let database = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
        drop(database);
    }

    fn run(&self, run: RunId) -> Result<Option<RunRecord>, StoreError> {
        self.read(|transaction| {
            let runs = transaction.open_table(RUNS)?;
            let Some(mut record) = record(&runs, run)? else {
                return Ok(None);
            };
            if !record.state.is_final() {
                let events = transaction.open_table(EVENTS)?;
                (record.last, _) = extent(&events, run, Seq(u64::MAX))?;
            }
            Ok(Some(record))
        })
    }

    fn events(
        &self,
        run: RunId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        self.read(|transaction| {
            let events = transaction.open_table(EVENTS)?;
            let mut page = Vec::new();
            let mut bytes = 0;
            let from = after.0.saturating_add(1);
            for row in events.range((run.as_u128(), from)..=(run.as_u128(), u64::MAX))? {
                let (key, value) = row?;
                let segment = Segment::open(Seq(key.value().1), value.value()).map_err(damaged)?;
                for stored in segment {
                    let stored = stored.map_err(damaged)?;
                    if stored.seq <= after {
                        continue;
                    }
                    let event = stored.to_event();
                    bytes += event.size();
                    if bytes > max_bytes && !page.is_empty() {
                        return Ok(page);
                    }
                    page.push(event);
                }
            }
            Ok(page)
        })
    }

    fn find_id(&self, instance: &InstanceKey, id: &str) -> Result<Option<Cursor>, StoreError> {
        self.read(|transaction| {
            let ids = transaction.open_table(IDS)?;
            let (agent, name) = pair(instance);
            let found = ids.get((agent, name, id))?;
            Ok(found.map(|found| {
                let (run, seq) = found.value();
                Cursor { run: RunId::from_u128(run), seq: Seq(seq) }
            }))
        })
    }

    fn trimmed_until_ms(&self) -> Result<u64, StoreError> {
        self.read(|transaction| number(&transaction.open_table(META)?, META_TRIMMED_UNTIL))
    }

    fn state(&self, instance: &InstanceKey) -> Result<Option<Arc<str>>, StoreError> {
        self.read(|transaction| {
            let states = transaction.open_table(STATES)?;
            let document = states.get(pair(instance))?;
            Ok(document.map(|document| document.value().into()))
        })
    }

    fn value(&self, instance: &InstanceKey, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.read(|transaction| {
            let storage = transaction.open_table(STORAGE)?;
            let (agent, name) = pair(instance);
            let value = storage.get((agent, name, key))?;
            Ok(value.map(|value| Bytes::copy_from_slice(value.value())))
        })
    }

    fn list(
        &self,
        instance: &InstanceKey,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        let (agent, name) = pair(instance);
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded((agent, name, after)),
            _ => Bound::Included((agent, name, prefix)),
        };
        self.read(|transaction| {
            let storage = transaction.open_table(STORAGE)?;
            let mut pairs: Vec<Pair> = Vec::new();
            let mut bytes = 0;
            for row in storage.range::<(&str, &str, &str)>((from, Bound::Unbounded))? {
                let (row, value) = row?;
                let (of_agent, of_name, key) = row.value();
                let selected = (of_agent, of_name) == (agent, name) && key.starts_with(prefix);
                if !selected || pairs.len() == limit {
                    break;
                }
                bytes += key.len() + value.value().len();
                if bytes > max_bytes && !pairs.is_empty() {
                    break;
                }
                pairs.push((key.into(), Bytes::copy_from_slice(value.value())));
            }
            Ok(pairs)
        })
    }
}

/// Counts an interruption of each run that was `running`, and returns all runs that are not over.
fn interrupt(database: &Database) -> Result<Vec<Interrupted>, Error> {
    let transaction = database.begin_write()?;
    let mut tables = Tables::open(&transaction)?;
    let mut unfinished = Vec::new();
    for row in tables.unfinished.iter()? {
        unfinished.push(RunId::from_u128(row?.0.value()));
    }
    let mut interrupted = Vec::new();
    for run in unfinished {
        let mut record = record(&tables.runs, run)?.ok_or_else(|| damaged(Damaged))?;
        (record.last, _) = extent(&tables.events, run, Seq(u64::MAX))?;
        if record.state == RunState::Running {
            let moved = record.last > record.interrupted_at;
            record.interruptions = if moved { 1 } else { record.interruptions + 1 };
            record.interrupted_at = record.last;
            record.state = RunState::Interrupted;
            tables.put(&record)?;
        }
        let request = tables.requests.get(run.as_u128())?;
        let request = request.map(|request| Bytes::copy_from_slice(request.value()));
        interrupted.push((record, request));
    }
    drop(tables);
    if interrupted.is_empty() {
        transaction.abort()?;
    } else {
        transaction.commit()?;
    }
    Ok(interrupted)
}

/// Everything, open for writing.
struct Tables<'t> {
    meta: Table<'t, &'static str, u64>,
    runs: Table<'t, u128, &'static [u8]>,
    unfinished: Table<'t, u128, ()>,
    requests: Table<'t, u128, &'static [u8]>,
    events: Table<'t, (u128, u64), &'static [u8]>,
    ids: Table<'t, (&'static str, &'static str, &'static str), (u128, u64)>,
    states: Table<'t, (&'static str, &'static str), &'static str>,
    storage: Table<'t, (&'static str, &'static str, &'static str), &'static [u8]>,
    ended: Table<'t, (u64, u128), u64>,
    trimming: Table<'t, u128, (&'static str, &'static str)>,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction) -> Result<Self, Error> {
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
    fn apply(&mut self, turns: &[Submitted], now: SystemTime) -> Result<usize, Error> {
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

    fn put(&mut self, record: &RunRecord) -> Result<(), Error> {
        self.runs.insert(record.run.as_u128(), &*encode_run(record))?;
        Ok(())
    }

    /// Deletes about `budget` rows of runs that retention lets go.
    fn trim(
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

fn number(meta: &impl ReadableTable<&'static str, u64>, name: &str) -> Result<u64, Error> {
    Ok(meta.get(name)?.map_or(0, |number| number.value()))
}

fn record(
    runs: &impl ReadableTable<u128, &'static [u8]>,
    run: RunId,
) -> Result<Option<RunRecord>, Error> {
    let Some(row) = runs.get(run.as_u128())? else {
        return Ok(None);
    };
    decode_run(run, row.value()).map(Some).map_err(damaged)
}

/// The last event of a run up to `until`, and the bytes of the run's segments to there.
fn extent(
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

fn pair(instance: &InstanceKey) -> (&str, &str) {
    (instance.agent().as_str(), instance.name())
}

fn millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| since.as_millis().try_into().unwrap_or(u64::MAX))
}

fn damaged(damaged: Damaged) -> Error {
    Error::Corrupted(damaged.to_string())
}

fn failed(error: impl Into<Error>) -> StoreError {
    StoreError(error.into().to_string())
}

#[cfg(test)]
pub(super) mod tests {
    //! What only one who knows the tables can make or see.

    use super::*;

    pub(in super::super) fn make_foreign(file: &Path) {
        let database = Database::create(file).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(STATES).unwrap();
        transaction.commit().unwrap();
    }

    pub(in super::super) fn make_newer(file: &Path) {
        let database = Database::create(file).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut meta = transaction.open_table(META).unwrap();
        meta.insert(META_FORMAT, FORMAT + 1).unwrap();
        drop(meta);
        transaction.commit().unwrap();
    }

    /// The bytes that each ended run counts.
    pub(in super::super) fn ended_bytes(store: &RedbStore) -> Vec<u64> {
        let read = store.read(|transaction| {
            let ended = transaction.open_table(ENDED)?;
            let rows = ended.iter()?.map(|row| Ok(row?.1.value()));
            rows.collect()
        });
        read.unwrap()
    }

    /// The bytes that all of them count.
    pub(in super::super) fn total_ended_bytes(store: &RedbStore) -> u64 {
        let read = store.read(|transaction| {
            let meta = transaction.open_table(META)?;
            number(&meta, META_ENDED_BYTES)
        });
        read.unwrap()
    }

    #[test]
    fn keys_sort_as_what_they_stand_for() {
        let store = RedbStore {
            backend: Backend::new(|| Ok(::redb::backends::InMemoryBackend::new())),
            file: PathBuf::new(),
            cache_bytes: 1 << 20,
            retention: Retention { age: Duration::MAX, bytes: u64::MAX },
            database: RwLock::new(None),
        };
        let database = store.open_database().unwrap();
        store.check_format(&database, true).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut tables = Tables::open(&transaction).unwrap();
        let mut keys = Vec::new();
        for run in [0, 1, 255, 256, 1 << 64, u128::MAX] {
            for seq in [1, 2, 255, 256, 1 << 32, u64::MAX] {
                keys.push((run, seq));
                tables.events.insert((run, seq), &[][..]).unwrap();
                tables.ended.insert((seq, run), 0).unwrap();
            }
        }
        let sorted = tables.events.iter().unwrap();
        let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
        assert_eq!(sorted, keys);
        keys.sort_by_key(|(run, seq)| (*seq, *run));
        let sorted = tables.ended.iter().unwrap();
        let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
        let swapped = sorted.into_iter().map(|(seq, run)| (run, seq));
        assert!(swapped.eq(keys));
    }
}
