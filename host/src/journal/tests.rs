//! What the journal promises, one case at a time.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;

use super::testing::*;
use super::*;

#[tokio::test]
async fn what_is_committed_is_read_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { file: directory.path().join("data"), ..options() };
    let (journal, unfinished) = Journal::open(options.clone()).unwrap();
    assert!(unfinished.is_empty());
    let lane = journal.lane(instance("a"));
    let run = whole_run(&journal, &lane, 3, "x").await;
    commit(&lane, vec![Write::State(Some("{}".into()))]).await;
    let record = journal.run(run).unwrap().unwrap();
    journal.close().await;

    let (journal, unfinished) = Journal::open(options).unwrap();
    assert!(unfinished.is_empty());
    assert_eq!(journal.run(run).unwrap().unwrap(), record);
    assert_eq!((record.state, record.last), (RunState::Finished, Seq(3)));
    assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("{}"));
    assert_eq!(journal.state(&instance("b")).unwrap(), None);
    let mut reader = at(journal.locate(&instance("a"), &format!("{run}-1")).await.unwrap());
    assert_eq!(read_out(&mut reader).await, (vec![2, 3], finished()));
}

#[tokio::test]
async fn a_file_that_is_no_journal_of_ours_is_refused_with_its_name() {
    let directory = tempfile::tempdir().unwrap();
    let refused = |name: &str| {
        let file = directory.path().join(name);
        let opened = Journal::open(Options { file, ..options() });
        let error = opened.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(name), "{error}");
        error
    };
    let of = |name: &str| Options { file: directory.path().join(name), ..options() };

    let (held, _) = Journal::open(of("held")).unwrap();
    assert!(refused("held").ends_with("is in use by another host"));
    held.close().await;
    Journal::open(of("held")).unwrap().0.close().await;

    fs::write(directory.path().join("text"), "x".repeat(5000)).unwrap();
    assert!(refused("text").contains("is not a journal"));

    let bytes = fs::read(directory.path().join("held")).unwrap();
    fs::write(directory.path().join("cut"), &bytes[..bytes.len() / 2]).unwrap();
    assert!(refused("cut").contains("is damaged"));

    super::redb::tests::make_foreign(&directory.path().join("foreign"));
    assert!(refused("foreign").ends_with("is not a journal"));
    for format in [1, 2, 6] {
        let name = format!("format-{format}");
        super::redb::tests::make_of_format(&directory.path().join(&name), format);
        let reads =
            format!("is a journal of format {format}, and this version reads formats 3 to 5");
        assert!(refused(&name).ends_with(&reads));
    }

    // The log of another one, and none.
    Journal::open(of("other")).unwrap().0.close().await;
    let log = |name: &str| directory.path().join(name).with_extension("log");
    fs::copy(log("held"), log("other")).unwrap();
    assert!(refused("other").contains("other.log is not the log of "));
    fs::remove_file(log("held")).unwrap();
    assert!(refused("held").contains("held.log is missing"));

    // What a crash leaves of a file that was being made is no hindrance.
    fs::write(directory.path().join("half.new"), "x").unwrap();
    Journal::open(of("half")).unwrap().0.close().await;
    assert!(!directory.path().join("half.new").exists());
}

#[tokio::test]
async fn deployments_outlive_the_host_by_agent_and_generation() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let of = |agent: &str, generation| DeploymentRecord {
        agent: agent.parse().unwrap(),
        module: (generation % 3 != 0).then(|| Digest::of(agent.as_bytes())),
        ..deployment(generation)
    };
    assert_eq!(journal.deployments().unwrap(), []);
    for (record, forget) in [
        (of("b", 1), &[][..]),
        (of("a0", 1), &[]),
        (of("a", 1), &[]),
        (of("a", 300), &[]),
        (of("a", 2), &[]),
        (of("a", 301), &[1, 7, 300]),
        (of("b", 3), &[]),
    ] {
        journal.deploy(&record, forget).unwrap();
    }
    let replaced = DeploymentRecord { source: "again".into(), ..of("b", 3) };
    journal.deploy(&replaced, &[3]).unwrap();
    let kept = [of("a", 2), of("a", 301), of("a0", 1), of("b", 1), replaced];
    assert_eq!(journal.deployments().unwrap(), kept);
    journal.close().await;
    assert!(journal.deploy(&of("c", 1), &[]).is_err());
    assert!(journal.deployments().is_err());
    assert_eq!(open(&disk, options()).deployments().unwrap(), kept);
}

#[tokio::test]
async fn storage_lists_by_prefix_in_byte_order() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let set = |key: &str, value: Option<&'static str>| Write::Storage {
        key: key.into(),
        value: value.map(Bytes::from),
    };
    let keys = ["a", "ab", "abc", "abd", "b", "ab\u{e9}", "ab\u{10ffff}"];
    commit(&lane, keys.map(|key| set(key, Some("12"))).into()).await;
    let neighbour = journal.lane(instance("a\u{1F600}"));
    commit(&neighbour, vec![set("abe", Some("x"))]).await;
    let list = |prefix, after, limit, max_bytes| -> Vec<String> {
        let pairs = journal.list(&instance("a"), prefix, after, limit, max_bytes);
        let keys = pairs.unwrap().into_iter().map(|(key, _)| key.into());
        keys.collect()
    };
    let all = ["ab", "abc", "abd", "ab\u{e9}", "ab\u{10ffff}"];
    assert_eq!(list("ab", None, 9, 999), all);
    assert_eq!(list("ab", Some("abc"), 9, 999), all[2..]);
    assert_eq!(list("ab", Some("a"), 2, 999), all[..2]);
    assert_eq!(list("ab", Some("b"), 9, 999), [""; 0]);
    assert_eq!(list("ab", None, 9, 9), all[..2]);
    assert_eq!(list("ab", None, 9, 0), all[..1]);
    assert_eq!(list("", None, 9, 999).len(), keys.len());

    commit(&lane, vec![set("ab", None), set("abc", Some("new")), set("no", None)]).await;
    assert_eq!(list("ab", None, 9, 999), all[1..]);
    let value = journal.value(&instance("a"), "abc").unwrap();
    assert_eq!(value.as_deref(), Some(&b"new"[..]));
    assert_eq!(journal.value(&instance("a"), "abe").unwrap(), None);
}

#[tokio::test]
async fn locate_answers_each_kind_of_id() {
    let journal = open(&Disk::default(), options());
    let (here, there) = (instance("here"), instance("there"));
    let lane = journal.lane(here.clone());
    let over = whole_run(&journal, &lane, 2, "x").await;
    let live = journal.tail(&here, RunId::generate());
    let foreign = whole_run(&journal, &journal.lane(there.clone()), 2, "x").await;
    let foreign_live = journal.tail(&there, RunId::generate());
    commit(&journal.lane(there.clone()), vec![start(&foreign_live)]).await;
    let writes = vec![
        start(&live),
        identified(&live, 1, Some("mine"), "x"),
        event(&live, 2, "x"),
        event(&live, 3, "x"),
    ];
    commit(&lane, writes).await;
    let locate = async |id: &str| journal.locate(&here, id).await.unwrap();
    let run = live.run();

    assert_eq!(at(locate(&format!("{over}-0")).await).cursor(), Seq(0));
    assert_eq!(at(locate(&format!("{over}-1")).await).cursor(), Seq(1));
    assert!(matches!(locate(&format!("{over}-2")).await, Located::CaughtUp(run) if run == over));
    assert_eq!(not(locate(&format!("{over}-3")).await), NotResumable::Future);
    assert_eq!(at(locate(&format!("{run}-3")).await).cursor(), Seq(3));
    assert_eq!(not(locate(&format!("{run}-4")).await), NotResumable::Future);
    let last = format!("{run}-{}", u64::MAX);
    assert_eq!(not(locate(&last).await), NotResumable::Future);

    assert_eq!(at(locate("mine").await).cursor(), Seq(1));
    for foreign in [foreign, foreign_live.run()] {
        assert_eq!(not(locate(&format!("{foreign}-0")).await), NotResumable::Unknown);
    }
    let elsewhere = journal.locate(&there, "mine").await.unwrap();
    assert_eq!(not(elsewhere), NotResumable::Unknown);

    let unknown = format!("{}-1", RunId::generate());
    let long = "x".repeat(8 << 10);
    for id in ["", "0", "-1", "a\nb", "Mine", &long, &unknown, &format!("{run}-01")] {
        assert_eq!(not(locate(id).await), NotResumable::Unknown, "{id:?}");
    }
}

#[tokio::test]
async fn the_newest_event_of_an_id_is_found() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let tails = [(); 2].map(|()| journal.tail(&instance("a"), RunId::generate()));
    for tail in &tails {
        commit(&lane, vec![start(tail), identified(tail, 1, Some("id"), "x")]).await;
        let found = journal.locate(&instance("a"), "id").await.unwrap();
        assert_eq!(at(found).tail().run(), tail.run());
    }
}

#[tokio::test]
async fn a_reader_moves_from_the_store_to_the_live_end() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    commit(&lane, vec![start(&tail)]).await;
    for turn in 0..10 {
        let writes = (1..=10).map(|seq| event(&tail, turn * 10 + seq, "x".repeat(100)));
        commit(&lane, writes.collect()).await;
    }
    let mut reader = journal.reader(Arc::clone(&tail), Seq::ZERO);
    let mut read = Seqs::new();
    while read.len() < 100 {
        let Step::Events(page) = reader.next().await else { panic!("the run goes on") };
        let bytes: usize = page.iter().map(|event| event.size()).sum();
        assert!(bytes <= limits().page_bytes);
        read.extend(seqs(&page));
    }
    // A call that is dropped while it waits has read nothing.
    tokio::select! {
        biased;
        step = reader.next() => panic!("{step:?}"),
        () = std::future::ready(()) => {}
    }
    let waiting = tokio::spawn(async move { (read_out(&mut reader).await, reader) });
    tokio::task::yield_now().await;
    commit(&lane, vec![event(&tail, 101, "x"), end(&tail)]).await;
    let ((rest, outcome), mut reader) = waiting.await.unwrap();
    assert_eq!((rest, outcome), (vec![101], finished()));
    assert!(matches!(reader.next().await, Step::End(_)));
    read.push(101);
    assert_eq!(read, (1..=101).collect::<Seqs>());
    drop((reader, tail));
    assert_eq!(journal.stats().buffered_bytes, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_the_writer_see_each_event_once() {
    const EVENTS: u64 = 3000;
    const READERS: u64 = 6;
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    commit(&lane, vec![start(&tail)]).await;
    let mut readers = tokio::task::JoinSet::new();
    for number in 0..READERS {
        let (journal, tail) = (journal.clone(), Arc::clone(&tail));
        readers.spawn(async move {
            // Each begins somewhere else and comes back with a new reader now and then.
            let mut cursor = number * 100;
            while tail.last() < Seq(cursor) {
                tokio::task::yield_now().await;
            }
            loop {
                let id = format!("{}-{cursor}", tail.run());
                let mut reader = match journal.locate(&instance("a"), &id).await.unwrap() {
                    Located::At(reader) => reader,
                    Located::CaughtUp(_) => break,
                    Located::Not(why) => panic!("{why:?}"),
                };
                for _ in 0..=number {
                    match reader.next().await {
                        Step::Events(page) => {
                            for event in &*page {
                                assert_eq!(event.seq, Seq(cursor).next());
                                assert_eq!(*event.data, *format!("{:<1$}", cursor + 1, 60));
                                cursor += 1;
                            }
                        }
                        Step::End(_) => assert_eq!(cursor, EVENTS),
                        Step::Broken(reason) => panic!("{reason}"),
                    }
                }
            }
            assert_eq!(cursor, EVENTS);
        });
    }
    let mut last = 0;
    while last < EVENTS {
        let turn = (last + 1)..=EVENTS.min(last + 1 + last % 7);
        last = *turn.end();
        let writes = turn.map(|seq| event(&tail, seq, format!("{seq:<60}")));
        let ticket = lane.submit(Turn(writes.collect()));
        if last.is_multiple_of(5) {
            ticket.durable().await.unwrap();
        }
    }
    commit(&lane, vec![end(&tail)]).await;
    while let Some(done) = readers.join_next().await {
        done.unwrap();
    }
    drop(tail);
    let stats = journal.stats();
    assert_eq!((stats.events, stats.live_runs), (EVENTS, 0));
    let options = options();
    let bound = options.limits.tail_bytes + READERS as usize * options.limits.page_bytes;
    assert!(stats.buffered_bytes_peak <= bound as u64, "{stats:?}");
    assert_eq!(stats.buffered_bytes, 0);
}

#[tokio::test]
async fn tickets_follow_the_order_of_their_lane() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    assert!(lane.latest().is_durable());
    let tickets: Vec<Ticket> = (0..100)
        .map(|n| lane.submit(Turn(vec![Write::State(Some(n.to_string().into()))])))
        .collect();
    tickets[99].durable().await.unwrap();
    assert!(tickets.iter().all(Ticket::is_durable));
    assert!(lane.submit(Turn::default()).is_durable());
    assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("99"));
    let stats = journal.stats();
    assert_eq!(stats.turns, 100);
    assert!(stats.commits <= 100);
}

#[tokio::test]
async fn interruptions_without_progress_are_counted() {
    let disk = Disk::default();
    let run = RunId::generate();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), run);
    let module = Digest::of(b"one");
    let begin = Write::Start { tail: Arc::clone(&tail), module, request: Some("request".into()) };
    commit(&lane, vec![begin]).await;
    journal.close().await;

    let reopen = || {
        let (journal, unfinished) = Journal::open_on(disk.backend(), options()).unwrap();
        let [unfinished] = unfinished.try_into().unwrap();
        assert_eq!(unfinished.request.as_deref(), Some(&b"request"[..]));
        assert_eq!(unfinished.record.state, RunState::Interrupted);
        assert_eq!(unfinished.record.last, unfinished.tail.last());
        (journal, unfinished)
    };
    // Resumed without a new event, left alone, and with one: `events` are those of the resumption.
    let mut last = 0;
    let resumed = |events: u64| Some(events);
    for (resumption, interruptions) in [
        (resumed(0), 1),
        (None, 2),
        (resumed(0), 2),
        (resumed(2), 3),
        (resumed(0), 1),
        (resumed(0), 2),
    ] {
        let (journal, Unfinished { record, tail, .. }) = reopen();
        assert_eq!((record.interruptions, record.last), (interruptions, Seq(last)));
        if let Some(events) = resumption {
            let lane = journal.lane(instance("a"));
            commit(&lane, vec![start(&tail)]).await;
            let new = (last + 1)..=(last + events);
            let id = format!("{run}-{last}");
            let mut reader = at(journal.locate(&instance("a"), &id).await.unwrap());
            commit(&lane, new.clone().map(|seq| event(&tail, seq, "x")).collect()).await;
            if events > 0 {
                let Step::Events(page) = reader.next().await else {
                    panic!("the run goes on for who waits for it")
                };
                assert_eq!(seqs(&page), new.collect::<Seqs>());
            }
            last += events;
            let record = journal.run(run).unwrap().unwrap();
            assert_eq!((record.state, record.last), (RunState::Running, Seq(last)));
        }
        journal.close().await;
    }
    let (journal, Unfinished { tail, .. }) = reopen();
    commit(&journal.lane(instance("a")), vec![end(&tail)]).await;
    journal.close().await;
    let (journal, unfinished) = Journal::open_on(disk.backend(), options()).unwrap();
    assert!(unfinished.is_empty());
    let record = journal.run(run).unwrap().unwrap();
    assert_eq!((record.state, record.last), (RunState::Finished, Seq(2)));
    // The request goes with the end.
    let tail = journal.tail(&instance("a"), run);
    commit(&journal.lane(instance("a")), vec![start(&tail)]).await;
    journal.close().await;
    let (_, unfinished) = Journal::open_on(disk.backend(), options()).unwrap();
    assert_eq!(unfinished[0].request, None);
}

#[tokio::test]
async fn a_gap_is_never_skipped() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    commit(&lane, vec![start(&tail), event(&tail, 1, "x")]).await;
    let mut live = journal.reader(Arc::clone(&tail), Seq::ZERO);
    assert!(matches!(live.next().await, Step::Events(_)));
    commit(&lane, vec![event(&tail, 3, "x"), end(&tail)]).await;
    assert!(matches!(live.next().await, Step::Broken(_)));
    let id = format!("{}-1", tail.run());
    let mut replay = at(journal.locate(&instance("a"), &id).await.unwrap());
    assert!(matches!(replay.next().await, Step::Broken(_)));
}

#[tokio::test]
async fn a_lone_turn_is_committed_by_the_thread_that_submits_it() {
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    attended(&journal, &lane).await;
    // What comes without is the writer's again, and in order.
    commit(&lane, vec![Write::State(Some("2".into()))]).await;
    assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("2"));
    let submitted = catch_unwind(AssertUnwindSafe(|| {
        journal.attend(|| {
            lane.submit(Turn(vec![Write::State(Some("3".into()))]));
            panic!("on purpose")
        })
    }));
    assert!(submitted.is_err());
    lane.latest().durable().await.unwrap();
    assert_eq!(journal.state(&instance("a")).unwrap().as_deref(), Some("3"));
    journal.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn turns_of_many_threads_that_attend_or_not_are_durable_in_order() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let each = (0..4).map(|task| {
        let (journal, instance) = (journal.clone(), instance(&task.to_string()));
        tokio::spawn(async move {
            let lane = journal.lane(instance.clone());
            for n in 1..=200_u32 {
                let turn = Turn(vec![Write::State(Some(n.to_string().into()))]);
                let ticket = match n % 3 {
                    0 => lane.submit(turn),
                    _ => journal.attend(|| lane.submit(turn)),
                };
                if n % 5 == 0 {
                    ticket.durable().await.unwrap();
                    let state = journal.state(&instance).unwrap();
                    assert_eq!(state.as_deref(), Some(&*n.to_string()));
                }
            }
            lane.latest().durable().await.unwrap();
        })
    });
    for task in each.collect::<Vec<_>>() {
        task.await.unwrap();
    }
    assert_eq!(journal.stats().turns, 800);
    journal.close().await;
    assert_consistent(&disk);
}
