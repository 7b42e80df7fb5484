//! How long a guest computes without returning to the host, and when it is to give way.
//!
//! **Problem.** A guest that computes on and on holds a worker that others need, and may never end; a look at the time for every
//! poll would be paid by all the others.
//!
//! **Mechanism.** Polls of the store and epoch ticks in guest code are noted here. Only a tick looks at the time: the first one since the guest
//! returned to the host begins what it computes, and what it computed before it gave way counts on. It gives way from the second tick on that is met
//! since the store last waited, unless that one comes [so soon](BRIEF) after the first that it says nothing.
//!
//! What counts is the time of the thread, since one that [stands back](crate::wasm::Engine::computing) may wait long for a processor.
//!
//! **Limits.** What is computed before the first tick is not seen. Where threads have no time of their own, all of it counts. **Cost.** A few unordered operations
//! on atomics for each poll; a lock and a look at the time for each tick.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a store has computed that has only begun to. One that waited for longer than a tick meets its first one at once, and the second may come
/// at any time after that.
const BRIEF: Duration = Duration::from_millis(1);

thread_local! {
    static GAVE_WAY: Cell<bool> = const { Cell::new(false) };
}

/// Whether a guest has given way on this thread since this was last asked.
pub fn take_gave_way() -> bool {
    GAVE_WAY.take()
}

/// A guest gives way on this thread.
pub(crate) fn give_way() {
    GAVE_WAY.set(true);
}

/// The clock of one store.
pub(in crate::wasm) struct Clock {
    /// Whether the store is being polled, as opposed to being dropped.
    polling: AtomicBool,
    /// Whether a guest gave way in the middle of its turn.
    yielded: AtomicBool,
    /// Whether guests have met an epoch tick since the store last waited.
    ticked: AtomicBool,
    /// How often guests may have returned to the host.
    returns: AtomicU64,
    computing: Mutex<Computing>,
}

/// How long a guest has computed without returning to the host, from the first epoch tick on that it saw.
struct Computing {
    /// After how many returns to the host the guest began.
    begun: u64,
    /// What it computed before it last gave way.
    before: Duration,
    /// The time of the thread that polls the store when it began, or went on.
    since: Duration,
    /// The time of that thread when the store met the first tick since it last waited, or went on after it gave way. It says nothing
    /// while none is `ticked`.
    met: Duration,
}

impl Computing {
    /// Until this time of the thread, in a poll in which it computes.
    fn total(&self, now: Duration) -> Duration {
        self.before + now.saturating_sub(self.since)
    }
}

/// What this thread has computed so far.
#[cfg(target_os = "linux")]
pub fn thread_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    // It is positive.
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Time, as if this thread had always computed.
#[cfg(not(target_os = "linux"))]
pub fn thread_time() -> Duration {
    use std::sync::LazyLock;
    use std::time::Instant;
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    BEGAN.elapsed()
}

impl Clock {
    pub(super) fn new() -> Self {
        Self {
            polling: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            ticked: AtomicBool::new(false),
            returns: AtomicU64::new(0),
            computing: Mutex::new(Computing {
                begun: 0,
                before: Duration::ZERO,
                since: Duration::ZERO,
                met: Duration::ZERO,
            }),
        }
    }

    fn computing(&self) -> MutexGuard<'_, Computing> {
        self.computing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an epoch tick in the middle of guest code; returns how long the guest has computed since it last
    /// returned to the host, to a tick, without the time it gave way to others, and whether it is to give way.
    ///
    /// A store that waited for longer than a tick meets one as soon as it is polled: giving way there, or at the next one if that
    /// follows at once, would double the polls of stores that do little and seldom, and set each back behind all others.
    pub(in crate::wasm) fn tick(&self) -> (Duration, bool) {
        let now = thread_time();
        let mut computing = self.computing();
        if !self.ticked.swap(true, Ordering::Relaxed) {
            computing.met = now;
        }
        let gives_way = now.saturating_sub(computing.met) >= BRIEF;
        self.yielded.store(gives_way, Ordering::Relaxed);
        if gives_way {
            give_way();
        }
        let begun = self.returns.load(Ordering::Relaxed);
        if computing.begun != begun {
            (computing.begun, computing.before, computing.since) = (begun, Duration::ZERO, now);
        }
        (computing.total(now), gives_way)
    }

    /// Whether the store is being polled, as opposed to being dropped.
    pub(in crate::wasm) fn is_polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed)
    }

    /// Whether a guest gave way in the middle of its turn.
    pub(super) fn has_yielded(&self) -> bool {
        self.yielded.load(Ordering::Relaxed)
    }

    /// No guest is in the middle of anything: what one computes from here on is counted anew.
    pub(super) fn returned(&self) {
        self.returns.fetch_add(1, Ordering::Relaxed);
    }

    /// A poll of the store begins, perhaps in the middle of a turn.
    pub(super) fn poll_begins(&self) {
        self.polling.store(true, Ordering::Relaxed);
        if self.yielded.swap(false, Ordering::Relaxed) {
            let mut computing = self.computing();
            computing.since = thread_time();
            computing.met = computing.since;
        } else {
            self.returned();
            self.ticked.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn poll_ends(&self) {
        self.polling.store(false, Ordering::Relaxed);
        if self.has_yielded() {
            let mut computing = self.computing();
            computing.before = computing.total(thread_time());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Until the thread has computed for as long as makes a store give way.
    fn compute() {
        let began = thread_time();
        while thread_time() - began < BRIEF {}
    }

    /// The clock of a store that has computed since the first tick of its poll.
    fn computing() -> Clock {
        let clock = Clock::new();
        clock.poll_begins();
        clock.tick();
        compute();
        clock
    }

    #[test]
    fn a_store_gives_way_at_a_tick_after_it_has_computed_since_another_one() {
        let clock = Clock::new();
        clock.poll_begins();
        compute();
        assert!(!clock.tick().1, "the first one may have come while it waited");
        assert!(!clock.tick().1, "it has computed nothing since");
        compute();
        assert!(clock.tick().1);
        clock.poll_ends();
    }

    #[test]
    fn a_store_that_has_given_way_goes_on_for_a_while_and_gives_way_again() {
        let clock = computing();
        let (computed, gave_way) = clock.tick();
        assert!(gave_way && take_gave_way() && clock.has_yielded());
        clock.poll_ends();

        clock.poll_begins();
        let (in_all, gives_way) = clock.tick();
        assert!(!gives_way && !take_gave_way() && !clock.has_yielded());
        assert!(in_all >= computed, "what it computed before counts on");
        compute();
        assert!(clock.tick().1);
        clock.poll_ends();
    }

    #[test]
    fn a_store_that_waited_begins_anew() {
        let clock = computing();
        clock.poll_ends();

        clock.poll_begins();
        compute();
        let (computed, gives_way) = clock.tick();
        assert!(!gives_way);
        assert!(computed < BRIEF, "it is counted from the first tick on");
        clock.poll_ends();
    }
}
