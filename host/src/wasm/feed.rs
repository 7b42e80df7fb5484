//! What happens in the host, for an operator who watches.
//!
//! **Problem.** Watching must cost nothing when nobody does, must not slow what is watched when somebody does, and must not show what a
//! crash could take back.
//!
//! **Mechanism.** A broadcast channel; whoever has news asks first whether anyone watches. What depends on a
//! turn comes with its ticket, for the watcher to wait for.
//!
//! **Limits.** [`BEHIND`]: a watcher who is further behind misses the oldest and is told how many. **Cost.** A load of a number when nobody watches; an
//! `Arc` and a push when somebody does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::broadcast;

use crate::id::{Digest, InstanceKey, RunId};
use crate::journal::{DeploymentRecord, Outcome, Ticket};

/// How far behind a watcher may be.
const BEHIND: usize = 1024;

/// Where news go.
pub struct Feed {
    /// What is counted rather than told.
    pub counts: Counts,
    watchers: AtomicUsize,
    sender: broadcast::Sender<News>,
}

/// What went wrong with guests since the host started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Panics of host functions.
    pub panics: AtomicU64,
    /// Stores that were stopped, as a run in them did not end.
    pub stopped: AtomicU64,
    /// Lines that guests logged in vain.
    pub dropped_lines: AtomicU64,
}

/// Something that happened.
#[derive(Clone)]
pub struct News {
    /// What must be durable before it is told.
    pub after: Option<Ticket>,
    pub what: Arc<Happening>,
}

/// What happened.
#[derive(Debug)]
pub enum Happening {
    /// An agent is served by another module, or no longer.
    Deployed { record: DeploymentRecord, previous: Option<Digest> },
    /// A store serves an instance.
    InstanceStarted { instance: InstanceKey, module: Digest },
    /// A store that served an instance is gone.
    InstanceEnded { instance: InstanceKey, module: Digest },
    /// A run has ended, on record or not.
    RunEnded { run: RunId, instance: InstanceKey, module: Digest, outcome: Outcome },
}

impl Default for Feed {
    fn default() -> Self {
        let (counts, watchers) = (Counts::default(), AtomicUsize::new(0));
        Self { counts, watchers, sender: broadcast::Sender::new(BEHIND) }
    }
}

impl Feed {
    /// Whether anyone watches: news that nobody hears need not be made.
    pub fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::Relaxed) > 0
    }

    /// Tells those who watch.
    pub fn tell(&self, after: Option<Ticket>, what: Happening) {
        // Without watchers there is no one to miss it.
        let _ = self.sender.send(News { after, what: Arc::new(what) });
    }

    /// Watches from now on.
    pub fn watch(self: &Arc<Self>) -> Watcher {
        self.watchers.fetch_add(1, Ordering::Relaxed);
        Watcher { feed: self.clone(), receiver: self.sender.subscribe() }
    }
}

/// Someone who watches.
pub struct Watcher {
    feed: Arc<Feed>,
    receiver: broadcast::Receiver<News>,
}

impl Watcher {
    /// What happens next, or how many happenings were missed. A call that is dropped has missed nothing.
    pub async fn next(&mut self) -> Result<News, u64> {
        match self.receiver.recv().await {
            Ok(news) => Ok(news),
            Err(broadcast::error::RecvError::Lagged(missed)) => Err(missed),
            // The feed, which is held here, has the sender.
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.feed.watchers.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_is_too_far_behind_is_told_how_much_was_missed() {
        let feed = Arc::new(Feed::default());
        assert!(!feed.is_watched());
        let mut watcher = feed.watch();
        assert!(feed.is_watched());
        let instance = InstanceKey::new("chat".parse().unwrap(), "demo").unwrap();
        let module = Digest::of(b"");
        for _ in 0..BEHIND + 3 {
            let instance = instance.clone();
            feed.tell(None, Happening::InstanceStarted { instance, module });
        }
        assert_eq!(watcher.next().await.err(), Some(3));
        for _ in 0..BEHIND {
            assert!(watcher.next().await.is_ok());
        }
        drop(watcher);
        assert!(!feed.is_watched());
    }
}
