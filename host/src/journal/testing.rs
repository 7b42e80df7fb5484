//! A disk for tests, in memory: it records what is done to it, fails when told to, and shows what a crash
//! would leave.

use std::io;
use std::sync::{Arc, Mutex};
use std::task::Context;
use std::thread::{self, ThreadId};
use std::time::Duration;

use futures_util::task::{ArcWake, waker_ref};
use proptest::prelude::*;

use super::redb::RedbStore;
use super::*;

#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<State>>);

/// The bytes of both files.
pub(super) type Image = [Vec<u8>; 2];

#[derive(Debug, Default)]
struct State {
    bytes: Image,
    /// The bytes of each file as of its last sync that succeeded.
    durable: Image,
    log: Option<Vec<Edit>>,
    faults: Option<Faults>,
    /// The bytes of each file that were read.
    read: [usize; 2],
    /// The file whose next change panics.
    panics: Option<JournalFile>,
    /// A store has the file open, and no other may.
    held: [bool; 2],
}

/// One of the disk's files.
#[derive(Clone, Debug)]
pub(super) struct Held {
    disk: Disk,
    file: usize,
}

#[derive(Clone, Copy, Debug)]
struct Faults {
    /// Changes that still succeed.
    grace: usize,
    /// Changes that fail then.
    times: usize,
}

/// What changes a file of a disk.
#[derive(Clone, Debug)]
pub(super) struct Edit {
    pub(super) file: usize,
    pub(super) change: Change,
}

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write(usize, Vec<u8>),
    SetLen(usize),
    Sync,
}

impl Edit {
    pub(super) fn apply(&self, image: &mut Image) {
        self.change.apply(&mut image[self.file]);
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Sync => {}
        }
    }
}

impl Disk {
    pub(super) fn of(bytes: Image) -> Self {
        let disk = Self::default();
        lock(&disk.0).durable.clone_from(&bytes);
        lock(&disk.0).bytes = bytes;
        disk
    }

    pub(super) fn backend(&self) -> Backend {
        let disk = self.clone();
        Backend::new(move |file| disk.hold(file))
    }

    /// A file of the disk, for one store at a time.
    pub(super) fn hold(&self, file: JournalFile) -> io::Result<Held> {
        let file = file as usize;
        let held = std::mem::replace(&mut lock(&self.0).held[file], true);
        let disk = self.clone();
        if held { Err(io::ErrorKind::ResourceBusy.into()) } else { Ok(Held { disk, file }) }
    }

    /// The bytes that would be there after a crash that loses all that is not synced.
    pub(super) fn durable(&self) -> Image {
        lock(&self.0).durable.clone()
    }

    /// How many bytes of a file were read.
    pub(super) fn read(&self, file: JournalFile) -> usize {
        lock(&self.0).read[file as usize]
    }

    /// Begins to record, and returns the bytes to which the record applies.
    pub(super) fn record(&self) -> Image {
        let mut state = lock(&self.0);
        state.log = Some(Vec::new());
        state.bytes.clone()
    }

    pub(super) fn log(&self) -> Vec<Edit> {
        lock(&self.0).log.clone().unwrap_or_default()
    }

    pub(super) fn logged(&self) -> usize {
        lock(&self.0).log.as_ref().map_or(0, Vec::len)
    }

    /// Lets `grace` more changes succeed, and then `times` fail.
    pub(super) fn fail(&self, grace: usize, times: usize) {
        lock(&self.0).faults = Some(Faults { grace, times });
    }

    /// Has the next change of this file panic.
    pub(super) fn panic(&self, file: JournalFile) {
        lock(&self.0).panics = Some(file);
    }

    pub(super) fn heal(&self) {
        lock(&self.0).faults = None;
    }

    fn change(&self, op: Edit) -> io::Result<()> {
        let mut state = lock(&self.0);
        if state.panics.take_if(|file| *file as usize == op.file).is_some() {
            panic!("a mistake");
        }
        match &mut state.faults {
            Some(Faults { grace: 0, times: 0 }) | None => {}
            Some(Faults { grace: 0, times }) => {
                *times -= 1;
                return Err(io::Error::other("the disk is on fire"));
            }
            Some(Faults { grace, .. }) => *grace -= 1,
        }
        op.apply(&mut state.bytes);
        if matches!(op.change, Change::Sync) {
            state.durable[op.file] = state.bytes[op.file].clone();
        }
        if let Some(log) = &mut state.log {
            log.push(op);
        }
        Ok(())
    }
}

impl Held {
    fn change(&self, change: Change) -> io::Result<()> {
        self.disk.change(Edit { file: self.file, change })
    }
}

impl StorageBackend for Held {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.disk.0).bytes[self.file].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut state = lock(&self.disk.0);
        state.read[self.file] += out.len();
        let at = offset as usize;
        let bytes = state.bytes[self.file].get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Change::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write(offset as usize, data.to_vec()))
    }

    fn close(&self) -> io::Result<()> {
        lock(&self.disk.0).held[self.file] = false;
        Ok(())
    }
}

/// Looks at what each crash would leave, after so many of these edits.
pub(super) fn each_crash(mut image: Image, log: &[Edit], mut check: impl FnMut(Image, usize)) {
    let mut random = proptest::test_runner::TestRng::deterministic_rng(
        proptest::test_runner::RngAlgorithm::ChaCha,
    );
    let mut durable = image.clone();
    let mut unsynced: Vec<&Edit> = Vec::new();
    for (at, op) in log.iter().enumerate() {
        op.apply(&mut image);
        check(image.clone(), at + 1);
        if matches!(op.change, Change::Sync) {
            durable[op.file].clone_from(&image[op.file]);
            unsynced.retain(|other| other.file != op.file);
        } else {
            unsynced.push(op);
        }
        // The disk may write in any order: some of what is not synced is there, some is not.
        let mut torn = durable.clone();
        for op in &unsynced {
            if random.random_bool(0.5) {
                op.apply(&mut torn);
            }
        }
        check(torn, at + 1);
    }
}

/// Limits that keep everything, with a small log, small tails and pages.
pub(super) fn limits() -> JournalLimits {
    JournalLimits {
        cache_bytes: 1 << 20,
        log_bytes: 32 << 10,
        tail_bytes: 4 << 10,
        page_bytes: 2 << 10,
        backlog_bytes: 64 << 10,
        retain_for: Duration::from_secs(1 << 40),
        retain_bytes: u64::MAX,
        patience: Duration::from_secs(1 << 40),
    }
}

pub(super) fn options() -> Options {
    within(limits())
}

pub(super) fn within(limits: JournalLimits) -> Options {
    Options { file: "test.redb".into(), limits }
}

pub(super) fn open(disk: &Disk, options: Options) -> Journal {
    Journal::open_on(disk.backend(), options).unwrap().0
}

pub(super) fn instance(name: &str) -> InstanceKey {
    InstanceKey::new("test".parse().unwrap(), name).unwrap()
}

pub(super) fn start(tail: &Arc<Tail>) -> Write {
    Write::Start { tail: Arc::clone(tail), module: Digest::of(b"module"), request: None }
}

pub(super) fn event(tail: &Arc<Tail>, seq: u64, data: impl Into<String>) -> Write {
    identified(tail, seq, None, data)
}

pub(super) fn identified(
    tail: &Arc<Tail>,
    seq: u64,
    id: Option<&str>,
    data: impl Into<String>,
) -> Write {
    Write::Event {
        tail: Arc::clone(tail),
        event: Arc::new(Event::new(Seq(seq), None, id.map(String::from), data.into())),
    }
}

pub(super) fn end(tail: &Arc<Tail>) -> Write {
    Write::End { tail: Arc::clone(tail), outcome: finished() }
}

pub(super) fn finished() -> Outcome {
    Outcome { state: RunState::Finished, code: None }
}

pub(super) type Seqs = Vec<u64>;

pub(super) fn seqs(page: &[Arc<Event>]) -> Seqs {
    page.iter().map(|event| event.seq.0).collect()
}

/// A deployment of the agent that [`instance`] names.
pub(super) fn deployment(generation: u64) -> DeploymentRecord {
    DeploymentRecord {
        agent: instance("a").agent().clone(),
        generation,
        module: Some(Digest::of(&generation.to_le_bytes())),
        at_ms: 1000 * generation,
        source: "test".into(),
    }
}

/// A batch of one turn, for a store without a writer.
pub(super) fn batch(lane: &Arc<Lane>, writes: Vec<Write>) -> [Submitted; 1] {
    [Submitted { lane: Arc::clone(lane), number: 1, turn: Turn(writes) }]
}

/// Submits a turn and waits until it is durable.
pub(super) async fn commit(lane: &Arc<Lane>, writes: Vec<Write>) {
    lane.submit(Turn(writes)).durable().await.unwrap();
}

/// Submits a turn and attends to it. Returns its ticket, and whether it was this thread that made it durable.
pub(super) fn attend(journal: &Journal, lane: &Arc<Lane>, writes: Vec<Write>) -> (Ticket, bool) {
    #[derive(Default)]
    struct By(Mutex<Option<ThreadId>>);
    impl ArcWake for By {
        fn wake_by_ref(by: &Arc<Self>) {
            *lock(&by.0) = Some(thread::current().id());
        }
    }
    let by = Arc::<By>::default();
    let (ticket, waiting) = journal.attend(|| {
        let ticket = lane.submit(Turn(writes));
        let waits = ticket.clone();
        let mut waiting = Box::pin(async move { waits.durable().await });
        let _ = waiting.as_mut().poll(&mut Context::from_waker(&waker_ref(&by)));
        (ticket, waiting)
    });
    drop(waiting);
    let by = *lock(&by.0);
    (ticket, by == Some(thread::current().id()))
}

/// Commits until this thread did it itself, so that the writer waits.
pub(super) async fn attended(journal: &Journal, lane: &Arc<Lane>) {
    for n in 0..10_000 {
        let (ticket, here) = attend(journal, lane, vec![Write::State(Some(n.to_string().into()))]);
        if here {
            return;
        }
        // One turn at a time, as the writer keeps its place where there are many.
        ticket.durable().await.unwrap();
        thread::yield_now();
    }
    panic!("the writer never waits");
}

/// Reads to the end, and returns the numbers and the outcome.
pub(super) async fn read_out(reader: &mut Reader) -> (Seqs, Outcome) {
    let mut read = Seqs::new();
    loop {
        match reader.next().await {
            Step::Events(page) => read.extend(seqs(&page)),
            Step::End(outcome) => return (read, outcome),
            Step::Broken(reason) => panic!("{reason}"),
        }
    }
}

/// Settles all that is durable, lets retention do what it has to, and returns how many runs that took.
pub(super) fn tend(store: &RedbStore, now: SystemTime) -> u64 {
    store.rest(now).unwrap();
    let mut trimmed = 0;
    loop {
        let tended = store.tend(now).unwrap();
        trimmed += tended.trimmed_runs;
        if !tended.is_due {
            return trimmed;
        }
    }
}

/// Asserts that what is on the disk is consistent, as after a crash that loses all that is not synced.
pub(super) fn assert_consistent(disk: &Disk) {
    let report = super::redb::check_on(&Disk::of(disk.durable()).backend(), "test.redb".as_ref());
    assert_eq!(report.unwrap().violations, []);
}

/// Makes a run of so many events, ended, and returns its id.
pub(super) async fn whole_run(
    journal: &Journal,
    lane: &Arc<Lane>,
    events: u64,
    data: &str,
) -> RunId {
    let tail = journal.tail(lane.instance(), RunId::generate());
    let mut writes = vec![start(&tail)];
    writes.extend((1..=events).map(|seq| event(&tail, seq, data)));
    writes.push(end(&tail));
    commit(lane, writes).await;
    tail.run()
}

/// The reader of what can be resumed.
pub(super) fn at(located: Located) -> Reader {
    match located {
        Located::At(reader) => reader,
        other => panic!("{other:?}"),
    }
}

/// Why it cannot be resumed.
pub(super) fn not(located: Located) -> NotResumable {
    match located {
        Located::Not(why) => why,
        other => panic!("{other:?}"),
    }
}
