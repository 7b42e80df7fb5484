//! What an instance has written, from the moment a turn was handed to the journal.
//!
//! **Problem.** A turn is durable a commit after it was made, and a swap lets two stores serve one instance
//! for a while. Both must read what was written last, not what the disk has.
//!
//! **Mechanism.** One ledger per instance, shared by its stores and kept until the last of them is gone and
//! everything is durable. It caches the state document and the storage writes that are under way; what it
//! does not have is as the journal has it.
//!
//! **Limits.** The document's size, by configuration; undurable storage writes, by the turn's.
//!
//! **Cost.** A lane, a mutex, and the document once it was used.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::id::{InstanceKey, RunId, Seq};
use crate::journal::{
    Journal, Lane, Pair, Reader, StoreError, Tail, Ticket, Turn, Unavailable, Write,
};

/// The writes of one instance.
pub struct Ledger {
    key: InstanceKey,
    journal: Journal,
    lane: Arc<Lane>,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    /// The document, once it has been read or written.
    document: Option<Option<Arc<str>>>,
    /// Storage writes that may not be durable yet.
    storage: BTreeMap<Box<str>, (Option<Bytes>, Ticket)>,
}

impl Ledger {
    /// The ledger of an instance that has none.
    pub fn new(journal: Journal, key: InstanceKey) -> Self {
        let lane = journal.lane(key.clone());
        Self { key, journal, lane, memory: Mutex::default() }
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

    /// Hands a turn to the journal.
    pub(super) fn submit(&self, turn: Turn) -> Ticket {
        let mut memory = self.memory();
        let mut stored = Vec::new();
        for write in &turn.0 {
            match write {
                Write::State(document) => memory.document = Some(document.clone()),
                Write::Storage { key, value } => stored.push((key.clone(), value.clone())),
                Write::Start { .. }
                | Write::Event { .. }
                | Write::End { .. }
                | Write::Module(_) => {}
            }
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
