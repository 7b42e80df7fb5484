//! What an instance has written, from the moment a turn was handed to the journal.
//!
//! **Problem.** A turn is durable a commit after it was made, and a swap lets two stores serve one instance
//! for a while. Both must read what was written last, not what the disk has.
//!
//! **Mechanism.** One ledger per instance, shared by its stores and kept until the last of them is gone and
//! everything is durable. It caches the state document and the storage writes that are under way; what it
//! does not have is as the journal has it. It notes with what a module writes that it is of that module. A module that takes over
//! what another wrote puts up a *fence*: it waits for the turns that are being made, and from then on older stores of the instance cannot write.
//!
//! **Limits.** The document's size, by configuration; undurable storage writes, by the turn's.
//!
//! **Cost.** A lane, a mutex, and the document once it was used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::id::{Digest, InstanceKey, RunId, Seq};
use crate::journal::{
    Journal, Lane, Pair, Reader, StoreError, Tail, Ticket, Turn, Unavailable, Write,
};
use crate::wasm::feed::Feed;

/// The writes of one instance.
pub struct Ledger {
    key: InstanceKey,
    journal: Journal,
    feed: Arc<Feed>,
    lane: Arc<Lane>,
    memory: Mutex<Memory>,
    /// Wakes who waits for the turns in the making that write.
    written: Notify,
}

#[derive(Default)]
struct Memory {
    /// The document, once it has been read or written.
    document: Option<Option<Arc<str>>>,
    /// Storage writes that may not be durable yet.
    storage: BTreeMap<Box<str>, (Option<Bytes>, Ticket)>,
    /// The module that wrote last, once that is known.
    module: Option<Option<Digest>>,
    /// Turns in the making that write to the document or the storage.
    writing: usize,
    /// Stores of an earlier version of the agent cannot write.
    fence: u64,
}

/// What an instance keeps has been taken over by a newer module.
#[derive(Debug, thiserror::Error)]
#[error(
    "a newer build of the agent has taken over what this instance keeps, so a run that began on an older one can no longer change it"
)]
pub(super) struct Outdated;

impl Ledger {
    /// The ledger of an instance that has none.
    pub fn new(journal: Journal, feed: Arc<Feed>, key: InstanceKey) -> Self {
        let lane = journal.lane(key.clone());
        Self { key, journal, feed, lane, memory: Mutex::default(), written: Notify::new() }
    }

    /// Where it is told what happens.
    pub fn feed(&self) -> &Feed {
        &self.feed
    }

    /// The instance.
    pub fn key(&self) -> &InstanceKey {
        &self.key
    }

    /// The tail of a new run of this instance.
    pub fn tail(&self, run: RunId) -> Arc<Tail> {
        self.journal.tail(&self.key, run)
    }

    /// A reader of a run from its beginning.
    pub(super) fn reader(&self, tail: Arc<Tail>) -> Reader {
        self.journal.reader(tail, Seq::ZERO)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a turn of this module to the journal.
    pub(super) fn submit(&self, module: Digest, mut turn: Turn) -> Ticket {
        let mut memory = self.memory();
        let mut stored = Vec::new();
        let mut keeps = false;
        for write in &turn.0 {
            match write {
                Write::State(document) => {
                    keeps = true;
                    memory.document = Some(document.clone());
                }
                Write::Storage { key, value } => {
                    keeps = true;
                    stored.push((key.clone(), value.clone()));
                }
                Write::Start { .. }
                | Write::Event { .. }
                | Write::End { .. }
                | Write::Module(_)
                | Write::Key { .. }
                | Write::Reply { .. } => {}
            }
        }
        if keeps && memory.module != Some(Some(module)) {
            memory.module = Some(Some(module));
            turn.0.push(Write::Module(module));
        }
        // Under the lock, so that what memory holds last is what the lane has last.
        let ticket = self.lane.submit(turn);
        if !stored.is_empty() {
            memory.storage.retain(|_, (_, written)| !written.is_durable());
            let written = |(key, value)| (key, (value, ticket.clone()));
            memory.storage.extend(stored.into_iter().map(written));
        }
        ticket
    }

    /// A turn of a store of this version begins to write. It ends when it has been submitted or thrown away.
    pub(super) fn begin_writing(&self, version: u64) -> Result<(), Outdated> {
        let mut memory = self.memory();
        if version < memory.fence {
            return Err(Outdated);
        }
        memory.writing += 1;
        Ok(())
    }

    /// A turn that wrote has been submitted or thrown away.
    pub(super) fn end_writing(&self) {
        let mut memory = self.memory();
        memory.writing -= 1;
        if memory.writing == 0 {
            self.written.notify_waiters();
        }
    }

    /// Keeps stores of versions before this one from writing, and waits until what they have begun to write is there.
    pub(super) async fn fence(&self, version: u64) -> Fence<'_> {
        let before = {
            let mut memory = self.memory();
            let fence = memory.fence.max(version);
            std::mem::replace(&mut memory.fence, fence)
        };
        let fence = Fence { ledger: self, version, before };
        loop {
            // Taken before the look, so that an end after it is not missed.
            let written = self.written.notified();
            if self.memory().writing == 0 {
                return fence;
            }
            written.await;
        }
    }

    /// The module that wrote last to what the instance keeps, if anything did.
    pub(super) fn module(&self) -> Result<Option<Digest>, StoreError> {
        let mut memory = self.memory();
        if let Some(module) = memory.module {
            return Ok(module);
        }
        let module = self.journal.module(&self.key)?;
        memory.module = Some(module);
        Ok(module)
    }

    /// What must be durable before anything leaves that may depend on the instance's past.
    pub fn latest(&self) -> Ticket {
        self.lane.latest()
    }

    /// Waits until everything handed over is durable.
    pub async fn settled(&self) -> Result<(), Unavailable> {
        self.latest().settled().await
    }

    /// The state document. The first call reads it from the store, which takes microseconds when it is cached.
    pub(super) fn document(&self) -> Result<Option<Arc<str>>, StoreError> {
        let mut memory = self.memory();
        if let Some(document) = &memory.document {
            return Ok(document.clone());
        }
        let document = self.journal.state(&self.key)?;
        memory.document = Some(document.clone());
        Ok(document)
    }

    /// The value under a storage key.
    pub(super) async fn value(self: &Arc<Self>, key: String) -> Result<Option<Bytes>, StoreError> {
        if let Some((value, _)) = self.memory().storage.get(key.as_str()) {
            return Ok(value.clone());
        }
        self.read(move |journal, instance| journal.value(instance, &key)).await
    }

    /// At most `limit` pairs and `max_bytes` of those under a prefix, after a key. Everything handed over
    /// must be durable.
    pub(super) async fn list(
        self: &Arc<Self>,
        prefix: String,
        after: Option<String>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Pair>, StoreError> {
        self.read(move |journal, instance| {
            journal.list(instance, &prefix, after.as_deref(), limit, max_bytes)
        })
        .await
    }

    async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        read: impl FnOnce(&Journal, &InstanceKey) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let ledger = self.clone();
        tokio::task::spawn_blocking(move || read(&ledger.journal, &ledger.key))
            .await
            .unwrap_or_else(|failed| Err(StoreError(format!("the read did not end: {failed}"))))
    }
}

/// Older stores of the instance cannot write while this is up, and after it was left standing.
pub(super) struct Fence<'a> {
    ledger: &'a Ledger,
    version: u64,
    before: u64,
}

impl Fence<'_> {
    /// Leaves it standing for as long as the instance is live.
    pub(super) fn stand(self) {
        std::mem::forget(self);
    }
}

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        let mut memory = self.ledger.memory();
        // A later one stays.
        if memory.fence == self.version {
            memory.fence = self.before;
        }
    }
}
