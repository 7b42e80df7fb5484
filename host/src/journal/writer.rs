//! The thread that commits, and the one that tends what was committed.
//!
//! **Problem.** A disk sync takes as long as thousands of turns; guests must not wait for one unless they ask;
//! and nothing may be visible that a crash, or a failing disk, could take back.
//!
//! **Mechanism.** [`Lane::submit`](super::Lane::submit) pushes onto one [queue](super::queue) and returns. The writer takes all that is
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
//! **Limits.** The disk's syncs a second, times what a batch holds. **Cost.** Two threads, which sleep when nothing is written.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Receiver;
use std::task::Waker;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use super::attend::{FEW, QUICK};
use super::handle::Shared;
use super::{Committed, Health, StoreError, Submitted, Tended, Unavailable, Write};

/// When a writer without work is idle, and how often a settler looks whether retention has something to do.
const IDLE: Duration = Duration::from_secs(1);

/// For how many times as long as a step took the settler then leaves the disk to others, if there is more to do for retention and no layer to
/// settle: gigabytes that are let go at once would fill the disk's queue, and every reply wait behind them. What is settled has its own steps.
const RESPITE: u32 = 9;

/// The first and the longest pause between two attempts to commit.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Why the journal ends when who commits panics.
const PANICKED: &str = "its writer panicked";

/// The writer thread: commits until the queue is closed and empty, or the journal is dead.
pub(super) fn run(shared: &Shared) {
    let mut departure = Departure { shared, reason: None };
    while let Some(batch) = shared.queue.take(IDLE) {
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
        shared.queue.committed(batch.len() <= FEW && began.elapsed() <= QUICK);
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
