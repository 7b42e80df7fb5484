//! All runs of an instance, read as one.
//!
//! **Problem.** A page that shows what an instance does wants every event of every run as it comes, also of runs that others begin.
//!
//! **Mechanism.** A [`Follower`] has a [`Reader`] for each run that goes on, from where the run stands or, if it begins later,
//! from its start. They are asked in turn, so that no run keeps the others from being heard.
//!
//! **Limits.** There is no order between runs, and so no place to go on from: who comes back follows from then on. One that falls
//! behind by more than a thousand new runs is let go.
//!
//! **Cost.** A reader for each run that goes on.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::sync::mpsc::Receiver;

use super::handle::Shared;
use super::{Page, Reader, Step, Tail};
use crate::id::{InstanceKey, RunId, Seq};

/// Reads all runs of an instance from now on.
pub struct Follower {
    shared: Arc<Shared>,
    begun: Receiver<Arc<Tail>>,
    readers: VecDeque<Reader>,
}

/// What a [`Follower`] comes to next.
#[derive(Debug)]
pub enum Followed {
    /// More events of a run.
    Events(RunId, Page),
    /// It cannot go on; the message says why. Another one may.
    Broken(String),
}

impl Follower {
    pub(super) fn new(shared: Arc<Shared>, instance: &InstanceKey) -> Self {
        let (tails, begun) = shared.live.follow(instance);
        let reader = |tail: Arc<Tail>| {
            let last = tail.last();
            Reader::new(Arc::clone(&shared), tail, last)
        };
        let readers = tails.into_iter().map(reader).collect();
        Self { shared, begun, readers }
    }

    /// Waits for what follows. A call that is dropped has read nothing.
    pub async fn next(&mut self) -> Followed {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Followed> {
        while let Poll::Ready(begun) = self.begun.poll_recv(cx) {
            let Some(tail) = begun else {
                return Poll::Ready(Followed::Broken("too many runs have begun".into()));
            };
            self.readers.push_back(Reader::new(Arc::clone(&self.shared), tail, Seq::ZERO));
        }
        for _ in 0..self.readers.len() {
            let Some(mut reader) = self.readers.pop_front() else { break };
            match reader.poll_next(cx) {
                Poll::Pending => self.readers.push_back(reader),
                Poll::Ready(Step::Events(page)) => {
                    let run = reader.tail().run();
                    self.readers.push_back(reader);
                    return Poll::Ready(Followed::Events(run, page));
                }
                Poll::Ready(Step::End(_)) => {}
                Poll::Ready(Step::Broken(why)) => return Poll::Ready(Followed::Broken(why)),
            }
        }
        Poll::Pending
    }
}
