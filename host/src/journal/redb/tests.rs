//! What only one who knows the tables can make or see.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::super::testing::*;
use super::super::{Journal, JournalLimits, Lane, Tail, Turn, Write};
use super::recent::BOUND;
use super::*;

pub(in super::super) fn make_foreign(file: &Path) {
    let database = Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    transaction.open_table(STATES).unwrap();
    transaction.commit().unwrap();
}

pub(in super::super) fn make_newer(file: &Path) {
    let database = Database::create(file).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut meta = transaction.open_table(META).unwrap();
    meta.insert(META_FORMAT, FORMAT + 1).unwrap();
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

fn in_memory() -> RedbStore {
    RedbStore {
        backend: Backend::new(|| Ok(::redb::backends::InMemoryBackend::new())),
        file: PathBuf::new(),
        cache_bytes: 1 << 20,
        retention: Retention { age: Duration::MAX, bytes: u64::MAX },
        opened: RwLock::new(None),
    }
}

type Name = (String, String, String);

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    #[test]
    fn keys_are_in_the_order_of_what_they_stand_for(
        events: BTreeSet<(u128, u64)>,
        names: BTreeSet<Name>,
    ) {
        let store = in_memory();
        let database = store.open_database().unwrap();
        store.check_format(&database, true).unwrap();
        let transaction = database.begin_write().unwrap();
        let mut tables = Tables::new(&transaction);
        // From the far end, so that the order cannot be that of coming.
        for key in events.iter().rev() {
            tables.events.open().unwrap().insert(*key, &[][..]).unwrap();
        }
        for (agent, instance, key) in names.iter().rev() {
            tables.storage.open().unwrap().insert((&**agent, &**instance, &**key), &[][..]).unwrap();
        }
        let sorted = tables.events.open().unwrap().iter().unwrap().map(|row| row.unwrap().0.value());
        proptest::prop_assert!(sorted.eq(events));
        let sorted = tables.storage.open().unwrap().iter().unwrap().map(|row| {
            let key = row.unwrap().0;
            let (agent, instance, key) = key.value();
            (agent.to_owned(), instance.to_owned(), key.to_owned())
        });
        proptest::prop_assert!(sorted.eq(names));
    }
}

#[test]
fn keys_sort_as_what_they_stand_for() {
    let store = in_memory();
    let database = store.open_database().unwrap();
    store.check_format(&database, true).unwrap();
    let transaction = database.begin_write().unwrap();
    let mut tables = Tables::new(&transaction);
    let mut keys = Vec::new();
    for run in [0, 1, 255, 256, 1 << 64, u128::MAX] {
        for seq in [1, 2, 255, 256, 1 << 32, u64::MAX] {
            keys.push((run, seq));
            tables.events.open().unwrap().insert((run, seq), &[][..]).unwrap();
            tables.ended.open().unwrap().insert((seq, run), 0).unwrap();
        }
    }
    let sorted = tables.events.open().unwrap().iter().unwrap();
    let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
    assert_eq!(sorted, keys);
    keys.sort_by_key(|(run, seq)| (*seq, *run));
    let sorted = tables.ended.open().unwrap().iter().unwrap();
    let sorted: Vec<_> = sorted.map(|row| row.unwrap().0.value()).collect();
    let swapped = sorted.into_iter().map(|(seq, run)| (run, seq));
    assert!(swapped.eq(keys));
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
        [Submitted { lane: Arc::clone(&self.lane), number: 1, turn: Turn(writes) }]
    }

    fn commit(&self, writes: Vec<Write>) {
        self.store.commit(&self.batch(writes), SystemTime::now()).unwrap();
        self.check_memory();
    }

    /// Memory is what the file says.
    fn check_memory(&self) {
        let read = self.store.with(|opened| {
            let load = Recent::load(&opened.database.begin_read()?)?;
            assert_eq!(opened.memory().recent.outline(), load.outline());
            Ok(())
        });
        read.unwrap();
    }

    fn log_bytes(&self) -> usize {
        self.store.with(|opened| Ok(opened.memory().recent.bytes())).unwrap()
    }

    fn segments(&self) -> u64 {
        use ::redb::ReadableTableMetadata;
        self.store.read(|transaction| Ok(transaction.open_table(EVENTS)?.len()?)).unwrap()
    }

    /// Loses all that is not durable, and begins again.
    fn crash(&mut self) {
        self.disk = Disk::of(self.disk.durable());
        (self.store, _) = RedbStore::open(self.disk.backend(), &self.options).unwrap();
        self.check_memory();
    }

    fn read(&self, tail: &Tail, after: u64) -> Seqs {
        seqs(&self.store.events(tail.run(), Seq(after), usize::MAX).unwrap())
    }
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
    for tail in &tails {
        assert_eq!(bench.read(tail, 0), [1, 2, 3, 4]);
        assert_eq!(bench.read(tail, 2), [3, 4]);
        let record = bench.store.run(tail.run()).unwrap().unwrap();
        assert_eq!((record.last, record.interrupted_at), (Seq(4), Seq(4)));
    }
    bench.commit(tails.iter().map(start).collect());
    // One ends, one fills a segment, one stays.
    bench.commit(vec![
        event(&tails[0], 5, "x"),
        end(&tails[0]),
        event(&tails[1], 5, "x".repeat(3000)),
    ]);
    assert_eq!(bench.segments(), 2);
    let all = |bench: &Bench| {
        assert_eq!(bench.read(&tails[0], 0), [1, 2, 3, 4, 5]);
        assert_eq!(bench.read(&tails[1], 0), [1, 2, 3, 4, 5]);
        assert_eq!(bench.read(&tails[2], 1), [2, 3, 4]);
        let record = bench.store.run(tails[0].run()).unwrap().unwrap();
        assert_eq!((record.last, record.state), (Seq(5), RunState::Finished));
    };
    all(&bench);
    bench.crash();
    all(&bench);
}

#[tokio::test]
async fn the_log_is_bounded_and_cleared_a_little_at_a_time() {
    const RUNS: usize = 300;
    let mut bench = Bench::new(options());
    let tails: Vec<_> = (0..RUNS).map(|_| bench.tail()).collect();
    bench.commit(tails.iter().map(start).collect());
    let mut most = 0;
    for (round, tail) in tails.iter().chain(&tails).enumerate() {
        let before = bench.segments();
        let seq = (round / RUNS + 1) as u64;
        bench.commit(vec![event(tail, seq, "x".repeat(200))]);
        // A few more than its steps for what it is over by.
        assert!(bench.segments() - before <= STEP as u64 + 9);
        most = most.max(bench.log_bytes());
    }
    assert!(bench.segments() > 0);
    assert!((BOUND..BOUND + 1000).contains(&most), "{most}");
    for _ in 0..2 {
        assert!(tails.iter().all(|tail| bench.read(tail, 0) == [1, 2]));
        bench.crash();
    }
}

#[tokio::test]
async fn a_log_far_over_its_limit_is_cleared_faster_than_it_grows() {
    let bench = Bench::new(options());
    let [cold, hot] = [4000, 16].map(|runs| (0..runs).map(|_| bench.tail()).collect::<Vec<_>>());
    bench.commit(cold.iter().chain(&hot).map(start).collect());
    // Little of many runs, which then say nothing more, and behind it much of a few.
    bench.commit(cold.iter().map(|tail| event(tail, 1, "x")).collect());
    let at_first = bench.log_bytes();
    assert!(at_first > 4 * BOUND, "{at_first}");
    for seq in 1..=20 {
        bench.commit(hot.iter().map(|tail| event(tail, seq, "x".repeat(300))).collect());
    }
    let then = bench.log_bytes();
    assert!(then < BOUND + at_first / 8, "{then} of {at_first}");
    assert!(cold.iter().all(|tail| bench.read(tail, 0) == [1]));
}

#[tokio::test]
async fn a_run_that_is_trimmed_stays_gone_while_the_log_still_has_it() {
    let options = within(JournalLimits { retain_bytes: 0, ..limits() });
    let mut bench = Bench::new(options);
    let [gone, stays] = [(); 2].map(|()| bench.tail());
    bench.commit(vec![start(&gone), start(&stays)]);
    for seq in 1..=3 {
        bench.commit(vec![identified(&gone, seq, Some("id"), "x"), event(&stays, seq, "x")]);
    }
    bench.commit(vec![end(&gone)]);
    assert!(bench.log_bytes() > 0);
    for _ in 0..2 {
        assert_eq!(bench.store.run(gone.run()).unwrap(), None);
        assert_eq!(bench.read(&gone, 0), [0; 0]);
        assert_eq!(bench.store.find_id(&instance("a"), "id").unwrap(), None);
        assert_eq!((bench.segments(), total_ended_bytes(&bench.store)), (0, 0));
        assert_eq!(bench.read(&stays, 0), [1, 2, 3]);
        bench.crash();
    }
    // The same turn once more, after its first attempt did become durable.
    bench.commit(vec![event(&gone, 3, "x"), end(&gone)]);
    assert_eq!((bench.read(&gone, 0), bench.segments()), (vec![], 0));
}

#[tokio::test]
async fn a_read_beside_commits_has_all_that_was_durable_and_no_gap() {
    let bench = Bench::new(options());
    let tail = bench.tail();
    bench.commit(vec![start(&tail)]);
    let durable = AtomicU64::new(0);
    const EVENTS: u64 = 3000;
    thread::scope(|scope| {
        scope.spawn(|| {
            for seq in 1..=EVENTS {
                let batch = bench.batch(vec![event(&tail, seq, "x".repeat(seq as usize % 100))]);
                bench.store.commit(&batch, SystemTime::now()).unwrap();
                durable.store(seq, Ordering::Release);
            }
        });
        let mut reads = 0_u64;
        while durable.load(Ordering::Acquire) < EVENTS {
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
    fn memory_is_what_the_file_says_whatever_is_committed_or_lost(
        commits in proptest::collection::vec(
            (
                proptest::collection::vec(
                    (0..12_usize, 0..4_u64, 0..400_usize, proptest::bool::weighted(0.1)),
                    1..10,
                ),
                0..4_u8,
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
        for (said, fate) in commits {
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
                // Nothing of it becomes durable, and nothing of it is seen.
                0 => {
                    let before = bench.store.with(|opened| Ok(opened.memory().recent.outline()));
                    bench.disk.fail(0, usize::MAX);
                    prop_assert!(bench.store.commit(&batch, now).is_err());
                    bench.disk.heal();
                    let after = bench.store.with(|opened| Ok(opened.memory().recent.outline()));
                    prop_assert_eq!(before.unwrap(), after.unwrap());
                    bench.store.reopen().unwrap();
                }
                // All of it does, but no one learns of it.
                1 => {
                    bench.store.commit(&batch, now).unwrap();
                    bench.store.reopen().unwrap();
                    bench.check_memory();
                }
                2 => bench.crash(),
                _ => {}
            }
            bench.store.commit(&batch, now).unwrap();
            bench.check_memory();
            prop_assert_eq!(ended_bytes(&bench.store).len(), over.len());
            prop_assert_eq!(
                ended_bytes(&bench.store).iter().sum::<u64>(),
                total_ended_bytes(&bench.store)
            );
            for (tail, last) in runs.iter().chain(&over) {
                prop_assert_eq!(bench.read(tail, 0), (1..=*last).collect::<Seqs>());
                let record = bench.store.run(tail.run()).unwrap().unwrap();
                prop_assert_eq!(record.last, Seq(*last));
            }
        }
    }
}
