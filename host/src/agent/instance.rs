//! The task that owns one live instance's store.
//!
//! **Problem.** A store belongs to one task, can fail at any await, and has callers who must hear of it.
//!
//! **Mechanism.** The actor takes calls from a bounded mailbox until the directory drops its end, which is how
//! an instance is retired: idle, swapped, or pushed out. Queued calls and those in flight are served to
//! their end first. After a failure the directory forgets the actor, and calls that it had not begun go to a
//! fresh one; when it could not even start, they are answered with the fault. A store that is stopped, for a run that was
//! to end and did not, has its other runs gone on with in a fresh one, as after a crash.
//!
//! ```text
//!   starting --instantiated, migrated--> serving --mailbox closed, last run ended--> settling --durable--> gone
//!      |                                    |                                            ^
//!      +----------- cannot start -----------+--- store failed: runs end -----------------+
//!                                           +--- stopped: runs end or go on elsewhere ---+
//! ```
//!
//! **Limits.** [`InstanceLimits::mailbox`](crate::config::InstanceLimits::mailbox). **Cost.** A task, a mailbox and a store.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::agent::directory::{Directory, Refused};
use crate::agent::order::Generation;
use crate::agent::registry::Deployed;
use crate::agent::resume::{RETRY, call_again, insist};
use crate::fault::Fault;
use crate::wasm::{Call, Entry, LiveStore, Session, StartError, Watchdog};

/// How long a start waits for a place in a full pool.
const ROOM: Duration = Duration::from_secs(1);

/// How long a resumption waits after its instance could not be migrated: another module may serve by then.
const MIGRATION_RETRY: Duration = Duration::from_secs(5);

/// What an actor is made of.
pub(super) struct Actor {
    pub(super) directory: Directory,
    pub(super) generation: Generation,
    pub(super) deployed: Arc<Deployed>,
    pub(super) session: Arc<Session>,
    pub(super) mailbox: mpsc::Receiver<Box<Call>>,
}

impl Actor {
    /// Lives until the instance is retired or fails.
    pub(super) async fn run(mut self) {
        let ledger = self.session.ledger().clone();
        match self.start().await {
            Ok(store) => {
                let served = self.serve(store).await;
                self.directory.engine().reclaim(&self.session);
                if served.is_err() {
                    self.directory.forget(ledger.key(), self.generation);
                    self.pass_on_queued().await;
                }
            }
            Err(fault) => {
                self.directory.forget(ledger.key(), self.generation);
                self.refuse_queued(&fault).await;
            }
        }
        // Another store of this instance may start meanwhile and shares the ledger. A journal that has died
        // ends the host, so what it still owes does not matter.
        drop(ledger.settled().await);
        self.directory.gone(ledger.key(), self.generation);
    }

    /// Serves until the instance is retired; an error is the store's end before that.
    async fn serve(&mut self, store: LiveStore) -> Result<(), Fault> {
        let session = &*self.session;
        let served = {
            let mut serving = pin!(store.serve(&mut self.mailbox));
            let mut watchdog = Watchdog::new(self.session.clone());
            poll_fn(|cx| match serving.as_mut().poll(cx) {
                Poll::Ready(served) => Poll::Ready(Some(served)),
                Poll::Pending => watchdog.poll(cx).map(|()| None),
            })
            .await
        };
        let Some(served) = served else {
            session.ledger().feed().counts.stopped.fetch_add(1, Ordering::Relaxed);
            for run in session.interrupt() {
                let key = session.ledger().key();
                tracing::info!(instance = %key, run = %run.id(), "an interrupted run goes on");
                if let Some(call) = call_again(run) {
                    let directory = self.directory.clone();
                    insist(directory, key.clone(), call, Duration::ZERO);
                }
            }
            return Err(Fault::Interrupted);
        };
        served
    }

    async fn start(&self) -> Result<LiveStore, Fault> {
        let engine = self.directory.engine();
        let start = || {
            let granted = self.deployed.granted.clone();
            LiveStore::start(engine, &self.deployed.module, self.session.clone(), granted)
        };
        let deadline = Instant::now() + ROOM;
        let mut started = start().await;
        while matches!(started, Err(StartError::NoRoom)) && Instant::now() < deadline {
            let mut left = pin!(self.directory.left());
            // Before room is made, so that a store that leaves at once is not missed.
            left.as_mut().enable();
            if !self.directory.make_room() {
                break;
            }
            drop(tokio::time::timeout_at(deadline, left).await);
            started = start().await;
        }
        let limits = self.session.limits();
        let mut store = started.map_err(|cause| {
            let key = self.session.ledger().key();
            tracing::error!(instance = %key, module = %self.session.module(), %cause, "cannot start");
            match cause {
                StartError::NoRoom => self.directory.full(),
                StartError::Failed { fault, .. } => fault,
            }
        })?;
        if self.deployed.module.migrates() {
            // Few do, and all would have place for it.
            Box::pin(store.migrate(limits.migration)).await?;
        }
        Ok(store)
    }

    /// Gives the calls that the failed store had not begun to the next one.
    async fn pass_on_queued(&mut self) {
        self.mailbox.close();
        while let Some(call) = self.mailbox.recv().await {
            let key = self.session.ledger().key();
            let current = self.directory.current(key).unwrap_or_else(|| self.deployed.clone());
            let passed = self.directory.send(key, &current, |_| *call);
            if let Err(Refused { call, fault }) = passed {
                self.refuse(*call, &fault);
            }
        }
    }

    /// Answers the calls that no store will take.
    async fn refuse_queued(&mut self, fault: &Fault) {
        self.mailbox.close();
        while let Some(call) = self.mailbox.recv().await {
            self.refuse(*call, fault);
        }
    }

    /// Answers a call that no store takes. A resumption has no client to come again, so what will pass does not end
    /// its run: it is tried again, or left to the host's next start.
    fn refuse(&self, call: Call, fault: &Fault) {
        match (call.entry, fault) {
            (Entry::Resume(_), Fault::Draining) => {}
            (
                Entry::Resume(_),
                Fault::HostBusy { .. }
                | Fault::AgentFull { .. }
                | Fault::AgentBusy { .. }
                | Fault::InstanceBusy { .. },
            ) => {
                let key = self.session.ledger().key().clone();
                insist(self.directory.clone(), key, call, RETRY);
            }
            (Entry::Resume(_), Fault::MigrationFailed) => {
                let key = self.session.ledger().key().clone();
                insist(self.directory.clone(), key, call, MIGRATION_RETRY);
            }
            _ => {
                self.session.begin(&call.run);
                self.session.fail(fault);
            }
        }
    }
}
