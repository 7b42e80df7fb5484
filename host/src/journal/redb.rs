//! The journal in a redb file and a log in front of it.
//!
//! **Problem.** A turn must become durable whole, in microseconds of work beside the one disk sync; a client
//! may ask for any event of any run; and what is old must go without ever holding up what is new.
//!
//! **Mechanism.** A batch of turns becomes durable as a record of the [log]. What it brought is kept in
//! memory too, in a [layer](recent), until the [tables] have it: when its half of the log is full, or nothing else is to be
//! done, a layer is settled in one transaction, whose keys are in the order in which they are read. Events
//! lie in [segments](super::codec) under the number of their last one, so that the first segment at or after a
//! cursor is the one that continues it. An ended run enters `ended`, which retention eats from its old
//! end: a run is taken out of `runs` at once, and so gone for clients, while its segments and ids go over as
//! many transactions as it takes; `trimming` remembers where that stands. Deployments are few and of no instance: each is a
//! transaction of its own, beside the log. A list of runs merges those of the layers with those of the tables, by their ids.
//!
//! ```text
//!   commit: batch -> log (write, sync) -> layer being filled       the writer
//!   tend:            layer being settled -> tables, retention      the settler, or a writer whose log is full
//!   open:   log, what is not settled -> layer -> tables, then a new epoch
//! ```
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | name | number: `format`, `ended_bytes`, `trimmed_until_ms`, `log_mark`, `log_half`, `log_epoch`, `log_settled` |
//! | `runs` | run | record |
//! | `unfinished` | run | |
//! | `requests` | run | what resumption needs |
//! | `events` | run, last number | segment |
//! | `ids` | agent, instance, id | run, number |
//! | `states` | agent, instance | document |
//! | `modules` | agent, instance | digest of the module that made what the instance keeps |
//! | `storage` | agent, instance, key | value |
//! | `deployments` | agent, generation | deployment |
//! | `instance_runs` | agent, instance, run | |
//! | `keys` | agent, instance, key | run, fingerprint |
//! | `keyed` | run | key |
//! | `replies` | run | what the run answered |
//! | `ended` | end in ms, run | bytes |
//! | `trimming` | run | agent, instance |
//!
//! **Limits.** The log has [`log_bytes`](crate::config::JournalLimits::log_bytes), and a batch that is larger than half of
//! it goes to the tables at once. After a failed write or sync no one knows what the disk has; so both files are
//! opened again, what the log has is settled, and the batch applied again, which changes nothing that it has already
//! changed. A read holds the database open for its own, bounded, time.
//!
//! **Cost.** A commit is one write of whole pages and one sync. A transaction of the tables is two syncs, and beside what it brings some
//! 64 KiB per GiB of the file that say which pages are in use (redb's quick repair). In front of a log, where half of it is settled at once, that is
//! not to be measured; and after a crash nothing is walked through.

use std::io;
use std::mem;
use std::ops::Bound;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Instant, SystemTime};

use ::redb::{Database, Error, ReadTransaction, ReadableDatabase, ReadableTable};
use bytes::Bytes;

use super::codec::{Damaged, Op, Segment, decode_deployment, encode_batch};
use super::horizon::Horizon;
use super::{
    Committed, DeploymentRecord, Event, Keyed, Options, Pair, RUNS_LOOKED_AT, RunPage, RunRecord,
    Store, StoreError, Submitted, Tended, lock,
};
use crate::id::{Cursor, Digest, InstanceKey, RunId, Seq};

mod check;
mod log;
mod open;
mod overlay;
mod recent;
mod tables;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::log::fuzzing::log as fuzz_log;
#[cfg(test)]
pub(super) mod tests;

pub use ::redb::StorageBackend;

#[cfg(test)]
pub(super) use self::check::check_on;
pub use self::check::{Counts, Report, Violation, check};
pub use self::open::{Backend, JournalFile};

use self::log::Log;
use self::open::{disown, interrupt, unless_damaged};
use self::recent::{Layer, Progress, Recent};
use self::tables::{
    DEPLOYMENTS, EVENTS, IDS, INSTANCE_RUNS, KEYS, META, META_TRIMMED_UNTIL, MODULES, REPLIES,
    RUNS, Retention, STATES, STEP, STORAGE, Tables, begin, damaged, decoded, extent, millis,
    number, pair, record,
};

/// The store.
pub(super) struct RedbStore {
    backend: Backend,
    file: PathBuf,
    cache_bytes: usize,
    /// What a half of the log holds.
    half: usize,
    retention: Retention,
    horizon: Mutex<Horizon>,
    began: Instant,
    /// Locked for reading by each transaction for as long as it lasts, and for writing to exchange what has
    /// failed. None while there is none.
    opened: RwLock<Option<Opened>>,
}

/// The open files, and what goes with them: they change hands together.
struct Opened {
    database: Database,
    /// The one writer's.
    log: Mutex<Log>,
    /// Changed by the writer after its commit, and by who has settled a layer.
    recent: RwLock<Recent>,
    /// Held while the tables are written to: by the settler, or by a writer whose log is full.
    tending: Mutex<()>,
    /// From when on retention may have something to do, as far as no other run ends.
    trim_ms: AtomicU64,
    /// Why the tables can no longer be written to, once they cannot.
    failure: Mutex<Option<String>>,
}

impl Opened {
    fn recent(&self) -> RwLockReadGuard<'_, Recent> {
        self.recent.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent_mut(&self) -> RwLockWriteGuard<'_, Recent> {
        self.recent.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails once the tables can no longer be written to.
    fn check(&self) -> Result<(), Error> {
        match &*lock(&self.failure) {
            Some(reason) => Err(Error::Io(io::Error::other(reason.clone()))),
            None => Ok(()),
        }
    }

    /// Writes to the tables, one at a time. Who comes after a failure learns of it by [`Self::check`].
    fn write<T>(&self, body: impl FnOnce() -> Result<T, Error>) -> Result<T, Error> {
        let _one_at_a_time = lock(&self.tending);
        let written = body();
        if let Err(error) = &written {
            *lock(&self.failure) = Some(error.to_string());
        }
        written
    }

    /// Has all that is in the filling half of the log settled from now on, and goes on in the other half.
    fn turn(&self, log: &mut Log, tend: impl Fn() -> Result<Tended, Error>) -> Result<(), Error> {
        while self.recent().settling().is_some() {
            tend()?;
        }
        self.recent_mut().settle();
        log.turn();
        Ok(())
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
        let limits = &options.limits;
        let store = Self {
            backend,
            file: options.file.clone(),
            cache_bytes: limits.cache_bytes,
            half: limits.log_bytes / 2 / log::PAGE * log::PAGE,
            retention: Retention { age: limits.retain_for, bytes: limits.retain_bytes },
            horizon: Mutex::new(Horizon::new(limits.retain_for)),
            began: Instant::now(),
            opened: RwLock::new(None),
        };
        let (opened, interrupted) = unless_damaged(&options.file, || {
            let opened = store.open_files(true)?;
            let interrupted = interrupt(&opened).map_err(failed)?;
            Ok((opened, interrupted))
        })?;
        store.exchange(Some(opened));
        Ok((store, interrupted))
    }

    fn exchange(&self, opened: Option<Opened>) {
        *self.opened.write().unwrap_or_else(PoisonError::into_inner) = opened;
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

    /// Settles the layer that is to be settled, if there is one, and takes a step of retention, if that is due.
    fn tend_opened(&self, opened: &Opened, now: SystemTime) -> Result<Tended, Error> {
        opened.write(|| self.settle_and_trim(opened, now))
    }

    fn settle_and_trim(&self, opened: &Opened, now: SystemTime) -> Result<Tended, Error> {
        let now = lock(&self.horizon).look(now, self.began.elapsed());
        let layer = opened.recent().settling().cloned();
        let is_due = || opened.trim_ms.load(Ordering::Relaxed) <= millis(now);
        if layer.is_none() && !is_due() {
            return Ok(Tended::default());
        }
        let transaction = begin(&opened.database)?;
        let mut tables = Tables::new(&transaction);
        let settled = match &layer {
            Some(layer) => {
                tables.set_settled(layer.last_record)?;
                tables.settle(layer)?
            }
            None => tables::Settled::default(),
        };
        let trimmed = if settled.ended || is_due() {
            Some(tables.trim(self.retention, now, STEP.max(2 * settled.written))?)
        } else {
            None
        };
        drop(tables);
        transaction.commit()?;
        if let Some(trimmed) = &trimmed {
            opened.trim_ms.store(trimmed.next_ms, Ordering::Relaxed);
        }
        if layer.is_some() {
            // Dropped behind the lock, as there may be much of it.
            let gone = opened.recent_mut().settled();
            drop((gone, layer));
        }
        Ok(Tended { trimmed_runs: trimmed.map_or(0, |trimmed| trimmed.runs), is_due: is_due() })
    }

    /// Writes a batch that the log cannot take to the tables.
    fn settle_directly(&self, opened: &Opened, layer: &Layer) -> Result<(), Error> {
        opened.write(|| {
            let transaction = begin(&opened.database)?;
            Tables::new(&transaction).settle(layer)?;
            Ok(transaction.commit()?)
        })?;
        opened.trim_ms.store(0, Ordering::Relaxed);
        Ok(())
    }
}

impl Store for RedbStore {
    fn commit(&self, turns: &[Submitted], now: SystemTime) -> Result<Committed, StoreError> {
        self.with(|opened| {
            opened.check()?;
            let mut log = lock(&opened.log);
            let at_ms = millis(now);
            let apply = |layer: &mut Layer| {
                for submitted in turns {
                    let instance = submitted.lane.instance();
                    let ops = submitted.turn.0.iter().map(Op::from);
                    ops.for_each(|op| layer.apply(at_ms, instance, op));
                }
            };
            let mut batch = Vec::new();
            encode_batch(&mut batch, turns, at_ms);
            let tend = || self.tend_opened(opened, now);
            if !log.has_room(batch.len()) {
                opened.turn(&mut log, tend)?;
            }
            if log.has_room(batch.len()) {
                log.append(&batch)?;
                let mut recent = opened.recent_mut();
                apply(recent.filling());
                recent.filling().last_record = log.last();
            } else {
                tend()?;
                let mut layer = Layer::default();
                apply(&mut layer);
                self.settle_directly(opened, &layer)?;
            }
            Ok(Committed { is_due: opened.recent().settling().is_some() })
        })
    }

    fn rest(&self, now: SystemTime) -> Result<Committed, StoreError> {
        self.with(|opened| {
            opened.check()?;
            if !opened.recent_mut().filling().is_empty() {
                opened.turn(&mut lock(&opened.log), || self.tend_opened(opened, now))?;
            }
            Ok(Committed { is_due: opened.recent().settling().is_some() })
        })
    }

    fn tend(&self, now: SystemTime) -> Result<Tended, StoreError> {
        self.with(|opened| self.tend_opened(opened, now))
    }

    fn reopen(&self) -> Result<(), StoreError> {
        self.exchange(None);
        self.exchange(Some(self.open_files(false)?));
        Ok(())
    }

    fn close(&self) {
        let now = SystemTime::now();
        // What cannot be settled is in the log.
        let settled = self.rest(now).and_then(|_| self.tend(now));
        if let Err(error) = settled.and_then(|_| self.with(disown)) {
            tracing::debug!(%error, "the journal is closed with a log that is not settled");
        }
        self.exchange(None);
    }

    fn run(&self, run: RunId) -> Result<Option<RunRecord>, StoreError> {
        self.with(|opened| {
            let progress = opened.recent().progress(run);
            let transaction = opened.database.begin_read()?;
            let stored = record(&transaction.open_table(RUNS)?, run)?;
            whole(run, stored, &progress, &transaction.open_table(EVENTS)?)
        })
    }

    fn runs(
        &self,
        before: Option<RunId>,
        limit: usize,
        matches: &dyn Fn(&InstanceKey) -> bool,
    ) -> Result<RunPage, StoreError> {
        self.with(|opened| {
            // One more than are looked at, to know whether there is one.
            let recent = opened.recent().below(before, RUNS_LOOKED_AT + 1);
            let transaction = opened.database.begin_read()?;
            let (runs, events) = (transaction.open_table(RUNS)?, transaction.open_table(EVENTS)?);
            let end = before.map_or(Bound::Unbounded, |before| Bound::Excluded(before.as_u128()));
            let rows = runs.range::<u128>((Bound::Unbounded, end))?.rev();
            let mut rows = rows.map(|row| {
                let (run, record) = row?;
                decoded(RunId::from_u128(run.value()), record.value())
            });
            let mut stored = rows.next().transpose()?;
            let mut recent = recent.into_iter().peekable();
            let (mut page, mut last) = (RunPage::default(), before);
            for looked_at in 0.. {
                let nexts =
                    [stored.as_ref().map(|record| record.run), recent.peek().map(|of| of.0)];
                let Some(run) = nexts.into_iter().flatten().max() else { break };
                if page.records.len() == limit || looked_at == RUNS_LOOKED_AT {
                    page.next = last;
                    break;
                }
                last = Some(run);
                let record = match &stored {
                    Some(record) if record.run == run => {
                        mem::replace(&mut stored, rows.next().transpose()?)
                    }
                    _ => None,
                };
                let progress = recent.next_if(|(of, _)| *of == run);
                let progress = progress.map_or(Vec::new(), |(_, progress)| progress);
                let record = whole(run, record, &progress, &events)?;
                page.records.extend(record.filter(|record| matches(&record.instance)));
            }
            Ok(page)
        })
    }

    fn runs_of(
        &self,
        instance: &InstanceKey,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<RunPage, StoreError> {
        self.with(|opened| {
            let earlier = |run: &RunId| before.is_none_or(|before| *run < before);
            let mut runs: Vec<RunId> = opened.recent().begun(instance).filter(earlier).collect();
            let (agent, name) = pair(instance);
            let end = before.map_or(Bound::Included((agent, name, u128::MAX)), |before| {
                Bound::Excluded((agent, name, before.as_u128()))
            });
            let range = (Bound::Included((agent, name, 0)), end);
            let index = opened.database.begin_read()?.open_table(INSTANCE_RUNS)?;
            for row in index.range::<(&str, &str, u128)>(range)?.rev().take(limit + 1) {
                runs.push(RunId::from_u128(row?.0.value().2));
            }
            runs.sort_unstable_by(|one, other| other.cmp(one));
            runs.dedup();
            let more = runs.len() > limit;
            runs.truncate(limit);
            // Before the records are read, as everywhere.
            let progress: Vec<_> = runs.iter().map(|run| opened.recent().progress(*run)).collect();
            let transaction = opened.database.begin_read()?;
            let (rows, events) = (transaction.open_table(RUNS)?, transaction.open_table(EVENTS)?);
            let next = runs.last().copied().filter(|_| more);
            let mut page = RunPage { records: Vec::with_capacity(runs.len()), next };
            for (run, progress) in runs.into_iter().zip(progress) {
                page.records.extend(whole(run, record(&rows, run)?, &progress, &events)?);
            }
            Ok(page)
        })
    }

    fn keyed(&self, instance: &InstanceKey, key: &str) -> Result<Option<Keyed>, StoreError> {
        self.with(|opened| {
            let recent = opened.recent().keyed(instance, key);
            if recent.is_some() {
                return Ok(recent);
            }
            let keys = opened.database.begin_read()?.open_table(KEYS)?;
            let (agent, name) = pair(instance);
            let found = keys.get((agent, name, key))?;
            Ok(found.map(|found| {
                let (run, fingerprint) = found.value();
                let fingerprint = Digest::from_bytes(*fingerprint);
                Keyed { run: RunId::from_u128(run), fingerprint }
            }))
        })
    }

    fn reply(&self, run: RunId) -> Result<Option<Bytes>, StoreError> {
        self.with(|opened| {
            let recent = opened.recent().reply(run);
            if recent.is_some() {
                return Ok(recent);
            }
            let replies = opened.database.begin_read()?.open_table(REPLIES)?;
            let reply = replies.get(run.as_u128())?;
            Ok(reply.map(|reply| Bytes::copy_from_slice(reply.value())))
        })
    }

    fn events(
        &self,
        run: RunId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError> {
        self.with(|opened| {
            let recent = opened.recent().after(run, after, max_bytes);
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
        self.with(|opened| {
            let recent = opened.recent().find_id(instance, id);
            if recent.is_some() {
                return Ok(recent);
            }
            let ids = opened.database.begin_read()?.open_table(IDS)?;
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
        self.with(|opened| {
            if let Some(recent) = opened.recent().document(instance) {
                return Ok(recent);
            }
            let states = opened.database.begin_read()?.open_table(STATES)?;
            let document = states.get(pair(instance))?;
            Ok(document.map(|document| document.value().into()))
        })
    }

    fn module(&self, instance: &InstanceKey) -> Result<Option<Digest>, StoreError> {
        self.with(|opened| {
            let recent = opened.recent().module(instance);
            if recent.is_some() {
                return Ok(recent);
            }
            let modules = opened.database.begin_read()?.open_table(MODULES)?;
            let module = modules.get(pair(instance))?;
            Ok(module.map(|module| Digest::from_bytes(*module.value())))
        })
    }

    fn deployments(&self) -> Result<Vec<DeploymentRecord>, StoreError> {
        self.read(|transaction| {
            let deployments = transaction.open_table(DEPLOYMENTS)?;
            let rows = deployments.iter()?.map(|row| {
                let (key, row) = row?;
                let (agent, generation) = key.value();
                let agent = agent.parse().map_err(|_| damaged(Damaged))?;
                decode_deployment(agent, generation, row.value()).map_err(damaged)
            });
            rows.collect()
        })
    }

    fn deploy(&self, record: &DeploymentRecord, forget: &[u64]) -> Result<(), StoreError> {
        self.with(|opened| {
            opened.check()?;
            opened.write(|| {
                let transaction = begin(&opened.database)?;
                Tables::new(&transaction).deploy(record, forget)?;
                Ok(transaction.commit()?)
            })
        })
    }

    fn value(&self, instance: &InstanceKey, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.with(|opened| {
            if let Some(recent) = opened.recent().value(instance, key) {
                return Ok(recent);
            }
            let storage = opened.database.begin_read()?.open_table(STORAGE)?;
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
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.with(|opened| {
            let mut recent = opened.recent().values(instance, prefix, from);
            let mut pairs = Pairs { taken: Vec::new(), bytes: 0, limit, max_bytes };
            let storage = opened.database.begin_read()?.open_table(STORAGE)?;
            let from = from.map(|key| (agent, name, key));
            for row in storage.range::<(&str, &str, &str)>((from, Bound::Unbounded))? {
                let (row, value) = row?;
                let (of_agent, of_name, key) = row.value();
                if (of_agent, of_name) != (agent, name) || !key.starts_with(prefix) {
                    break;
                }
                while let Some(before) = recent.first_entry().filter(|first| **first.key() < *key) {
                    if !pairs.take(before.remove_entry()) {
                        return Ok(pairs.taken);
                    }
                }
                let next = match recent.remove_entry(key) {
                    Some(newer) => newer,
                    None => (key.into(), Some(Bytes::copy_from_slice(value.value()))),
                };
                if !pairs.take(next) {
                    return Ok(pairs.taken);
                }
            }
            for rest in recent {
                if !pairs.take(rest) {
                    break;
                }
            }
            Ok(pairs.taken)
        })
    }
}

/// A list that is being filled.
struct Pairs {
    taken: Vec<Pair>,
    bytes: usize,
    limit: usize,
    max_bytes: usize,
}

impl Pairs {
    /// Takes the pair that comes next, if there is one, and room or nothing yet.
    fn take(&mut self, (key, value): (Box<str>, Option<Bytes>)) -> bool {
        let Some(value) = value else { return true };
        self.bytes += key.len() + value.len();
        let fits = self.taken.is_empty() || self.bytes <= self.max_bytes;
        let fits = fits && self.taken.len() < self.limit;
        if fits {
            self.taken.push((key, value));
        }
        fits
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

/// A run's record, where the layers take it from what the tables have.
fn whole(
    run: RunId,
    stored: Option<RunRecord>,
    progress: &[Progress],
    events: &impl ReadableTable<(u128, u64), &'static [u8]>,
) -> Result<Option<RunRecord>, Error> {
    let mut stored = stored;
    if let Some(record) = &mut stored
        && !record.state.is_final()
    {
        record.last = extent(events, run)?.0;
    }
    Ok(progress.iter().fold(stored, |record, progress| progress.onto(run, record)))
}

fn failed(error: impl Into<Error>) -> StoreError {
    StoreError(error.into().to_string())
}
