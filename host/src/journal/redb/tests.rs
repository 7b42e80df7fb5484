//! What only one who knows the tables can make or see.

mod keys;
mod lists;
mod opening;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Journal, JournalLimits, Lane, RunState, Tail, Turn, Write};
use super::tables::{ENDED, META_ENDED_BYTES, META_FORMAT};
use super::*;

pub(in super::super) fn make_foreign(file: &Path) {
    let database = Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(STATES).unwrap();
    transaction.commit().unwrap();
}

pub(in super::super) fn make_of_format(file: &Path, format: u64) {
    let database = Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut meta = transaction.open_table(META).unwrap();
    meta.insert(META_FORMAT, format).unwrap();
    drop(meta);
    transaction.commit().unwrap();
}

/// The bytes that each ended run counts.
pub(in super::super) fn ended_bytes(store: &RedbStore) -> Vec<u64> {
    let read = store.read(|transaction| {
        let ended = transaction.open_table(ENDED)?;
        let rows = ended.iter()?.map(|row| Ok(row?.1.value()));
        rows.collect()
    });
    read.unwrap()
}

/// The bytes that all of them count.
pub(in super::super) fn total_ended_bytes(store: &RedbStore) -> u64 {
    let read = store.read(|transaction| {
        let meta = transaction.open_table(META)?;
        number(&meta, META_ENDED_BYTES)
    });
    read.unwrap()
}

/// A store, and what turns need that go to it without a writer.
struct Bench {
    disk: Disk,
    options: Options,
    store: RedbStore,
    journal: Journal,
    lane: Arc<Lane>,
}

impl Bench {
    fn new(options: Options) -> Self {
        let disk = Disk::default();
        let (store, _) = RedbStore::open(disk.backend(), &options).unwrap();
        let journal = open(&Disk::default(), super::super::testing::options());
        let lane = journal.lane(instance("a"));
        Self { disk, options, store, journal, lane }
    }

    fn tail(&self) -> Arc<Tail> {
        self.journal.tail(&instance("a"), RunId::generate())
    }

    fn batch(&self, writes: Vec<Write>) -> [Submitted; 1] {
        batch(&self.lane, writes)
    }

    fn commit(&self, writes: Vec<Write>) {
        self.store.commit(&self.batch(writes), SystemTime::now()).unwrap();
    }

    /// Begins to settle all that was committed, and goes no further.
    fn rest(&self) {
        self.store.rest(SystemTime::now()).unwrap();
    }

    fn tend(&self) -> u64 {
        tend(&self.store, SystemTime::now())
    }

    fn segments(&self) -> u64 {
        use ::redb::ReadableTableMetadata;
        self.store.read(|transaction| Ok(transaction.open_table(EVENTS)?.len()?)).unwrap()
    }

    /// Loses all that is not durable, and begins again.
    fn crash(&mut self) {
        self.disk = Disk::of(self.disk.durable());
        (self.store, _) = RedbStore::open(self.disk.backend(), &self.options).unwrap();
    }

    fn read(&self, tail: &Tail, after: u64) -> Seqs {
        seqs(&self.store.events(tail.run(), Seq(after), usize::MAX).unwrap())
    }

    fn list(&self, after: Option<&str>, limit: usize, max_bytes: usize) -> String {
        let pairs = self.store.list(&instance("a"), "k", after, limit, max_bytes).unwrap();
        let text = |(key, value): Pair| format!("{key}={} ", str::from_utf8(&value).unwrap());
        pairs.into_iter().map(text).collect()
    }
}

fn set(key: &str, value: &'static str) -> Write {
    let value = (!value.is_empty()).then(|| Bytes::from(value));
    Write::Storage { key: key.into(), value }
}

#[tokio::test]
async fn what_is_only_in_the_log_survives_a_crash_and_moves_on_to_segments() {
    let mut bench = Bench::new(options());
    let tails = [(); 3].map(|()| bench.tail());
    bench.commit(tails.iter().map(start).collect());
    for seq in 1..=4 {
        bench.commit(tails.iter().map(|tail| event(tail, seq, "x")).collect());
    }
    assert_eq!(bench.segments(), 0);
    bench.crash();
    assert_eq!(bench.segments(), 3);
    for tail in &tails {
        assert_eq!(bench.read(tail, 0), [1, 2, 3, 4]);
        assert_eq!(bench.read(tail, 2), [3, 4]);
        let record = bench.store.run(tail.run()).unwrap().unwrap();
        assert_eq!((record.last, record.interrupted_at), (Seq(4), Seq(4)));
    }
    bench.commit(tails.iter().map(start).collect());
    bench.commit(vec![event(&tails[0], 5, "x"), end(&tails[0]), event(&tails[1], 5, "x")]);
    let all = |bench: &Bench| {
        assert_eq!(bench.read(&tails[0], 0), [1, 2, 3, 4, 5]);
        assert_eq!(bench.read(&tails[1], 0), [1, 2, 3, 4, 5]);
        assert_eq!(bench.read(&tails[2], 1), [2, 3, 4]);
        let record = bench.store.run(tails[0].run()).unwrap().unwrap();
        assert_eq!((record.last, record.state), (Seq(5), RunState::Finished));
    };
    all(&bench);
    bench.rest();
    assert_eq!(bench.segments(), 3, "nobody has settled anything yet");
    all(&bench);
    bench.tend();
    assert_eq!(bench.segments(), 5);
    all(&bench);
    bench.crash();
    all(&bench);
}

/// The same writes, then newer ones over them, in each of the places where they can lie.
#[tokio::test]
async fn what_is_read_is_the_newest_wherever_it_lies() {
    // How far the older writes come before the newer ones are made, and those after that.
    for (older, newer) in [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)] {
        let mut bench = Bench::new(options());
        let tail = bench.tail();
        let advance = |bench: &Bench, how_far| match how_far {
            0 => {}
            1 => bench.rest(),
            _ => drop(bench.tend()),
        };
        bench.commit(vec![
            start(&tail),
            identified(&tail, 1, Some("id"), "x"),
            Write::State(Some("1".into())),
            Write::Module(Digest::of(b"1")),
            set("k1", "1"),
            set("k3", "3"),
            set("k5", "5"),
            set("l", "no"),
        ]);
        advance(&bench, older);
        bench.commit(vec![
            identified(&tail, 2, Some("id"), "x"),
            Write::State(Some("2".into())),
            Write::Module(Digest::of(b"2")),
            set("j", "no"),
            set("k0", "0"),
            set("k1", "new"),
            set("k3", ""),
            set("k4", "4"),
            set("k6", "6"),
            set("k7", ""),
        ]);
        advance(&bench, newer);
        for _ in 0..2 {
            let at = format!("{older} {newer}");
            let here = instance("a");
            assert_eq!(bench.read(&tail, 0), [1, 2], "{at}");
            assert_eq!(bench.read(&tail, 1), [2], "{at}");
            let page = bench.store.events(tail.run(), Seq(0), 1).unwrap();
            assert_eq!(seqs(&page), [1], "{at}");
            let record = bench.store.run(tail.run()).unwrap().unwrap();
            assert_eq!((record.last, &record.instance), (Seq(2), &here), "{at}");
            let found = bench.store.find_id(&here, "id").unwrap().unwrap();
            assert_eq!((found.run, found.seq), (tail.run(), Seq(2)), "{at}");
            assert_eq!(bench.store.state(&here).unwrap().as_deref(), Some("2"), "{at}");
            assert_eq!(bench.store.state(&instance("b")).unwrap(), None);
            let module = bench.store.module(&here).unwrap();
            assert_eq!(module, Some(Digest::of(b"2")), "{at}");
            assert_eq!(bench.store.module(&instance("b")).unwrap(), None);
            let value = |key| bench.store.value(&here, key).unwrap();
            assert_eq!(value("k1").as_deref(), Some(&b"new"[..]), "{at}");
            assert_eq!((value("k3"), value("k7"), value("k9")), (None, None, None), "{at}");
            assert_eq!(value("k5").as_deref(), Some(&b"5"[..]), "{at}");
            assert_eq!(bench.list(None, 9, 99), "k0=0 k1=new k4=4 k5=5 k6=6 ", "{at}");
            assert_eq!(bench.list(Some("k1"), 2, 99), "k4=4 k5=5 ", "{at}");
            assert_eq!(bench.list(Some("k0"), 9, 8), "k1=new k4=4 ", "{at}");
            assert_eq!(bench.list(Some("k0"), 9, 0), "k1=new ", "{at}");
            bench.crash();
        }
    }
}

#[tokio::test]
async fn a_document_that_was_removed_is_gone_wherever_it_lay() {
    for (older, newer) in [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (2, 2)] {
        let mut bench = Bench::new(options());
        for (document, how_far) in [(Some("1"), older), (None, newer)] {
            bench.commit(vec![Write::State(document.map(Into::into))]);
            match how_far {
                0 => {}
                1 => bench.rest(),
                _ => drop(bench.tend()),
            }
        }
        for _ in 0..2 {
            assert_eq!(bench.store.state(&instance("a")).unwrap(), None, "{older} {newer}");
            bench.crash();
        }
        bench.commit(vec![Write::State(Some("3".into()))]);
        assert_eq!(bench.store.state(&instance("a")).unwrap().as_deref(), Some("3"));
    }
}

#[tokio::test]
async fn a_log_that_is_full_is_settled_by_who_commits_if_nobody_else_has() {
    let mut bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail)]);
    for seq in 1..=40 {
        bench.commit(vec![event(&tail, seq, "x".repeat(3000))]);
    }
    assert!(bench.segments() > 0);
    for _ in 0..2 {
        assert_eq!(bench.read(&tail, 0), (1..=40).collect::<Seqs>());
        bench.crash();
    }
    let written = bench.disk.durable()[JournalFile::Log as usize].len();
    assert!(written <= log::PAGE + options().limits.log_bytes, "{written}");
}

#[tokio::test]
async fn a_batch_that_no_log_holds_goes_to_the_tables_behind_what_came_before() {
    let mut bench = Bench::new(options());
    let tail = bench.tail();
    let large = "x".repeat(options().limits.log_bytes);
    bench.commit(vec![start(&tail), event(&tail, 1, "x"), set("k", "old")]);
    bench.rest();
    bench.commit(vec![event(&tail, 2, "x"), set("k", "older")]);
    bench.commit(vec![event(&tail, 3, &*large), set("k", "new")]);
    assert_eq!(bench.segments(), 3);
    bench.commit(vec![event(&tail, 4, "x")]);
    for _ in 0..2 {
        assert_eq!(bench.read(&tail, 0), [1, 2, 3, 4]);
        assert_eq!(bench.list(None, 9, 99), "k=new ");
        bench.crash();
    }
}

#[tokio::test]
async fn a_batch_that_no_log_holds_does_not_wait_for_all_of_retention() {
    const RUNS: usize = 300;
    let mut bench = Bench::new(options());
    for _ in 0..RUNS {
        let tail = bench.tail();
        bench.commit(vec![start(&tail), event(&tail, 1, "x"), end(&tail)]);
    }
    bench.options = within(JournalLimits { retain_bytes: 0, ..limits() });
    bench.crash();
    bench.commit(vec![set("k", "x".repeat(options().limits.log_bytes).leak())]);
    let left = ended_bytes(&bench.store).len();
    assert!(left > RUNS / 2 && left < RUNS, "{left}");
}

#[tokio::test]
async fn tables_that_cannot_be_written_to_fail_the_next_commit_and_lose_nothing() {
    let bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail), event(&tail, 1, "x")]);
    bench.rest();
    bench.commit(vec![event(&tail, 2, "x")]);
    bench.disk.fail(0, usize::MAX);
    let now = SystemTime::now();
    assert!(bench.store.tend(now).is_err());
    bench.disk.heal();
    let batch = bench.batch(vec![event(&tail, 3, "x")]);
    for refused in [bench.store.commit(&batch, now), bench.store.rest(now)] {
        let reason = refused.map(drop).unwrap_err().to_string();
        assert!(reason.contains("the disk is on fire"), "{reason}");
    }
    bench.store.reopen().unwrap();
    assert_eq!(bench.read(&tail, 0), [1, 2]);
    bench.store.commit(&batch, now).unwrap();
    assert_eq!(bench.read(&tail, 0), [1, 2, 3]);
}

#[tokio::test]
async fn a_run_that_is_trimmed_stays_gone_though_its_end_is_committed_again() {
    let options = within(JournalLimits { retain_bytes: 0, ..limits() });
    let mut bench = Bench::new(options);
    let [gone, stays] = [(); 2].map(|()| bench.tail());
    bench.commit(vec![start(&gone), start(&stays)]);
    for seq in 1..=3 {
        bench.commit(vec![identified(&gone, seq, Some("id"), "x"), event(&stays, seq, "x")]);
    }
    bench.commit(vec![end(&gone)]);
    assert_eq!(bench.tend(), 1);
    for _ in 0..2 {
        assert_eq!(bench.store.run(gone.run()).unwrap(), None);
        assert_eq!(bench.read(&gone, 0), [0; 0]);
        assert_eq!(bench.store.find_id(&instance("a"), "id").unwrap(), None);
        assert_eq!((bench.segments(), total_ended_bytes(&bench.store)), (1, 0));
        assert_eq!(bench.read(&stays, 0), [1, 2, 3]);
        // The same turn once more, after its first attempt did become durable.
        bench.commit(vec![event(&gone, 3, "x"), end(&gone)]);
        assert_eq!(bench.store.run(gone.run()).unwrap(), None);
        bench.tend();
        bench.crash();
    }
}

#[tokio::test]
async fn what_a_key_stands_for_and_a_reply_are_kept_as_long_as_their_run() {
    let options = within(JournalLimits { retain_bytes: 0, ..limits() });
    let mut bench = Bench::new(options);
    let [first, second] = [(); 2].map(|()| bench.tail());
    let key = |tail: &Arc<Tail>, request: &[u8]| Write::Key {
        tail: Arc::clone(tail),
        key: "k".into(),
        fingerprint: Digest::of(request),
    };
    let reply = Write::Reply { tail: Arc::clone(&first), reply: "said".into() };
    bench.commit(vec![start(&first), key(&first, b"1"), reply]);
    let keyed = |bench: &Bench| bench.store.keyed(&instance("a"), "k").unwrap();
    for step in 0..3 {
        let expected = Keyed { run: first.run(), fingerprint: Digest::of(b"1") };
        assert_eq!(keyed(&bench), Some(expected), "{step}");
        assert_eq!(bench.store.keyed(&instance("b"), "k").unwrap(), None);
        assert_eq!(bench.store.reply(first.run()).unwrap().as_deref(), Some(&b"said"[..]));
        match step {
            0 => bench.crash(),
            _ => drop(bench.tend()),
        }
    }
    bench.commit(vec![end(&first)]);
    assert_eq!(bench.tend(), 1);
    assert_eq!((keyed(&bench), bench.store.reply(first.run()).unwrap()), (None, None));
    bench.commit(vec![start(&second), key(&second, b"2")]);
    bench.tend();
    assert_eq!(keyed(&bench).unwrap().run, second.run(), "it stands for the next one");
}

#[tokio::test]
async fn a_read_beside_commits_has_all_that_was_durable_and_no_gap() {
    let bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail)]);
    let durable = AtomicU64::new(0);
    const EVENTS: u64 = 3000;
    let goes_on = || durable.load(Ordering::Acquire) < EVENTS;
    thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 1..=EVENTS {
                let batch = bench.batch(vec![event(&tail, seq, "x".repeat(seq as usize % 100))]);
                bench.store.commit(&batch, SystemTime::now()).unwrap();
                durable.store(seq, Ordering::Release);
            }
        });
        scope.spawn(|| {
            while goes_on() {
                bench.rest();
                bench.store.tend(SystemTime::now()).unwrap();
            }
        });
        let mut reads = 0_u64;
        while goes_on() {
            let known = durable.load(Ordering::Acquire);
            let after = known.saturating_sub(reads % 40);
            let read = bench.read(&tail, after);
            let last = read.last().copied().unwrap_or(after);
            assert!(last >= known);
            assert_eq!(read, ((after + 1)..=last).collect::<Seqs>());
            let record = bench.store.run(tail.run()).unwrap().unwrap();
            assert!(record.last >= Seq(known));
            reads += 1;
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn everything_is_there_whatever_fails_or_is_lost(
        commits in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (0..12_usize, 0..4_u64, 0..400_usize, proptest::bool::weighted(0.1)),
                    1..10,
                ),
                0..7_u8,
                0..9_usize,
            ),
            1..60,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let _entered = runtime.enter();
        let mut bench = Bench::new(options());
        // Those that go on and those that are over, with their last numbers.
        let mut runs: Vec<(Arc<Tail>, u64)> = Vec::new();
        let mut over: Vec<(Arc<Tail>, u64)> = Vec::new();
        for (said, fate, grace) in commits {
            let mut writes = Vec::new();
            for (chosen, events, size, ends) in said {
                if chosen >= runs.len() {
                    runs.push((bench.tail(), 0));
                    writes.push(start(&runs[runs.len() - 1].0));
                }
                let chosen = chosen.min(runs.len() - 1);
                let (tail, last) = &mut runs[chosen];
                for _ in 0..events {
                    *last += 1;
                    writes.push(event(tail, *last, "x".repeat(size)));
                }
                if ends {
                    writes.push(end(tail));
                    over.push(runs.swap_remove(chosen));
                }
            }
            let batch = bench.batch(writes);
            let now = SystemTime::now();
            match fate {
                // All, or something, or nothing of it becomes durable, and no one learns of it.
                0 | 1 => {
                    bench.disk.fail(grace, usize::MAX);
                    let _ = bench.store.commit(&batch, now);
                    let _ = bench.store.tend(now);
                    bench.disk.heal();
                    bench.store.reopen().unwrap();
                }
                2 => bench.crash(),
                3 => bench.rest(),
                4 => drop(bench.tend()),
                _ => {}
            }
            bench.store.commit(&batch, now).unwrap();
            for (tail, last) in runs.iter().chain(&over) {
                prop_assert_eq!(bench.read(tail, 0), (1..=*last).collect::<Seqs>());
                let record = bench.store.run(tail.run()).unwrap().unwrap();
                prop_assert_eq!(record.last, Seq(*last));
            }
        }
        assert_consistent(&bench.disk);
        bench.tend();
        prop_assert_eq!(ended_bytes(&bench.store).len(), over.len());
        prop_assert_eq!(
            ended_bytes(&bench.store).iter().sum::<u64>(),
            total_ended_bytes(&bench.store)
        );
    }
}
