//! Where turns end: the future that polls a store's own.
//!
//! **Problem.** A turn is what a guest does between two suspensions, and when it suspends is known only to who polls its store.
//!
//! **Mechanism.** [`Turns`] polls the store's future. When that comes back because every guest task waits, or is over, the turn is handed over, and
//! after it the runs are charged for what the poll computed. When it comes back only because an epoch tick made a guest give way in the middle, the turn
//! stays open. When it has failed nothing is handed over: whoever drives the store says what becomes of its runs.
//!
//! **Limits.** A turn that is over within a poll, between two steps of the event loop, is ended [there](Session::between).
//!
//! **Cost.** It is a part of the future that it drives. Where the computing of runs is limited, two looks at the clock for each poll.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::Session;
use super::clock::{Clock, thread_time};

pin_project! {
    /// Drives a store's future and ends its turns.
    pub(in crate::wasm) struct Turns<F> {
        #[pin]
        driver: F,
        session: Arc<Session>,
    }
}

impl<F> Turns<F> {
    /// Ends the turns of `driver`, the future of this session's store.
    pub(in crate::wasm) fn new(driver: F, session: Arc<Session>) -> Self {
        Self { driver, session }
    }
}

/// Ends a poll, by a panic too.
struct Polling<'a>(&'a Clock);

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
        let computing = session.limits.run_cpu.map(|limit| (limit, thread_time()));
        session.clock.poll_begins();
        let polling = Polling(&session.clock);
        let polled = this.driver.poll(cx);
        drop(polling);
        let Poll::Ready(done) = polled else {
            let computed =
                computing.map(|(limit, began)| (limit, thread_time().saturating_sub(began)));
            session.submit_unless_yielded();
            if let Some((limit, computed)) = computed {
                session.charge(computed, limit);
            }
            return Poll::Pending;
        };
        if done.is_ok() {
            session.submit();
        }
        Poll::Ready(done)
    }
}
