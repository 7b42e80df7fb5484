//! What waits to be committed, and who sees to it.
//!
//! **Problem.** Turns of all instances wait in one order; waking the writer is a system call, which not each turn need make; and for a lone turn
//! the writer may be [stood in for](super::attend), by one at a time and never beside its last words.
//!
//! **Mechanism.** One list under one lock, and with it a word that says who [sees to the next batch](Committer). Whoever changes that
//! word from [nobody](Committer::Nobody) has taken the next batch on.
//!
//! **Limits.** A batch has turns of at most [`COMMIT_BYTES`], or one turn. The list is bounded by what runs may have pending and by the callers who wait for
//! their tickets. **Cost.** A short lock for a turn.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use super::lane::Lane;
use super::{Submitted, Turn, attend, lock};

/// Turns that are committed together. More would make everyone wait longer for their own, and the first
/// readers for their first event.
const COMMIT_BYTES: usize = 8 << 20;

/// After how many quick commits of few turns others may make them. A batch that is small by chance says little.
const CALM: u32 = 16;

/// How many batches in a row others may commit in the writer's place. The one after them is the writer's, which finds out whether more come meanwhile:
/// who stands still for a commit does not serve those who would have been in the next, so that batches stay small if there is no other thread.
const IN_A_ROW: u32 = 8;

/// The turns that wait for the writer.
#[derive(Default)]
pub(super) struct Queue {
    inner: Mutex<Waiting>,
    filled: Condvar,
    /// How many commits in a row were quick and of few turns, up to [`CALM`]: from there on the next one is worth no wake-up.
    calm: AtomicU32,
    /// Whether the writer is gone.
    pub(super) done: AtomicBool,
}

#[derive(Default)]
struct Waiting {
    turns: VecDeque<Submitted>,
    committer: Committer,
    /// Batches since the writer's last one.
    in_a_row: u32,
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
    pub(super) fn push(&self, lane: &Arc<Lane>, turn: Turn) -> u64 {
        let mut waiting = lock(&self.inner);
        let number = lane.count();
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

    /// The next batch. An empty one when nothing has come for as long as this; none when the queue is closed and empty.
    pub(super) fn take(&self, patience: Duration) -> Option<Vec<Submitted>> {
        let mut waiting = lock(&self.inner);
        if waiting.committer == Committer::Writer {
            waiting.committer = Committer::Nobody;
        }
        let nothing = |waiting: &mut Waiting| {
            waiting.committer == Committer::Attending || waiting.turns.is_empty() && !waiting.closed
        };
        let (mut waiting, _) = self
            .filled
            .wait_timeout_while(waiting, patience, nothing)
            .unwrap_or_else(PoisonError::into_inner);
        if waiting.committer == Committer::Attending {
            return Some(Vec::new());
        }
        waiting.committer = Committer::Writer;
        waiting.in_a_row = 0;
        if waiting.closed && waiting.turns.is_empty() {
            return None;
        }
        Some(waiting.batch())
    }

    /// The writer's place and a batch, if the writer waits, all is calm and it is not the writer's turn.
    pub(super) fn take_over(&self) -> Option<Vec<Submitted>> {
        let mut waiting = lock(&self.inner);
        let is_free = waiting.committer == Committer::Nobody && !waiting.closed;
        // The writer may have been here meanwhile, woken by others.
        if !is_free || waiting.turns.is_empty() {
            return None;
        }
        if !self.is_calm() || waiting.in_a_row == IN_A_ROW {
            return None;
        }
        waiting.committer = Committer::Attending;
        waiting.in_a_row += 1;
        Some(waiting.batch())
    }

    /// A batch is committed, and was quick and of few turns or not. For who has the writer's place.
    pub(super) fn committed(&self, calm: bool) {
        let before = if calm { self.calm.load(Ordering::Relaxed) } else { 0 };
        self.calm.store(CALM.min(before + u32::from(calm)), Ordering::Relaxed);
    }

    fn is_calm(&self) -> bool {
        self.calm.load(Ordering::Relaxed) == CALM
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
    pub(super) fn fail(&self) {
        self.close();
        lock(&self.inner).turns.clear();
    }

    /// Waits until nobody has the writer's place, for a writer that ends: nothing may be committed beside its last words.
    pub(super) fn left_alone(&self) {
        let attending = |waiting: &mut Waiting| waiting.committer == Committer::Attending;
        drop(self.filled.wait_while(lock(&self.inner), attending));
    }

    /// As a writer does that begins to wait.
    #[cfg(test)]
    pub(super) fn leave_to_others(&self) {
        lock(&self.inner).committer = Committer::Nobody;
    }

    /// As after many small commits.
    #[cfg(test)]
    pub(super) fn be_calm(&self) {
        self.calm.store(CALM, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn is_closed(&self) -> bool {
        lock(&self.inner).closed
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
