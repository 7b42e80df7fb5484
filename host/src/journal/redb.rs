//! The journal in one redb file.
//!
//! **Problem.** A turn must become durable whole, in microseconds of work beside the one disk sync; a client
//! may ask for any event of any run; and what is old must go without ever holding up what is new.
//!
//! **Mechanism.** One write transaction per batch of turns, over the tables below, whose keys are in the
//! order in which they are read. What a commit brings for runs that emit little at a time goes into one row
//! at the right edge of the [log](recent), so that ten words of ten runs dirty one path of pages and
//! not ten; when a run has enough there, or ends, it moves on to [segments](super::codec) under the number of
//! their last event, so that the first segment at or after a cursor is the one that continues it. What lies in the
//! log is in memory too. A reader takes that first and its transaction after it, so that what a
//! commit moves in between is in one of the two or in both. An ended run enters
//! `ended`, which retention eats from its old end: a run is taken out of `runs` at once, and so
//! gone for clients, while its segments and ids go over as many commits as it takes; `trimming` remembers
//! where that stands.
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | number: `format`, `ended_bytes`, `trimmed_until_ms` |
//! | `runs` | run | record |
//! | `unfinished` | run | |
//! | `requests` | run | what resumption needs |
//! | `log` | position | sections of many runs |
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
//! about a second per GiB; its quick repair would spare that, and make every commit twice as slow.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::time::SystemTime;

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, Database, DatabaseError, Error, ReadTransaction, ReadableDatabase, ReadableTable,
    StorageError,
};
use bytes::Bytes;

use super::codec::{Damaged, Segment};
use super::{Committed, Event, Options, Pair, RunRecord, RunState, Store, StoreError, Submitted};
use crate::id::{Cursor, InstanceKey, RunId, Seq};

mod recent;
mod tables;
#[cfg(test)]
pub(super) mod tests;

pub use ::redb::StorageBackend;

use self::recent::Recent;
use self::tables::{
    ENDED, EVENTS, FORMAT, IDS, META, META_ENDED_BYTES, META_FORMAT, META_TRIMMED_UNTIL, RUNS,
    Retention, STATES, STEP, STORAGE, TRIMMING, Tables, damaged, extent, millis, number, pair,
    record,
};

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
    opened: RwLock<Option<Opened>>,
}

/// A database, and what goes with it: they change hands together.
struct Opened {
    database: Database,
    /// Changed by the one writer only, after its commit.
    memory: RwLock<Memory>,
}

/// What is known of the durable tables without looking.
struct Memory {
    recent: Recent,
    /// From when on retention may have something to do, as far as no other run ends.
    trim_ms: u64,
}

impl Opened {
    fn new(database: Database) -> Result<Self, Error> {
        let recent = Recent::load(&database.begin_read()?)?;
        Ok(Self { database, memory: RwLock::new(Memory { recent, trim_ms: 0 }) })
    }

    fn memory(&self) -> RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
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
            cache_bytes: options.limits.cache_bytes,
            retention: Retention {
                age: options.limits.retain_for,
                bytes: options.limits.retain_bytes,
            },
            opened: RwLock::new(None),
        };
        let database = store.open_database()?;
        store.check_format(&database, true)?;
        let opened = Opened::new(database).map_err(failed)?;
        let interrupted = interrupt(&opened).map_err(failed)?;
        store.exchange(Some(opened));
        Ok((store, interrupted))
    }

    fn exchange(&self, opened: Option<Opened>) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
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
            Tables::new(&transaction).make().map_err(failed)?;
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

    fn with<T>(&self, body: impl FnOnce(&Opened) -> Result<T, Error>) -> Result<T, StoreError> {
        let opened = self.opened.read().unwrap_or_else(PoisonError::into_inner);
        let opened =
            opened.as_ref().ok_or_else(|| StoreError("the data file is not open".into()))?;
        body(opened).map_err(failed)
    }

    fn read<T>(
        &self,
        body: impl FnOnce(&ReadTransaction) -> Result<T, Error>,
    ) -> Result<T, StoreError> {
        self.with(|opened| body(&opened.database.begin_read()?))
    }
}

impl Store for RedbStore {
    fn commit(&self, turns: &[Submitted], now: SystemTime) -> Result<Committed, StoreError> {
        self.with(|opened| {
            let transaction = opened.database.begin_write()?;
            let mut tables = Tables::new(&transaction);
            let memory = opened.memory();
            let applied = tables.apply(turns, &memory.recent, now)?;
            let trimmed = if applied.ended || memory.trim_ms <= millis(now) {
                let budget = STEP.max(2 * applied.written);
                Some(tables.trim(self.retention, now, budget)?)
            } else {
                None
            };
            drop(memory);
            drop(tables);
            transaction.commit()?;
            let mut memory = opened.memory.write().unwrap_or_else(PoisonError::into_inner);
            memory.recent.apply(applied.change);
            let trimmed_runs = trimmed.as_ref().map_or(0, |trimmed| trimmed.runs);
            if let Some(trimmed) = trimmed {
                memory.trim_ms = trimmed.next_ms;
            }
            Ok(Committed { trimmed_runs, trim_due: memory.trim_ms <= millis(now) })
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
        self.exchange(Some(Opened::new(database).map_err(failed)?));
        Ok(())
    }

    fn close(&self) {
        self.exchange(None);
    }

    fn run(&self, run: RunId) -> Result<Option<RunRecord>, StoreError> {
        self.with(|opened| {
            let last = opened.memory().recent.live(run).map(|live| live.last);
            let transaction = opened.database.begin_read()?;
            let Some(mut record) = record(&transaction.open_table(RUNS)?, run)? else {
                return Ok(None);
            };
            if !record.state.is_final() {
                record.last = match last {
                    Some(last) => last,
                    // It has begun between the two looks.
                    None => extent(&transaction.open_table(EVENTS)?, run)?.0,
                };
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
        self.with(|opened| {
            let recent = opened.memory().recent.after(run, after);
            let mut page = Page { events: Vec::new(), bytes: 0, max_bytes, last: after };
            let continues = recent.first().is_some_and(|first| first.seq == after.next());
            if !continues {
                let transaction = opened.database.begin_read()?;
                let events = transaction.open_table(EVENTS)?;
                let from = after.0.saturating_add(1);
                for row in events.range((run.as_u128(), from)..=(run.as_u128(), u64::MAX))? {
                    let (key, value) = row?;
                    let last = Seq(key.value().1);
                    for stored in Segment::open(last, value.value()).map_err(damaged)? {
                        let stored = stored.map_err(damaged)?;
                        if stored.seq > page.last && !page.take(stored.to_event()) {
                            return Ok(page.events);
                        }
                    }
                }
            }
            for event in recent {
                if event.seq > page.last && !page.take(event) {
                    break;
                }
            }
            Ok(page.events)
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

/// A page that is being filled.
struct Page {
    events: Vec<Arc<Event>>,
    bytes: usize,
    max_bytes: usize,
    last: Seq,
}

impl Page {
    /// Takes the event that comes next, if there is room or nothing yet.
    fn take(&mut self, event: Arc<Event>) -> bool {
        self.bytes += event.size();
        let fits = self.bytes <= self.max_bytes || self.events.is_empty();
        if fits {
            self.last = event.seq;
            self.events.push(event);
        }
        fits
    }
}

/// Counts an interruption of each run that was `running`, and returns all runs that are not over.
fn interrupt(opened: &Opened) -> Result<Vec<Interrupted>, Error> {
    let transaction = opened.database.begin_write()?;
    let mut tables = Tables::new(&transaction);
    let memory = opened.memory();
    let mut unfinished = Vec::new();
    for row in tables.unfinished.open()?.iter()? {
        unfinished.push(RunId::from_u128(row?.0.value()));
    }
    let mut interrupted = Vec::new();
    for run in unfinished {
        let record = record(tables.runs.open()?, run)?;
        let mut record = record.ok_or_else(|| damaged(Damaged))?;
        record.last = memory.recent.live(run).map_or(Seq::ZERO, |live| live.last);
        if record.state == RunState::Running {
            let moved = record.last > record.interrupted_at;
            record.interruptions = if moved { 1 } else { record.interruptions + 1 };
            record.interrupted_at = record.last;
            record.state = RunState::Interrupted;
            tables.put(&record)?;
        }
        let request = tables.requests.open()?.get(run.as_u128())?;
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

fn failed(error: impl Into<Error>) -> StoreError {
    StoreError(error.into().to_string())
}
