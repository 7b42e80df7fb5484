//! Who sees to it that a run ends which is to end.
//!
//! **Problem.** A run that was cancelled, or went over a limit, is ended by its guest alone, which may never do so. Timers inside a store's event
//! loop do not fire while a guest computes.
//!
//! **Mechanism.** Polled beside the store, by whoever polls that. It looks at the runs when it is told to, which is when one begins that ends
//! sooner than all others or one is to end, and when the time that it was told then has come.
//!
//! **Limits.** A guest is stopped between two polls of its store, which it cannot put off for longer than an epoch tick.
//!
//! **Cost.** A load of a flag for each poll of a store; a timer, for stores whose runs are to end at some time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::time::{Instant, Sleep, sleep_until};

use crate::wasm::account::Look;
use crate::wasm::session::Session;

/// The watch over the runs of one store.
pub struct Watchdog {
    session: Arc<Session>,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Watchdog {
    /// A watch over the runs of this session's store.
    pub fn new(session: Arc<Session>) -> Self {
        Self { session, timer: None }
    }

    /// Ready when the store is to be dropped as it is. For use after each poll of the store.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let timer = &mut self.timer;
            let is_due = timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready());
            if !self.session.take_alarm() && !is_due {
                return Poll::Pending;
            }
            match (self.session.look(Instant::now()), timer) {
                (Look::Stop(run), _) => {
                    let instance = self.session.ledger().key();
                    tracing::warn!(
                        %instance, %run, "a run that is to end does not; its store is stopped"
                    );
                    return Poll::Ready(());
                }
                (Look::Never, timer) => *timer = None,
                (Look::At(when), Some(timer)) => timer.as_mut().reset(when),
                (Look::At(when), timer) => *timer = Some(Box::pin(sleep_until(when))),
            }
        }
    }
}
