//! The way in: lanes, tickets, the one thread that commits, and the one that tends what was committed.
//!
//! **Problem.** A disk sync takes as long as thousands of turns; guests must not wait for one unless they ask;
//! and nothing may be visible that a crash, or a failing disk, could take back.
//!
//! **Mechanism.** [`Lane::submit`] pushes onto one queue and returns. The writer takes all that is
//! there, commits it at once and then publishes: events and ends to the tails, marks to the lanes.
//! While it commits the next batch gathers, so the disk sets the pace and there is no timer. What can wait, such as
//! retention, is the settler's, whom the writer tells when there is something to do. When a
//! commit fails the writer says so ([`Health::Failing`]), reopens the store and commits the *same* batch
//! again, until it succeeds or its patience ends ([`Health::Dead`]).
//!
//! ```text
//!           +--------------------- success ---------------------+
//!           v                                                   |
//!  Good: take, commit --error--> Failing: wait, reopen, commit -+--patience--> Dead
//! ```
//!
//! **Limits.** A commit takes turns of at most [`COMMIT_BYTES`], or one turn. The queue is bounded by what
//! runs may have pending and by the callers who wait for their tickets.
//!
//! **Cost.** A submission is one short lock. A lane is two numbers and a list of who waits.

use std::collections::VecDeque;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::Notify;

use super::attend::{self, FEW, QUICK};
use super::handle::Shared;
use super::{Committed, Health, StoreError, Submitted, Tended, Turn, Unavailable, Write, lock};
use crate::id::InstanceKey;

/// Turns that are committed together. More would make everyone wait longer for their own, and the first
/// readers for their first event.
const COMMIT_BYTES: usize = 8 << 20;

/// When a writer without work is idle, and how often a settler looks whether retention has something to do.
const IDLE: Duration = Duration::from_secs(1);

/// For how many times as long as a step took the settler then leaves the disk to others, if there is more to do for retention and no layer to
/// settle: gigabytes that are let go at once would fill the disk's queue, and every reply wait behind them. What is settled has its own steps.
const RESPITE: u32 = 9;

/// The first and the longest pause between two attempts to commit.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why the journal ends when who commits panics.
const PANICKED: &str = "its writer panicked";

/// The order of an instance's turns: what is submitted first is durable first, or at the same time.
pub struct Lane {
    instance: InstanceKey,
    shared: Arc<Shared>,
    /// Changed only under the queue's lock, so that numbers go up in the order of the queue.
    submitted: AtomicU64,
    durable: AtomicU64,
    moved: Notify,
}

impl Lane {
    pub(super) fn new(instance: InstanceKey, shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(Self {
            instance,
            shared,
            submitted: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            moved: Notify::new(),
        })
    }

    /// The instance.
    pub fn instance(&self) -> &InstanceKey {
        &self.instance
    }

    /// Hands a turn to the writer. It never waits. A turn without writes is durable with the one before it.
    pub fn submit(self: &Arc<Self>, turn: Turn) -> Ticket {
        if turn.0.is_empty() {
            return self.latest();
        }
        Ticket { lane: Arc::clone(self), number: self.shared.queue.push(self, turn) }
    }

    /// The ticket of all that has been submitted so far.
    pub fn latest(self: &Arc<Self>) -> Ticket {
        Ticket { lane: Arc::clone(self), number: self.submitted.load(Ordering::Acquire) }
    }

    fn mark(&self, number: u64) {
        self.durable.store(number, Ordering::Release);
        self.moved.notify_waiters();
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lane").field("instance", &self.instance).finish_non_exhaustive()
    }
}

/// A claim on the durability of a turn and of all turns before it in its lane.
#[derive(Debug, Clone)]
pub struct Ticket {
    lane: Arc<Lane>,
    number: u64,
}

impl Ticket {
    /// Whether the turn is durable now.
    pub fn is_durable(&self) -> bool {
        self.lane.durable.load(Ordering::Acquire) >= self.number
    }

    /// Waits until the turn is durable. Fails as soon as commits fail, though the turn may become durable
    /// later: for those who had better tell their client now.
    pub async fn durable(&self) -> Result<(), Unavailable> {
        self.wait(|health| match health {
            Health::Good => None,
            Health::Failing(reason) | Health::Dead(reason) => Some(reason.clone()),
        })
        .await
    }

    /// Waits until the turn is durable, also while commits fail. Fails when the journal is dead.
    pub async fn settled(&self) -> Result<(), Unavailable> {
        self.wait(|health| match health {
            Health::Good | Health::Failing(_) => None,
            Health::Dead(reason) => Some(reason.clone()),
        })
        .await
    }

    async fn wait(&self, fails: impl Fn(&Health) -> Option<String>) -> Result<(), Unavailable> {
        // Most replies depend on nothing that is still under way.
        if self.is_durable() {
            return Ok(());
        }
        let mut health = self.lane.shared.health.subscribe();
        loop {
            // Taken before the check, so that a mark set after the check is not missed.
            let moved = self.lane.moved.notified();
            let failure = fails(&health.borrow_and_update());
            if self.is_durable() {
                return Ok(());
            }
            if let Some(reason) = failure {
                return Err(Unavailable(reason));
            }
            tokio::select! {
                () = moved => {}
                _ = health.changed() => {}
            }
        }
    }
}

/// The turns that wait for the writer.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Waiting>,
    filled: Condvar,
    /// Whether the last commit was quick and of few turns, so that the next one is worth no wake-up.
    calm: AtomicBool,
    /// Whether the writer is gone.
    done: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    turns: VecDeque<Submitted>,
    committer: Committer,
    closed: bool,
}

/// Who sees to the next batch.
#[derive(Default, PartialEq, Eq)]
enum Committer {
    /// The writer, which is at work or has been woken: a wake-up is a system call, which not each turn need make.
    #[default]
    Writer,
    /// Who fills the queue: the writer waits, and no one has woken it yet.
    Nobody,
    /// The writer, after the thread that has taken its place for one batch.
    Attending,
}

impl Queue {
    /// Queues a turn and returns its number in its lane. After [`Self::close`] turns are dropped: their
    /// numbers are never reached, and who waits for one learns it from the journal's health.
    fn push(&self, lane: &Arc<Lane>, turn: Turn) -> u64 {
        let mut waiting = lock(&self.inner);
        let number = lane.submitted.load(Ordering::Relaxed) + 1;
        lane.submitted.store(number, Ordering::Release);
        if !waiting.closed {
            let lane = Arc::clone(lane);
            waiting.turns.push_back(Submitted { lane, number, turn });
            if waiting.committer == Committer::Nobody && !attend::will_look(self) {
                waiting.committer = Committer::Writer;
                self.filled.notify_one();
            }
        }
        number
    }

    /// Refuses what comes from here on. What has come is still committed.
    pub(super) fn close(&self) {
        lock(&self.inner).closed = true;
        self.filled.notify_one();
    }

    /// The next batch. An empty one when nothing has come for a while; none when the queue is closed and empty.
    fn take(&self) -> Option<Vec<Submitted>> {
        let mut waiting = lock(&self.inner);
        if waiting.committer == Committer::Writer {
            waiting.committer = Committer::Nobody;
        }
        let nothing = |waiting: &mut Waiting| {
            waiting.committer == Committer::Attending || waiting.turns.is_empty() && !waiting.closed
        };
        let (mut waiting, _) = self
            .filled
            .wait_timeout_while(waiting, IDLE, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.committer == Committer::Attending {
            return Some(Vec::new());
        }
        waiting.committer = Committer::Writer;
        if waiting.closed && waiting.turns.is_empty() {
            return None;
        }
        Some(waiting.batch())
    }

    /// The writer's place and a batch, if the writer waits and all is calm.
    pub(super) fn take_over(&self) -> Option<Vec<Submitted>> {
        let mut waiting = lock(&self.inner);
        let is_free = waiting.committer == Committer::Nobody && !waiting.closed;
        // The writer may have been here meanwhile, woken by others.
        if !is_free || waiting.turns.is_empty() || !self.calm.load(Ordering::Relaxed) {
            return None;
        }
        waiting.committer = Committer::Attending;
        Some(waiting.batch())
    }

    /// Gives the writer's place back, with what it is to commit before all else.
    pub(super) fn give_back(&self, first: Vec<Submitted>) {
        let mut waiting = lock(&self.inner);
        first.into_iter().rev().for_each(|submitted| waiting.turns.push_front(submitted));
        waiting.committer = Committer::Nobody;
        drop(waiting);
        self.rouse();
    }

    /// Wakes the writer if there is something that nobody sees to.
    pub(super) fn rouse(&self) {
        let mut waiting = lock(&self.inner);
        let something = !waiting.turns.is_empty() || waiting.closed;
        if something && waiting.committer == Committer::Nobody {
            waiting.committer = Committer::Writer;
            self.filled.notify_one();
        }
    }

    /// Refuses all that is here and that comes.
    fn fail(&self) {
        self.close();
        lock(&self.inner).turns.clear();
    }

    /// Waits until nobody has the writer's place, for a writer that ends: nothing may be committed beside its last words.
    fn left_alone(&self) {
        let attending = |waiting: &mut Waiting| waiting.committer == Committer::Attending;
        drop(self.filled.wait_while(lock(&self.inner), attending));
    }
}

impl Waiting {
    /// What is committed at once.
    fn batch(&mut self) -> Vec<Submitted> {
        let mut bytes = 0;
        let fits = self.turns.iter().take_while(|submitted| {
            let first = bytes == 0;
            bytes += submitted.turn.size();
            first || bytes <= COMMIT_BYTES
        });
        let count = fits.count();
        self.turns.drain(..count).collect()
    }
}

/// The writer thread: commits until the queue is closed and empty, or the journal is dead.
pub(super) fn run(shared: &Shared) {
    let mut departure = Departure { shared, reason: None };
    while let Some(batch) = shared.queue.take() {
        match commit(shared, &batch) {
            Ok(()) => publish(shared, batch),
            Err(Unavailable(reason)) => {
                tracing::error!(reason, "the journal gives up");
                departure.reason = Some(reason);
                return;
            }
        }
    }
}

/// The settler thread: tends the store whenever it is told to, and now and then, for as long as there is a writer.
pub(super) fn settle(shared: &Shared, told: &Receiver<()>) {
    let departure = SettlerDeparture(shared);
    let mut pause = IDLE;
    loop {
        // A word, or the time to look whether there is something to do without one.
        let _ = told.recv_timeout(pause);
        if shared.queue.done.load(Ordering::Acquire) {
            break;
        }
        let began = Instant::now();
        pause = match shared.store.tend(SystemTime::now()) {
            Ok(Tended { trimmed_runs, is_due }) => {
                shared.counts.trimmed_runs.fetch_add(trimmed_runs, Ordering::Relaxed);
                if is_due { (began.elapsed() * RESPITE).min(IDLE) } else { IDLE }
            }
            // The writer meets it too, when it next commits or rests, and opens the store again.
            Err(error) => {
                tracing::warn!(%error, "the journal cannot be tended");
                IDLE
            }
        };
    }
    drop(departure);
}

/// A settler that panics takes the writer with it, so that the host does not go on with half a journal.
struct SettlerDeparture<'a>(&'a Shared);

impl Drop for SettlerDeparture<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            // What the writer is at is still committed.
            let _ = self.0.panicked.set("its settler panicked");
            self.0.queue.close();
        }
    }
}

/// Commits a batch, however often it takes. Without turns, it is time to rest.
fn commit(shared: &Shared, batch: &[Submitted]) -> Result<(), Unavailable> {
    let now = SystemTime::now();
    let mut attempt = commit_once(shared, batch, now);
    let began = Instant::now();
    let (mut pause, longest) = BACKOFF;
    loop {
        let reason = match attempt {
            Ok(()) => {
                shared.set_health(Health::Good);
                return Ok(());
            }
            Err(error) => error.to_string(),
        };
        let Some(left) = shared.patience.checked_sub(began.elapsed()) else {
            return Err(Unavailable(reason));
        };
        tracing::warn!(reason, "the journal cannot commit and tries again");
        shared.set_health(Health::Failing(reason));
        thread::sleep(pause.min(left));
        pause = (pause * 2).min(longest);
        attempt = shared.store.reopen().and_then(|()| commit_once(shared, batch, now));
    }
}

/// Tries once to commit a batch, or to rest without one, and tells the settler if there is something to tend.
pub(super) fn commit_once(
    shared: &Shared,
    batch: &[Submitted],
    now: SystemTime,
) -> Result<(), StoreError> {
    // A client can learn of a run as soon as it is durable, and must then find its tail.
    for write in writes(batch) {
        if let Write::Start { tail, .. } = write {
            shared.live.start(tail);
        }
    }
    let began = Instant::now();
    let Committed { is_due } = match batch {
        [] => shared.store.rest(now)?,
        _ => shared.store.commit(batch, now)?,
    };
    if !batch.is_empty() {
        let calm = batch.len() <= FEW && began.elapsed() <= QUICK;
        shared.queue.calm.store(calm, Ordering::Relaxed);
    }
    if is_due {
        // It has been told already if there is no room for another word.
        let _ = shared.settler.try_send(());
    }
    Ok(())
}

/// Shows a durable batch to everyone: tails before lanes, so that who waited for a turn finds it there.
pub(super) fn publish(shared: &Shared, batch: Vec<Submitted>) {
    if batch.is_empty() {
        return;
    }
    let mut events = 0;
    for write in writes(&batch) {
        match write {
            Write::Event { tail, event } => {
                tail.publish(Arc::clone(event));
                events += 1;
            }
            Write::End { tail, outcome } => {
                // A tail that is found among the live ones is never at its end.
                shared.live.end(tail.run());
                tail.end(outcome.clone());
            }
            Write::Start { .. }
            | Write::State(_)
            | Write::Storage { .. }
            | Write::Module(_)
            | Write::Key { .. }
            | Write::Reply { .. } => {}
        }
    }
    let counts = &shared.counts;
    let add = |count: &AtomicU64, by| count.fetch_add(by, Ordering::Relaxed);
    add(&counts.commits, 1);
    add(&counts.turns, batch.len() as u64);
    add(&counts.events, events);
    let mut waiting = Vec::new();
    for write in writes(&batch) {
        if let Write::Event { tail, .. } | Write::End { tail, .. } = write {
            tail.waiting(&mut waiting);
        }
    }
    waiting.into_iter().for_each(Waker::wake);
    // The turns go first, so that who is told that one is durable finds its memory released.
    let marks = batch.into_iter().map(|of| (of.lane, of.number));
    for (lane, number) in marks.collect::<Vec<_>>() {
        lane.mark(number);
    }
}

fn writes(batch: &[Submitted]) -> impl Iterator<Item = &Write> {
    batch.iter().flat_map(|submitted| &submitted.turn.0)
}

/// A thread has panicked in the writer's place: what the store has of its batch is not known, so nothing more is committed.
pub(super) fn give_up(shared: &Shared) {
    let _ = shared.panicked.set(PANICKED);
    shared.queue.fail();
}

/// However the writer ends, by a panic too: no one may be left waiting for it.
struct Departure<'a> {
    shared: &'a Shared,
    /// Why the journal gives up, if it does.
    reason: Option<String>,
}

impl Drop for Departure<'_> {
    fn drop(&mut self) {
        self.shared.queue.fail();
        self.shared.queue.left_alone();
        // After a panic in the midst of a transaction the store may panic again. Everyone is told nonetheless.
        let closed = catch_unwind(AssertUnwindSafe(|| self.shared.store.close()));
        if closed.is_err() {
            tracing::error!("the journal did not close in order");
        }
        let reason = self.reason.take().unwrap_or_else(|| {
            if thread::panicking() {
                let _ = self.shared.panicked.set(PANICKED);
            }
            (*self.shared.panicked.get().unwrap_or(&"it is closed")).into()
        });
        self.shared.set_health(Health::Dead(reason));
        let mut waiting = Vec::new();
        self.shared.live.tails().iter().for_each(|tail| tail.waiting(&mut waiting));
        waiting.into_iter().for_each(Waker::wake);
        self.shared.queue.done.store(true, Ordering::Release);
        let _ = self.shared.settler.try_send(());
    }
}

#[cfg(test)]
mod tests;
