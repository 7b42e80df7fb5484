//! One call on an instance, as the host sees it.
//!
//! **Problem.** A run's events and its end are written by a guest that may trap at any time, in turns that
//! are durable whole or not at all, and its first answer decides what the client gets.
//!
//! **Mechanism.** A run holds two marks: how far the guest has come, and how far the turns that were handed
//! to the journal have. Discarding a turn sets the first back to the second, so the host's own last event
//! (`failed`) always takes the next number. The client's answer is sent once, by the session, when the turn
//! it depends on has been submitted.
//!
//! ```text
//!             first emit, open                     returned, trapped
//!   fresh ----------------------> streaming ------------------------------> ended
//!     |                                         went over a limit             ^
//!     +--- returned: a plain answer (recorded only if the module resumes) ----+
//! ```
//!
//! A run that goes over a limit of its own ends at once, whatever its guest is doing; the guest finds it cancelled and closed.
//!
//! **Limits.** Undurable bytes per run, the size of an event, events and their bytes in all, by configuration.
//!
//! **Cost.** An `Arc`, a mutex that hardly anyone but its own store's task locks, the head of its request in one piece, and a tail once it
//! has something to write.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::config::InstanceLimits;
use crate::fault::{Fault, Limit};
use crate::format::Format;
use crate::id::{Digest, RunId, Seq};
use crate::journal::{Event, Outcome, Reader, RunState, Tail, Ticket, Turn, Write};
use crate::wasm::chunks::Chunks;
use crate::wasm::exchange::Response;
use crate::wasm::kept::KeptReply;
use crate::wasm::ledger::Ledger;

/// A run that may be shared between its store, the actor and whoever cancels it.
#[derive(Clone)]
pub struct Run(Arc<Inner>);

struct Inner {
    id: RunId,
    /// What makes the tail when the run first needs it, which a plain reply never does.
    ledger: Option<Arc<Ledger>>,
    tail: OnceLock<Arc<Tail>>,
    origin: Origin,
    /// Wakes who waits to be cancelled.
    cancel: Notify,
    progress: Mutex<Progress>,
}

/// How a run came about.
#[derive(Default)]
pub struct Origin {
    /// What the request says beyond what the agent is called with.
    pub head: RequestHead,
    /// Whether the request came by TLS.
    pub secure: bool,
    /// The `Last-Event-ID` that came with the request and could not be resumed.
    pub last_event_id: Option<Box<str>>,
    /// The request as a resumption needs it, if the module resumes.
    pub request: Option<Bytes>,
    /// Whether what it answers is kept, as someone may ask for it later.
    pub keeps_reply: bool,
    /// What is gone on with, if the run was interrupted. In a box, as few were.
    pub resumed: Option<Box<Resumed>>,
}

/// How a run goes on.
pub struct Resumed {
    /// Its last durable event.
    pub after: Seq,
    /// Closed when the run is gone, for whoever bounds the number of resumptions under way.
    pub gone: Option<oneshot::Sender<()>>,
}

/// The target and the header fields of a request, for an agent that asks for them. It is one line of text each, as neither
/// may have a line break, since hardly anyone takes them apart.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RequestHead(Box<str>);

impl RequestHead {
    /// The head of a request for `url`. A field's value has one character per byte.
    pub fn new<'a, F>(url: &str, fields: impl Fn() -> F) -> Self
    where
        F: Iterator<Item = (&'a str, Cow<'a, str>)>,
    {
        // As long as it will be, since a stream keeps it for as long as it is open.
        let fields_len = fields().map(|(name, value)| "\n:".len() + name.len() + value.len());
        let mut text = String::with_capacity(url.len() + fields_len.sum::<usize>());
        text.push_str(url);
        for (name, value) in fields() {
            text.extend(["\n", name, ":", &value]);
        }
        Self(text.into())
    }

    /// The same head with one more field.
    pub fn push(&mut self, name: &str, value: &str) {
        let mut text = String::from(std::mem::take(&mut self.0));
        text.extend(["\n", name, ":", value]);
        self.0 = text.into();
    }

    /// The target as the client sent it.
    pub fn url(&self) -> &str {
        self.0.split('\n').next().unwrap_or_default()
    }

    /// The header fields, in the order in which they came.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.split('\n').skip(1).filter_map(|line| line.split_once(':'))
    }
}

struct Progress {
    /// Where the guest is, with the turn that is still being made.
    now: Mark,
    /// Where the turns handed to the journal end.
    submitted: Mark,
    wish: Option<Format>,
    answer: Option<oneshot::Sender<Answered>>,
    /// What the run was asked to end for. In a box, as few are.
    ending: Option<Box<Ending>>,
}

struct Ending {
    since: Instant,
    /// The limit that it went over.
    over: Option<Limit>,
}

#[derive(Clone, Copy)]
struct Mark {
    recorded: bool,
    /// Whether the answer is the event stream.
    streaming: bool,
    seq: Seq,
    /// Bytes of the events since the run began or was resumed.
    bytes: u64,
    ended: bool,
}

/// What the client gets, once `after` is durable.
pub struct Answered {
    /// The answer.
    pub answer: Answer,
    /// The module that gave it.
    pub module: Digest,
    /// What must be durable before the answer leaves.
    pub after: Ticket,
}

/// What the client gets.
pub enum Answer {
    /// A whole response.
    Response(Head, Bytes),
    /// A response whose body comes as the guest writes it.
    Chunks(Head, Chunks),
    /// The response of an agent that speaks HTTP itself. In a box, as few do.
    Exchange(Box<Response>),
    /// The run's events, and the format in which they suit who takes any.
    Events(Reader, Option<Format>),
    /// Nothing: the run is over and emitted nothing.
    NoContent,
    /// The run failed before it answered.
    Failed(Fault),
}

/// The head of a response as the agent gave it: nothing of it has been checked.
pub struct Head {
    /// The status code.
    pub status: u16,
    /// Names and values; a value has one character per byte.
    pub headers: Vec<(String, String)>,
}

impl Head {
    /// Bytes of the names and values.
    pub(super) fn size(&self) -> usize {
        self.headers.iter().map(|(name, value)| name.len() + value.len()).sum()
    }
}

/// Why an event was not taken.
pub(super) enum Refused {
    Closed,
    Backlogged,
    /// The run may not emit so much.
    Over(Limit),
}

impl Run {
    /// A new run of the ledger's instance, whose answer goes to `answer`.
    pub fn new(
        ledger: Arc<Ledger>,
        id: RunId,
        origin: Origin,
        answer: oneshot::Sender<Answered>,
    ) -> Self {
        Self::of(id, Some(ledger), OnceLock::new(), origin, Some(answer))
    }

    /// A new run that is on record already, with this tail.
    pub fn on_record(tail: Arc<Tail>, origin: Origin, answer: oneshot::Sender<Answered>) -> Self {
        let run = Self::of(tail.run(), None, tail.into(), origin, Some(answer));
        {
            let mut progress = run.progress();
            progress.now.recorded = true;
            progress.submitted.recorded = true;
        }
        run
    }

    /// The run of this tail, which is on record: no client waits for its answer.
    pub fn again(tail: Arc<Tail>, origin: Origin) -> Self {
        Self::of(tail.run(), None, tail.into(), origin, None)
    }

    fn of(
        id: RunId,
        ledger: Option<Arc<Ledger>>,
        tail: OnceLock<Arc<Tail>>,
        origin: Origin,
        answer: Option<oneshot::Sender<Answered>>,
    ) -> Self {
        let seq = origin.resumed_after().unwrap_or(Seq::ZERO);
        // A resumed run is on record, and who comes back to it reads its events.
        let resumed = origin.resumed.is_some();
        // But for one that has emitted nothing and keeps its reply for them.
        let streaming = resumed && !(origin.keeps_reply && seq == Seq::ZERO);
        let mark = Mark { recorded: resumed, streaming, seq, bytes: 0, ended: false };
        let progress = Progress { now: mark, submitted: mark, wish: None, answer, ending: None };
        let (cancel, progress) = (Notify::new(), Mutex::new(progress));
        Self(Arc::new(Inner { id, ledger, tail, origin, cancel, progress }))
    }

    /// The run's id.
    pub fn id(&self) -> RunId {
        self.0.id
    }

    /// How the run came about.
    pub fn origin(&self) -> &Origin {
        &self.0.origin
    }

    /// The run of this one's id, to be gone on with where its durable turns end: it answers who waits for this one.
    /// None if it is not on record, or its module cannot go on with it.
    pub(super) fn to_resume(&self) -> Option<Self> {
        let Inner { id, tail, origin, .. } = &*self.0;
        let mut progress = self.progress();
        let Mark { recorded, streaming, seq, bytes, .. } = progress.submitted;
        let (true, Some(tail)) = (recorded && origin.request.is_some(), tail.get()) else {
            return None;
        };
        let origin = Origin {
            head: origin.head.clone(),
            request: origin.request.clone(),
            keeps_reply: origin.keeps_reply,
            resumed: Some(Box::new(Resumed { after: seq, gone: None })),
            ..Origin::default()
        };
        let answer = progress.answer.take();
        let run = Self::of(*id, None, tail.clone().into(), origin, answer);
        {
            let mut resumed = run.progress();
            resumed.now = Mark { streaming, bytes, ..resumed.now };
            resumed.submitted = resumed.now;
        }
        Some(run)
    }

    /// Asks the run to end. Whether and how it does is the agent's to say. Whether nobody has asked before.
    pub fn cancel(&self) -> bool {
        let first = {
            let mut progress = self.progress();
            let first = progress.ending.is_none();
            progress.ending.get_or_insert_with(Ending::now);
            first
        };
        self.0.cancel.notify_waiters();
        first
    }

    /// Notes that the run went over a limit, and asks it to end. Whether it had not before.
    pub(super) fn exceed(&self, limit: Limit) -> bool {
        let first = {
            let mut progress = self.progress();
            let over = &mut progress.ending.get_or_insert_with(Ending::now).over;
            let first = over.is_none();
            over.get_or_insert(limit);
            first
        };
        self.0.cancel.notify_waiters();
        first
    }

    /// The limit that the run went over.
    pub(super) fn over(&self) -> Option<Limit> {
        self.progress().ending.as_ref()?.over
    }

    /// Since when the run is asked to end, if it is.
    pub(super) fn cancelled_at(&self) -> Option<Instant> {
        Some(self.progress().ending.as_ref()?.since)
    }

    /// Whether the run was asked to end.
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancelled_at().is_some()
    }

    /// Waits until the run is asked to end.
    pub(super) async fn cancelled(&self) {
        // Taken before the flag is looked at, so that it is not set unseen.
        let cancel = self.0.cancel.notified();
        if !self.is_cancelled() {
            cancel.await;
        }
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.0.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the run on record, in this turn, if it is not there yet.
    pub(super) fn record(&self, module: Digest, writes: &mut Vec<Write>) {
        let mut progress = self.progress();
        if progress.now.recorded || progress.now.ended {
            return;
        }
        progress.now.recorded = true;
        writes.push(Write::Start {
            tail: self.tail().clone(),
            module,
            request: self.0.origin.request.clone(),
        });
    }

    /// Puts a resumed run on record as running again, so that another interruption counts.
    pub(super) fn restart(&self, module: Digest, writes: &mut Vec<Write>) {
        writes.push(Write::Start { tail: self.tail().clone(), module, request: None });
    }

    /// Makes the run a stream. Returns whether it was none before.
    pub(super) fn open(&self, module: Digest, writes: &mut Vec<Write>) -> bool {
        self.record(module, writes);
        !std::mem::replace(&mut self.progress().now.streaming, true)
    }

    /// The agent's wish how clients that take any format get the events.
    pub(super) fn wish(&self) -> Option<Format> {
        self.progress().wish
    }

    /// Sets that wish, which counts when the stream opens.
    pub(super) fn wish_for(&self, format: Format) {
        self.progress().wish = Some(format);
    }

    /// Numbers an event of the guest and adds it to the turn.
    pub(super) fn emit(
        &self,
        event: Event,
        limits: &InstanceLimits,
        writes: &mut Vec<Write>,
    ) -> Result<Seq, Refused> {
        let Mark { seq, bytes, ended, .. } = self.progress().now;
        if ended {
            return Err(Refused::Closed);
        }
        if seq.0 >= limits.run_events {
            return Err(Refused::Over(Limit::RunEvents(limits.run_events)));
        }
        if bytes + data_bytes(&event) > limits.run_bytes {
            return Err(Refused::Over(Limit::RunBytes(limits.run_bytes)));
        }
        if !self.tail().reserve(event.size()) {
            return Err(Refused::Backlogged);
        }
        Ok(self.append(event, writes))
    }

    fn append(&self, mut event: Event, writes: &mut Vec<Write>) -> Seq {
        let mut progress = self.progress();
        progress.now.seq = progress.now.seq.next();
        progress.now.bytes += data_bytes(&event);
        event.seq = progress.now.seq;
        writes.push(Write::Event { tail: self.tail().clone(), event: Arc::new(event) });
        progress.now.seq
    }

    /// Keeps an answer, if the run is to.
    pub(super) fn keep(&self, answer: &Answer, max_bytes: usize, writes: &mut Vec<Write>) {
        if !self.0.origin.keeps_reply || self.is_streaming() {
            return;
        }
        if let Some(kept) = KeptReply::of(answer, max_bytes) {
            writes.push(Write::Reply { tail: self.tail().clone(), reply: kept.encode() });
        }
    }

    /// Ends the run in this turn: a stream by its last event if it failed, and by its outcome on record.
    pub(super) fn end(&self, failure: Option<&Fault>, writes: &mut Vec<Write>) {
        let now = self.progress().now;
        if now.ended {
            return;
        }
        if let Some(fault) = failure.filter(|_| now.streaming) {
            // The run's last word, which no backlog holds up.
            let event = Event::new(Seq::ZERO, Some("failed".into()), None, fault.json());
            self.append(event, writes);
        }
        if now.recorded {
            let outcome = outcome(failure);
            writes.push(Write::End { tail: self.tail().clone(), outcome });
        }
        self.progress().now.ended = true;
    }

    /// Whether the answer is the event stream.
    pub(super) fn is_streaming(&self) -> bool {
        self.progress().now.streaming
    }

    /// Whether the guest's part is over, in a submitted turn or in the one being made.
    pub(super) fn has_ended(&self) -> bool {
        self.progress().now.ended
    }

    /// The last event the guest emitted.
    pub(super) fn last(&self) -> Seq {
        self.progress().now.seq
    }

    /// The turn went to the journal: what is in it will be.
    pub(super) fn submitted(&self) {
        let mut progress = self.progress();
        progress.submitted = progress.now;
    }

    /// The turn was thrown away: as if the guest had not done it.
    pub(super) fn discarded(&self) {
        let mut progress = self.progress();
        progress.now = progress.submitted;
    }

    /// Sends the answer, if none was sent yet and somebody waits for it. What nobody takes comes back.
    pub(super) fn answer(
        &self,
        answer: Answer,
        after: Ticket,
        module: Digest,
    ) -> Result<(), Answered> {
        let sender = self.progress().answer.take();
        let answered = Answered { answer, module, after };
        match sender {
            Some(sender) => sender.send(answered),
            None => Err(answered),
        }
    }

    /// Whether somebody waits for the answer.
    pub(super) fn is_awaited(&self) -> bool {
        self.progress().answer.as_ref().is_some_and(|sender| !sender.is_closed())
    }

    /// The tail to read the run from.
    pub(super) fn tail(&self) -> &Arc<Tail> {
        let Inner { id, ledger, tail, .. } = &*self.0;
        tail.get_or_init(|| {
            let ledger = ledger.as_ref().expect("a run without a tail has a ledger");
            ledger.tail(*id)
        })
    }
}

impl Origin {
    /// A resumed run's last durable event.
    pub fn resumed_after(&self) -> Option<Seq> {
        self.resumed.as_ref().map(|resumed| resumed.after)
    }
}

impl Ending {
    fn now() -> Box<Self> {
        Box::new(Self { since: Instant::now(), over: None })
    }
}

/// What an event takes of what its run may emit.
fn data_bytes(event: &Event) -> u64 {
    (event.size() - Event::OVERHEAD) as u64
}

/// Whether a response may have this status.
pub fn check_status(status: u16) -> Result<(), Fault> {
    match status {
        200..=599 => Ok(()),
        _ => Err(Fault::BadResponse(format!("status {status} is not one of 200 to 599"))),
    }
}

/// How a run ends with this failure, or without one.
pub(super) fn outcome(failure: Option<&Fault>) -> Outcome {
    match failure {
        None => Outcome { state: RunState::Finished, code: None },
        Some(fault) => {
            let cancelled = matches!(fault, Fault::Cancelled);
            let state = if cancelled { RunState::Cancelled } else { RunState::Failed };
            Outcome { state, code: Some(fault.code().into()) }
        }
    }
}

/// The turn that ends a run on record which nobody will go on with: its last event says why.
pub fn epitaph(tail: &Arc<Tail>, last: Seq, fault: &Fault) -> Turn {
    let resumed = Some(Box::new(Resumed { after: last, gone: None }));
    let run = Run::again(tail.clone(), Origin { resumed, ..Origin::default() });
    let mut writes = Vec::new();
    run.end(Some(fault), &mut writes);
    Turn(writes)
}
