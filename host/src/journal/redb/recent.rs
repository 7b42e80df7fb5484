//! What is durable in the log and not in the tables yet.
//!
//! **Problem.** The log is written to be written fast; nothing can be looked up in it. The tables can be read, and
//! are cheap to write only where much is written at once.
//!
//! **Mechanism.** What a batch brings is kept here, by run and by instance, in the *layer* that belongs to
//! the half of the log that is being filled. When the half is full, or the host has nothing else to do, the layer is settled: written to
//! the tables as a whole, in one transaction, while the next one fills. A reader looks here first and opens its
//! transaction after that, so that what is settled in between is in one of the two or in both.
//!
//! **Limits.** Two layers, of a half of the log each; of a document or a value that was written again and again, the last.
//!
//! **Cost.** A map entry for each run and instance that wrote something, a pointer for each event.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;

use super::super::codec::Op;
use super::super::{Event, Keyed, Outcome, RunRecord, RunState};
use crate::id::{Cursor, Digest, InstanceKey, RunId, Seq};

/// The layers.
#[derive(Default)]
pub(super) struct Recent {
    filling: Layer,
    settling: Option<Arc<Layer>>,
}

/// What a half of the log has.
#[derive(Default)]
pub(super) struct Layer {
    pub(super) runs: HashMap<RunId, Part>,
    pub(super) instances: HashMap<InstanceKey, Kept>,
    /// The last record of the log that is in here.
    pub(super) last_record: u64,
}

/// What it has of a run.
#[derive(Default)]
pub(super) struct Part {
    pub(super) progress: Progress,
    /// In order of their numbers.
    pub(super) events: Vec<Arc<Event>>,
    /// What it answered.
    pub(super) reply: Option<Bytes>,
}

/// How far a part takes its run.
#[derive(Default, Clone)]
pub(super) struct Progress {
    pub(super) start: Option<Start>,
    last: Option<Seq>,
    pub(super) end: Option<End>,
}

#[derive(Clone)]
pub(super) struct Start {
    instance: InstanceKey,
    module: Digest,
    pub(super) request: Option<Bytes>,
    at_ms: u64,
}

#[derive(Clone)]
pub(super) struct End {
    outcome: Outcome,
    pub(super) at_ms: u64,
}

/// What it has of an instance, runs aside.
#[derive(Default)]
pub(super) struct Kept {
    /// The document, and by `Some(None)` that there is none.
    pub(super) document: Option<Option<Arc<str>>>,
    /// Values, and by `None` that there is none.
    pub(super) storage: BTreeMap<Box<str>, Option<Bytes>>,
    /// The module that made what is kept.
    pub(super) module: Option<Digest>,
    /// The newest events that have ids of the agent's own.
    pub(super) ids: HashMap<Box<str>, Cursor>,
    /// The runs that requests with keys began.
    pub(super) keys: HashMap<Box<str>, Keyed>,
}

impl Recent {
    /// The layers, the newer first.
    fn layers(&self) -> impl DoubleEndedIterator<Item = &Layer> {
        [Some(&self.filling), self.settling.as_deref()].into_iter().flatten()
    }

    fn kept(&self, instance: &InstanceKey) -> impl DoubleEndedIterator<Item = &Kept> {
        self.layers().filter_map(|layer| layer.instances.get(instance))
    }

    /// The layer that is being filled.
    pub(super) fn filling(&mut self) -> &mut Layer {
        &mut self.filling
    }

    /// The layer that is to be settled.
    pub(super) fn settling(&self) -> Option<&Arc<Layer>> {
        self.settling.as_ref()
    }

    /// Has the layer settled that was being filled. There must be none on its way.
    pub(super) fn settle(&mut self) {
        debug_assert!(self.settling.is_none(), "a layer is settled before the next one");
        self.settling = Some(Arc::new(std::mem::take(&mut self.filling)));
    }

    /// The layer is in the tables. It is returned to be dropped where no one waits for it.
    pub(super) fn settled(&mut self) -> Option<Arc<Layer>> {
        self.settling.take()
    }

    /// How far the layers take a run, the older first.
    pub(super) fn progress(&self, run: RunId) -> Vec<Progress> {
        let parts = self.layers().rev().filter_map(|layer| layer.runs.get(&run));
        parts.map(|part| part.progress.clone()).collect()
    }

    /// The newest runs below this one that the layers have, newest first and at most so many, each with its progress.
    pub(super) fn below(&self, before: Option<RunId>, most: usize) -> Vec<(RunId, Vec<Progress>)> {
        let runs = self.layers().flat_map(|layer| layer.runs.keys().copied());
        let mut runs: Vec<RunId> =
            runs.filter(|run| before.is_none_or(|before| *run < before)).collect();
        runs.sort_unstable_by(|one, other| other.cmp(one));
        runs.dedup();
        runs.truncate(most);
        runs.into_iter().map(|run| (run, self.progress(run))).collect()
    }

    /// The runs of an instance that the layers have the start of.
    pub(super) fn begun<'a>(
        &'a self,
        instance: &'a InstanceKey,
    ) -> impl Iterator<Item = RunId> + 'a {
        let parts = self.layers().flat_map(|layer| layer.runs.iter());
        let of =
            |part: &Part| part.progress.start.as_ref().is_some_and(|of| of.instance == *instance);
        parts.filter(move |(_, part)| of(part)).map(|(run, _)| *run)
    }

    /// What a key of the instance stands for.
    pub(super) fn keyed(&self, instance: &InstanceKey, key: &str) -> Option<Keyed> {
        self.kept(instance).find_map(|kept| kept.keys.get(key).copied())
    }

    /// What a run answered.
    pub(super) fn reply(&self, run: RunId) -> Option<Bytes> {
        self.layers().find_map(|layer| layer.runs.get(&run)?.reply.clone())
    }

    /// The events of a run that follow this one, as many as `max_bytes` hold and at least one if there is one.
    pub(super) fn after(&self, run: RunId, after: Seq, max_bytes: usize) -> Vec<Arc<Event>> {
        let parts = self.layers().rev().filter_map(|layer| layer.runs.get(&run));
        let follow = parts.flat_map(|part| {
            let seen = part.events.partition_point(|event| event.seq <= after);
            &part.events[seen..]
        });
        let mut bytes = 0;
        let fits = follow.take_while(|event| {
            let first = bytes == 0;
            bytes += event.size();
            first || bytes <= max_bytes
        });
        fits.cloned().collect()
    }

    /// The event to which the agent gave this id last.
    pub(super) fn find_id(&self, instance: &InstanceKey, id: &str) -> Option<Cursor> {
        self.kept(instance).find_map(|kept| kept.ids.get(id).copied())
    }

    /// The instance's document; by `Some(None)`, that there is none.
    pub(super) fn document(&self, instance: &InstanceKey) -> Option<Option<Arc<str>>> {
        self.kept(instance).find_map(|kept| kept.document.clone())
    }

    /// The module that made what the instance keeps.
    pub(super) fn module(&self, instance: &InstanceKey) -> Option<Digest> {
        self.kept(instance).find_map(|kept| kept.module)
    }

    /// The value under a key of the instance's storage; by `Some(None)`, that there is none.
    pub(super) fn value(&self, instance: &InstanceKey, key: &str) -> Option<Option<Bytes>> {
        self.kept(instance).find_map(|kept| kept.storage.get(key).cloned())
    }

    /// All values of the instance whose keys start with `prefix`, from a key on, and what is no longer there.
    pub(super) fn values(
        &self,
        instance: &InstanceKey,
        prefix: &str,
        from: Bound<&str>,
    ) -> BTreeMap<Box<str>, Option<Bytes>> {
        let mut values = BTreeMap::new();
        for kept in self.kept(instance).rev() {
            let range = kept.storage.range::<str, _>((from, Bound::Unbounded));
            let selected = range.take_while(|(key, _)| key.starts_with(prefix));
            values.extend(selected.map(|(key, value)| (key.clone(), value.clone())));
        }
        values
    }
}

impl Layer {
    /// Whether there is nothing to settle.
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty() && self.instances.is_empty()
    }

    /// Takes a write that is durable.
    pub(super) fn apply(&mut self, at_ms: u64, instance: &InstanceKey, op: Op) {
        match op {
            Op::Start { run, module, request } => {
                let instance = instance.clone();
                let start = Start { instance, module, request, at_ms };
                self.runs.entry(run).or_default().progress.start = Some(start);
            }
            Op::Event { run, event } => {
                if let Some(id) = &event.id {
                    let place = Cursor { run, seq: event.seq };
                    self.kept(instance).ids.insert(id.clone(), place);
                }
                let part = self.runs.entry(run).or_default();
                // A batch that is applied again, as it was not known whether it had become durable, brings what is there.
                if part.progress.last.is_none_or(|last| event.seq > last) {
                    part.progress.last = Some(event.seq);
                    part.events.push(event);
                }
            }
            Op::End { run, outcome } => {
                self.runs.entry(run).or_default().progress.end = Some(End { outcome, at_ms });
            }
            Op::State(document) => self.kept(instance).document = Some(document),
            Op::Storage { key, value } => {
                self.kept(instance).storage.insert(key, value);
            }
            Op::Module(module) => self.kept(instance).module = Some(module),
            Op::Key { run, key, fingerprint } => {
                self.kept(instance).keys.insert(key, Keyed { run, fingerprint });
            }
            Op::Reply { run, reply } => self.runs.entry(run).or_default().reply = Some(reply),
        }
    }

    fn kept(&mut self, instance: &InstanceKey) -> &mut Kept {
        self.instances.entry(instance.clone()).or_default()
    }
}

impl Progress {
    /// The run's record, as this goes on from there; none if the run is not on record.
    pub(super) fn onto(&self, run: RunId, record: Option<RunRecord>) -> Option<RunRecord> {
        let mut record = match &self.start {
            None => record?,
            Some(Start { instance, module, at_ms, .. }) => RunRecord {
                module: *module,
                state: RunState::Running,
                ..record.unwrap_or_else(|| RunRecord {
                    run,
                    instance: instance.clone(),
                    module: *module,
                    state: RunState::Running,
                    code: None,
                    started_ms: *at_ms,
                    ended_ms: None,
                    last: Seq::ZERO,
                    interruptions: 0,
                    interrupted_at: Seq::ZERO,
                })
            },
        };
        record.last = record.last.max(self.last.unwrap_or_default());
        if let Some(End { outcome, at_ms }) = &self.end {
            record.state = outcome.state;
            record.code.clone_from(&outcome.code);
            record.ended_ms = Some(*at_ms);
        }
        Some(record)
    }
}
