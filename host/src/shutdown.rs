//! How the host ends: first it drains, then it is forced.
//!
//! Two tokens and a task tracker, cloned into whatever serves. When `drain` is cancelled nothing new is taken on,
//! replies under way are finished and event streams end with a hint to come back; after a grace, `force` ends
//! what is left. A task that has something to lose runs on the tracker, so that the host waits for it.

use std::io;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Tells every part of the host to end, and knows which parts have not.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take on nothing new and finish what is under way.
    pub drain: CancellationToken,
    /// Drop what is under way.
    pub force: CancellationToken,
    /// The tasks to wait for.
    pub tasks: TaskTracker,
}

impl Shutdown {
    /// Drains, and after `grace` forces. Returns whether all tasks ended of themselves.
    pub async fn run_down(&self, grace: Duration) -> bool {
        self.drain.cancel();
        self.tasks.close();
        let finished = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        self.force.cancel();
        finished
    }
}

/// Waits until the process is told to end, by SIGTERM or ctrl-c.
#[cfg(unix)]
pub async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => interrupted,
    }
}

/// Waits until the process is told to end, by ctrl-c.
#[cfg(not(unix))]
pub async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn force_comes_only_after_the_grace() {
        let shutdown = Shutdown::default();
        let task = shutdown.tasks.spawn({
            let shutdown = shutdown.clone();
            async move {
                shutdown.drain.cancelled().await;
                let drained = tokio::time::Instant::now();
                shutdown.force.cancelled().await;
                drained.elapsed()
            }
        });
        assert!(!shutdown.run_down(Duration::from_secs(10)).await);
        assert_eq!(task.await.unwrap(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_drains_ends_the_wait() {
        let shutdown = Shutdown::default();
        shutdown.tasks.spawn(shutdown.drain.clone().cancelled_owned());
        assert!(shutdown.run_down(Duration::from_secs(3600)).await);
    }
}
