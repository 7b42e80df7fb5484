//! The turns of one store: what its guest does between two suspensions, made durable as one.
//!
//! **Problem.** State and events that a guest writes side by side must never disagree after a crash, a
//! reply must not leave before what it may have seen is durable, and a guest that traps half way must leave
//! nothing of that half.
//!
//! **Mechanism.** Host functions add to the turn being made. [`Turns`] polls the store's future; when the
//! future comes back because every guest task waits, the turn goes to the journal as one batch, and then
//! the answers that depend on it are sent, each with the ticket to wait for. When it comes back only because an
//! epoch tick made a guest yield in the middle, the turn stays open. When the store fails, the turn is
//! thrown away and each run in flight gets its failure, on record if it streamed. A turn also ends between two steps of
//! the store's event loop, so that the calls of a busy instance never share a limit. A session that is *held* keeps its turn to itself, until it
//! is let go or thrown away: so a module is tried out without a trace, and what an instance keeps is migrated as one.
//!
//! A run that goes over a limit of its own has its failure put into the turn, and is over for its client when that is durable; its call has the
//! grace of a cancelled one to return, and takes its place until then. The [`Watchdog`](crate::wasm::Watchdog) asks when to look at such runs.
//!
//! **Limits.** A turn's bytes: emitting beyond it is `backlogged`, anything else traps. What a run may emit and [take](crate::wasm::account) in all.
//!
//! **Cost.** One uncontended mutex per host call, one queue push per turn. Where the time of runs is limited, a look at the clock for each; where
//! their computing is, two for each poll.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::hash::{BuildHasherDefault, Hasher};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use pin_project_lite::pin_project;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::config::InstanceLimits;
use crate::event;
use crate::fault::{Fault, Limit};
use crate::id::{Digest, RunId, Seq};
use crate::journal::{Event, Outcome, Turn, Write};
use crate::wasm::account::{Account, InFlight, Look};
use crate::wasm::chunks::{Chunk, End};
use crate::wasm::feed::Happening;
use crate::wasm::ledger::{Growth, Ledger, Outdated, StorageFull};
use crate::wasm::load::Load;
use crate::wasm::run::{Answer, Refused, Run, outcome};

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
    /// Whether the store is gone, or about to be.
    closed: AtomicBool,
    /// Whether anyone has looked at what is being made since the last turn ended.
    touched: AtomicBool,
    /// Wakes guests that flush when a turn was submitted.
    submitted: Notify,
    /// Whether the store is being polled, as opposed to being dropped.
    polling: AtomicBool,
    /// Whether a guest gave way in the middle of its turn.
    yielded: AtomicBool,
    /// Whether guests have met an epoch tick since the store last waited.
    ticked: AtomicBool,
    /// How often guests may have returned to the host.
    returns: AtomicU64,
    clock: Mutex<Clock>,
}

/// How long a guest has computed without returning to the host, from the first epoch tick on that it saw. Only
/// ticks look at the time, so that a call without one pays nothing.
struct Clock {
    /// After how many returns to the host the guest began.
    begun: u64,
    /// What it computed before it last gave way.
    before: Duration,
    since: Instant,
}

/// The turn being made, and the runs that may take part in it.
#[derive(Default)]
struct Making {
    runs: HashMap<RunId, InFlight, BuildHasherDefault<IdHasher>>,
    account: Account,
    writes: Vec<Write>,
    /// Whether the ledger knows that the turn writes to what the instance keeps.
    writing: bool,
    bytes: usize,
    document: Option<Arc<str>>,
    storage: BTreeMap<Box<str>, Option<Bytes>>,
    /// By how much that changes what the instance has stored.
    growth: Growth,
    /// Runs that did something in this turn.
    touched: Vec<Run>,
    /// Calls that returned in this turn.
    returned: Vec<RunId>,
    /// Runs that ended in this turn, and how, if anyone watches.
    ended: Vec<(RunId, Outcome)>,
    answers: Vec<(Run, Answer)>,
    chunks: Vec<(mpsc::OwnedPermit<Chunk>, Bytes)>,
    /// Bodies that end with this turn.
    ends: Vec<End>,
    /// Who waits for the last run in flight to end.
    idle: Option<Waker>,
}

/// Takes a run's id for its own hash: most of it is random, and no client chooses it.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, id: u128) {
        // The lower half, which has no time in it.
        self.0 = id as u64;
    }
}

/// Why a write was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum EmitRefused {
    Closed,
    Backlogged,
    TooLarge(usize),
    Invalid(String),
}

/// The turn has outgrown its limit, in bytes.
#[derive(Debug, thiserror::Error)]
#[error("the turn is larger than {0} bytes; await between writes")]
pub(super) struct TurnTooLarge(pub(super) usize);

/// Why a write to what the instance keeps was not taken.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteRefused {
    #[error(transparent)]
    TurnTooLarge(#[from] TurnTooLarge),
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error(transparent)]
    StorageFull(#[from] StorageFull),
    #[error(transparent)]
    Unreadable(#[from] crate::journal::StoreError),
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
            closed: AtomicBool::new(false),
            touched: AtomicBool::new(false),
            submitted: Notify::new(),
            polling: AtomicBool::new(false),
            yielded: AtomicBool::new(false),
            ticked: AtomicBool::new(false),
            returns: AtomicU64::new(0),
            clock: Mutex::new(Clock { begun: 0, before: Duration::ZERO, since: Instant::now() }),
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

    fn making(&self) -> MutexGuard<'_, Making> {
        self.touched.store(true, Ordering::Relaxed);
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A call on this run begins.
    pub fn begin(&self, run: &Run) {
        // That a run is in flight is nothing for the turn to hand over.
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let (in_flight, sooner) = making.account.begin(run.clone(), &self.limits);
        making.runs.insert(run.id(), in_flight);
        if sooner {
            self.alarm.store(true, Ordering::Release);
        }
        if run.origin().resumed.is_some() {
            run.restart(self.module, &mut making.writes);
            making.touch(run);
            self.touched.store(true, Ordering::Relaxed);
        }
    }

    /// Asks a run to end, and sees to it that it does once its watchdog is woken. Whether nobody has asked before, if it is in flight.
    pub fn cancel(&self, run: RunId) -> Option<bool> {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let run = &making.runs.get(&run).filter(|of| !of.run.has_ended())?.run;
        let first = run.cancel();
        self.alarm.store(true, Ordering::Release);
        Some(first)
    }

    /// The runs in flight.
    pub fn runs(&self) -> Vec<RunId> {
        let making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        let runs = making.runs.values().map(|of| &of.run);
        runs.filter(|run| !run.has_ended()).map(Run::id).collect()
    }

    /// Whether the watchdog is to look now, which it then does.
    pub(super) fn take_alarm(&self) -> bool {
        self.alarm.load(Ordering::Acquire) && self.alarm.swap(false, Ordering::AcqRel)
    }

    /// Looks at the runs that end at some time. Those whose time is over end now, for their clients.
    pub(super) fn look(&self, now: Instant) -> Look {
        let mut making = self.making();
        let Making { runs, account, .. } = &mut *making;
        let (over, look) = account.look(now, self.limits.cancel_grace, runs.values());
        if let Some(limit) = self.limits.run_time {
            over.iter().for_each(|run| self.exceed(&mut making, run, Limit::RunTime(limit)));
        }
        drop(making);
        self.submit_unless_yielded();
        look
    }

    /// Charges the runs in flight for what a poll of the store has computed, whose turns have been handed over.
    fn charge(&self, computed: Duration, limit: Duration) {
        let mut making = self.making();
        let Making { runs, account, .. } = &mut *making;
        let over = account.charge(computed, runs.values());
        over.iter().for_each(|run| self.exceed(&mut making, run, Limit::RunCpu(limit)));
        drop(making);
        self.submit_unless_yielded();
    }

    /// Hands over what the host has added to the turn, unless a guest is in the middle of it.
    fn submit_unless_yielded(&self) {
        if !self.yielded.load(Ordering::Relaxed) {
            self.submit();
        }
    }

    /// A run has gone over one of its limits: it ends, in this turn, and its call is to return.
    fn exceed(&self, making: &mut Making, run: &Run, limit: Limit) {
        if !run.has_ended() && run.exceed(limit) {
            self.end(making, run, Answer::Failed(Fault::Limit(limit)));
            self.alarm.store(true, Ordering::Release);
        }
    }

    /// The run to which a log line belongs: known when only one is in flight.
    pub(super) fn only_run(&self) -> Option<RunId> {
        let making = self.making();
        let mut runs = making.runs.keys();
        runs.next().copied().filter(|_| runs.next().is_none())
    }

    /// Declares a run's answer a stream.
    pub(super) fn open(&self, run: &Run) {
        let mut making = self.making();
        self.open_in(&mut making, run);
    }

    fn open_in(&self, making: &mut Making, run: &Run) {
        making.touch(run);
        if run.open(self.module, &mut making.writes) {
            let reader = self.ledger.reader(run.tail().clone());
            making.answers.push((run.clone(), Answer::Events(reader, run.wish())));
        }
    }

    /// Takes an event into the turn and returns its number.
    pub(super) fn emit(
        &self,
        run: &Run,
        name: Option<String>,
        id: Option<String>,
        data: String,
    ) -> Result<Seq, EmitRefused> {
        event::check(name.as_deref(), id.as_deref())
            .map_err(|wrong| EmitRefused::Invalid(wrong.to_string()))?;
        let event = Event::new(Seq::ZERO, name, id, data);
        let limit = self.limits.event_bytes;
        let size = event.size();
        if size - Event::OVERHEAD > limit {
            return Err(EmitRefused::TooLarge(limit));
        }
        let mut making = self.making();
        if making.bytes > 0 && making.bytes + size > self.limits.turn_bytes {
            return Err(EmitRefused::Backlogged);
        }
        if !run.has_ended() {
            self.open_in(&mut making, run);
        }
        match run.emit(event, &self.limits, &mut making.writes) {
            Ok(seq) => {
                making.bytes += size;
                Ok(seq)
            }
            Err(Refused::Closed) => Err(EmitRefused::Closed),
            Err(Refused::Backlogged) => Err(EmitRefused::Backlogged),
            Err(Refused::Over(limit)) => {
                self.exceed(&mut making, run, limit);
                Err(EmitRefused::Closed)
            }
        }
    }

    /// The state document as the guest sees it, with what this turn wrote.
    pub(super) fn document(&self) -> Result<Option<Arc<str>>, crate::journal::StoreError> {
        let written = self.making().document.clone();
        written.map_or_else(|| self.ledger.document(), |document| Ok(Some(document)))
    }

    /// Tells the ledger, once a turn, that it writes to what the instance keeps.
    fn begin_writing(&self, making: &mut Making) -> Result<(), Outdated> {
        if !making.writing {
            self.ledger.begin_writing(self.version)?;
            making.writing = true;
        }
        Ok(())
    }

    fn end_writing(&self, writing: &mut bool) {
        if std::mem::take(writing) {
            self.ledger.end_writing();
        }
    }

    /// Takes the state document into the turn.
    pub(super) fn set_document(&self, document: String) -> Result<(), WriteRefused> {
        let document: Arc<str> = document.into();
        let mut making = self.making();
        self.begin_writing(&mut making)?;
        making.grow(document.len(), self.limits.turn_bytes)?;
        making.document = Some(document.clone());
        making.writes.push(Write::State(Some(document)));
        Ok(())
    }

    /// A storage value that this turn wrote or (by `Some(None)`) deleted.
    pub(super) fn written(&self, key: &str) -> Option<Option<Bytes>> {
        self.making().storage.get(key).cloned()
    }

    /// Takes a storage write into the turn.
    pub(super) fn store(&self, key: String, value: Option<Bytes>) -> Result<(), WriteRefused> {
        let key: Box<str> = key.into();
        let mut making = self.making();
        self.begin_writing(&mut making)?;
        let size = |value: &Option<Bytes>| value.as_ref().map(Bytes::len);
        let more = self.ledger.growth(&key, making.storage.get(&key).map(size), size(&value))?;
        let growth = making.growth.and(more);
        self.ledger.check_room(growth, more, &self.limits)?;
        making.grow(key.len() + size(&value).unwrap_or(0), self.limits.turn_bytes)?;
        making.growth = growth;
        making.storage.insert(key.clone(), value.clone());
        making.writes.push(Write::Storage { key, value });
        Ok(())
    }

    /// Hands bytes of a chunked body to its client, once what the turn wrote is durable.
    pub(super) fn chunk(&self, permit: mpsc::OwnedPermit<Chunk>, bytes: Bytes) {
        self.making().chunks.push((permit, bytes));
    }

    /// The guest's part of a run is over, by an answer, by nothing but its events (`NoContent`), or by a failure.
    pub fn finish(&self, run: &Run, answer: Answer) {
        let mut making = self.making();
        making.returned.push(run.id());
        // One that went over a limit has.
        if !run.has_ended() {
            self.end(&mut making, run, answer);
        }
    }

    /// A run ends, in this turn.
    fn end(&self, making: &mut Making, run: &Run, answer: Answer) {
        making.touch(run);
        let streamed = run.is_streaming();
        run.keep(&answer, self.limits.value_bytes, &mut making.writes);
        let failure = if let Answer::Failed(fault) = &answer { Some(fault.clone()) } else { None };
        run.end(failure.as_ref(), &mut making.writes);
        match answer {
            Answer::NoContent | Answer::Failed(_) if streamed => {}
            Answer::Response(..) if streamed => {
                tracing::warn!(
                    instance = %self.ledger.key(), run = %run.id(),
                    "the agent returned a response after it had emitted; it is dropped"
                );
            }
            answer => making.answers.push((run.clone(), answer)),
        }
        self.ended(making, run, failure.as_ref());
    }

    fn ended(&self, making: &mut Making, run: &Run, failure: Option<&Fault>) {
        if self.ledger.feed().is_watched() {
            making.ended.push((run.id(), outcome(failure)));
        }
        if let Some(waker) = making.idle.take() {
            waker.wake();
        }
    }

    /// A run gives its client an answer and goes on, until it is [concluded](Session::conclude) or [left](Session::leave).
    pub(super) fn answer(&self, run: &Run, answer: Answer) {
        let mut making = self.making();
        run.keep(&answer, self.limits.value_bytes, &mut making.writes);
        making.answers.push((run.clone(), answer));
    }

    /// The chunked body of a run is complete.
    pub(super) fn conclude(&self, run: &Run, end: End) {
        let mut making = self.making();
        making.returned.push(run.id());
        if run.has_ended() {
            // It went over a limit, and its body is not whole.
            return;
        }
        making.ends.push(end);
        making.touch(run);
        run.end(None, &mut making.writes);
        self.ended(&mut making, run, None);
    }

    /// A run that is not on record is over. It writes nothing, so it ends here and now, whatever turn is being made.
    pub(super) fn leave(&self, run: &Run, failure: Option<&Fault>) {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        if run.has_ended() || making.runs.remove(&run.id()).is_none() {
            return;
        }
        run.end(failure, &mut Vec::new());
        self.load.ended();
        if let Some(waker) = making.idle.take() {
            waker.wake();
        }
        drop(making);
        if self.ledger.feed().is_watched() {
            let (instance, outcome) = (self.ledger.key().clone(), outcome(failure));
            let (run, module) = (run.id(), self.module);
            let what = Happening::RunEnded { run, instance, module, outcome };
            self.ledger.feed().tell(Some(self.ledger.latest()), what);
        }
    }

    /// Waits until the last run in flight has ended.
    pub(super) fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut making = self.making();
        if making.runs.values().all(|of| of.run.has_ended()) {
            return Poll::Ready(());
        }
        making.idle = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits until what the guest has written is durable.
    pub(super) async fn flush(&self) -> Result<(), crate::journal::Unavailable> {
        if self.is_held() {
            return Ok(());
        }
        // Taken before the turn is looked at, so that its end is not missed.
        let submitted = self.submitted.notified();
        if !self.making().writes.is_empty() {
            // The turn ends when the guest suspends, so it is handed over after this poll.
            submitted.await;
        }
        self.ledger.settled().await
    }

    /// Ends the turn between two steps of the store's event loop, where no guest is in the middle of one: the calls
    /// of a busy instance must not add up to one long turn.
    pub(super) fn between(&self) {
        self.returns.fetch_add(1, Ordering::Relaxed);
        self.submit();
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

    /// The store is about to go.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::Release);
    }

    /// Whether the store is gone, or about to be.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
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

    /// Keeps the turn going over every suspension, until it is [let go](Self::let_go) or [thrown away](Self::throw_away).
    pub fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Which version of the agent the store runs.
    pub(super) fn version(&self) -> u64 {
        self.version
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

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an epoch tick in the middle of guest code; returns how long the guest has computed since it last
    /// returned to the host, to a tick, without the time it gave way to others, and whether it is to give way.
    ///
    /// A store that waited for longer than a tick meets one as soon as it is polled: giving way there would double the
    /// polls of all stores that do little and seldom, and set each back behind all others.
    pub(super) fn tick(&self) -> (Duration, bool) {
        let gives_way = self.ticked.swap(true, Ordering::Relaxed);
        self.yielded.store(gives_way, Ordering::Relaxed);
        let mut clock = self.clock();
        let begun = self.returns.load(Ordering::Relaxed);
        if clock.begun != begun {
            *clock = Clock { begun, before: Duration::ZERO, since: Instant::now() };
        }
        (clock.before + clock.since.elapsed(), gives_way)
    }

    /// Whether the store is being polled, as opposed to being dropped.
    pub(super) fn is_polling(&self) -> bool {
        self.polling.load(Ordering::Relaxed)
    }

    /// A poll of the store begins, perhaps in the middle of a turn.
    fn poll_begins(&self) {
        self.polling.store(true, Ordering::Relaxed);
        if self.yielded.swap(false, Ordering::Relaxed) {
            self.clock().since = Instant::now();
        } else {
            self.returns.fetch_add(1, Ordering::Relaxed);
            self.ticked.store(false, Ordering::Relaxed);
        }
    }

    fn poll_ends(&self) {
        self.polling.store(false, Ordering::Relaxed);
        if self.yielded.load(Ordering::Relaxed) {
            let mut clock = self.clock();
            let computed = clock.since.elapsed();
            clock.before += computed;
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Of a store that was dropped in the middle of a turn.
        let mut writing = self.making().writing;
        self.end_writing(&mut writing);
    }
}

impl Making {
    fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.answers.is_empty()
            && self.returned.is_empty()
            && self.ended.is_empty()
            && self.chunks.is_empty()
    }

    fn touch(&mut self, run: &Run) {
        if self.touched.last().is_none_or(|last| last.id() != run.id()) {
            self.touched.push(run.clone());
        }
    }

    fn grow(&mut self, size: usize, limit: usize) -> Result<(), TurnTooLarge> {
        // One write may be as large as its own limit allows, whatever the turn's.
        if self.bytes > 0 && self.bytes + size > limit {
            return Err(TurnTooLarge(limit));
        }
        self.bytes += size;
        Ok(())
    }
}

pin_project! {
    /// Drives a store's future and ends its turns.
    pub(super) struct Turns<F> {
        #[pin]
        driver: F,
        session: Arc<Session>,
    }
}

impl<F> Turns<F> {
    /// Ends the turns of `driver`, the future of this session's store.
    pub(super) fn new(driver: F, session: Arc<Session>) -> Self {
        Self { driver, session }
    }
}

/// Ends a poll, by a panic too.
struct Polling<'a>(&'a Session);

impl Drop for Polling<'_> {
    fn drop(&mut self) {
        self.0.poll_ends();
    }
}

impl<F, T, E> Future for Turns<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let session = &**this.session;
        let computing = session.limits.run_cpu.map(|limit| (limit, Instant::now()));
        session.poll_begins();
        let polling = Polling(session);
        let polled = this.driver.poll(cx);
        drop(polling);
        if polled.is_pending() {
            let computed = computing.map(|(limit, began)| (limit, began.elapsed()));
            session.submit_unless_yielded();
            if let Some((limit, computed)) = computed {
                session.charge(computed, limit);
            }
            return Poll::Pending;
        }
        let done = ready!(polled);
        if done.is_ok() {
            session.submit();
        }
        Poll::Ready(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::testing::Bench;

    const MS: Duration = Duration::from_millis(1);

    fn limits() -> InstanceLimits {
        InstanceLimits { run_cpu: Some(100 * MS), run_time: Some(100 * MS), ..Default::default() }
    }

    /// As a poll of the store that computes for so long and hands its turn over.
    fn poll(session: &Session, computed: Duration) {
        session.submit();
        session.charge(computed, 100 * MS);
    }

    #[tokio::test]
    async fn what_a_store_computes_is_shared_by_the_runs_that_were_in_flight() {
        let bench = Bench::new();
        let session = bench.session(Digest::of(b""), limits());
        let ((one, _one), (two, _two), (three, _three)) = (bench.run(), bench.run(), bench.run());
        poll(&session, 1000 * MS);
        session.begin(&one);
        session.begin(&two);
        poll(&session, 120 * MS);
        session.finish(&two, Answer::NoContent);
        poll(&session, 60 * MS);
        assert_eq!(one.over(), None, "60 ms, and half of what two had still a part in");
        session.begin(&three);
        poll(&session, 18 * MS);
        assert_eq!((one.over(), three.over()), (None, None), "99 ms and 9 ms");
        poll(&session, 2 * MS);
        assert_eq!((one.over(), three.over()), (Some(Limit::RunCpu(100 * MS)), None));
        assert!(one.has_ended() && one.is_cancelled());
        poll(&session, 178 * MS);
        assert_eq!(three.over(), None, "one has not returned, and has its part: 99 ms");
        session.finish(&one, Answer::NoContent);
        poll(&session, 2 * MS);
        assert_eq!(three.over(), Some(Limit::RunCpu(100 * MS)));
        assert_eq!(bench.load.in_flight(), 1, "three has not returned");
        bench.journal.close().await;
    }

    #[tokio::test]
    async fn the_watchdog_is_told_when_to_look() {
        let bench = Bench::new();
        let session = bench.session(Digest::of(b""), limits());
        let ((one, _one), (two, _two)) = (bench.run(), bench.run());
        assert!(!session.take_alarm());
        let began = Instant::now();
        session.begin(&one);
        assert!(session.take_alarm());
        let Look::At(first) = session.look(began) else { panic!("there is a run") };
        assert!(first >= began + 100 * MS);
        session.begin(&two);
        assert!(!session.take_alarm(), "it will be over later");
        session.cancel(two.id());
        assert!(session.take_alarm());
        assert_eq!(session.look(began), Look::At(first));
        assert!(matches!(session.look(first), Look::At(when) if when > first), "its grace");
        assert_eq!((one.over(), two.over()), (Some(Limit::RunTime(100 * MS)), None));
        assert!(session.take_alarm());
        session.finish(&one, Answer::NoContent);
        session.finish(&two, Answer::NoContent);
        session.submit();
        assert_eq!(session.look(first + Duration::from_secs(3600)), Look::Never);
        let ((three, _three), later) = (bench.run(), first + Duration::from_secs(7200));
        session.begin(&three);
        session.cancel(three.id());
        assert_eq!(session.look(later), Look::Stop(three.id()));
        bench.journal.close().await;
    }
}
