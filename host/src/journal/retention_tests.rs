//! What retention takes, when, and what it leaves.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::redb::RedbStore;
use super::tail::Limits;
use super::testing::*;
use super::*;

#[tokio::test]
async fn retention_by_bytes_takes_the_oldest_end_first() {
    let kept = 10;
    let options = within(JournalLimits { retain_bytes: kept * (1000 + 600), ..limits() });
    let disk = Disk::default();
    let (store, _) = RedbStore::open(disk.backend(), &options).unwrap();
    let elsewhere = open(&Disk::default(), options.clone());
    let lane = elsewhere.lane(instance("a"));
    let now = SystemTime::now();
    let mut runs = Vec::new();
    for number in 0..40 {
        let tail = elsewhere.tail(lane.instance(), RunId::generate());
        let writes = vec![start(&tail), event(&tail, 1, "x".repeat(1000)), end(&tail)];
        let now = now + Duration::from_millis(number);
        store.commit(&batch(&lane, writes), now).unwrap();
        assert_eq!(tend(&store, now), u64::from(number >= kept));
        runs.push(tail.run());
    }
    store.close();
    let journal = open(&disk, options);
    for (number, run) in (0..).zip(runs) {
        let gone = number < 40 - kept;
        assert_eq!(journal.run(run).unwrap().is_none(), gone);
        let located = journal.locate(&instance("a"), &format!("{run}-0")).await;
        match located.unwrap() {
            Located::At(mut reader) => assert_eq!(read_out(&mut reader).await.0, [1]),
            other => assert_eq!((not(other), gone), (NotResumable::Expired, true)),
        }
    }
}

#[tokio::test]
async fn a_run_that_is_trimmed_under_its_reader_breaks_it() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let run = whole_run(&journal, &lane, 500, &"x".repeat(500)).await;
    journal.close().await;
    let options = within(JournalLimits { retain_bytes: 0, ..limits() });
    let (store, _) = RedbStore::open(disk.backend(), &options).unwrap();
    let located = store.run(run).unwrap().unwrap();
    let limits = Limits { window: 0, backlog: 0 };
    let tail = Tail::ended(located, limits, &Arc::default());
    assert_eq!(seqs(&store.events(run, Seq(0), 1).unwrap()), [1]);
    tend(&store, SystemTime::now());
    assert_eq!(store.events(run, Seq(0), 1).unwrap(), []);
    store.close();

    let journal = open(&disk, options);
    let mut reader = journal.reader(Arc::new(tail), Seq(7));
    assert!(matches!(reader.next().await, Step::Broken(_)));
}

#[tokio::test]
async fn retention_goes_in_bounded_steps_and_survives_a_restart() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let large = whole_run(&journal, &lane, 200, &"x".repeat(60 << 10)).await;
    let tail = journal.tail(&instance("a"), RunId::generate());
    let young = vec![start(&tail), identified(&tail, 1, Some("id"), "x"), end(&tail)];
    commit(&lane, young).await;
    let ended_ms = |run| journal.run(run).unwrap().unwrap().ended_ms.unwrap();
    let (large_ended, young_ended) = (ended_ms(large), ended_ms(tail.run()));
    journal.close().await;

    let age = Duration::from_secs(10);
    let options = within(JournalLimits { retain_for: age, ..limits() });
    let after = |ms| SystemTime::UNIX_EPOCH + Duration::from_millis(ms) + age;
    let open = || RedbStore::open(disk.backend(), &options).unwrap().0;
    let store = open();
    assert_eq!(tend(&store, after(large_ended)), 0);
    let now = after(young_ended) + Duration::from_millis(1);
    let first = store.tend(now).unwrap();
    assert!(first.is_due);
    assert_eq!(first.trimmed_runs, 1);
    // Gone for clients at once, though most of it is still there.
    assert_eq!(store.run(large).unwrap(), None);
    assert!(store.run(tail.run()).unwrap().is_some());
    assert_eq!(store.trimmed_until_ms().unwrap(), large.timestamp_ms());
    assert_ne!(store.events(large, Seq(150), 1).unwrap(), []);
    store.close();

    let store = open();
    assert!(store.tend(now).unwrap().is_due);
    tend(&store, now);
    assert_eq!(store.events(large, Seq(0), 1).unwrap(), []);
    assert_eq!(store.run(tail.run()).unwrap(), None);
    assert_eq!(store.find_id(&instance("a"), "id").unwrap(), None);
}

#[tokio::test]
async fn retention_by_age_goes_on_when_no_run_ends() {
    let age = Duration::from_secs(10);
    let options = within(JournalLimits { retain_for: age, ..limits() });
    let (store, _) = RedbStore::open(Disk::default().backend(), &options).unwrap();
    let elsewhere = open(&Disk::default(), options);
    let lane = elsewhere.lane(instance("a"));
    let tail = elsewhere.tail(lane.instance(), RunId::generate());
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1000);
    store.commit(&batch(&lane, vec![start(&tail), end(&tail)]), now).unwrap();
    assert_eq!(tend(&store, now + age), 0);
    assert_eq!(tend(&store, now + age + Duration::from_millis(1)), 1);
    assert_eq!(store.run(tail.run()).unwrap(), None);
}

#[tokio::test]
async fn a_clock_that_jumps_ahead_deletes_nothing_unless_it_stays_there() {
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let options = within(JournalLimits { retain_for: year, ..limits() });
    let (store, _) = RedbStore::open(Disk::default().backend(), &options).unwrap();
    let elsewhere = open(&Disk::default(), options);
    let lane = elsewhere.lane(instance("a"));
    let tail = elsewhere.tail(lane.instance(), RunId::generate());
    let now = SystemTime::now();
    store.commit(&batch(&lane, vec![start(&tail), end(&tail)]), now).unwrap();
    assert_eq!(tend(&store, now), 0);
    assert_eq!(tend(&store, now + 4 * year), 0);
    assert_eq!(tend(&store, now), 0);
    assert!(store.run(tail.run()).unwrap().is_some());
}

#[tokio::test]
async fn an_id_that_a_younger_run_took_over_outlives_the_older() {
    let options = within(JournalLimits { retain_bytes: 2000, ..limits() });
    let disk = Disk::default();
    let (store, _) = RedbStore::open(disk.backend(), &options).unwrap();
    let elsewhere = open(&Disk::default(), options.clone());
    let lane = elsewhere.lane(instance("a"));
    let [old, new] = [(); 2].map(|()| elsewhere.tail(&instance("a"), RunId::generate()));
    let mut now = SystemTime::now();
    let mut commit = |writes| {
        // Runs that end at the same time have no order.
        now += Duration::from_millis(1);
        store.commit(&batch(&lane, writes), now).unwrap();
    };
    for (tail, size) in [(&old, 2000), (&new, 10)] {
        commit(vec![start(tail), identified(tail, 1, Some("id"), "x".repeat(size))]);
    }
    commit(vec![end(&old)]);
    commit(vec![end(&new)]);
    assert_eq!(tend(&store, SystemTime::now()), 1);
    store.close();
    let journal = open(&disk, options);
    assert_eq!(journal.run(old.run()).unwrap(), None);
    let located = journal.locate(&instance("a"), "id").await.unwrap();
    assert!(matches!(located, Located::CaughtUp(run) if run == new.run()));
}
