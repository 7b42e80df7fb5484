//! How the host ends: first it drains, then it is forced.
//!
//! Two stages and a task tracker, cloned into whatever serves. When `drain` begins nothing new is taken on,
//! replies under way are finished and event streams end with a hint to come back; after a grace, `force` ends
//! what is left. A task that has something to lose runs on the tracker, so that the host waits for it. Every
//! connection and stream waits for a stage beside all else it does, so a wait costs one load each time it is polled.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::sync::Notify;
use tokio::sync::futures::OwnedNotified;
use tokio_util::task::TaskTracker;

/// Tells every part of the host to end, and knows which parts have not.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    /// Take on nothing new and finish what is under way.
    pub drain: Stage,
    /// Drop what is under way.
    pub force: Stage,
    /// The tasks to wait for.
    pub tasks: TaskTracker,
}

/// A stage that begins once. Clones are the same stage.
#[derive(Debug, Clone, Default)]
pub struct Stage(Arc<Beginning>);

#[derive(Debug, Default)]
struct Beginning {
    begun: AtomicBool,
    wake: Arc<Notify>,
}

impl Stage {
    /// Begins the stage.
    pub fn begin(&self) {
        self.0.begun.store(true, Ordering::Release);
        self.0.wake.notify_waiters();
    }

    /// Whether the stage has begun.
    pub fn has_begun(&self) -> bool {
        self.0.begun.load(Ordering::Acquire)
    }

    /// Waits until the stage begins.
    pub fn begun(&self) -> Begun {
        Begun { stage: self.clone(), wake: self.0.wake.clone().notified_owned(), waker: None }
    }
}

pin_project! {
    /// Ready when its stage begins.
    pub struct Begun {
        stage: Stage,
        #[pin]
        wake: OwnedNotified,
        // Who will be woken: registering takes a lock, and is done once per task.
        waker: Option<Waker>,
    }
}

impl Future for Begun {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        let registered = this.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker()));
        if !registered && this.wake.poll(cx).is_pending() {
            *this.waker = Some(cx.waker().clone());
        }
        // After registering, so that a stage does not begin unseen.
        if this.stage.has_begun() { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Shutdown {
    /// Drains, and after `grace` forces. Returns whether all tasks ended of themselves.
    pub async fn run_down(&self, grace: Duration) -> bool {
        self.drain.begin();
        self.tasks.close();
        let finished = tokio::time::timeout(grace, self.tasks.wait()).await.is_ok();
        self.force.begin();
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
                shutdown.drain.begun().await;
                let drained = tokio::time::Instant::now();
                shutdown.force.begun().await;
                drained.elapsed()
            }
        });
        assert!(!shutdown.run_down(Duration::from_secs(10)).await);
        assert_eq!(task.await.unwrap(), Duration::from_secs(10));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_drains_ends_the_wait() {
        let shutdown = Shutdown::default();
        shutdown.tasks.spawn(shutdown.drain.begun());
        assert!(shutdown.run_down(Duration::from_secs(3600)).await);
    }
}
