//! The handle: opening the journal, and what the rest of the host asks of it.
//!
//! [`Journal`] is a cheap clone. Behind it are the store, the queue of the [writer], the
//! tails of the runs that go on, and the journal's health. Reads of state and storage are short and
//! synchronous: one transaction, closed before they return.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;

use super::follower::Follower;
use super::live::Live;
use super::redb::RedbStore;
use super::tail::{Gauge, Limits};
use super::writer::{self, Queue};
use super::{
    Backend, DeploymentRecord, Health, Keyed, Lane, Located, Options, Pair, Reader, RunPage,
    RunRecord, Stats, Store, StoreError, Tail, attend, lock, reader,
};
use crate::id::{Digest, InstanceKey, RunId, Seq};

/// The journal. The last handle to go closes it without waiting, as far as [`Self::close`] has not.
#[derive(Clone)]
pub struct Journal(Arc<Owner>);

struct Owner {
    shared: Arc<Shared>,
    /// The writer and the settler.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What handles, lanes, readers and the writer have in common.
pub(super) struct Shared {
    pub(super) store: Box<dyn Store>,
    pub(super) queue: Queue,
    /// The tails of all runs that are not over.
    pub(super) live: Live,
    pub(super) health: watch::Sender<Health>,
    pub(super) counts: Counts,
    pub(super) gauge: Arc<Gauge>,
    /// Pages that were put in another form and are on their way to clients.
    pub(super) sending: Arc<Gauge>,
    pub(super) limits: Limits,
    pub(super) page_bytes: usize,
    pub(super) patience: Duration,
    /// Tells the settler that there is something to tend, or that there is no writer any more.
    pub(super) settler: mpsc::SyncSender<()>,
    /// Which thread panicked, so that nothing more is committed.
    pub(super) panicked: OnceLock<&'static str>,
}

/// What [`Stats`] counts.
#[derive(Default)]
pub(super) struct Counts {
    pub(super) commits: AtomicU64,
    pub(super) turns: AtomicU64,
    pub(super) events: AtomicU64,
    pub(super) trimmed_runs: AtomicU64,
}

/// A run that was not over when the journal was opened.
#[derive(Debug)]
pub struct Unfinished {
    /// The run, `interrupted`.
    pub record: RunRecord,
    /// What its start kept for a resumption.
    pub request: Option<Bytes>,
    /// Its live tail: clients can read on while the run waits to be resumed or given up.
    pub tail: Arc<Tail>,
}

impl Shared {
    /// Opens the store, for threads that do not run yet.
    pub(super) fn open(
        backend: Backend,
        options: &Options,
        settler: mpsc::SyncSender<()>,
    ) -> Result<(Arc<Self>, Vec<Unfinished>), StoreError> {
        let limits =
            Limits { window: options.limits.tail_bytes, backlog: options.limits.backlog_bytes };
        let (store, interrupted) = RedbStore::open(backend, options)?;
        let gauge = Arc::new(Gauge::default());
        let unfinished: Vec<Unfinished> = interrupted
            .into_iter()
            .map(|(record, request)| {
                let instance = record.instance.clone();
                let tail = Tail::new(instance, record.run, record.last, limits, &gauge);
                Unfinished { record, request, tail: Arc::new(tail) }
            })
            .collect();
        let live = unfinished.iter().map(|run| Arc::clone(&run.tail));
        let shared = Arc::new(Self {
            store: Box::new(store),
            queue: Queue::default(),
            live: Live::of(live),
            health: watch::Sender::new(Health::Good),
            counts: Counts::default(),
            gauge,
            sending: Arc::default(),
            limits,
            page_bytes: options.limits.page_bytes,
            patience: options.limits.patience,
            settler,
            panicked: OnceLock::new(),
        });
        Ok((shared, unfinished))
    }

    /// Tells those who watch, if this is news.
    pub(super) fn set_health(&self, health: Health) {
        self.health.send_if_modified(|current| {
            let news = *current != health;
            *current = health;
            news
        });
    }
}

impl Journal {
    /// Opens the journal in its file, which is made when it does not exist. Runs that the host's end cut off
    /// are `interrupted` from here on; they and those that still were are returned, oldest first.
    pub fn open(options: Options) -> Result<(Self, Vec<Unfinished>), StoreError> {
        let backend = Backend::file(&options)?;
        Self::open_on(backend, options)
    }

    /// Opens the journal on any backend.
    pub fn open_on(
        backend: Backend,
        options: Options,
    ) -> Result<(Self, Vec<Unfinished>), StoreError> {
        // One word is enough for a settler that has not listened yet.
        let (settler, told) = mpsc::sync_channel(1);
        let (shared, unfinished) = Shared::open(backend, &options, settler)?;
        let threads = [
            spawn("journal", &shared, writer::run)?,
            spawn("settler", &shared, move |shared| writer::settle(shared, &told))?,
        ];
        let owner = Owner { shared, threads: Mutex::new(threads.into()) };
        Ok((Self(Arc::new(owner)), unfinished))
    }

    /// A new lane for an instance. Turns in two lanes of one instance would have no order, so it keeps one.
    pub fn lane(&self, instance: InstanceKey) -> Arc<Lane> {
        Lane::new(instance, Arc::clone(&self.0.shared))
    }

    /// Does `work`, and then makes durable here and now what it has submitted, if the writer has nothing to do. For a thread
    /// that may stand still for one sync of a quick disk.
    pub fn attend<T>(&self, work: impl FnOnce() -> T) -> T {
        attend::attend(&self.0.shared, work)
    }

    /// The tail of a run that is about to start; clients find it by [`Self::locate`] from its start on.
    /// A run that is resumed goes on with the tail that [`Unfinished`] has.
    pub fn tail(&self, instance: &InstanceKey, run: RunId) -> Arc<Tail> {
        let shared = &self.0.shared;
        let tail = Tail::new(instance.clone(), run, Seq::ZERO, shared.limits, &shared.gauge);
        Arc::new(tail)
    }

    /// Reads what follows `after` in the run of this tail.
    pub fn reader(&self, tail: Arc<Tail>, after: Seq) -> Reader {
        Reader::new(Arc::clone(&self.0.shared), tail, after)
    }

    /// Finds where the client stands that has seen the event `last_event_id` of this instance last. The text
    /// is the client's and may be anything.
    pub async fn locate(
        &self,
        instance: &InstanceKey,
        last_event_id: &str,
    ) -> Result<Located, StoreError> {
        reader::locate(&self.0.shared, instance, last_event_id).await
    }

    /// Reads all runs of an instance, from now on.
    pub fn follow(&self, instance: &InstanceKey) -> Follower {
        Follower::new(Arc::clone(&self.0.shared), instance)
    }

    /// The newest run of an instance that is on record and not over, from its start.
    pub fn latest_live(&self, instance: &InstanceKey) -> Option<Reader> {
        let tail = self.0.shared.live.of_instance(instance).pop()?;
        Some(self.reader(tail, Seq::ZERO))
    }

    /// What is known of a run.
    pub fn run(&self, run: RunId) -> Result<Option<RunRecord>, StoreError> {
        self.0.shared.store.run(run)
    }

    /// The runs on record that began before this one and whose instance satisfies `matches`, newest first: at most
    /// `limit`, of at most [`RUNS_LOOKED_AT`](super::RUNS_LOOKED_AT) that are looked at. `matches` must not use the journal, which is
    /// being read.
    pub fn runs(
        &self,
        before: Option<RunId>,
        limit: usize,
        matches: &dyn Fn(&InstanceKey) -> bool,
    ) -> Result<RunPage, StoreError> {
        self.0.shared.store.runs(before, limit, matches)
    }

    /// The runs of an instance that began before this one, newest first: at most `limit`.
    pub fn runs_of(
        &self,
        instance: &InstanceKey,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<RunPage, StoreError> {
        self.0.shared.store.runs_of(instance, before, limit)
    }

    /// The run that a request with this key began on this instance, durably, and the request's fingerprint.
    pub fn keyed(&self, instance: &InstanceKey, key: &str) -> Result<Option<Keyed>, StoreError> {
        self.0.shared.store.keyed(instance, key)
    }

    /// What a run answered durably, if that is kept.
    pub fn reply(&self, run: RunId) -> Result<Option<Bytes>, StoreError> {
        self.0.shared.store.reply(run)
    }

    /// All kept deployments, by agent, oldest first.
    pub fn deployments(&self) -> Result<Vec<DeploymentRecord>, StoreError> {
        self.0.shared.store.deployments()
    }

    /// Makes a deployment durable, and lets go of these older generations of the agent. Not for an async thread: it
    /// waits for the disk. After an error it is not known whether it is durable.
    pub fn deploy(&self, record: &DeploymentRecord, forget: &[u64]) -> Result<(), StoreError> {
        self.0.shared.store.deploy(record, forget)
    }

    /// The module that made what the instance keeps durably, if one has said so.
    pub fn module(&self, instance: &InstanceKey) -> Result<Option<Digest>, StoreError> {
        self.0.shared.store.module(instance)
    }

    /// The instance's durable document.
    pub fn state(&self, instance: &InstanceKey) -> Result<Option<Arc<str>>, StoreError> {
        self.0.shared.store.state(instance)
    }

    /// The durable value under a key of the instance's storage.
    pub fn value(&self, instance: &InstanceKey, key: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.shared.store.value(instance, key)
    }

    /// The durable pairs of the instance's storage whose keys start with `prefix` and come after `after`, in
    /// byte order: at most `limit`, and as many as `max_bytes` hold but at least one if there is one.
    pub fn list(
        &self,
        instance: &InstanceKey,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        let store = &self.0.shared.store;
        store.list(instance, prefix, after, limit, max_bytes)
    }

    /// Whether the journal can commit now.
    pub fn is_good(&self) -> bool {
        *self.0.shared.health.borrow() == Health::Good
    }

    /// The journal's health, now and as it changes.
    pub fn health(&self) -> watch::Receiver<Health> {
        self.0.shared.health.subscribe()
    }

    /// The journal's figures now.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Stats {
            commits: count(&shared.counts.commits),
            turns: count(&shared.counts.turns),
            events: count(&shared.counts.events),
            trimmed_runs: count(&shared.counts.trimmed_runs),
            buffered_bytes: shared.gauge.now(),
            buffered_bytes_peak: shared.gauge.peak(),
            sending_bytes: shared.sending.now(),
            sending_bytes_peak: shared.sending.peak(),
            live_runs: shared.live.len() as u64,
        }
    }

    /// Commits what has been submitted, lets go of the file and ends the writer. Those who still wait then,
    /// and those who come later, are told that the journal is closed.
    pub async fn close(&self) {
        self.0.shared.queue.close();
        let owner = Arc::clone(&self.0);
        let joined = tokio::task::spawn_blocking(move || {
            // Held while joining, so that everyone who closes waits for the end.
            let mut threads = lock(&owner.threads);
            threads.drain(..).try_for_each(JoinHandle::join)
        });
        if !matches!(joined.await, Ok(Ok(()))) {
            tracing::error!("the journal's threads did not end as they should");
        }
    }
}

fn spawn(
    name: &str,
    shared: &Arc<Shared>,
    body: impl FnOnce(&Shared) + Send + 'static,
) -> Result<JoinHandle<()>, StoreError> {
    let shared = Arc::clone(shared);
    let spawned = thread::Builder::new().name(name.into()).spawn(move || body(&shared));
    spawned.map_err(|error| StoreError(format!("no thread to write: {error}")))
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}
