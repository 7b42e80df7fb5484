//! Sessions without a store, on a journal of their own.

use std::sync::Arc;

use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::config::{InstanceLimits, JournalLimits};
use crate::id::{Digest, InstanceKey, RunId};
use crate::journal::{Journal, Options};
use crate::wasm::{Answered, Feed, Ledger, Load, Origin, Run, Running, Session};

/// What a session is made of, and what it changes.
pub(super) struct Bench {
    pub(super) directory: TempDir,
    pub(super) journal: Journal,
    pub(super) feed: Arc<Feed>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) load: Arc<Load>,
}

impl Bench {
    pub(super) fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("journal.redb");
        let options = Options { file, limits: JournalLimits::default() };
        let (journal, _) = Journal::open(options).unwrap();
        let key = InstanceKey::new("chat".parse().unwrap(), "demo").unwrap();
        let feed = Arc::new(Feed::default());
        let ledger = Arc::new(Ledger::new(journal.clone(), feed.clone(), key));
        let load = Arc::new(Load::new(Instant::now(), Arc::default()));
        Self { directory, journal, feed, ledger, load }
    }

    pub(super) fn session(&self, module: Digest, limits: InstanceLimits) -> Arc<Session> {
        let running = Running { module, version: 1, resumes: false };
        let limits = Arc::new(limits);
        Arc::new(Session::new(self.ledger.clone(), running, limits, self.load.clone()))
    }

    /// A run that is on its way to the instance.
    pub(super) fn run(&self) -> (Run, oneshot::Receiver<Answered>) {
        self.load.sent();
        let (answer, answered) = oneshot::channel();
        let origin = Origin::default();
        (Run::new(self.ledger.clone(), RunId::generate(), origin, answer), answered)
    }
}
