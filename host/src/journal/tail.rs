//! The near end of a run: what readers share while it lives.
//!
//! **Problem.** Most readers follow a live run closely and all want the same few last events; the guest
//! must not run away from the disk; and one slow reader must cost no one else anything.
//!
//! **Mechanism.** A tail keeps the run's last *durable* events, up to a budget of bytes, and drops the
//! oldest: a reader that needs one of those reads the store. Only the writer appends, after its commit, so
//! what is in a tail is always in the store too. Readers hold no place among the events; they ask "what follows
//! this cursor", and one that finds nothing leaves its waker, at a seat that it keeps. The other way, a tail counts what the guest has
//! emitted and the disk has not taken yet, which is what `backlogged` means.
//!
//! **Limits.** The window is at most [`JournalLimits::tail_bytes`](crate::config::JournalLimits::tail_bytes), the backlog at
//! most [`JournalLimits::backlog_bytes`](crate::config::JournalLimits::backlog_bytes) or one event.
//!
//! **Cost.** One short lock per append and per question; a wake-up of the readers per commit.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Waker;

use slab::Slab;

use super::{Event, Outcome, RunRecord, lock};
use crate::id::{InstanceKey, RunId, Seq};

/// A run's last durable events and its backlog. It outlives the run for as long as someone reads it.
pub struct Tail {
    run: RunId,
    instance: InstanceKey,
    window_limit: usize,
    backlog_limit: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Bytes reserved by the guest and not durable yet.
    pending: usize,
    last: Seq,
    end: Option<Outcome>,
    /// A run of events without a gap, the newest of which is `last`; empty when that one was too large.
    window: VecDeque<Arc<Event>>,
    buffered: Buffered,
    /// Who is to be woken when something follows; a reader that waits for nothing keeps its seat empty.
    seats: Slab<Option<Waker>>,
}

/// Where a reader leaves its waker, once it has had to wait.
#[derive(Debug, Default)]
pub(super) struct Seat(Option<usize>);

/// What follows a cursor.
pub(super) enum Following {
    /// These events, at least one.
    Events(Vec<Arc<Event>>),
    /// Something that only the store still has.
    Stored,
    /// Nothing yet; the waker will be woken.
    Nothing,
    /// Nothing ever: the run is over.
    End(Outcome),
}

/// Where a number stands in a run.
pub(super) enum Place {
    /// Something may follow.
    Within,
    /// The run is over and it is the number of the last event.
    AtEnd,
    /// The run has not come that far.
    Beyond,
}

/// How much tails keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) window: usize,
    pub(super) backlog: usize,
}

impl Tail {
    /// A tail that has nothing in memory, of a run whose last durable event is `last`.
    pub(super) fn new(
        instance: InstanceKey,
        run: RunId,
        last: Seq,
        limits: Limits,
        gauge: &Arc<Gauge>,
    ) -> Self {
        Self {
            run,
            instance,
            window_limit: limits.window,
            backlog_limit: limits.backlog,
            inner: Mutex::new(Inner {
                pending: 0,
                last,
                end: None,
                window: VecDeque::new(),
                buffered: gauge.buffered(0),
                seats: Slab::new(),
            }),
        }
    }

    /// The tail of a run that is over: all of it is in the store.
    pub(super) fn ended(record: RunRecord, limits: Limits, gauge: &Arc<Gauge>) -> Self {
        let tail = Self::new(record.instance, record.run, record.last, limits, gauge);
        tail.end(Outcome { state: record.state, code: record.code });
        tail
    }

    /// The run.
    pub fn run(&self) -> RunId {
        self.run
    }

    /// The run's instance.
    pub fn instance(&self) -> &InstanceKey {
        &self.instance
    }

    /// The run's last durable event.
    pub fn last(&self) -> Seq {
        lock(&self.inner).last
    }

    /// Counts an event of this [size](Event::size) as emitted; false, and nothing is counted, when the
    /// run has too much that is not durable yet. An event that is too large for the limit is
    /// taken when nothing else is pending, as it would never fit otherwise. What was counted is released
    /// when the event is published.
    #[must_use]
    pub fn reserve(&self, bytes: usize) -> bool {
        let mut inner = lock(&self.inner);
        let after = inner.pending.saturating_add(bytes);
        let fits = inner.pending == 0 || after <= self.backlog_limit;
        if fits {
            inner.pending = after;
        }
        fits
    }

    /// Takes back what was reserved for events that will not be submitted.
    pub fn release(&self, bytes: usize) {
        let mut inner = lock(&self.inner);
        inner.pending = inner.pending.saturating_sub(bytes);
    }

    /// Appends a durable event. Who waits is still to be [woken](Self::waiting).
    pub(super) fn publish(&self, event: Arc<Event>) {
        let mut inner = lock(&self.inner);
        let size = event.size();
        inner.pending = inner.pending.saturating_sub(size);
        inner.last = event.seq;
        while inner.buffered.bytes() + size > self.window_limit {
            let Some(oldest) = inner.window.pop_front() else {
                return;
            };
            inner.buffered.shrink(oldest.size());
        }
        inner.buffered.grow(size);
        inner.window.push_back(event);
    }

    /// Marks the run as over. Who waits is still to be [woken](Self::waiting).
    pub(super) fn end(&self, outcome: Outcome) {
        lock(&self.inner).end = Some(outcome);
    }

    /// Hands over the wakers of all who wait, for whoever wakes them outside the lock.
    pub(super) fn waiting(&self, wakers: &mut Vec<Waker>) {
        let mut inner = lock(&self.inner);
        wakers.extend(inner.seats.iter_mut().filter_map(|(_, seat)| seat.take()));
    }

    /// What follows `cursor`: all that is here, or as much as `max_bytes` hold and at least one event. When
    /// nothing does yet, `waker` is left at the reader's seat, under the same lock, so that nothing is missed.
    pub(super) fn following(
        &self,
        cursor: Seq,
        max_bytes: usize,
        seat: &mut Seat,
        waker: &Waker,
    ) -> Following {
        let mut inner = lock(&self.inner);
        if cursor >= inner.last {
            if let Some(outcome) = &inner.end {
                return Following::End(outcome.clone());
            }
            match seat.0.and_then(|seat| inner.seats.get_mut(seat)) {
                Some(Some(left)) if left.will_wake(waker) => {}
                Some(left) => *left = Some(waker.clone()),
                None => seat.0 = Some(inner.seats.insert(Some(waker.clone()))),
            }
            return Following::Nothing;
        }
        let oldest = inner.window.front().map(|event| event.seq);
        let Some(skip) = oldest.and_then(|oldest| cursor.next().0.checked_sub(oldest.0)) else {
            return Following::Stored;
        };
        let Ok(skip) = usize::try_from(skip) else {
            return Following::Stored;
        };
        let mut bytes = 0;
        let fits = inner.window.iter().skip(skip).take_while(|event| {
            let first = bytes == 0;
            bytes += event.size();
            first || bytes <= max_bytes
        });
        Following::Events(fits.cloned().collect())
    }

    /// A reader goes.
    pub(super) fn leave(&self, seat: &Seat) {
        if let Some(seat) = seat.0 {
            lock(&self.inner).seats.try_remove(seat);
        }
    }

    /// Where the event of this number stands.
    pub(super) fn place(&self, seq: Seq) -> Place {
        let inner = lock(&self.inner);
        if seq > inner.last {
            Place::Beyond
        } else if seq == inner.last && inner.end.is_some() {
            Place::AtEnd
        } else {
            Place::Within
        }
    }
}

impl fmt::Debug for Tail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tail")
            .field("run", &self.run)
            .field("instance", &self.instance)
            .finish_non_exhaustive()
    }
}

/// How many bytes of events are in memory, in tails and in the pages of readers.
#[derive(Debug, Default)]
pub(super) struct Gauge {
    now: AtomicU64,
    peak: AtomicU64,
}

/// Bytes that count in a [`Gauge`] for as long as this lives.
#[derive(Debug)]
pub(super) struct Buffered {
    gauge: Arc<Gauge>,
    bytes: usize,
}

impl Gauge {
    pub(super) fn now(&self) -> u64 {
        self.now.load(Ordering::Relaxed)
    }

    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn buffered(self: &Arc<Self>, bytes: usize) -> Buffered {
        let mut buffered = Buffered { gauge: Arc::clone(self), bytes: 0 };
        buffered.grow(bytes);
        buffered
    }
}

impl Buffered {
    fn bytes(&self) -> usize {
        self.bytes
    }

    fn grow(&mut self, by: usize) {
        // Most tails never hold anything, and all threads share the gauge.
        if by == 0 {
            return;
        }
        self.bytes += by;
        let before = self.gauge.now.fetch_add(by as u64, Ordering::Relaxed);
        let now = before + by as u64;
        self.gauge.peak.fetch_max(now, Ordering::Relaxed);
    }

    fn shrink(&mut self, by: usize) {
        if by == 0 {
            return;
        }
        self.bytes -= by;
        self.gauge.now.fetch_sub(by as u64, Ordering::Relaxed);
    }
}

impl Drop for Buffered {
    fn drop(&mut self) {
        self.shrink(self.bytes);
    }
}

#[cfg(test)]
mod tests;
