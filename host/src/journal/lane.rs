//! The order of one instance's turns, and who waits for them to be durable.
//!
//! **Problem.** An instance's turns must become durable in the order in which they were made. Few wait for one, and none should cost anything
//! where nobody does.
//!
//! **Mechanism.** A turn has a number in its [`Lane`], given as it joins the writer's queue. What is durable is one number too, which the writer moves; a
//! [`Ticket`] is a number to be reached.
//!
//! **Limits.** A number that the journal's end has kept from being reached is told by the journal's [`Health`] only. **Cost.** A lane is two numbers and
//! a list of who waits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

use super::handle::Shared;
use super::{Health, Turn, Unavailable};
use crate::id::InstanceKey;

/// The order of an instance's turns: what is submitted first is durable first, or at the same time.
pub struct Lane {
    instance: InstanceKey,
    shared: Arc<Shared>,
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

    /// Counts one turn more, and returns its number. Only under the queue's lock, so that numbers go up in the order of the queue.
    pub(super) fn count(&self) -> u64 {
        let number = self.submitted.load(Ordering::Relaxed) + 1;
        self.submitted.store(number, Ordering::Release);
        number
    }

    /// Tells whoever waits that this turn, with all before it, is durable.
    pub(super) fn mark(&self, number: u64) {
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
