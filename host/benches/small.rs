//! Single steps of the host's work, each on its own: what `load` measures as a whole is made of these.
//!
//!     cargo bench -p bureau --bench small
//!
//! The journal is a real one, in a file on the file system of the build, and its writer is the host's own.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bureau::config::JournalLimits;
use bureau::http::{route, sse};
use bureau::id::{AgentName, Cursor, Digest, InstanceKey, RunId, Seq};
use bureau::journal::{Event, Journal, Lane, Options, Tail, Ticket, Turn, Write};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use http::Method;

/// An event's data.
const DATA: &str = "{\"role\":\"assistant\",\"text\":\"a token or two of some sentence..\"}";

/// Events of a large commit, and of how many runs they are.
const BATCH: u64 = 4096;
const RUNS: usize = 64;

fn texts(criterion: &mut Criterion) {
    let (run, event) = (RunId::generate(), event(Seq(1234)));
    criterion.bench_function("frame an event", |bench| {
        bench.iter(|| sse::frame(black_box(run), black_box(&event)));
    });
    criterion.bench_function("parse a route", |bench| {
        bench.iter(|| {
            route::parse(&Method::GET, black_box("/agents/chat/user-1234/messages?after=17"))
        });
    });
    let cursor = Cursor { run, seq: Seq(1234) }.to_string();
    criterion.bench_function("parse a cursor", |bench| {
        bench.iter(|| black_box(&cursor).parse::<Cursor>());
    });
}

fn journal(criterion: &mut Criterion) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
    let limits = JournalLimits { retain_for: Duration::MAX, ..JournalLimits::default() };
    let file = directory.path().join("journal.redb");
    let (journal, _) = Journal::open(Options { file, limits }).expect("a new journal opens");
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let durable = |ticket: Option<Ticket>| {
        let ticket = ticket.expect("something was written");
        runtime.block_on(ticket.durable()).expect("the disk takes it");
    };
    let mut runs: Vec<_> = (0..RUNS).map(|n| Running::start(&journal, n)).collect();

    let mut group = criterion.benchmark_group("make durable");
    group.sample_size(20);
    group.bench_function("a turn of one event", |bench| {
        let next = || runs[0].turn();
        bench.iter_batched(
            next,
            |(lane, turn)| durable(Some(lane.submit(turn))),
            BatchSize::SmallInput,
        );
    });
    group.throughput(Throughput::Elements(BATCH));
    group.bench_function("turns of 4,096 events, of 64 runs", |bench| {
        let next = || (0..BATCH as usize).map(|n| runs[n % RUNS].turn()).collect::<Vec<_>>();
        bench.iter_batched(
            next,
            |turns| durable(turns.into_iter().map(|(lane, turn)| lane.submit(turn)).last()),
            BatchSize::SmallInput,
        );
    });
    group.finish();
    runtime.block_on(journal.close());
}

/// A run that goes on.
struct Running {
    lane: Arc<Lane>,
    tail: Arc<Tail>,
    last: Seq,
}

impl Running {
    fn start(journal: &Journal, number: usize) -> Self {
        let agent: AgentName = "chat".parse().expect("a name");
        let key = InstanceKey::new(agent, &format!("user-{number}")).expect("a name");
        let (lane, tail) = (journal.lane(key.clone()), journal.tail(&key, RunId::generate()));
        let start = Write::Start { tail: tail.clone(), module: Digest::of(b""), request: None };
        lane.submit(Turn(vec![start]));
        Self { lane, tail, last: Seq::ZERO }
    }

    /// Its next turn, and where it goes.
    fn turn(&mut self) -> (Arc<Lane>, Turn) {
        self.last = self.last.next();
        let event = Write::Event { tail: self.tail.clone(), event: Arc::new(event(self.last)) };
        (self.lane.clone(), Turn(vec![event]))
    }
}

fn event(seq: Seq) -> Event {
    Event::new(seq, Some("message".into()), None, DATA.into())
}

criterion_group!(benches, texts, journal);
criterion_main!(benches);
