//! Opening the two files: what they are, who made them, and what of the log the tables do not have yet.
//!
//! **Problem.** A file may be another program's, of another version's making, half made, half written, or
//! without its other half; nothing may be lost by taking one for what it is not.
//!
//! **Mechanism.** A new database is linked into its place whole, its log before it. What is opened is looked at before
//! it is written to: its format, and whether the log has its mark. Then one transaction makes it what this version
//! works on: the tables that the formats before did not have, what only the log has, and a new epoch.
//! A crash leaves it what it was, and the next opening does it again.
//!
//! ```text
//!   open: format known? -> log of this mark? -> take over, settle the log, new epoch: one commit -> interrupt runs
//! ```
//!
//! **Limits.** A log that lost its last records cannot be told from one that never had them; one that lost records before others is refused.
//! Files of this format and of the two before are read. One host has them open at a time.
//!
//! A journal that was closed in order says that its log has nothing, by halves of no size, so that none of it is read. redb takes the word of
//! its last transaction for which pages are in use, and walks through nothing; `check` does.
//!
//! **Cost.** One commit. After a crash, reading the log: what was not settled, and all of it once more for records that must not be there.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

use ::redb::backends::FileBackend;
use ::redb::{
    Builder, Database, DatabaseError, Error, ReadableDatabase, ReadableTable, StorageBackend,
    StorageError,
};
use bytes::Bytes;

use super::super::codec::{Damaged, decode_batch};
use super::super::{Options, RunState, StoreError};
use super::log::{Foreign, Log, Place};
use super::recent::Layer;
use super::tables::{
    FORMAT, META, META_FORMAT, META_LOG_MARK, OLDEST_FORMAT, Tables, begin, damaged, extent,
    number, place, record,
};
use super::{Interrupted, Opened, RedbStore, failed};
use crate::id::{InstanceKey, RunId};

/// Where the journal keeps its bytes: something that makes a disk for each of its files, again after each failure.
#[derive(Clone)]
pub struct Backend {
    tables: Arc<OpenTables>,
    log: Arc<OpenLog>,
}

type OpenTables = dyn Fn(&Builder) -> Result<Database, DatabaseError> + Send + Sync;
type OpenLog = dyn Fn() -> io::Result<Box<dyn StorageBackend>> + Send + Sync;

/// One of the two files of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum JournalFile {
    /// The redb database.
    Tables,
    /// The log in front of it.
    Log,
}

impl Backend {
    /// A backend on whatever `disk` makes. Each call stands for the same bytes of the same file.
    pub fn new<B: StorageBackend>(
        disk: impl Fn(JournalFile) -> io::Result<B> + Send + Sync + 'static,
    ) -> Self {
        let disk = Arc::new(disk);
        let tables = Arc::clone(&disk);
        Self {
            tables: Arc::new(move |builder| {
                builder.create_with_backend(tables(JournalFile::Tables)?)
            }),
            log: Arc::new(move || Ok(Box::new(disk(JournalFile::Log)?))),
        }
    }

    /// The files of these options, which are made if they do not exist.
    pub(in super::super) fn file(options: &Options) -> Result<Self, StoreError> {
        let file = &options.file;
        if !file.exists() {
            create(file).map_err(|error| explain(file, error))?;
        }
        let (file, log) = (file.clone(), log_of(file));
        Ok(Self {
            tables: Arc::new(move |builder| {
                let there = there(OpenOptions::new().read(true).write(true), &file)?;
                builder.create_with_backend(FileBackend::new(there)?)
            }),
            // Only who has the database open has the log open, so that it needs no lock of its own.
            log: Arc::new(move || {
                let file = OpenOptions::new().read(true).write(true).open(&log)?;
                Ok(Box::new(FileBackend::new(file).map_err(io::Error::other)?))
            }),
        })
    }
}

/// Opens a database that is there. One is linked into its place whole, so an empty file has lost what it had, and redb would
/// begin it anew.
pub(super) fn there(options: &OpenOptions, file: &Path) -> io::Result<File> {
    let there = options.open(file)?;
    if there.metadata()?.len() == 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is empty"));
    }
    Ok(there)
}

/// The log that goes with a database.
pub(super) fn log_of(file: &Path) -> PathBuf {
    file.with_extension("log")
}

/// Makes an empty database that is there whole or not at all: redb takes a half-made one for a foreign file. Its log is
/// there before it.
fn create(file: &Path) -> Result<(), DatabaseError> {
    OpenOptions::new().write(true).create(true).truncate(false).open(log_of(file))?;
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

/// Opens a journal as this does. redb takes the pages that it has synced for sound, and panics where one is of no kind.
pub(super) fn unless_damaged<T>(
    file: &Path,
    open: impl FnOnce() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let damaged = || StoreError(format!("{} is damaged: it has pages of no kind", file.display()));
    catch_unwind(AssertUnwindSafe(open)).unwrap_or_else(|_| Err(damaged()))
}

impl RedbStore {
    /// Opens both files, and settles what only the log has.
    pub(super) fn open_files(&self, may_be_new: bool) -> Result<Opened, StoreError> {
        let mut builder = Database::builder();
        builder.set_cache_size(self.cache_bytes);
        let (database, mut log) = open_both(&self.backend, &self.file, &builder, may_be_new)?;
        recover(&database, &mut log, self.half).map_err(|error| match error {
            Error::Corrupted(what) => {
                StoreError(format!("{} is damaged: {what}", self.file.display()))
            }
            error => failed(error),
        })?;
        Ok(Opened {
            database,
            log: Mutex::new(log),
            recent: RwLock::default(),
            tending: Mutex::default(),
            trim_ms: AtomicU64::new(0),
            failure: Mutex::default(),
        })
    }
}

/// Opens both files as they are; an empty database is made a journal, if it may be one.
pub(super) fn open_both(
    backend: &Backend,
    file: &Path,
    builder: &Builder,
    may_be_new: bool,
) -> Result<(Database, Log), StoreError> {
    let database = (backend.tables)(builder).map_err(|error| explain(file, error))?;
    let log = log_of(file);
    let log_failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => StoreError(format!(
            "{} is missing; put it back, as it has what was written last to {}",
            log.display(),
            file.display()
        )),
        _ => StoreError(format!("{} cannot be opened: {error}", log.display())),
    };
    let mark = check_format(file, &database, may_be_new)?;
    let storage = (backend.log)().map_err(log_failed)?;
    let log = match mark {
        Some(mark) => Log::open(storage, mark).map_err(log_failed)?.map_err(|Foreign| {
            let (log, file) = (log.display(), file.display());
            StoreError(format!("{log} is not the log of {file}, which has what was written last"))
        })?,
        None => {
            let mark = RunId::generate().as_u128() as u64;
            // The log first: who finds tables must find it.
            let log = Log::create(storage, mark).map_err(log_failed)?;
            make(&database, mark).map_err(failed)?;
            log
        }
    };
    Ok((database, log))
}

/// Refuses what is not a journal of this format or of one that is taken over, and returns the mark of its log; of an empty
/// database none, if it may be one.
fn check_format(
    file: &Path,
    database: &Database,
    may_be_new: bool,
) -> Result<Option<u64>, StoreError> {
    let file = file.display();
    let transaction = database.begin_read().map_err(failed)?;
    let tables = transaction.list_tables().map_err(failed)?.count();
    if tables == 0 && may_be_new {
        return Ok(None);
    }
    let meta =
        transaction.open_table(META).map_err(|_| StoreError(format!("{file} is not a journal")))?;
    let format = meta.get(META_FORMAT).map_err(failed)?;
    match format.map(|format| format.value()) {
        Some(OLDEST_FORMAT..=FORMAT) => number(&meta, META_LOG_MARK).map(Some).map_err(failed),
        Some(format) => Err(StoreError(format!(
            "{file} is a journal of format {format}, and this version reads formats \
             {OLDEST_FORMAT} to {FORMAT}"
        ))),
        None => Err(StoreError(format!("{file} is not a journal"))),
    }
}

/// Makes it a journal of this format, settles what only the log has, and begins a new epoch, in halves of this size: all or
/// nothing of it.
pub(super) fn recover(database: &Database, log: &mut Log, half: usize) -> Result<(), Error> {
    let transaction = begin(database)?;
    let mut tables = Tables::new(&transaction);
    tables.take_over()?;
    let before = place(tables.meta.open()?)?;
    let (mut layer, mut last) = (Layer::default(), before.settled);
    log.replay(before, |batch| {
        last += 1;
        let apply = |at_ms, instance: &InstanceKey, op| layer.apply(at_ms, instance, op);
        decode_batch(batch, apply).map_err(damaged)
    })?;
    if let Some(whole) = log.beyond(before, last)? {
        let lost = last + 1;
        return Err(Error::Corrupted(format!(
            "record {lost} of its log is not whole, and {whole} is"
        )));
    }
    tables.settle(&layer)?;
    let place = Place { half, epoch: before.epoch + 1, settled: 0 };
    tables.set_place(place)?;
    drop(tables);
    transaction.commit()?;
    log.begin(place);
    Ok(())
}

/// Notes that the log has nothing that the tables do not, so that the next opening need not look at it.
pub(super) fn disown(opened: &Opened) -> Result<(), Error> {
    opened.write(|| {
        let transaction = begin(&opened.database)?;
        let mut tables = Tables::new(&transaction);
        let place = place(tables.meta.open()?)?;
        tables.set_place(Place { half: 0, ..place })?;
        drop(tables);
        Ok(transaction.commit()?)
    })
}

/// Makes the tables of an empty database.
fn make(database: &Database, mark: u64) -> Result<(), Error> {
    let transaction = begin(database)?;
    Tables::new(&transaction).make(mark)?;
    Ok(transaction.commit()?)
}

/// Counts an interruption of each run that was `running`, and returns all runs that are not over.
pub(super) fn interrupt(opened: &Opened) -> Result<Vec<Interrupted>, Error> {
    let transaction = begin(&opened.database)?;
    let mut tables = Tables::new(&transaction);
    let mut unfinished = Vec::new();
    for row in tables.unfinished.open()?.iter()? {
        unfinished.push(RunId::from_u128(row?.0.value()));
    }
    let mut interrupted = Vec::new();
    for run in unfinished {
        let record = record(tables.runs.open()?, run)?;
        let mut record = record.ok_or_else(|| damaged(Damaged))?;
        record.last = extent(tables.events.open()?, run)?.0;
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
