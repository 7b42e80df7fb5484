//! What guests write in a turn: events, the document, what they store, and pieces of bodies.
//!
//! **Problem.** Whatever a guest writes, and however fast, it must not take more memory, disk or time of others than it may, and a write that
//! cannot be taken is the guest's to know at once.
//!
//! **Mechanism.** Each host function that writes checks the limits and adds to the turn; nothing waits. The ledger hears, once a turn, that what
//! the instance keeps is written to, so that no module writes to what a newer one has migrated. What a turn wrote is read from it before the journal has it.
//!
//! **Limits.** An event's size, the turn's, what a run may have that is not durable and in all, and what an instance may store. Emitting beyond the turn's is
//! `backlogged`, as a guest may wait and go on; any other write beyond it traps.
//!
//! **Cost.** One uncontended lock a write.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Session;
use super::making::Making;
use crate::event;
use crate::id::Seq;
use crate::journal::{Event, StoreError, Unavailable, Write};
use crate::wasm::chunks::Chunk;
use crate::wasm::ledger::{Outdated, StorageFull};
use crate::wasm::run::{Answer, Refused, Run};

/// Why a write was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::wasm) enum EmitRefused {
    Closed,
    Backlogged,
    TooLarge(usize),
    Invalid(String),
}

/// The turn has outgrown its limit, in bytes.
#[derive(Debug, thiserror::Error)]
#[error("the turn is larger than {0} bytes; await between writes")]
pub(in crate::wasm) struct TurnTooLarge(pub(in crate::wasm) usize);

/// Why a write to what the instance keeps was not taken.
#[derive(Debug, thiserror::Error)]
pub(in crate::wasm) enum WriteRefused {
    #[error(transparent)]
    TurnTooLarge(#[from] TurnTooLarge),
    #[error(transparent)]
    Outdated(#[from] Outdated),
    #[error(transparent)]
    StorageFull(#[from] StorageFull),
    #[error(transparent)]
    Unreadable(#[from] StoreError),
}

impl Session {
    /// Declares a run's answer a stream.
    pub(in crate::wasm) fn open(&self, run: &Run) {
        let mut making = self.making();
        self.open_in(&mut making, run);
    }

    fn open_in(&self, making: &mut Making, run: &Run) {
        making.touch(run);
        if run.open(self.module, &mut making.writes) {
            let reader = self.ledger.reader(run.tail().clone());
            making.answers.push((run.clone(), Answer::Events(reader, run.wish())));
        }
    }

    /// Takes an event into the turn and returns its number.
    pub(in crate::wasm) fn emit(
        &self,
        run: &Run,
        name: Option<String>,
        id: Option<String>,
        data: String,
    ) -> Result<Seq, EmitRefused> {
        event::check(name.as_deref(), id.as_deref())
            .map_err(|wrong| EmitRefused::Invalid(wrong.to_string()))?;
        let event = Event::new(Seq::ZERO, name, id, data);
        let limit = self.limits.event_bytes;
        let size = event.size();
        if size - Event::OVERHEAD > limit {
            return Err(EmitRefused::TooLarge(limit));
        }
        let mut making = self.making();
        if making.bytes > 0 && making.bytes + size > self.limits.turn_bytes {
            return Err(EmitRefused::Backlogged);
        }
        if !run.has_ended() {
            self.open_in(&mut making, run);
        }
        match run.emit(event, &self.limits, &mut making.writes) {
            Ok(seq) => {
                making.bytes += size;
                Ok(seq)
            }
            Err(Refused::Closed) => Err(EmitRefused::Closed),
            Err(Refused::Backlogged) => Err(EmitRefused::Backlogged),
            Err(Refused::Over(limit)) => {
                self.exceed(&mut making, run, limit);
                Err(EmitRefused::Closed)
            }
        }
    }

    /// The state document as the guest sees it, with what this turn wrote.
    pub(in crate::wasm) fn document(&self) -> Result<Option<Arc<str>>, StoreError> {
        let written = self.making().document.clone();
        written.map_or_else(|| self.ledger.document(), |document| Ok(Some(document)))
    }

    /// Tells the ledger, once a turn, that it writes to what the instance keeps.
    pub(super) fn begin_writing(&self, making: &mut Making) -> Result<(), Outdated> {
        if !making.writing {
            self.ledger.begin_writing(self.version)?;
            making.writing = true;
        }
        Ok(())
    }

    pub(super) fn end_writing(&self, writing: &mut bool) {
        if std::mem::take(writing) {
            self.ledger.end_writing();
        }
    }

    /// Takes the state document into the turn.
    pub(in crate::wasm) fn set_document(&self, document: String) -> Result<(), WriteRefused> {
        let document: Arc<str> = document.into();
        let mut making = self.making();
        self.begin_writing(&mut making)?;
        making.grow(document.len(), self.limits.turn_bytes)?;
        making.document = Some(document.clone());
        making.writes.push(Write::State(Some(document)));
        Ok(())
    }

    /// A storage value that this turn wrote or (by `Some(None)`) deleted.
    pub(in crate::wasm) fn written(&self, key: &str) -> Option<Option<Bytes>> {
        self.making().storage.get(key).cloned()
    }

    /// Takes a storage write into the turn.
    pub(in crate::wasm) fn store(
        &self,
        key: String,
        value: Option<Bytes>,
    ) -> Result<(), WriteRefused> {
        let key: Box<str> = key.into();
        let mut making = self.making();
        self.begin_writing(&mut making)?;
        let size = |value: &Option<Bytes>| value.as_ref().map(Bytes::len);
        let more = self.ledger.growth(&key, making.storage.get(&key).map(size), size(&value))?;
        let growth = making.growth.and(more);
        self.ledger.check_room(growth, more, &self.limits)?;
        making.grow(key.len() + size(&value).unwrap_or(0), self.limits.turn_bytes)?;
        making.growth = growth;
        making.storage.insert(key.clone(), value.clone());
        making.writes.push(Write::Storage { key, value });
        Ok(())
    }

    /// Hands bytes of a chunked body to its client, once what the turn wrote is durable.
    pub(in crate::wasm) fn chunk(&self, permit: mpsc::OwnedPermit<Chunk>, bytes: Bytes) {
        self.making().chunks.push((permit, bytes));
    }

    /// Waits until what the guest has written is durable.
    pub(in crate::wasm) async fn flush(&self) -> Result<(), Unavailable> {
        if self.is_held() {
            return Ok(());
        }
        // Taken before the turn is looked at, so that its end is not missed.
        let submitted = self.submitted.notified();
        if !self.making().writes.is_empty() {
            // The turn ends when the guest suspends, so it is handed over after this poll.
            submitted.await;
        }
        self.ledger.settled().await
    }
}
