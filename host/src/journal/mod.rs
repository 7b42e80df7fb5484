//! The durable store of runs, events, state and storage, and the one way into it.
//!
//! **Problem.** Nothing that a client has seen may be lost, also by `kill -9`; a guest must never wait for
//! a disk that it did not ask for; a thousand readers of a run must not cost a thousand queues.
//!
//! **Mechanism.** What a guest does between two suspensions is a [`Turn`]. Turns go, in order, through the
//! [`Lane`] of their instance to one writer thread, which commits all that has come in while the last
//! commit was under way at once, and only then publishes: it moves each lane's durable mark,
//! appends the events to their run's [`Tail`] and wakes who waits. While it has nothing to do, who submits may [take its place](attend). A [`Reader`] is a cursor: it asks its
//! tail for what follows, the store where the tail no longer has it, and waits when there is nothing. The store is a log,
//! where a commit is one write and one sync, and redb's tables, to which the settler takes what the log has, much at a time.
//!
//! ```text
//!  guest --Turn--> Lane --queue--> writer --commit--> Store (log --settler--> redb)
//!                                    |                  |
//!                                    +--publish--> Tail +--page--> Reader --> HTTP body
//! ```
//!
//! **Limits.** One writer: the disk's sync rate times the batch is the host's write rate. Undurable bytes
//! are bounded per run ([`Tail::reserve`]) and per turn; tails and pages by the [`Options`].
//!
//! **Cost.** A turn is one queue push; a commit is one write and one disk sync however many turns it
//! carries; an idle reader is a cursor, an `Arc` and a registered waker.

mod attend;
mod codec;
mod follower;
mod handle;
mod horizon;
mod live;
mod reader;
mod redb;
mod tail;
mod writer;

#[cfg(test)]
mod fault_tests;
#[cfg(test)]
mod model_tests;
#[cfg(test)]
mod retention_tests;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::SystemTime;

use crate::config::JournalLimits;
use crate::id::{AgentName, Cursor, Digest, InstanceKey, RunId, Seq};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::codec::fuzzing::row as fuzz_row;
pub use self::follower::{Followed, Follower};
pub use self::handle::{Journal, Unfinished};
pub use self::reader::{Page, Reader, Step};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::redb::fuzz_log;
pub use self::redb::{Backend, Counts, JournalFile, Report, StorageBackend, Violation, check};
pub use self::tail::Tail;
pub use self::writer::{Lane, Ticket};

/// One event of a run, as emitted.
#[derive(Debug)]
pub struct Event {
    /// Its number within the run.
    pub seq: Seq,
    /// Its type, if it has one.
    pub name: Option<Box<str>>,
    /// The agent's own id for it, if it has one.
    pub id: Option<Box<str>>,
    /// The data, as the agent gave it.
    pub data: Box<str>,
    frame: OnceLock<Bytes>,
}

impl Event {
    /// An event that no one has framed yet.
    pub fn new(seq: Seq, name: Option<String>, id: Option<String>, data: String) -> Self {
        let (name, id) = (name.map(Into::into), id.map(Into::into));
        Self { seq, name, id, data: data.into(), frame: OnceLock::new() }
    }

    /// The event on the wire: made by the first reader who sends it, shared by all others.
    pub fn frame(&self, render: impl FnOnce(&Self) -> Bytes) -> Bytes {
        self.frame.get_or_init(|| render(self)).clone()
    }

    /// The bytes that the event keeps in memory and on disk, near enough for a budget.
    pub fn size(&self) -> usize {
        let text = |part: &Option<Box<str>>| part.as_ref().map_or(0, |text| text.len());
        self.data.len() + text(&self.name) + text(&self.id) + Self::OVERHEAD
    }

    /// What an event counts beyond its text, so that a flood of empty ones is bounded too.
    pub const OVERHEAD: usize = 64;
}

impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        (self.seq, &self.name, &self.id, &self.data)
            == (other.seq, &other.name, &other.id, &other.data)
    }
}

/// What becomes of a run. `running` until it ends; a run that the host's end cut off is `interrupted`
/// until it is resumed or given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RunState {
    Running,
    Finished,
    Failed,
    Interrupted,
    Cancelled,
}

impl RunState {
    /// Whether the run will emit nothing more.
    pub fn is_final(self) -> bool {
        match self {
            Self::Finished | Self::Failed | Self::Cancelled => true,
            Self::Running | Self::Interrupted => false,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// One of the final states.
    pub state: RunState,
    /// For a failed run, the `code` of the problem that its last event carries.
    pub code: Option<String>,
}

/// What the journal knows of a run, apart from its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunRecord {
    pub run: RunId,
    pub instance: InstanceKey,
    /// The module that the run began on, or was resumed on last.
    pub module: Digest,
    pub state: RunState,
    /// For a failed run, the problem's code.
    pub code: Option<String>,
    /// When the run began and ended, in milliseconds since 1970.
    pub started_ms: u64,
    pub ended_ms: Option<u64>,
    /// The last durable event.
    pub last: Seq,
    /// How often the host's end cut the run off without a new durable event in between.
    pub interruptions: u32,
    /// The last durable event at the last interruption.
    pub interrupted_at: Seq,
}

/// The most runs that one page of a list looks at, so that a filter that lets none through is bounded too.
pub const RUNS_LOOKED_AT: usize = if cfg!(test) { 20 } else { 10_000 };

/// A page of runs, the newest first.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct RunPage {
    pub records: Vec<RunRecord>,
    /// The `before` of the next page, if there may be one.
    pub next: Option<RunId>,
}

/// The run that a key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Keyed {
    pub run: RunId,
    /// What the request was that had the key: opaque here.
    pub fingerprint: Digest,
}

/// Which module serves an agent, from when on and from where it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeploymentRecord {
    pub agent: AgentName,
    /// Counted up for each agent, from 1.
    pub generation: u64,
    /// None: the agent is served no longer.
    pub module: Option<Digest>,
    /// In milliseconds since 1970.
    pub at_ms: u64,
    /// Where it came from: opaque here.
    pub source: String,
}

/// The writes of a guest between two suspensions: durable together, or not at all.
#[derive(Debug, Default)]
pub struct Turn(pub Vec<Write>);

impl Turn {
    /// The bytes that the turn keeps in memory, near enough for a budget.
    pub fn size(&self) -> usize {
        self.0.iter().map(Write::size).sum()
    }
}

/// One write of a turn. State and storage are those of the lane's instance.
#[derive(Debug)]
pub enum Write {
    /// The run is known from here on, as `running`, on this module. `request` is what a resumption needs:
    /// opaque here, kept until the run ends; a resumed run starts again without one and keeps what it has.
    Start { tail: Arc<Tail>, module: Digest, request: Option<Bytes> },
    /// An event of a started run. The events of a run come in order, without a gap.
    Event { tail: Arc<Tail>, event: Arc<Event> },
    /// The run's end; nothing of it follows.
    End { tail: Arc<Tail>, outcome: Outcome },
    /// The instance's document, set or (by `None`) removed.
    State(Option<Arc<str>>),
    /// A key of the instance's storage, set or (by `None`) deleted.
    Storage { key: Box<str>, value: Option<Bytes> },
    /// What the instance keeps, document and storage, is of this module's making from here on.
    Module(Digest),
    /// The run is the one that a request with this key began, which had this fingerprint.
    Key { tail: Arc<Tail>, key: Box<str>, fingerprint: Digest },
    /// What the run answered whoever asked: opaque here, kept as long as the run is.
    Reply { tail: Arc<Tail>, reply: Bytes },
}

impl Write {
    fn size(&self) -> usize {
        let bytes = |value: &Option<Bytes>| value.as_ref().map_or(0, Bytes::len);
        match self {
            Self::Event { event, .. } => event.size(),
            Self::Start { request, .. } => bytes(request) + Event::OVERHEAD,
            Self::State(document) => {
                document.as_ref().map_or(0, |document| document.len()) + Event::OVERHEAD
            }
            Self::Storage { key, value } => key.len() + bytes(value) + Event::OVERHEAD,
            Self::Key { key, .. } => key.len() + Event::OVERHEAD,
            Self::Reply { reply, .. } => reply.len() + Event::OVERHEAD,
            Self::End { .. } | Self::Module(_) => Event::OVERHEAD,
        }
    }
}

/// Where a client's `Last-Event-ID` stands.
#[derive(Debug)]
pub enum Located {
    /// Something may follow: read on from here.
    At(Reader),
    /// The run is over and this was its last event.
    CaughtUp(RunId),
    /// The id cannot be resumed.
    Not(NotResumable),
}

/// Why an id cannot be resumed. Ids of other instances are `Unknown`, so that nothing is learnt of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum NotResumable {
    /// No run or event of this instance has it.
    Unknown,
    /// Its run is older than what the journal still keeps.
    Expired,
    /// Its run has not come that far.
    Future,
}

/// Whether the journal can commit now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Health {
    Good,
    /// Commits fail and are tried again; the message says why.
    Failing(String),
    /// The journal gave up and the host must end, or it was closed. The message says why.
    Dead(String),
}

/// The journal cannot say whether, or cannot do, what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the journal is unavailable: {0}")]
pub struct Unavailable(pub String);

/// A failure of the store itself.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct StoreError(pub String);

/// Figures that the host reports, all since it started but the gauges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    pub commits: u64,
    pub turns: u64,
    pub events: u64,
    /// Runs deleted by retention.
    pub trimmed_runs: u64,
    /// Gauge: bytes of events that tails and pages hold in memory now, and the most they ever held.
    pub buffered_bytes: u64,
    pub buffered_bytes_peak: u64,
    /// Gauge: bytes of pages that readers have put on the wire and no socket has taken yet, and the most of them.
    pub sending_bytes: u64,
    pub sending_bytes_peak: u64,
    /// Gauge: runs with a live tail.
    pub live_runs: u64,
}

/// How a journal is kept.
#[derive(Debug, Clone)]
pub struct Options {
    /// The data file; its directory exists. Its log has the same name with the extension `log`.
    pub file: PathBuf,
    pub limits: JournalLimits,
}

/// The seam to what keeps the journal: [`redb`] today. Reads see what is committed and nothing else, take no
/// longer than what they return, and may run beside a commit on any thread.
trait Store: Send + Sync + 'static {
    /// Makes the turns durable, all or none. After an error it is not known whether they are; the store is then of
    /// no use before [`Self::reopen`], and the same turns may be committed again, whatever became of them.
    fn commit(&self, turns: &[Submitted], now: SystemTime) -> Result<Committed, StoreError>;

    /// Has all that is durable made ready for [`Self::tend`], as nothing else is to be done now.
    fn rest(&self, now: SystemTime) -> Result<Committed, StoreError>;

    /// Takes one bounded step of what need not be done at once: putting what is durable where it is to stay, and retention. It
    /// may run beside commits, which fail once it has.
    fn tend(&self, now: SystemTime) -> Result<Tended, StoreError>;

    /// Begins again from what is durable.
    fn reopen(&self) -> Result<(), StoreError>;

    /// Lets go of the files. Reads fail from here on.
    fn close(&self);

    /// The run, with its last durable event also while it is not over.
    fn run(&self, run: RunId) -> Result<Option<RunRecord>, StoreError>;

    /// The runs that began before this one and whose instance `matches`, newest first: at most `limit`, of at most
    /// [`RUNS_LOOKED_AT`] that are looked at.
    fn runs(
        &self,
        before: Option<RunId>,
        limit: usize,
        matches: &dyn Fn(&InstanceKey) -> bool,
    ) -> Result<RunPage, StoreError>;

    /// The runs of an instance that began before this one, newest first: at most `limit`.
    fn runs_of(
        &self,
        instance: &InstanceKey,
        before: Option<RunId>,
        limit: usize,
    ) -> Result<RunPage, StoreError>;

    /// The run that a request with this key began on this instance, and the request's fingerprint.
    fn keyed(&self, instance: &InstanceKey, key: &str) -> Result<Option<Keyed>, StoreError>;

    /// What a run answered, if it has and that is kept.
    fn reply(&self, run: RunId) -> Result<Option<Bytes>, StoreError>;

    /// What follows `after`, as much as `max_bytes` hold and at least one event if there is one.
    fn events(
        &self,
        run: RunId,
        after: Seq,
        max_bytes: usize,
    ) -> Result<Vec<Arc<Event>>, StoreError>;

    /// The event to which an agent of this instance gave this id last.
    fn find_id(&self, instance: &InstanceKey, id: &str) -> Result<Option<Cursor>, StoreError>;

    /// When the youngest of the runs began that retention has deleted, as [`RunId::timestamp_ms`] counts.
    fn trimmed_until_ms(&self) -> Result<u64, StoreError>;

    /// The instance's document.
    fn state(&self, instance: &InstanceKey) -> Result<Option<Arc<str>>, StoreError>;

    /// The module that made what the instance keeps.
    fn module(&self, instance: &InstanceKey) -> Result<Option<Digest>, StoreError>;

    /// All kept deployments, by agent, oldest first.
    fn deployments(&self) -> Result<Vec<DeploymentRecord>, StoreError>;

    /// Makes a deployment durable, and these generations of its agent gone, both or neither. It may run beside commits, which
    /// fail once it has, as it is then not known whether it is durable.
    fn deploy(&self, record: &DeploymentRecord, forget: &[u64]) -> Result<(), StoreError>;

    /// The value under a key of the instance's storage.
    fn value(&self, instance: &InstanceKey, key: &str) -> Result<Option<Bytes>, StoreError>;

    /// The pairs of the instance's storage whose keys start with `prefix` and come after `after`, in byte
    /// order: at most `limit`, and as many as `max_bytes` hold but at least one if there is one.
    fn list(
        &self,
        instance: &InstanceKey,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        max_bytes: usize,
    ) -> Result<Vec<Pair>, StoreError>;
}

/// A turn on its way to the store.
struct Submitted {
    lane: Arc<Lane>,
    number: u64,
    turn: Turn,
}

/// What a commit left to be done.
struct Committed {
    /// The store is to be tended.
    is_due: bool,
}

/// What became of tending.
#[derive(Debug, Default)]
struct Tended {
    trimmed_runs: u64,
    /// There is more to do.
    is_due: bool,
}

/// A key and its value.
pub type Pair = (Box<str>, Bytes);

/// Locks what no holder leaves half changed, so that a panic elsewhere does not spread through a poisoned lock.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
