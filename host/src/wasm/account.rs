//! What the runs of a store take of its time, and when that is too much.
//!
//! **Problem.** A run may go on for so long, and so much may be computed for it. Which of several runs a store computes for cannot be told from
//! outside, and looking at each of a thousand runs after each poll would cost more than most polls.
//!
//! **Mechanism.** What a poll computes is charged, in equal parts, to the runs that were in flight in it: one sum goes up, and a run is over when it
//! has come as far as it may since the run began. Time is told by the clock. Of both it is known when the next run may be over, and only then are they
//! looked at. A run that is to end has the grace to return.
//!
//! **Limits.** A run that leaves in the middle of a poll has its full part of it, one that comes too.
//!
//! **Cost.** For a run whose time is limited, a look at the clock. No input or output here: times are given.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::InstanceLimits;
use crate::id::RunId;
use crate::wasm::run::Run;

/// A run whose call has not returned.
pub(super) struct InFlight {
    pub(super) run: Run,
    /// When it is over, if its time is limited.
    until: Option<Instant>,
    /// How far the sum may come, if computing is limited.
    charge: Option<Duration>,
}

/// What is known of all runs of a store.
#[derive(Default)]
pub(super) struct Account {
    /// What a run that was always in flight has been charged.
    charged: Duration,
    /// How much that is when the next run may be over.
    due: Duration,
    /// Runs that have left since it was charged last.
    left: usize,
    /// When the runs are to be looked at next.
    look_at: Option<Instant>,
}

/// When the runs of a store are to be looked at again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    At(Instant),
    /// When there is news.
    Never,
    /// This run had its grace and has not returned: the store is to be dropped as it is.
    Stop(RunId),
}

impl Account {
    /// A run begins. Also whether the runs are to be looked at sooner because of it.
    pub(super) fn begin(&mut self, run: Run, limits: &InstanceLimits) -> (InFlight, bool) {
        // What is too far away to be told is never.
        let until = limits.run_time.and_then(|limit| Instant::now().checked_add(limit));
        let charge = limits.run_cpu.and_then(|limit| self.charged.checked_add(limit));
        self.due = charge.map_or(self.due, |charge| self.due.min(charge));
        let sooner = until
            .filter(|until| self.look_at.is_none_or(|look_at| *until < look_at))
            .inspect(|until| self.look_at = Some(*until))
            .is_some();
        (InFlight { run, until, charge }, sooner)
    }

    /// A run is no longer in flight.
    pub(super) fn leave(&mut self) {
        self.left += 1;
    }

    /// Charges what a poll has computed to these runs and those that have left in it. Returns those that are over.
    pub(super) fn charge<'a>(
        &mut self,
        computed: Duration,
        runs: impl ExactSizeIterator<Item = &'a InFlight>,
    ) -> Vec<Run> {
        let sharing = runs.len() + std::mem::take(&mut self.left);
        let sharing = u32::try_from(sharing).unwrap_or(u32::MAX);
        self.charged += computed.checked_div(sharing).unwrap_or_default();
        if self.charged < self.due {
            return Vec::new();
        }
        self.due = Duration::MAX;
        let mut over = Vec::new();
        for InFlight { run, charge, .. } in runs.filter(|of| !of.run.has_ended()) {
            match charge {
                Some(charge) if *charge <= self.charged => over.push(run.clone()),
                Some(charge) => self.due = self.due.min(*charge),
                None => {}
            }
        }
        over
    }

    /// Looks at these runs. Returns those whose time is over, and when to look again, when they have been told to end.
    pub(super) fn look<'a>(
        &mut self,
        now: Instant,
        grace: Duration,
        runs: impl Iterator<Item = &'a InFlight>,
    ) -> (Vec<Run>, Look) {
        self.look_at = None;
        let mut over = Vec::new();
        for InFlight { run, until, .. } in runs {
            let end = match run.cancelled_at() {
                Some(since) => since.checked_add(grace),
                None => *until,
            };
            match end {
                Some(end) if end > now => {
                    self.look_at = Some(self.look_at.map_or(end, |look_at| look_at.min(end)));
                }
                Some(_) if run.is_cancelled() => return (Vec::new(), Look::Stop(run.id())),
                Some(_) if !run.has_ended() => over.push(run.clone()),
                _ => {}
            }
        }
        (over, self.look_at.map_or(Look::Never, Look::At))
    }
}
