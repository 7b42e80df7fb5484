use std::sync::Arc;
use std::time::SystemTime;

use ::redb::ReadableTable as _;

use super::super::super::codec::{encode_run, encode_segment};
use super::super::super::testing::*;
use super::super::super::{Event, Journal, JournalLimits, Options, Store as _, Write};
use super::super::RedbStore;
use super::super::log::PAGE;
use super::super::tables::Tables;
use super::*;
use crate::id::Digest;

/// A journal that has something in each of its tables, all of it settled.
struct Sample {
    disk: Disk,
    /// One that is over, with events of ids, and one that is not.
    runs: [RunId; 2],
}

async fn sample() -> Sample {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    let tails = [(); 2].map(|()| journal.tail(&instance("a"), RunId::generate()));
    let [over, open] = &tails;
    let mut writes = vec![start(over)];
    writes.extend((1..=40).map(|seq| identified(over, seq, Some("same"), "x".repeat(3000))));
    writes.extend([identified(over, 41, Some("other"), "x"), end(over)]);
    commit(&lane, writes).await;
    let request = Some("a request".into());
    let module = Digest::of(b"module");
    let begin = Write::Start { tail: Arc::clone(open), module, request };
    let fingerprint = Digest::of(b"request");
    let key = Write::Key { tail: Arc::clone(open), key: "key".into(), fingerprint };
    let reply = Write::Reply { tail: Arc::clone(open), reply: "a reply".into() };
    let begun = vec![begin, key, reply, event(open, 1, "x"), Write::Module(module)];
    commit(&lane, begun).await;
    let pair = Write::Storage { key: "key".into(), value: Some("value".into()) };
    commit(&lane, vec![event(open, 2, "x"), Write::State(Some("{}".into())), pair]).await;
    journal.deploy(&deployment(1), &[]).unwrap();
    journal.close().await;
    Sample { disk, runs: tails.map(|tail| tail.run()) }
}

fn look(disk: &Disk) -> Report {
    check_on(&Disk::of(disk.durable()).backend(), "test.redb".as_ref()).unwrap()
}

/// Each violation in a line.
fn lines(report: &Report) -> Vec<String> {
    let line = |of: &Violation| format!("{} {}: {}", of.place, of.key, of.what);
    report.violations.iter().map(line).collect()
}

#[tokio::test]
async fn what_is_there_is_counted_and_nothing_is_wrong_with_it() {
    let Sample { disk, .. } = sample().await;
    let report = look(&disk);
    assert_eq!(lines(&report), [""; 0]);
    let event_bytes = report.counts.event_bytes;
    assert!(event_bytes > 120_000);
    let expected = Counts {
        runs: 2,
        unfinished: 1,
        events: 43,
        instances: 1,
        ids: 2,
        documents: 1,
        values: 1,
        deployments: 1,
        event_bytes,
        ..Counts::default()
    };
    assert_eq!(report.counts, expected);
    assert_eq!(report.deployments, [deployment(1)]);
}

type Damage = fn(&mut Tables<'_>, [u128; 2]);

/// What is done to the tables, and what is then said; `OVER` and `OPEN` are the two runs.
const DAMAGES: &[(Damage, &[&str])] = &[
    (
        |tables, _| drop(tables.meta.open().unwrap().insert(META_ENDED_BYTES, 7).unwrap()),
        &["meta ended_bytes: it is 7, and all of ended have "],
    ),
    (
        |tables, [over, _]| drop(tables.runs.open().unwrap().remove(over).unwrap()),
        &[
            "instance_runs test/a: run OVER is not on record",
            "ended AT OVER: the run is not on record",
            "events OVER: the run is not on record",
        ],
    ),
    (
        |tables, [over, _]| drop(tables.runs.open().unwrap().insert(over, &b"x"[..]).unwrap()),
        &["runs OVER: it does not decode"],
    ),
    (
        |tables, [over, _]| {
            change(tables, over, |record| {
                record.ended_ms = Some(5);
                record.last = Seq(40);
            });
        },
        &[
            "runs OVER: it ended at 5 and is not in ended",
            "runs OVER: its last event is 40, and that of its segments 41",
            "ended AT OVER: the run ended at Some(5)",
        ],
    ),
    (
        |tables, [_, open]| change(tables, open, |record| record.state = RunState::Finished),
        &[
            "runs OPEN: it is Finished and has no end",
            "runs OPEN: its last event is 0, and that of its segments 2",
            "unfinished OPEN: the run is over",
            "requests OPEN: the run is over",
        ],
    ),
    (
        |tables, [_, open]| {
            change(tables, open, |record| {
                record.code = Some("x".into());
                record.interrupted_at = Seq(3);
            });
        },
        &["runs OPEN: it is Running and has a code", "runs OPEN: it was interrupted at 3, after 2"],
    ),
    (
        |tables, [_, open]| drop(tables.unfinished.open().unwrap().remove(open).unwrap()),
        &["runs OPEN: it is not over and not in unfinished"],
    ),
    (
        |tables, _| drop(tables.requests.open().unwrap().insert(1, &b"x"[..]).unwrap()),
        &["requests 00000000000000000000000001: the run is not on record"],
    ),
    (
        |tables, _| drop(tables.replies.open().unwrap().insert(1, &b"x"[..]).unwrap()),
        &["replies 00000000000000000000000001: the run is not on record"],
    ),
    (
        |tables, [over, _]| {
            let runs = tables.instance_runs.open().unwrap();
            runs.remove(("test", "a", over)).unwrap();
            runs.insert(("test", "b", over), ()).unwrap();
        },
        &[
            "runs OVER: it is not in instance_runs",
            "instance_runs test/b: run OVER is of another instance",
        ],
    ),
    (
        |tables, [over, _]| {
            let digest = [0; 32];
            tables.keys.open().unwrap().insert(("test", "a", "key"), (over, &digest)).unwrap();
            tables.keyed.open().unwrap().insert(over, "other").unwrap();
        },
        &[
            "keys test/a \"key\": it is not the key of run OVER",
            "keyed OVER: \"other\" is not in keys",
        ],
    ),
    (
        |tables, [over, _]| {
            let all = (over, 0)..=(over, u64::MAX);
            let mut rows = tables.events.open().unwrap().range(all).unwrap();
            let key = rows.nth(1).map(|row| row.unwrap().0.value()).unwrap();
            drop(rows);
            tables.events.open().unwrap().remove(key).unwrap();
        },
        &["events OVER-30: it begins with event 21, after 10", "events OVER-30: its total is "],
    ),
    (
        |tables, [over, _]| {
            tables.events.open().unwrap().insert((over, 41), &b"x"[..]).unwrap();
        },
        &["events OVER-41: it does not decode"],
    ),
    (
        |tables, [_, open]| {
            let event = Arc::new(Event::new(Seq(3), None, Some("new".into()), "x".into()));
            let before = extent(tables.events.open().unwrap(), RunId::from_u128(open)).unwrap().1;
            let segment = encode_segment(&[event], before);
            tables.events.open().unwrap().insert((open, 3), &*segment).unwrap();
        },
        &["events OPEN-3: its id is not in ids"],
    ),
    (
        |tables, [over, _]| {
            let key = ("test", "a", "same");
            tables.ids.open().unwrap().insert(key, (over, 39)).unwrap();
        },
        &["events OVER-40: its id leads to an older event"],
    ),
    (
        |tables, [over, open]| {
            let ids = tables.ids.open().unwrap();
            ids.insert(("test", "a", "none"), (open, 1)).unwrap();
            ids.insert(("test", "b", "same"), (over, 40)).unwrap();
        },
        &[
            "ids test/a \"none\": there is no event OPEN-1 of that id",
            "ids test/b \"same\": run OVER is of another instance",
        ],
    ),
    (
        |tables, [over, _]| {
            let ended = tables.ended.open().unwrap();
            let key = ended.first().unwrap().map(|(key, _)| key.value()).unwrap();
            ended.remove(key).unwrap();
            tables.trimming.open().unwrap().insert(over, ("test", "a")).unwrap();
        },
        &[
            "runs OVER: it ended at AT and is not in ended",
            "meta ended_bytes: it is ",
            "trimming OVER: the run is on record still",
            "trimming OVER: the run began after trimmed_until_ms, 0",
        ],
    ),
    (
        |tables, _| {
            tables.states.open().unwrap().insert(("Test", "a"), "{}").unwrap();
            tables.storage.open().unwrap().insert(("test", "", "key"), &b""[..]).unwrap();
            tables.deployments.open().unwrap().insert(("test", 2), &b"x"[..]).unwrap();
        },
        &[
            "states \"Test\"/\"a\": ",
            "storage \"test\"/\"\": ",
            "deployments \"test\" 2: it does not decode",
        ],
    ),
];

fn change(tables: &mut Tables<'_>, run: u128, change: fn(&mut RunRecord)) {
    let run = RunId::from_u128(run);
    let mut of_run = record(tables.runs.open().unwrap(), run).unwrap().unwrap();
    change(&mut of_run);
    tables.runs.open().unwrap().insert(run.as_u128(), &*encode_run(&of_run)).unwrap();
}

#[tokio::test]
async fn whatever_does_not_belong_together_is_named() {
    for (damage, expected) in DAMAGES {
        let Sample { disk, runs } = sample().await;
        let (store, _) = RedbStore::open(disk.backend(), &options()).unwrap();
        let ended = store.run(runs[0]).unwrap().unwrap().ended_ms.unwrap();
        // The open run is running again, as when its host is killed.
        let damaged = store.with(|opened| {
            let transaction = opened.database.begin_write()?;
            let mut tables = Tables::new(&transaction);
            change(&mut tables, runs[1].as_u128(), |record| {
                record.state = RunState::Running;
                record.last = Seq::ZERO;
                record.interrupted_at = Seq::ZERO;
            });
            damage(&mut tables, runs.map(RunId::as_u128));
            drop(tables);
            Ok(transaction.commit()?)
        });
        damaged.unwrap();
        let found = lines(&look(&disk));
        let filled = |line: &&str| {
            // The time first: an id may have its word in it.
            let line = line.replace("AT", &ended.to_string());
            line.replace("OVER", &runs[0].to_string()).replace("OPEN", &runs[1].to_string())
        };
        let expected: Vec<_> = expected.iter().map(filled).collect();
        let is_so = found.len() == expected.len()
            && found.iter().zip(&expected).all(|(found, expected)| found.starts_with(expected));
        assert!(is_so, "{found:#?}, not {expected:#?}");
    }
}

#[tokio::test]
async fn a_record_that_was_lost_from_the_log_is_missed() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    for n in 1..=3 {
        commit(&lane, vec![Write::State(Some(n.to_string().into()))]).await;
    }
    let whole = disk.durable();
    let report = look(&Disk::of(whole.clone()));
    assert_eq!((lines(&report).len(), report.counts.log_records), (0, 3));
    let mut damaged = whole.clone();
    damaged[1][PAGE + 30] ^= 1;
    let found = lines(&look(&Disk::of(damaged.clone())));
    assert_eq!(found, ["log : record 1 of its log is not whole, and 2 is"]);
    let refused = RedbStore::open(Disk::of(damaged).backend(), &options()).err().unwrap();
    let expected = "test.redb is damaged: record 1 of its log is not whole, and 2 is";
    assert_eq!(refused.to_string(), expected);
    // The last one may have been half written when the host was killed, before anyone knew of it.
    let mut torn = whole;
    let last = torn[1].iter().rposition(|byte| *byte != 0).unwrap();
    torn[1][last] ^= 1;
    let report = look(&Disk::of(torn));
    assert_eq!((lines(&report).len(), report.counts.log_records), (0, 2));
}

#[tokio::test]
async fn a_journal_that_is_trimmed_is_consistent_at_each_step() {
    let disk = Disk::default();
    let journal = open(&disk, options());
    let lane = journal.lane(instance("a"));
    for _ in 0..8 {
        let tail = journal.tail(&instance("a"), RunId::generate());
        let mut writes = vec![start(&tail)];
        writes.extend((1..=40).map(|seq| identified(&tail, seq, Some("same"), "x".repeat(40_000))));
        writes.push(end(&tail));
        commit(&lane, writes).await;
    }
    journal.close().await;
    let options = within(JournalLimits { retain_bytes: 0, ..limits() });
    let (store, _) = RedbStore::open(disk.backend(), &options).unwrap();
    let mut steps = 0;
    while store.tend(SystemTime::now()).unwrap().is_due {
        assert_eq!(lines(&look(&disk)), [""; 0]);
        steps += 1;
    }
    assert!(steps > 1, "retention takes more than a step");
    let report = look(&disk);
    assert_eq!(lines(&report), [""; 0]);
    assert_eq!((report.counts.runs, report.counts.events, report.counts.ids), (0, 0, 0));
}

#[tokio::test]
async fn a_check_changes_nothing_and_is_refused_while_a_host_has_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("journal.redb");
    let options = Options { file: file.clone(), limits: limits() };
    let (journal, _) = Journal::open(options).unwrap();
    let lane = journal.lane(instance("a"));
    commit(&lane, vec![Write::State(Some("1".into()))]).await;
    let refused = check(&file).unwrap_err().to_string();
    assert_eq!(refused, format!("{} is in use by another host", file.display()));
    let copy = directory.path().join("copy");
    std::fs::create_dir(&copy).unwrap();
    let (copied, log) = (copy.join("journal.redb"), copy.join("journal.log"));
    // As after a crash: redb has to repair it, and only the log has the document.
    std::fs::copy(&file, &copied).unwrap();
    std::fs::copy(log_of(&file), &log).unwrap();
    let before = [&copied, &log].map(|file| std::fs::read(file).unwrap());
    let report = check(&copied).unwrap();
    assert_eq!((lines(&report).len(), report.counts.documents), (0, 1));
    assert!([&copied, &log].map(|file| std::fs::read(file).unwrap()) == before);

    std::fs::remove_file(&log).unwrap();
    assert!(check(&copied).unwrap_err().to_string().contains("journal.log is missing"));
    assert!(!log.exists());
    std::fs::write(&copied, "").unwrap();
    let empty = check(&copied).unwrap_err().to_string();
    assert_eq!(empty, format!("{} is not a journal: it is empty", copied.display()));
    let nothing = check(&copy.join("other.redb")).unwrap_err().to_string();
    assert!(nothing.contains("other.redb cannot be opened: "), "{nothing}");
}
