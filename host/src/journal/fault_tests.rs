//! What the journal does when its disk fails, vanishes, or loses its power at any moment.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::redb::RedbStore;
use super::testing::*;
use super::*;

#[tokio::test]
async fn a_failing_disk_shows_nothing_and_loses_nothing() {
    a_disk_that_fails_later_and_later(false).await;
}

#[tokio::test]
async fn a_disk_that_fails_who_attends_shows_nothing_and_loses_nothing() {
    a_disk_that_fails_later_and_later(true).await;
}

async fn a_disk_that_fails_later_and_later(attends: bool) {
    for grace in 0.. {
        let disk = Disk::default();
        let journal = open(&disk, options());
        let lane = journal.lane(instance("a"));
        let tail = journal.tail(&instance("a"), RunId::generate());
        commit(&lane, vec![start(&tail), event(&tail, 1, "x")]).await;
        let mut reader = journal.reader(Arc::clone(&tail), Seq::ZERO);
        assert!(matches!(reader.next().await, Step::Events(_)));
        if attends {
            attended(&journal, &lane).await;
        }

        disk.fail(grace, usize::MAX);
        let turn = vec![event(&tail, 2, "x"), Write::State(Some("2".into())), end(&tail)];
        let ticket = match attends {
            true => attend(&journal, &lane, turn).0,
            false => lane.submit(Turn(turn)),
        };
        let told = ticket.durable().await;
        if told.is_ok() {
            assert!(grace > 1, "a commit is a write and a sync");
            break;
        }
        assert!(matches!(*journal.health().borrow(), Health::Failing(_)));
        assert!(!ticket.is_durable());
        assert_eq!(tail.last(), Seq(1));
        tokio::select! {
            biased;
            step = reader.next() => panic!("{step:?} is not durable"),
            () = std::future::ready(()) => {}
        }
        let next = lane.submit(Turn(vec![Write::State(Some("3".into()))]));
        assert!(next.durable().await.is_err());

        disk.heal();
        ticket.settled().await.unwrap();
        next.settled().await.unwrap();
        assert_eq!(*journal.health().borrow(), Health::Good);
        assert_eq!(read_out(&mut reader).await, (vec![2], finished()));
        let state = || journal.state(&instance("a")).unwrap();
        assert_eq!(state().as_deref(), Some("3"));
        let id = format!("{}-0", tail.run());
        let mut replay = at(journal.locate(&instance("a"), &id).await.unwrap());
        assert_eq!(read_out(&mut replay).await.0, [1, 2]);
        assert!(journal.run(tail.run()).unwrap().unwrap().ended_ms.is_some());
    }
}

#[tokio::test]
async fn what_a_reader_has_is_on_the_disk() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    lane.submit(Turn(vec![start(&tail)]));
    let mut reader = journal.reader(Arc::clone(&tail), Seq::ZERO);
    for seq in 1..=30 {
        // The first attempt fails at one point or another, and so do the next ones.
        if seq % 10 == 0 {
            disk.fail(seq as usize / 10, 4);
        }
        lane.submit(Turn(vec![event(&tail, seq, "x")]));
        let Step::Events(page) = reader.next().await else { panic!("the run goes on") };
        let survivor = Disk::of(disk.durable());
        let (store, _) = RedbStore::open(survivor.backend(), &options()).unwrap();
        assert_eq!(store.events(tail.run(), Seq(seq - 1), 1).unwrap(), *page);
    }
}

#[tokio::test]
async fn an_attempt_that_did_reach_the_disk_is_not_counted_twice() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    let batch = batch(&lane, vec![start(&tail), event(&tail, 1, "x".repeat(100)), end(&tail)]);
    let options = options();
    let (store, _) = RedbStore::open(Disk::default().backend(), &options).unwrap();
    let now = SystemTime::now();
    for second in 0..3 {
        let now = now + Duration::from_secs(second);
        store.commit(&batch, now).unwrap();
        // Once to the same layer, and once to the next one.
        if second > 0 {
            tend(&store, now);
        }
    }
    let bytes = super::redb::tests::ended_bytes(&store);
    assert_eq!(bytes.len(), 1);
    assert_eq!(bytes[0], super::redb::tests::total_ended_bytes(&store));
    assert_eq!(store.events(tail.run(), Seq(0), 999).unwrap().len(), 1);
}

/// Waits until the journal is dead, and returns why.
async fn dead(journal: &Journal) -> String {
    let mut health = journal.health();
    let dead = health.wait_for(|health| matches!(health, Health::Dead(_)));
    let Health::Dead(reason) = dead.await.unwrap().clone() else { panic!("waited for") };
    reason
}

#[tokio::test]
async fn a_journal_whose_patience_ends_tells_everyone() {
    let disk = Disk::default();
    let options = within(JournalLimits { patience: Duration::ZERO, ..limits() });
    let journal = open(&disk, options);
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    commit(&lane, vec![start(&tail)]).await;
    let mut reader = journal.reader(Arc::clone(&tail), Seq::ZERO);
    let waiting = tokio::spawn(async move { reader.next().await });
    tokio::task::yield_now().await;
    disk.fail(0, usize::MAX);
    let ticket = lane.submit(Turn(vec![event(&tail, 1, "x")]));
    assert!(ticket.settled().await.is_err());
    let reason = dead(&journal).await;
    assert!(reason.contains("the disk is on fire"), "{reason}");
    assert!(matches!(waiting.await.unwrap(), Step::Broken(_)));
    let late = vec![event(&tail, 2, "x")];
    let held = match &late[0] {
        Write::Event { event, .. } => Arc::clone(event),
        other => panic!("{other:?}"),
    };
    assert!(lane.submit(Turn(late)).settled().await.is_err());
    assert_eq!(Arc::strong_count(&held), 1, "no one will ever take it");
    assert!(journal.state(&instance("a")).is_err());
    journal.close().await;
    assert_eq!(*journal.health().borrow(), Health::Dead(reason));
}

#[tokio::test]
async fn a_journal_one_of_whose_threads_panics_is_dead_and_says_which() {
    for (file, reason) in
        [(JournalFile::Log, "its writer panicked"), (JournalFile::Tables, "its settler panicked")]
    {
        let disk = Disk::default();
        let journal = open(&disk, options());
        let lane = journal.lane(instance("a"));
        disk.panic(file);
        lane.submit(Turn(vec![Write::State(Some("1".into()))]));
        assert_eq!(dead(&journal).await, reason);
        let ticket = lane.submit(Turn(vec![Write::State(Some("2".into()))]));
        assert!(ticket.settled().await.is_err());
        assert_consistent(&disk);
    }
}

#[tokio::test]
async fn a_journal_whose_commit_panics_where_it_is_attended_to_is_dead() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    attended(&journal, &lane).await;
    disk.panic(JournalFile::Log);
    let turn = || vec![Write::State(Some("1".into()))];
    let panicked = catch_unwind(AssertUnwindSafe(|| attend(&journal, &lane, turn())));
    assert!(panicked.is_err());
    assert_eq!(dead(&journal).await, "its writer panicked");
    assert!(attend(&journal, &lane, turn()).0.settled().await.is_err());
    assert_consistent(&disk);
}

#[tokio::test]
async fn a_journal_that_cannot_settle_says_so_and_recovers_though_nothing_is_written() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    commit(&lane, vec![Write::State(Some("1".into()))]).await;
    disk.fail(0, usize::MAX);
    let mut health = journal.health();
    let failing = health.wait_for(|health| matches!(health, Health::Failing(_)));
    drop(failing.await.unwrap());
    disk.heal();
    drop(health.wait_for(|health| *health == Health::Good).await.unwrap());
    assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("1"));
}

#[tokio::test]
async fn a_deployment_that_fails_is_there_or_not_and_the_journal_goes_on() {
    for grace in 0.. {
        let disk = Disk::default();
        let journal = open(&disk, options());
        let lane = journal.lane(instance("a"));
        commit(&lane, vec![Write::State(Some("1".into()))]).await;
        journal.deploy(&deployment(1), &[]).unwrap();
        let mut health = journal.health();
        disk.fail(grace, usize::MAX);
        let deployed = journal.deploy(&deployment(2), &[1]);
        disk.heal();
        let ticket = lane.submit(Turn(vec![Write::State(Some("2".into()))]));
        match deployed {
            Ok(()) => {
                assert!(grace > 1, "a transaction is some writes and a sync");
                break;
            }
            Err(error) => assert!(error.to_string().contains("the disk is on fire"), "{error}"),
        }
        ticket.settled().await.unwrap();
        drop(health.wait_for(|health| *health == Health::Good).await.unwrap());
        assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("2"));
        let kept = journal.deployments().unwrap();
        assert!(kept == [deployment(1)] || kept == [deployment(2)], "{kept:?}");
        journal.deploy(&deployment(2), &[1]).unwrap();
        assert_eq!(journal.deployments().unwrap(), [deployment(2)]);
    }
}

#[tokio::test]
async fn a_journal_recovers_from_a_failed_deployment_though_nothing_is_written() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let mut health = journal.health();
    disk.fail(0, usize::MAX);
    assert!(journal.deploy(&deployment(1), &[]).is_err());
    drop(health.wait_for(|health| matches!(health, Health::Failing(_))).await.unwrap());
    disk.heal();
    drop(health.wait_for(|health| *health == Health::Good).await.unwrap());
    journal.deploy(&deployment(1), &[]).unwrap();
    assert_eq!(journal.deployments().unwrap(), [deployment(1)]);
}

#[test]
fn a_crash_leaves_the_old_deployments_or_the_new_ones() {
    let disk = Disk::default();
    let (store, _) = RedbStore::open(disk.backend(), &options()).unwrap();
    (1..=3).for_each(|generation| store.deploy(&deployment(generation), &[]).unwrap());
    let (old, new) = ([1, 2, 3].map(deployment), [3, 4].map(deployment));
    assert_eq!(store.deployments().unwrap(), old);
    let image = disk.record();
    store.deploy(&deployment(4), &[1, 2]).unwrap();
    let log = disk.log();
    let mut seen = [false; 2];
    each_crash(image, &log, |image, at| {
        let (store, _) = RedbStore::open(Disk::of(image).backend(), &options()).unwrap();
        let kept = store.deployments().unwrap();
        assert!(kept == new || (kept == old && at < log.len()), "{kept:?} at {at}");
        seen[usize::from(kept == new)] = true;
    });
    assert_eq!(seen, [true; 2]);
}

#[tokio::test]
async fn a_data_file_that_vanished_is_not_begun_anew() {
    let (disk, other) = (Disk::default(), Disk::default());
    let opened = AtomicBool::new(false);
    let backend = Backend::new({
        let disk = disk.clone();
        move |file| match file {
            JournalFile::Tables if opened.swap(true, Ordering::Relaxed) => other.hold(file),
            file => disk.hold(file),
        }
    });
    let options = within(JournalLimits { patience: Duration::from_millis(60), ..limits() });
    let (journal, _) = Journal::open_on(backend, options).unwrap();
    disk.fail(0, 1);
    let turn = Turn(vec![Write::State(Some("{}".into()))]);
    assert!(journal.lane(instance("a")).submit(turn).settled().await.is_err());
    let health = journal.health().borrow().clone();
    assert!(matches!(health, Health::Dead(reason) if reason.ends_with("is not a journal")));
}

#[tokio::test]
async fn closing_commits_what_is_queued_and_releases_who_waits() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    let ticket = lane.submit(Turn(vec![start(&tail), event(&tail, 1, "x")]));
    let mut reader = journal.reader(Arc::clone(&tail), Seq(1));
    let waiting = tokio::spawn(async move { reader.next().await });
    tokio::join!(journal.close(), journal.close());
    journal.close().await;
    assert!(ticket.is_durable());
    ticket.durable().await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Step::Broken(_)));
    assert!(lane.submit(Turn(vec![event(&tail, 2, "x")])).durable().await.is_err());
    let (store, _) = RedbStore::open(disk.backend(), &options()).unwrap();
    assert_eq!(store.events(tail.run(), Seq(0), 99).unwrap().len(), 1);
}

/// Runs two agents that keep state and events side by side, and looks at what each crash would leave.
#[tokio::test]
async fn every_crash_leaves_whole_turns_in_order() {
    const TURNS: u64 = 400;
    let disk = Disk::default();
    let options = within(JournalLimits { retain_bytes: 20_000, ..limits() });
    let journal = open(&disk, options.clone());
    let instances = [instance("a"), instance("b")];
    let lanes = instances.clone().map(|instance| journal.lane(instance));
    let tails = instances.clone().map(|instance| journal.tail(&instance, RunId::generate()));
    for (lane, tail) in lanes.iter().zip(&tails) {
        commit(lane, vec![start(tail)]).await;
    }
    let image = disk.record();
    // How much of the log there was when a client could know of so many turns.
    let mut seen = Vec::new();
    for turn in 1..=TURNS {
        let tickets: Vec<Ticket> = lanes
            .iter()
            .zip(&tails)
            .map(|(lane, tail)| {
                let numbers = [2 * turn - 1, 2 * turn];
                let [one, two] = numbers.map(|seq| event(tail, seq, "x".repeat(seq as usize)));
                let state = Write::State(Some(turn.to_string().into()));
                lane.submit(Turn(vec![one, state, two]))
            })
            .collect();
        if turn % 3 == 0 {
            for ticket in tickets {
                ticket.durable().await.unwrap();
            }
            seen.push((disk.logged(), turn));
        }
        if turn % 10 == 0 {
            whole_run(&journal, &lanes[0], 3, &"x".repeat(3000)).await;
        }
    }
    assert!(journal.stats().trimmed_runs > 0);
    let log = disk.log();

    each_crash(image, &log, |image, at| {
        let disk = Disk::of(image);
        let (store, unfinished) = RedbStore::open(disk.backend(), &options).unwrap();
        let known = unfinished.iter().map(|(record, _)| record.run);
        assert!(tails.iter().all(|tail| known.clone().any(|run| run == tail.run())));
        let acknowledged = seen.iter().rev().find(|(logged, _)| *logged <= at);
        let acknowledged = acknowledged.map_or(0, |(_, turn)| *turn);
        for (instance, tail) in instances.iter().zip(&tails) {
            let state = store.state(instance).unwrap();
            let turns: u64 = state.map_or(0, |state| state.parse().unwrap());
            let events = store.events(tail.run(), Seq(0), usize::MAX).unwrap();
            assert_eq!(seqs(&events), (1..=2 * turns).collect::<Seqs>());
            assert!(turns >= acknowledged, "{turns} of {acknowledged} at {at}");
        }
        // It takes longer than all else, and what it finds once it finds again and again.
        if at % 16 == 0 {
            assert_consistent(&disk);
        }
    });
}
