//! A disk that fails: nothing is shown that is not on it, whoever asks is told, and when it works again everything goes
//! on where it was. A disk that goes on failing ends the host, which says why.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bureau::config::{Config, JournalLimits};
use bureau::id::{Cursor, InstanceKey};
use bureau::journal::{Journal, Options};
use futures_util::future::join_all;
use reqwest::header::{ACCEPT, RETRY_AFTER};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::support::{
    Connection, Disk, Fault, InProcess, Kind, Stream, TestHost, another_module, problem,
};

/// Each number of changes before the first failure, so that every step of a commit is the one that fails.
const FAULTS: Range<usize> = 0..32;

/// What each run counts.
const COUNT: u64 = 12;

/// What is written while it is known that nothing can be.
const NEVER: u64 = 1 << 32;

/// Hosts at once: most of the time they wait to try again.
const HOSTS: usize = 8;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fault_at_any_write_shows_nothing_and_loses_nothing() {
    let hosts = (0..HOSTS).map(|first| async move {
        let disk = Disk::default();
        // A log that goes round often, so that settling it meets the fault too.
        let small = |config: &mut Config| config.journal.log_bytes = 64 << 10;
        let host = InProcess::serving(&["probe"], &disk, small).await;
        for after in FAULTS.skip(first).step_by(HOSTS) {
            fault(&host, &disk, after).await;
        }
        host.stop().await;
    });
    join_all(hosts).await;
}

/// A run that counts, a client that reads it, another one that keeps on writing, and a disk that fails under them.
async fn fault(host: &InProcess, disk: &Disk, after: usize) {
    let name = format!("fault-{after}");
    let stream = host.stream(&format!("probe/{name}/count?count={COUNT}&delay=1")).await;
    let reader = tokio::spawn(read(stream, name.clone(), disk.clone()));
    disk.fail(Fault { after, forgets: after % 2 == 1 });

    let mut acknowledged = 0;
    let refused = loop {
        let response = write(host, &name, acknowledged + 1).await;
        if response.status() != StatusCode::OK {
            break response;
        }
        acknowledged += 1;
        assert!(acknowledged < 1000, "the fault is met");
    };
    // The write that met the fault, and one that came when it was known.
    for refused in [refused, write(host, &name, NEVER).await] {
        assert_eq!(refused.headers()[RETRY_AFTER], "2");
        assert_eq!(problem(refused).await, "503 journal-unavailable host");
    }
    let browser = host.request(Method::GET, "probe/any/emit").header(ACCEPT, "text/event-stream");
    let browser = browser.send().await.unwrap();
    assert_eq!(browser.status(), StatusCode::OK, "a browser gives up on anything else");
    assert_eq!(browser.text().await.unwrap(), "retry: 2000\n");
    let ready = host.admin(Method::GET, "/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().await.unwrap().starts_with("journal: "));
    assert_eq!(host.admin(Method::GET, "/healthz").await.status(), StatusCode::OK);

    disk.heal();
    reader.await.unwrap();
    // Who reads the store may know of a commit before the host says that it is ready.
    until_ready(host).await;
    let kept = host.json(&format!("probe/{name}-state/state")).await["n"].as_u64().unwrap_or(0);
    // The write that met the fault may have been made, though no client was told so; the later one was not begun.
    assert!((acknowledged..=acknowledged + 1).contains(&kept), "{kept} of {acknowledged}");
    assert_eq!(write(host, &name, 99).await.status(), StatusCode::OK);
}

async fn until_ready(host: &InProcess) {
    while host.admin(Method::GET, "/readyz").await.status() != StatusCode::OK {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn write(host: &InProcess, name: &str, n: u64) -> Response {
    let request = host.request(Method::PUT, &format!("probe/{name}-state/state"));
    request.json(&json!({ "n": n })).send().await.expect("the host answers")
}

/// Reads a run that counts to its end, and looks on the disk for each event as it comes.
async fn read(mut stream: Stream, name: String, disk: Disk) {
    let instance = InstanceKey::new("probe".parse().unwrap(), &name).unwrap();
    for n in 1..=COUNT {
        let event = stream.next().await.expect("the run is not over");
        assert_eq!(serde_json::from_str::<Value>(&event.data).unwrap(), json!({ "n": n }));
        let cursor: Cursor = event.id.parse().unwrap();
        assert_eq!(cursor.seq.0, n);
        let journal = on(&disk.survivor());
        let run = journal.run(cursor.run).unwrap().expect("a run that is read is durable");
        assert!(run.last >= cursor.seq, "{cursor} is shown, and {} is durable", run.last);
        let state: u64 = journal.state(&instance).unwrap().unwrap().parse().unwrap();
        assert!(state >= n, "{n} is shown, and the state is {state}");
        journal.close().await;
    }
    assert_eq!(stream.next().await, None);
}

fn on(disk: &Disk) -> Journal {
    let limits = JournalLimits { cache_bytes: 1 << 20, ..JournalLimits::default() };
    let options = Options { file: "survivor.redb".into(), limits };
    Journal::open_on(disk.backend(), options).unwrap().0
}

/// A reader that is behind needs the store, which cannot be read while it fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_behind_waits_for_the_disk_and_goes_on() {
    const EVENTS: u64 = 1500;
    let disk = Disk::default();
    let host = InProcess::serving(&["probe"], &disk, |_| {}).await;
    // More than the kernel takes, so that most of it is still to be read by the host.
    let mut client = Connection::narrow(&host.url).await;
    let path = format!("/agents/probe/demo/emit?count={EVENTS}&size=10000");
    client.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    client.until("data: 1.").await;
    host.reaches("live_runs", |runs| runs == 0).await;

    let (attempt, mut attempts) = mpsc::unbounded_channel();
    disk.observe(move |_| {
        // Nobody counts them any more when the disk works again.
        let _ = attempt.send(());
    });
    disk.fail(Fault { after: 0, forgets: false });
    assert_eq!(write(&host, "demo", 1).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    // Time for the client to take what is on its way and for the host to need more, or else this shows less.
    let healed = async {
        for _ in 0..5 {
            attempts.recv().await.expect("the disk goes on being tried");
        }
        disk.heal();
    };
    let (text, ()) = tokio::join!(client.rest(), healed);
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let numbers = data.map(|data| data.trim_end_matches('.').parse::<u64>().unwrap());
    assert!(numbers.eq(1..=EVENTS), "the stream broke");
    host.stop().await;
}

/// Who was refused may come again with the same key, also after a crash.
#[tokio::test]
async fn a_refusal_is_not_told_before_the_key_is_free_on_the_disk() {
    let disk = Disk::default();
    let one_run = |config: &mut Config| {
        Arc::make_mut(&mut config.instances).runs = 1;
        config.grace = Duration::from_millis(1);
    };
    let host = InProcess::serving(&["probe"], &disk, one_run).await;
    let mut held = host.stream("probe/demo/emit-held?count=1").await;
    held.next().await.expect("it waits to be released");
    let (change, mut changes) = mpsc::unbounded_channel();
    disk.observe(move |made| drop(change.send(made.kind.clone())));
    // Those that put down the run and its key, and none that ends it.
    disk.fail(Fault { after: 2, forgets: false });
    let ask = || host.request(Method::POST, "probe/demo/memory").header("idempotency-key", "k");
    assert_eq!(problem(ask().send().await.unwrap()).await, "503 journal-unavailable host");
    let begun = [changes.recv().await.unwrap(), changes.recv().await.unwrap()];
    assert!(matches!(begun, [Kind::Write { .. }, Kind::Sync]), "the run is on record");
    disk.heal();
    until_ready(&host).await;
    assert_eq!(problem(ask().send().await.unwrap()).await, "429 instance-busy host");
    host.stop().await;
}

#[tokio::test]
async fn a_host_whose_disk_goes_on_failing_ends_and_names_the_journal() {
    let disk = Disk::default();
    let impatient = |config: &mut Config| {
        config.journal.patience = Duration::from_millis(1);
        config.grace = Duration::from_millis(1);
    };
    let host = InProcess::serving(&["probe"], &disk, impatient).await;
    let mut stream = host.stream("probe/demo/hang").await;
    assert_eq!(stream.next().await.unwrap().data, "waiting");
    disk.fail(Fault { after: 0, forgets: false });
    let refused = write(&host, "demo", 1).await;
    assert_eq!(problem(refused).await, "503 journal-unavailable host");
    let end = stream.try_next().await;
    assert!(!matches!(end, Some(Ok(_))), "nothing follows, and the run is not over: {end:?}");
    let error = host.ended().await.unwrap_err().to_string();
    assert!(error.starts_with("the journal gave up: "), "{error}");
    assert!(error.ends_with("the disk is on fire"), "{error}");
}

/// The program itself, on a file that may not grow, as on a disk that is full.
#[tokio::test]
async fn a_program_whose_disk_is_full_ends_with_a_message_and_keeps_what_it_has_shown() {
    let host = TestHost::serving(&["probe"])
        .config("journal.patience = '1ms'")
        // In blocks of 512 bytes; a process that ignores the signal is told by an error instead.
        .after("trap '' XFSZ; ulimit -f 8192")
        .start();
    let mut stream = host.stream("probe/demo/emit?count=2000&size=10000&delay=1").await;
    let run = stream.headers["bureau-run"].to_str().unwrap().to_owned();
    let mut shown = 0;
    while let Some(Ok(event)) = stream.try_next().await {
        shown += 1;
        assert_eq!(event.id, format!("{run}-{shown}"));
    }
    assert!(shown > 0);
    let last_words = host.logged(|line| line.starts_with("bureau: ")).await;
    assert!(last_words.starts_with("bureau: the journal gave up: "), "{last_words}");
    assert!(last_words.contains("File too large"), "{last_words}");
    let (status, host) = host.ended();
    assert_eq!(status.code(), Some(1));

    let host = host.after("").start();
    let mut events = host.resume("probe/demo", &format!("{run}-0")).await.rest().await;
    let failed = events.pop().unwrap();
    assert_eq!(failed.name, "failed");
    assert!(events.len() >= shown, "{} of {shown}", events.len());
    for (n, event) in (1..).zip(events) {
        assert_eq!(event.id, format!("{run}-{n}"));
        assert!(event.data.starts_with(&format!("{n}.")));
    }
}

/// The program itself, on a disk that is full for a while.
#[tokio::test]
async fn a_program_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() {
    const EVENTS: u64 = 400;
    let small = "mount -t tmpfs -o size=16m tmpfs $DATA; ln -s $CODE $DATA/cache";
    let Some(host) = TestHost::serving(&["probe"]).mounting(small) else { return };
    let host = host.start();
    let mut stream =
        host.stream(&format!("probe/demo/emit?count={EVENTS}&size=10000&delay=1")).await;
    let mut events = vec![stream.next().await.unwrap()];
    // The mount is seen through the process that is in it.
    let seen = format!("/proc/{}/root{}/ballast", host.pid(), host.how().data().display());
    let mut ballast = std::fs::File::create(&seen).unwrap();
    while std::io::Write::write_all(&mut ballast, &[0; 4096]).is_ok() {}

    let said = host.logged(|line| line.contains("cannot commit and tries again")).await;
    assert!(said.contains("No space left on device"), "{said}");
    let ready = host.admin(Method::GET, "/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = ready.text().await.unwrap();
    assert!(why.contains("No space left on device"), "{why}");
    let refused = host.request(Method::PUT, "probe/other/state").json(&json!(1)).send().await;
    assert_eq!(problem(refused.unwrap()).await, "503 journal-unavailable host");

    let module = another_module("probe", 1);
    let refused = host.put_module("probe", module.clone()).await;
    assert!(refused.status().is_server_error(), "{}", refused.status());
    let why = refused.text().await.unwrap();
    assert!(why.contains("No space left on device"), "{why}");

    std::fs::remove_file(&seen).unwrap();
    drop(ballast);
    events.extend(stream.rest().await);
    let numbers =
        events.iter().map(|event| event.data.trim_end_matches('.').parse::<u64>().unwrap());
    assert!(numbers.eq(1..=EVENTS), "an event is missing");
    let written = host.request(Method::PUT, "probe/other/state").json(&json!(1)).send().await;
    assert_eq!(written.unwrap().status(), StatusCode::OK);
    assert!(host.put_module("probe", module).await.status().is_success());
    let (status, _) = host.terminate();
    assert_eq!(status.code(), Some(0));
}

/// Connections beyond the files that the process may have open wait in the kernel's queue; who is connected goes on.
#[tokio::test]
async fn a_program_without_a_file_descriptor_left_says_so_and_goes_on_when_there_is_one() {
    const EVENTS: u64 = 300;
    const FILES: usize = 96;
    let host = TestHost::serving(&["probe"]).after(&format!("ulimit -n {FILES}")).start();
    // A connection that stays, for the figures.
    let live = host.metrics().await["live_runs"];
    assert_eq!(live, 0);
    let stream = host.stream(&format!("probe/demo/emit?count={EVENTS}&delay=5")).await;
    let mut idle = Vec::new();
    for _ in 0..FILES {
        let mut connection = Connection::to(&host.url).await;
        connection.send("GET /agents/probe/").await;
        idle.push(connection);
    }
    let said = host.logged(|line| line.contains("cannot accept a connection")).await;
    assert!(said.contains("Too many open files"), "{said}");
    let events = stream.rest().await;
    let numbers =
        events.iter().map(|event| event.data.trim_end_matches('.').parse::<u64>().unwrap());
    assert!(numbers.eq(1..=EVENTS), "an event is missing");
    drop(idle);
    assert_eq!(host.get("probe/other/count?count=3").await.status(), StatusCode::OK);
    let (status, _) = host.terminate();
    assert_eq!(status.code(), Some(0));
}
