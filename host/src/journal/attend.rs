//! Committing on the thread that has just submitted, when the writer has nothing to do.
//!
//! **Problem.** A lone turn waits for two sleeping threads to be woken, the writer and then whoever waits for it, which takes as
//! long as a quick disk's sync.
//!
//! **Mechanism.** What [`attend`] runs wakes no writer. When it is over, and the writer waits, this thread takes the writer's
//! place for one batch: it commits and publishes what there is, so those it wakes run here too. What came meanwhile is the writer's, and so is a
//! batch whose commit fails, with all the attempts there are. When the writer is at work nothing changes.
//!
//! **Limits.** The thread stands still for one sync, and for a settling where the log is full, so it is only done where the last commits were [quick](QUICK), and of [few](FEW)
//! turns: under load the writer has batches to make. Now and then a batch is left to the writer all the same, since a thread that commits does not see the load that waits for it. One thread at a time has the writer's place. **Cost.** A look at a thread's own variable.

use std::cell::Cell;
use std::ptr;
use std::time::{Duration, SystemTime};

use super::Submitted;
use super::handle::Shared;
use super::queue::Queue;
use super::writer;

/// What a commit may take where the next one is to be made by a thread that others need.
pub(super) const QUICK: Duration = Duration::from_millis(1);

/// How many turns a lone run makes at once: its first event, and its end.
pub(super) const FEW: usize = 2;

thread_local! {
    static ATTENDED: Cell<Attended> = const { Cell::new(Attended { queue: 0, filled: false }) };
}

/// Which queue this thread attends to, by its address, and whether it has put something there that nobody was woken for.
#[derive(Clone, Copy)]
struct Attended {
    queue: usize,
    filled: bool,
}

/// Whether this thread will look after what it has just put into this queue.
pub(super) fn will_look(queue: &Queue) -> bool {
    let attends = ATTENDED.get().queue == address(queue);
    if attends {
        ATTENDED.set(Attended { queue: address(queue), filled: true });
    }
    attends
}

fn address(queue: &Queue) -> usize {
    ptr::from_ref(queue).addr()
}

/// Does `work`, and then commits what it has submitted if the writer has nothing to do.
pub(super) fn attend<T>(shared: &Shared, work: impl FnOnce() -> T) -> T {
    let attending = Attending { queue: &shared.queue, before: ATTENDED.get() };
    ATTENDED.set(Attended { queue: address(&shared.queue), filled: false });
    let done = work();
    if ATTENDED.get().filled
        && let Some(batch) = shared.queue.take_over()
    {
        commit(shared, batch);
    }
    drop(attending);
    done
}

/// Wakes the writer for what is left, at the end of the work, by a panic too.
struct Attending<'a> {
    queue: &'a Queue,
    before: Attended,
}

impl Drop for Attending<'_> {
    fn drop(&mut self) {
        if ATTENDED.replace(self.before).filled {
            self.queue.rouse();
        }
    }
}

/// Commits a batch in the writer's place.
fn commit(shared: &Shared, batch: Vec<Submitted>) {
    let mut place = Place { shared, left: None };
    place.left = match writer::commit_once(shared, &batch, SystemTime::now()) {
        Ok(()) => {
            writer::publish(shared, batch);
            Some(Vec::new())
        }
        Err(error) => {
            tracing::debug!(%error, "a commit is left to the journal's writer");
            Some(batch)
        }
    };
}

/// The writer's place, which is given back, by a panic too.
struct Place<'a> {
    shared: &'a Shared,
    /// What the writer is to commit first; none if that is not known.
    left: Option<Vec<Submitted>>,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let left = self.left.take().unwrap_or_else(|| {
            writer::give_up(self.shared);
            Vec::new()
        });
        self.shared.queue.give_back(left);
    }
}
