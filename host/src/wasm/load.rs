//! How busy a store is.
//!
//! A number that whoever sends a call counts up, under the lock that retiring takes, and the session counts down when the call has
//! ended; and when that was, so that the store that is idle for longest can be found. The stores of an agent have a common one
//! beside their own. Four atomic operations a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// How busy a store is, for whoever sends it calls or wants to retire it.
pub struct Load {
    /// Calls sent and not ended.
    in_flight: AtomicUsize,
    /// Those of all stores of the agent.
    of_agent: Arc<AtomicUsize>,
    /// When the last call ended, in microseconds since `began`.
    last_used: AtomicU64,
    began: Instant,
}

impl Load {
    /// The load of a store without calls, of an agent that has so many. Times are told from `began` on, so that those of stores compare.
    pub fn new(began: Instant, of_agent: Arc<AtomicUsize>) -> Self {
        let (in_flight, last_used) = (AtomicUsize::new(0), AtomicU64::new(0));
        let load = Self { in_flight, of_agent, last_used, began };
        load.touch();
        load
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.last_used.store(now, Ordering::Relaxed);
    }

    /// A call is on its way.
    pub fn sent(&self) {
        self.in_flight.fetch_add(1, Ordering::AcqRel);
        self.of_agent.fetch_add(1, Ordering::Relaxed);
    }

    /// A call has ended, or was not taken.
    pub fn ended(&self) {
        // Before the count, so that who finds the store idle also finds since when.
        self.touch();
        self.in_flight.fetch_sub(1, Ordering::AcqRel);
        self.of_agent.fetch_sub(1, Ordering::Relaxed);
    }

    /// Calls sent and not ended.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Acquire)
    }

    /// Calls sent to any store of the agent and not ended.
    pub fn of_agent(&self) -> usize {
        self.of_agent.load(Ordering::Relaxed)
    }

    /// Since when the store has no calls, if it has none.
    pub fn idle_since(&self) -> Option<Duration> {
        (self.in_flight() == 0)
            .then(|| Duration::from_micros(self.last_used.load(Ordering::Relaxed)))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Calls that the store has left to the next one, or to nobody.
        self.of_agent.fetch_sub(*self.in_flight.get_mut(), Ordering::Relaxed);
    }
}
