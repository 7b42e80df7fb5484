//! The turns of one store: what its guest does between two suspensions, made durable as one.
//!
//! **Problem.** State and events that a guest writes side by side must never disagree after a crash, a
//! reply must not leave before what it may have seen is durable, and a guest that traps half way must leave
//! nothing of that half.
//!
//! **Mechanism.** Host functions add to the turn being [made](making): what guests [write](writes), and how their [runs] end. When the guest
//! suspends, as the [clock] and who [polls the store](turns) tell, the turn goes to the journal as one batch, and then
//! the answers that depend on it are sent, each with the ticket to wait for. When the store fails, the turn is
//! thrown away and each run in flight gets its failure, on record if it streamed. A turn also ends between two steps of
//! the store's event loop, so that the calls of a busy instance never share a limit. A session that is *held* keeps its turn to itself, until it
//! is let go or thrown away: so a module is tried out without a trace, and what an instance keeps is migrated as one.
//!
//! **Limits.** A turn's bytes, and what a run may emit and [take](crate::wasm::account) in all.
//!
//! **Cost.** One uncontended mutex per host call, one queue push per turn.

mod clock;
mod making;
mod runs;
mod turns;
mod writes;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use self::clock::Clock;
#[cfg(test)]
pub(crate) use self::clock::give_way;
pub use self::clock::{take_gave_way, thread_time};
use self::making::Making;
pub(super) use self::turns::Turns;
pub(super) use self::writes::{EmitRefused, TurnTooLarge, WriteRefused};
use crate::config::InstanceLimits;
use crate::fault::Fault;
use crate::id::Digest;
use crate::journal::{Turn, Write};
use crate::wasm::account::InFlight;
use crate::wasm::chunks::End;
use crate::wasm::feed::Happening;
use crate::wasm::ledger::{Growth, Ledger};
use crate::wasm::load::Load;
use crate::wasm::run::{Answer, Run};

/// What a store and its actor share.
pub struct Session {
    ledger: Arc<Ledger>,
    module: Digest,
    /// Which version of the agent the module is, counted up.
    version: u64,
    resumable: bool,
    limits: Arc<InstanceLimits>,
    load: Arc<Load>,
    making: Mutex<Making>,
    /// Whether the turn goes on over every suspension.
    held: AtomicBool,
    /// Whether the watchdog is to look now.
    alarm: AtomicBool,
    /// Bytes of memory that the store's guest has.
    memory: AtomicUsize,
    /// Whether the store is gone, or about to be.
    closed: AtomicBool,
    /// Whether anyone has looked at what is being made since the last turn ended.
    touched: AtomicBool,
    /// Wakes guests that flush when a turn was submitted.
    submitted: Notify,
    clock: Clock,
}

/// Which module a store runs.
#[derive(Debug, Clone, Copy)]
pub struct Running {
    pub module: Digest,
    /// Which version of the agent it is, counted up whenever another module serves.
    pub version: u64,
    /// Whether it goes on with runs that were interrupted.
    pub resumes: bool,
}

impl Session {
    /// A session for a store of this instance.
    pub fn new(
        ledger: Arc<Ledger>,
        Running { module, version, resumes }: Running,
        limits: Arc<InstanceLimits>,
        load: Arc<Load>,
    ) -> Self {
        Self {
            ledger,
            module,
            version,
            resumable: resumes,
            limits,
            load,
            making: Mutex::default(),
            held: AtomicBool::new(false),
            alarm: AtomicBool::new(false),
            memory: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            submitted: Notify::new(),
            clock: Clock::new(),
        }
    }

    /// The instance's ledger.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    /// The limits in force.
    pub fn limits(&self) -> &Arc<InstanceLimits> {
        &self.limits
    }

    /// The module that the store runs.
    pub fn module(&self) -> Digest {
        self.module
    }

    /// Bytes of memory that the store's guest has, or had.
    pub(super) fn memory(&self) -> usize {
        self.memory.load(Ordering::Relaxed)
    }

    pub(super) fn set_memory(&self, bytes: usize) {
        self.memory.store(bytes, Ordering::Relaxed);
    }

    /// Which version of the agent the store runs.
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    /// When the store is polled, and for how long guests compute.
    pub(super) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What is being made.
    fn making(&self) -> MutexGuard<'_, Making> {
        self.touched.store(true, Ordering::Relaxed);
        self.untouched()
    }

    /// The same, for who leaves nothing in it that is to be handed over.
    fn untouched(&self) -> MutexGuard<'_, Making> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the turn between two steps of the store's event loop, where no guest is in the middle of one: the calls
    /// of a busy instance must not add up to one long turn.
    pub(super) fn between(&self) {
        self.clock.returned();
        self.submit();
    }

    /// Hands over what the host has added to the turn, unless a guest is in the middle of it.
    fn submit_unless_yielded(&self) {
        if !self.clock.has_yielded() {
            self.submit();
        }
    }

    /// Hands the turn over and sends the answers that waited for it.
    fn submit(&self) {
        if !self.touched.load(Ordering::Relaxed) {
            return;
        }
        if self.is_held() {
            return;
        }
        // What no client takes is dropped when the lock is not held: with the response of an exchange its run ends.
        let mut untaken = Vec::new();
        let mut guard = self.making();
        self.touched.store(false, Ordering::Relaxed);
        if guard.is_empty() {
            return;
        }
        let making = &mut *guard;
        let mut writes = std::mem::take(&mut making.writes);
        if self.resumable && !writes.is_empty() {
            // Whatever the turn wrote may be part of any run in flight, so each can be resumed from here.
            for InFlight { run, .. } in making.runs.values() {
                run.record(self.module, &mut writes);
                run.submitted();
            }
        }
        let ticket = match writes.is_empty() {
            true => self.ledger.latest(),
            false => self.ledger.submit(self.module, Turn(writes)),
        };
        self.end_writing(&mut making.writing);
        making.bytes = 0;
        making.document = None;
        making.storage.clear();
        making.growth = Growth::default();
        making.touched.drain(..).for_each(|run| run.submitted());
        for run in making.returned.drain(..) {
            if making.runs.remove(&run).is_some() {
                self.load.ended();
                making.account.leave();
            }
        }
        for (run, outcome) in making.ended.drain(..) {
            let instance = self.ledger.key().clone();
            let what = Happening::RunEnded { run, instance, module: self.module, outcome };
            self.ledger.feed().tell(Some(ticket.clone()), what);
        }
        for (run, answer) in making.answers.drain(..) {
            untaken.extend(run.answer(answer, ticket.clone(), self.module).err());
        }
        for (permit, bytes) in making.chunks.drain(..) {
            permit.send((bytes, ticket.clone()));
        }
        making.ends.drain(..).for_each(End::mark);
        self.submitted.notify_waiters();
        drop(guard);
        drop(untaken);
    }

    /// Throws the turn away; returns the runs that are in flight.
    fn discard(&self) -> Vec<Run> {
        let mut making = self.making();
        let Making { runs, account, writes, mut writing, answers, .. } =
            std::mem::take(&mut *making);
        for write in &writes {
            if let Write::Event { tail, event } = write {
                tail.release(event.size());
            }
        }
        self.end_writing(&mut writing);
        let in_flight: Vec<_> = runs.values().map(|of| of.run.clone()).collect();
        in_flight.iter().for_each(Run::discarded);
        (making.runs, making.account) = (runs, account);
        drop(making);
        drop(answers);
        in_flight
    }

    /// The store has failed: nothing of the turn remains, and every run in flight ends with this fault.
    pub fn fail(&self, fault: &Fault) {
        self.close();
        for run in self.discard() {
            // Why it was to end comes before what it did instead.
            let fault = run.over().map_or_else(|| fault.clone(), Fault::Limit);
            self.finish(&run, Answer::Failed(fault));
        }
        self.submit();
    }

    /// The store was stopped for the sake of runs that were to end and did not: they end now, and those that
    /// shared the store are interrupted. Returns what is to be gone on with elsewhere, and where it stands.
    pub fn interrupt(&self) -> Vec<Run> {
        let mut resumed = Vec::new();
        for run in self.discard() {
            if run.is_cancelled() {
                let fault = run.over().map_or(Fault::Cancelled, Fault::Limit);
                self.finish(&run, Answer::Failed(fault));
            } else if let Some(again) = run.to_resume() {
                self.making().returned.push(run.id());
                resumed.push(again);
            } else {
                self.finish(&run, Answer::Failed(Fault::Interrupted));
            }
        }
        self.submit();
        resumed
    }

    /// The store is about to go.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the store is gone, or about to be.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Keeps the turn going over every suspension, until it is [let go](Self::let_go) or [thrown away](Self::throw_away).
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Whether the turn has written to storage.
    pub(super) fn has_stored(&self) -> bool {
        !self.making().storage.is_empty()
    }

    /// Ends a held turn, with this document in place of the instance's, as one of this module.
    pub(super) fn let_go(&self, document: Option<Arc<str>>) -> Result<(), WriteRefused> {
        let mut making = self.making();
        self.begin_writing(&mut making)?;
        making
            .grow(document.as_ref().map_or(0, |document| document.len()), self.limits.turn_bytes)?;
        making.writes.push(Write::State(document));
        drop(making);
        self.held.store(false, Ordering::Relaxed);
        self.submit();
        Ok(())
    }

    /// Ends a held turn as if it had never been.
    pub(super) fn throw_away(&self) {
        self.discard();
        self.held.store(false, Ordering::Relaxed);
    }

    /// The first answer of a held session's run.
    pub(super) fn take_answer(&self) -> Option<Answer> {
        self.making().answers.pop().map(|(_, answer)| answer)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Of a store that was dropped in the middle of a turn.
        let mut writing = self.making().writing;
        self.end_writing(&mut writing);
    }
}
