//! The turn being made, and the runs that may take part in it.
//!
//! **Problem.** Many host functions write to one turn, and all that they wrote goes to the journal, or nothing does. What depends on it
//! must not leave before, and the guest reads what it has just written.
//!
//! **Mechanism.** All of it in one place, under the session's lock: the writes in their order, what of them the guest reads, and what is to be
//! told to whom once they are durable. What ends with the turn is taken out when it is handed over; the runs in flight stay.
//!
//! **Limits.** `turn_bytes`, but one write may be as large as its own limit allows. **Cost.** Lists that keep their room from one turn to the next, and a
//! map of runs by a hash that is a part of their ids.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;
use std::task::Waker;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::writes::TurnTooLarge;
use crate::id::RunId;
use crate::journal::{Outcome, Write};
use crate::wasm::account::{Account, InFlight};
use crate::wasm::chunks::{Chunk, End};
use crate::wasm::ledger::Growth;
use crate::wasm::run::{Answer, Run};

/// The turn being made, and the runs that may take part in it.
#[derive(Default)]
pub(super) struct Making {
    pub(super) runs: HashMap<RunId, InFlight, BuildHasherDefault<IdHasher>>,
    pub(super) account: Account,
    pub(super) writes: Vec<Write>,
    /// Whether the ledger knows that the turn writes to what the instance keeps.
    pub(super) writing: bool,
    pub(super) bytes: usize,
    pub(super) document: Option<Arc<str>>,
    pub(super) storage: BTreeMap<Box<str>, Option<Bytes>>,
    /// By how much that changes what the instance has stored.
    pub(super) growth: Growth,
    /// Runs that did something in this turn.
    pub(super) touched: Vec<Run>,
    /// Calls that returned in this turn.
    pub(super) returned: Vec<RunId>,
    /// Runs that ended in this turn, and how, if anyone watches.
    pub(super) ended: Vec<(RunId, Outcome)>,
    pub(super) answers: Vec<(Run, Answer)>,
    pub(super) chunks: Vec<(mpsc::OwnedPermit<Chunk>, Bytes)>,
    /// Bodies that end with this turn.
    pub(super) ends: Vec<End>,
    /// Who waits for the last run in flight to end.
    pub(super) idle: Option<Waker>,
}

impl Making {
    /// Whether there is nothing to hand over.
    pub(super) fn is_empty(&self) -> bool {
        self.writes.is_empty()
            && self.answers.is_empty()
            && self.returned.is_empty()
            && self.ended.is_empty()
            && self.chunks.is_empty()
    }

    /// Notes that a run does something in this turn.
    pub(super) fn touch(&mut self, run: &Run) {
        if self.touched.last().is_none_or(|last| last.id() != run.id()) {
            self.touched.push(run.clone());
        }
    }

    /// Makes room for a write of this size.
    pub(super) fn grow(&mut self, size: usize, limit: usize) -> Result<(), TurnTooLarge> {
        // One write may be as large as its own limit allows, whatever the turn's.
        if self.bytes > 0 && self.bytes + size > limit {
            return Err(TurnTooLarge(limit));
        }
        self.bytes += size;
        Ok(())
    }
}

/// Takes a run's id for its own hash: most of it is random, and no client chooses it.
#[derive(Default)]
pub(super) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.0 = self.0.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u128(&mut self, id: u128) {
        // The lower half, which has no time in it.
        self.0 = id as u64;
    }
}
