//! How the host ends: first it drains, then it is forced; or a part of it ends that must not.
//!
//! Two stages and a task tracker, cloned into whatever serves. When `drain` begins nothing new is taken on,
//! replies under way are finished and event streams end with a hint to come back; after a grace, `force` ends
//! what is left. A task that has something to lose runs on the tracker, so that the host waits for it. Every
//! connection and stream waits for a stage beside all else it does, so a wait costs one load each time it is polled.
//!
//! What works in the background is supervised: whoever starts it says what it is. A part that ends before the drain, or a
//! chore that panics, is a [loss](Shutdown::lost), on which the host ends and says why: one that goes on without it would look
//! alive and not be.

use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt as _;
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
    lost: Stage,
    loss: Arc<OnceLock<Loss>>,
}

/// A part of the host has ended though the host has not.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{part} {}, without which the host is not whole", if *.panicked { "panicked" } else { "ended" })]
pub struct Loss {
    part: &'static str,
    panicked: bool,
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

    /// Runs a part of the host that is there for as long as the host is.
    pub fn supervise(&self, part: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(part, false, work);
    }

    /// Runs a chore of the host, which ends when it is done.
    pub fn attend(&self, chore: &'static str, work: impl Future<Output = ()> + Send + 'static) {
        self.spawn(chore, true, work);
    }

    fn spawn(
        &self,
        part: &'static str,
        may_end: bool,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let shutdown = self.clone();
        tokio::spawn(async move {
            let panicked = AssertUnwindSafe(work).catch_unwind().await.is_err();
            if panicked || !(may_end || shutdown.drain.has_begun()) {
                let loss = Loss { part, panicked };
                tracing::error!("{loss}");
                // The first one tells.
                let _ = shutdown.loss.set(loss);
                shutdown.lost.begin();
            }
        });
    }

    /// Waits until a part of the host is lost.
    pub async fn lost(&self) -> Loss {
        self.lost.begun().await;
        self.loss.get().expect("it is set before the stage begins").clone()
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

    #[tokio::test]
    async fn a_part_that_ends_or_panics_is_lost_and_a_chore_only_if_it_panics() {
        let panics = || async { panic!("a mistake") };
        for (may_end, said) in [
            (false, "a part ended, without which the host is not whole"),
            (false, "a part panicked, without which the host is not whole"),
            (true, "a chore panicked, without which the host is not whole"),
        ] {
            let shutdown = Shutdown::default();
            shutdown.attend("a chore that is done", async {});
            match (may_end, said.contains("panicked")) {
                (true, _) => shutdown.attend("a chore", panics()),
                (false, true) => shutdown.supervise("a part", panics()),
                (false, false) => shutdown.supervise("a part", async {}),
            }
            assert_eq!(shutdown.lost().await.to_string(), said);
        }
    }

    #[tokio::test]
    async fn a_part_that_ends_with_the_host_is_not_lost() {
        let shutdown = Shutdown::default();
        let (held, gone) = tokio::sync::oneshot::channel::<()>();
        let drain = shutdown.drain.begun();
        shutdown.supervise("a part", async move {
            drain.await;
            drop(held);
        });
        shutdown.run_down(Duration::ZERO).await;
        assert!(gone.await.is_err());
        assert!(shutdown.loss.get().is_none());
    }
}
