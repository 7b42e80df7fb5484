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
//! The first write to storage counts what is stored, and from then on each turn that is handed over is added up. Two stores that write at the
//! same time do not see each other's turn before that, and may together go over the limit by one.
//!
//! **Limits.** The document's size, and what is stored in all, by configuration; undurable storage writes, by the turn's.
//!
//! **Cost.** A lane, a mutex, the document once it was used, and the keys once storage was written to: counting reads all of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::config::InstanceLimits;
use crate::id::{Digest, InstanceKey, RunId, Seq};
use crate::journal::{
    Journal, Lane, Pair, Reader, StoreError, Tail, Ticket, Turn, Unavailable, Write,
};
use crate::wasm::feed::Feed;
use crate::wasm::log::Lines;

/// How many bytes of what is stored are in memory at once while it is counted.
const COUNTED_AT_ONCE: usize = 1 << 20;

/// The writes of one instance.
pub struct Ledger {
    key: InstanceKey,
    journal: Journal,
    feed: Arc<Feed>,
    lane: Arc<Lane>,
    memory: Mutex<Memory>,
    lines: Mutex<Lines>,
    /// Wakes who waits for the turns in the making that write.
    written: Notify,
}

#[derive(Default)]
struct Memory {
    /// The document, once it has been read or written.
    document: Option<Option<Arc<str>>>,
    /// Storage writes that may not be durable yet.
    storage: BTreeMap<Box<str>, (Option<Bytes>, Ticket)>,
    /// What is stored, with those writes, once it was counted.
    stored: Option<Stored>,
    /// The module that wrote last, once that is known.
    module: Option<Option<Digest>>,
    /// Turns in the making that write to the document or the storage.
    writing: usize,
    /// Stores of an earlier version of the agent cannot write.
    fence: u64,
}

/// How much an instance has stored.
#[derive(Default)]
struct Stored {
    /// The size of each key's value.
    sizes: HashMap<Box<str>, usize>,
    /// All keys and values.
    bytes: u64,
}

impl Stored {
    fn write(&mut self, key: &str, size: Option<usize>) {
        let before = match size {
            Some(size) => self.sizes.insert(key.into(), size),
            None => self.sizes.remove(key),
        };
        let bytes = |size: Option<usize>| size.map_or(0, |size| (key.len() + size) as u64);
        self.bytes = self.bytes + bytes(size) - bytes(before);
    }
}

/// By how much writes change what is stored.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Growth {
    keys: i64,
    bytes: i64,
}

impl Growth {
    /// Both of them.
    pub(super) fn and(self, more: Self) -> Self {
        Self { keys: self.keys + more.keys, bytes: self.bytes + more.bytes }
    }

    /// That of a write to one key, by the sizes of its values.
    fn of(key: &str, before: Option<usize>, after: Option<usize>) -> Self {
        let taken = |size: Option<usize>| {
            size.map_or(Self::default(), |size| Self { keys: 1, bytes: (key.len() + size) as i64 })
        };
        let (before, after) = (taken(before), taken(after));
        Self { keys: after.keys - before.keys, bytes: after.bytes - before.bytes }
    }
}

/// An instance has stored as much as it may.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum StorageFull {
    #[error("the storage of an instance takes at most {0} bytes of keys and values")]
    Bytes(u64),
    #[error("the storage of an instance takes at most {0} keys")]
    Keys(usize),
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
        let (memory, lines, written) = (Mutex::default(), Mutex::default(), Notify::new());
        Self { key, journal, feed, lane, memory, lines, written }
    }

    /// The lines that the instance has logged.
    pub(super) fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
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
            if let Some(counted) = &mut memory.stored {
                for (key, value) in &stored {
                    counted.write(key, value.as_ref().map(Bytes::len));
                }
            }
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

    /// What writing to a key changes, which a turn has written before if `in_turn`. The first call reads all that the instance
    /// has stored, as the interface has the guest not wait for a write.
    pub(super) fn growth(
        &self,
        key: &str,
        in_turn: Option<Option<usize>>,
        size: Option<usize>,
    ) -> Result<Growth, StoreError> {
        let mut memory = self.memory();
        if memory.stored.is_none() {
            memory.stored = Some(self.count(&memory.storage)?);
        }
        let stored = || memory.stored.as_ref()?.sizes.get(key).copied();
        Ok(Growth::of(key, in_turn.unwrap_or_else(stored), size))
    }

    /// Whether there is room for the growth of a turn, of which its last write has brought this.
    pub(super) fn check_room(
        &self,
        growth: Growth,
        last: Growth,
        limits: &InstanceLimits,
    ) -> Result<(), StorageFull> {
        let memory = self.memory();
        let (keys, bytes) =
            memory.stored.as_ref().map_or((0, 0), |stored| (stored.sizes.len(), stored.bytes));
        // What makes it no worse is taken, also when there was more than the limit is now.
        if last.keys > 0 && keys.saturating_add_signed(growth.keys as isize) > limits.storage_keys {
            return Err(StorageFull::Keys(limits.storage_keys));
        }
        if last.bytes > 0 && bytes.saturating_add_signed(growth.bytes) > limits.storage_bytes {
            return Err(StorageFull::Bytes(limits.storage_bytes));
        }
        Ok(())
    }

    /// What the journal has, with these writes on top.
    fn count(
        &self,
        undurable: &BTreeMap<Box<str>, (Option<Bytes>, Ticket)>,
    ) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        let mut after: Option<Box<str>> = None;
        loop {
            let page =
                self.journal.list(&self.key, "", after.as_deref(), usize::MAX, COUNTED_AT_ONCE)?;
            let Some((last, _)) = page.last() else { break };
            after = Some(last.clone());
            page.iter().for_each(|(key, value)| stored.write(key, Some(value.len())));
        }
        for (key, (value, _)) in undurable {
            stored.write(key, value.as_ref().map(Bytes::len));
        }
        Ok(stored)
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

impl Drop for Ledger {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut *self.lines());
        lines.tell(&self.key);
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
