//! The runs in flight: how they begin, how they end, and what of them the turn has.
//!
//! **Problem.** A run ends when its guest returns, but it may be over before for its client: it went over a limit, or was to end. Its call then goes on
//! for a while, and must neither end it again nor be forgotten.
//!
//! **Mechanism.** A run is in flight from its call's beginning to its return, which counts when the turn that has it is handed over. Its end, with its
//! answer, is put into the turn, once: by the guest's return, or before it by whoever finds it over a limit. Such a run is over for its client when that is durable; its
//! call has the grace of a cancelled one to return, and takes its place until then. The [`Watchdog`](crate::wasm::Watchdog) asks when to look at such
//! runs, and is told when there is news.
//!
//! **Limits.** What a run may [take](crate::wasm::account). A run that is not on record has no part in a turn, and ends at once.
//!
//! **Cost.** A lock, and a place in a map. What looks at all runs does so when one may be over, or for those who ask.

use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Instant;

use super::Session;
use super::making::Making;
use crate::fault::{Fault, Limit};
use crate::id::RunId;
use crate::wasm::account::Look;
use crate::wasm::chunks::End;
use crate::wasm::feed::Happening;
use crate::wasm::run::{Answer, Run, outcome};

impl Session {
    /// A call on this run begins.
    pub fn begin(&self, run: &Run) {
        let mut making = self.untouched();
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
        let making = self.untouched();
        let run = &making.runs.get(&run).filter(|of| !of.run.has_ended())?.run;
        let first = run.cancel();
        self.alarm.store(true, Ordering::Release);
        Some(first)
    }

    /// The runs in flight.
    pub fn runs(&self) -> Vec<RunId> {
        let making = self.untouched();
        let runs = making.runs.values().map(|of| &of.run);
        runs.filter(|run| !run.has_ended()).map(Run::id).collect()
    }

    /// Whether the watchdog is to look now, which it then does.
    pub(in crate::wasm) fn take_alarm(&self) -> bool {
        self.alarm.load(Ordering::Acquire) && self.alarm.swap(false, Ordering::AcqRel)
    }

    /// Looks at the runs that end at some time. Those whose time is over end now, for their clients.
    pub(in crate::wasm) fn look(&self, now: Instant) -> Look {
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
    pub(super) fn charge(&self, computed: Duration, limit: Duration) {
        let mut making = self.making();
        let Making { runs, account, .. } = &mut *making;
        let over = account.charge(computed, runs.values());
        over.iter().for_each(|run| self.exceed(&mut making, run, Limit::RunCpu(limit)));
        drop(making);
        self.submit_unless_yielded();
    }

    /// A run has gone over one of its limits: it ends, in this turn, and its call is to return.
    pub(super) fn exceed(&self, making: &mut Making, run: &Run, limit: Limit) {
        if !run.has_ended() && run.exceed(limit) {
            self.end(making, run, Answer::Failed(Fault::Limit(limit)));
            self.alarm.store(true, Ordering::Release);
        }
    }

    /// The run to which a log line belongs: known when only one is in flight.
    pub(in crate::wasm) fn only_run(&self) -> Option<RunId> {
        let making = self.making();
        let mut runs = making.runs.keys();
        runs.next().copied().filter(|_| runs.next().is_none())
    }

    /// A run gives its client an answer and goes on, until it is [concluded](Session::conclude) or [left](Session::leave).
    pub(in crate::wasm) fn answer(&self, run: &Run, answer: Answer) {
        let mut making = self.making();
        run.keep(&answer, self.limits.value_bytes, &mut making.writes);
        making.answers.push((run.clone(), answer));
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

    /// The chunked body of a run is complete.
    pub(in crate::wasm) fn conclude(&self, run: &Run, end: End) {
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
    pub(in crate::wasm) fn leave(&self, run: &Run, failure: Option<&Fault>) {
        let mut making = self.untouched();
        if run.has_ended() || making.runs.remove(&run.id()).is_none() {
            return;
        }
        run.end(failure, &mut Vec::new());
        self.load.ended();
        // One that leaves between two polls has no part in what the next one computes.
        if self.clock.is_polling() {
            making.account.leave();
        }
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
    pub(in crate::wasm) fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut making = self.making();
        if making.runs.values().all(|of| of.run.has_ended()) {
            return Poll::Ready(());
        }
        making.idle = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::InstanceLimits;
    use crate::id::Digest;
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
    async fn a_run_that_leaves_has_its_part_of_the_poll_that_it_leaves_in() {
        let bench = Bench::new();
        let session = bench.session(Digest::of(b""), limits());
        let ((one, _one), (two, _two), (three, _three)) = (bench.run(), bench.run(), bench.run());
        for run in [&one, &two, &three] {
            session.begin(run);
        }
        session.clock.poll_begins();
        session.leave(&two, None);
        session.clock.poll_ends();
        poll(&session, 180 * MS);
        session.leave(&three, None);
        poll(&session, 39 * MS);
        assert_eq!(one.over(), None, "60 ms, and 39 that it has alone");
        poll(&session, MS);
        assert_eq!(one.over(), Some(Limit::RunCpu(100 * MS)));
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
