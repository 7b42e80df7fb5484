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

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
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

mod tables;

pub use ::redb::StorageBackend;

use self::tables::{
    ENDED, EVENTS, FORMAT, IDS, META, META_ENDED_BYTES, META_FORMAT, META_TRIMMED_UNTIL, RUNS,
    Retention, STATES, STORAGE, TRIMMING, Tables, damaged, extent, number, pair, record,
};

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

fn failed(error: impl Into<Error>) -> StoreError {
    StoreError(error.into().to_string())
}

#[cfg(test)]
pub(super) mod tests {
    //! What only one who knows the tables can make or see.

    use std::collections::BTreeSet;
    use std::time::Duration;

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

    fn in_memory() -> RedbStore {
        RedbStore {
            backend: Backend::new(|| Ok(::redb::backends::InMemoryBackend::new())),
            file: PathBuf::new(),
            cache_bytes: 1 << 20,
            retention: Retention { age: Duration::MAX, bytes: u64::MAX },
            database: RwLock::new(None),
        }
    }

    type Name = (String, String, String);

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        #[test]
        fn keys_are_in_the_order_of_what_they_stand_for(
            events: BTreeSet<(u128, u64)>,
            names: BTreeSet<Name>,
        ) {
            let store = in_memory();
            let database = store.open_database().unwrap();
            store.check_format(&database, true).unwrap();
            let transaction = database.begin_write().unwrap();
            let mut tables = Tables::open(&transaction).unwrap();
            // From the far end, so that the order cannot be that of coming.
            for key in events.iter().rev() {
                tables.events.insert(*key, &[][..]).unwrap();
            }
            for (agent, instance, key) in names.iter().rev() {
                tables.storage.insert((&**agent, &**instance, &**key), &[][..]).unwrap();
            }
            let sorted = tables.events.iter().unwrap().map(|row| row.unwrap().0.value());
            proptest::prop_assert!(sorted.eq(events));
            let sorted = tables.storage.iter().unwrap().map(|row| {
                let key = row.unwrap().0;
                let (agent, instance, key) = key.value();
                (agent.to_owned(), instance.to_owned(), key.to_owned())
            });
            proptest::prop_assert!(sorted.eq(names));
        }
    }

    #[test]
    fn keys_sort_as_what_they_stand_for() {
        let store = in_memory();
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
