//! The runs that are not over, and who wants to hear of new ones.
//!
//! A run is here from before its start is durable until its end is, so a client that learns of it finds its tail. Who follows
//! an instance is handed the tail of each run that it begins. The cost is one short lock for each start and end of a run on record.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::{self, Receiver, Sender};

use super::{Tail, lock};
use crate::id::{InstanceKey, RunId};

/// New runs that a follower may be behind by: one that is slower is let go.
const BEHIND: usize = 1024;

#[derive(Default)]
pub(super) struct Live(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    runs: HashMap<RunId, Arc<Tail>>,
    followers: HashMap<InstanceKey, Vec<Sender<Arc<Tail>>>>,
}

impl Live {
    /// Those that are not over when the journal is opened.
    pub(super) fn of(tails: impl IntoIterator<Item = Arc<Tail>>) -> Self {
        let runs = tails.into_iter().map(|tail| (tail.run(), tail)).collect();
        Self(Mutex::new(Inner { runs, followers: HashMap::new() }))
    }

    pub(super) fn get(&self, run: RunId) -> Option<Arc<Tail>> {
        lock(&self.0).runs.get(&run).cloned()
    }

    pub(super) fn len(&self) -> usize {
        lock(&self.0).runs.len()
    }

    pub(super) fn tails(&self) -> Vec<Arc<Tail>> {
        lock(&self.0).runs.values().cloned().collect()
    }

    /// The tails of an instance's runs, the newest last.
    pub(super) fn of_instance(&self, instance: &InstanceKey) -> Vec<Arc<Tail>> {
        lock(&self.0).of_instance(instance)
    }

    /// A run begins, or goes on.
    pub(super) fn start(&self, tail: &Arc<Tail>) {
        let mut inner = lock(&self.0);
        let known = inner.runs.insert(tail.run(), Arc::clone(tail)).is_some();
        if known || inner.followers.is_empty() {
            return;
        }
        if let Some(followers) = inner.followers.get_mut(tail.instance()) {
            followers.retain(|follower| follower.try_send(Arc::clone(tail)).is_ok());
            if followers.is_empty() {
                inner.followers.remove(tail.instance());
            }
        }
    }

    pub(super) fn end(&self, run: RunId) {
        lock(&self.0).runs.remove(&run);
    }

    /// The runs of an instance that there are, and those that come.
    pub(super) fn follow(&self, instance: &InstanceKey) -> (Vec<Arc<Tail>>, Receiver<Arc<Tail>>) {
        let (sender, receiver) = mpsc::channel(BEHIND);
        let mut inner = lock(&self.0);
        inner.followers.retain(|_, followers| {
            followers.retain(|follower| !follower.is_closed());
            !followers.is_empty()
        });
        inner.followers.entry(instance.clone()).or_default().push(sender);
        (inner.of_instance(instance), receiver)
    }
}

impl Inner {
    fn of_instance(&self, instance: &InstanceKey) -> Vec<Arc<Tail>> {
        let of = |tail: &&Arc<Tail>| tail.instance() == instance;
        let mut tails: Vec<_> = self.runs.values().filter(of).cloned().collect();
        tails.sort_by_key(|tail| tail.run());
        tails
    }
}
