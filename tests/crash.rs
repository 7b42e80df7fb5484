//! `kill -9` of the host: what a client has seen stays, in order and whole, and what was under way goes on or
//! says that it does not.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fastrand::Rng;
use futures_util::future::join_all;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::support::{Event, Follower, Started, Stream, TestHost, ids};

/// How many hosts are killed; each story is told by its seed.
const SEEDS: u64 = 60;

/// How many stories are told at once: most of each is waiting for disks and guests.
const AT_ONCE: u64 = 4;

#[test]
fn what_clients_saw_is_the_beginning_of_the_journal_whenever_the_host_is_killed() {
    let (next, cut_off) = (AtomicU64::new(0), AtomicU64::new(0));
    let worker = || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= SEEDS {
                break;
            }
            let told = Telling(seed);
            let runs = runtime.block_on(story(Rng::with_seed(seed)));
            cut_off.fetch_add(runs, Ordering::Relaxed);
            drop(told);
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(worker);
        }
    });
    let cut_off = cut_off.into_inner();
    assert!(cut_off > SEEDS, "only {cut_off} runs were met in the middle");
}

/// Names the story in which a thread panics.
struct Telling(u64);

impl Drop for Telling {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was seed {}", self.0);
        }
    }
}

/// Runs of all kinds, read by several clients, through a life that is cut off, a start that may be cut off too, and
/// a life in which everything ends. Returns how many runs were cut off, as far as they tell.
async fn story(mut rng: Rng) -> u64 {
    let host = TestHost::serving(&["probe", "phoenix", "resume"]).start();
    let mut clients = Vec::new();
    for path in [
        // Two runs that share one state.
        "probe/counted/count?count=30&delay=1",
        "probe/counted/count?count=30&delay=2",
        "probe/emitting/emit?count=40&delay=1&size=50000",
        "resume/one?total=25&delay=1",
        "resume/one?total=15&delay=3",
        "phoenix/one/steps?total=20&delay=2",
    ] {
        let mut writer = Follower::new(path);
        writer.open(&host).await;
        if rng.bool() {
            let mut watcher = Follower { run: writer.run.clone(), ..Follower::new(path) };
            watcher.open(&host).await;
            clients.push(watcher);
        }
        clients.push(writer);
    }
    // Requests that the end may meet before they are answered.
    clients.push(Follower::new("resume/late?total=10&delay=1"));
    clients.push(Follower::new("probe/late/emit?count=50"));

    let mut down = kill_in_the_middle(host, &mut clients, &mut rng).await;
    if rng.bool() {
        down = down.kill_while_starting(Duration::from_micros(rng.u64(..60_000)));
    }
    let host = down.start();
    join_all(clients.iter_mut().map(|client| client.read(client.request(&host), || {}))).await;

    let (mut counted, mut cut_off) = (Counted::new(), 0);
    for client in &clients {
        assert!(client.ended, "the stream of {} goes on", client.path);
        let journal = client.replay(&host).await;
        client.saw(&journal);
        cut_off += u64::from(check_run(client, &journal, &mut counted));
    }
    // An event without the state of its turn, or the other way round, would leave one number too many or too few.
    let mut numbers: Vec<u64> = counted.into_values().collect();
    numbers.sort_unstable();
    let state = host.json("probe/counted/state").await;
    assert_eq!(numbers, (1..=state.as_u64().unwrap()).collect::<Vec<_>>(), "the state is {state}");
    cut_off
}

/// Kills the host once clients have seen a number of events, and a moment later. They go on reading what it had
/// sent by then.
async fn kill_in_the_middle(host: Started, clients: &mut [Follower], rng: &mut Rng) -> TestHost {
    let (events, moment) = (rng.u32(1..150), Duration::from_micros(rng.u64(..1000) * rng.u64(..2)));
    let (seen, enough) = (Cell::new(0), Notify::new());
    let count = || {
        seen.set(seen.get() + 1);
        if seen.get() == events {
            enough.notify_one();
        }
    };
    let requests: Vec<_> = clients.iter().map(|client| client.request(&host)).collect();
    let reading = clients.iter_mut().zip(requests);
    let mut reading = pin!(join_all(reading.map(|(client, request)| client.read(request, count))));
    tokio::select! {
        _ = &mut reading => host.kill(),
        () = enough.notified() => {
            // Not to wait for anything: the moment is the seed's.
            std::thread::sleep(moment);
            let down = host.kill();
            reading.await;
            down.assert_consistent();
            down
        }
    }
}

/// What was counted in the events of an instance, by their ids.
type Counted = BTreeMap<String, u64>;

/// What a run is in the end, by what its agent does. Returns whether it says that it was cut off.
fn check_run(client: &Follower, journal: &[Event], counted: &mut Counted) -> bool {
    let path = client.path.as_str();
    let run = client.run.as_deref().expect("the client was answered");
    let expected: Vec<_> = (1..=journal.len()).map(|seq| format!("{run}-{seq}")).collect();
    assert_eq!(ids(journal), expected, "{path}");
    let total = |key: &str| -> u64 {
        let number =
            path.split(['?', '&']).find_map(|part| part.strip_prefix(key)?.strip_prefix('='));
        number.expect("the path says how many").parse().unwrap()
    };
    match path.split('/').next() {
        Some("probe") => {
            let (failed, events) = match journal.split_last() {
                Some((last, events)) if last.name == "failed" => (Some(last), events),
                _ => (None, journal),
            };
            match failed {
                Some(failed) => assert_eq!(json_of(failed)["code"], "interrupted", "{path}"),
                None => assert_eq!(events.len() as u64, total("count"), "{path}"),
            }
            if path.contains("/count?") {
                counted.extend(events.iter().map(|event| (event.id.clone(), n_of(event))));
            } else {
                let number = |event: &Event| event.data.trim_end_matches('.').parse::<usize>().ok();
                assert!(events.iter().filter_map(number).eq(1..=events.len()), "{path}: a gap");
            }
            failed.is_some()
        }
        _ => {
            let (resumed, steps): (Vec<_>, Vec<_>) =
                journal.iter().partition(|event| event.name == "resumed");
            let numbers = steps.iter().map(|event| n_of(event));
            assert!(numbers.eq(1..=total("total")), "{path}: each n exactly once: {steps:?}");
            for event in &resumed {
                let next = json_of(event)["lastSeq"].as_u64().unwrap() + 1;
                assert_eq!(event.id, format!("{run}-{next}"), "{path}: not the last durable event");
            }
            !resumed.is_empty()
        }
    }
}

fn json_of(event: &Event) -> Value {
    serde_json::from_str(&event.data).unwrap_or_else(|error| panic!("{error}: {event:?}"))
}

/// The number that an event of a counting run carries.
fn n_of(event: &Event) -> u64 {
    json_of(event)["n"].as_u64().unwrap()
}

#[tokio::test]
async fn a_run_of_an_agent_that_does_not_resume_ends_as_interrupted() {
    let host = TestHost::serving(&["probe"]).start();
    let mut stream = host.stream("probe/one/hang").await;
    let waiting = stream.next().await.unwrap();
    let host = host.kill().start();
    let [failed] =
        host.resume("probe/one/hang", &waiting.id).await.rest().await.try_into().unwrap();
    assert_eq!(failed.name, "failed");
    let problem = json_of(&failed);
    assert_eq!((&problem["code"], &problem["source"]), (&json!("interrupted"), &json!("host")));
    let after = host.resume("probe/one/hang", &failed.id).await;
    assert_eq!(after.status, StatusCode::NO_CONTENT, "it is the run's last event");
}

#[tokio::test]
async fn a_run_that_resumes_goes_on_without_anyone_asking() {
    let host = TestHost::serving(&["phoenix"]).start();
    let path = "phoenix/one/steps?total=30&delay=5";
    let request = host.request(Method::POST, path).body("{\"the\": \"body\"}");
    let secrets = ["authorization", "Proxy-Authorization", "cookie", "Cookie"];
    let request = secrets.iter().fold(request, |request, name| request.header(*name, "secret"));
    let mut stream = Stream::open(request.header("x-kept", "kept")).await;
    let run = stream.headers["bureau-run"].to_str().unwrap().to_owned();
    stream.take(3).await;
    drop(stream);

    let host = host.kill().start();
    // Nobody but the operator asks anything of this host until the run is over.
    host.reaches("live_runs", |live| live == 0).await;
    let events = host.resume(path, &format!("{run}-0")).await.rest().await;
    let (resumed, steps): (Vec<_>, Vec<_>) =
        events.iter().partition(|event| event.name == "resumed");
    let [resumed] = resumed.try_into().expect("it was resumed once");
    let mut given = json_of(resumed);
    let headers: Vec<String> = serde_json::from_value(given["headers"].take()).unwrap();
    assert!(headers.iter().any(|name| name == "x-kept"), "{headers:?}");
    assert!(!headers.iter().any(|name| name.contains("auth") || name == "cookie"), "{headers:?}");
    let position = events.iter().position(|event| event == resumed).unwrap();
    assert!(position >= 3, "what was seen is before it");
    let expected = json!({
        "lastSeq": position,
        "method": "POST",
        "url": format!("/agents/{path}"),
        "headers": null,
        "body": "{\"the\": \"body\"}",
    });
    assert_eq!(given, expected);
    let numbers = steps.iter().map(|event| n_of(event));
    assert!(numbers.eq(1..=30), "{steps:?}");
}

#[tokio::test]
async fn a_run_that_is_interrupted_three_times_without_getting_further_is_given_up() {
    let mut host = TestHost::serving(&["phoenix"]).start();
    let begun = host.stream("phoenix/one/crash-loop").await.next().await.unwrap();
    for _ in 0..2 {
        host = host.kill().start();
        // The only turn of this life says that the run is going on again.
        host.reaches("turns_total", |turns| turns > 0).await;
        assert_resumptions(&host, 1).await;
    }
    let host = host.kill().start();
    let rest = host.resume("phoenix/one/crash-loop", &begun.id).await.rest().await;
    let [failed] = rest.try_into().expect("its last event is all that follows");
    assert_eq!(failed.name, "failed");
    assert_eq!(json_of(&failed)["code"], "gave-up");
    // The end of the run is later than any attempt would be.
    assert_resumptions(&host, 0).await;
}

#[tokio::test]
async fn a_run_that_gets_further_is_not_given_up_however_often_it_is_interrupted() {
    let mut host = TestHost::serving(&["resume"]).start();
    let mut client = Follower::new("resume/one?total=12&delay=30");
    for _ in 0..6 {
        client.open(&host).await;
        let mut stream = client.stream.take().unwrap();
        client.events.push(stream.next().await.unwrap());
        host = host.kill().start();
    }
    let request = client.request(&host);
    client.read(request, || {}).await;
    assert!(client.ended);
    let numbers = client.events.iter().map(n_of);
    assert!(numbers.eq(1..=12), "{:?}", client.events);
    client.saw(&client.replay(&host).await);
}

#[tokio::test]
async fn more_interrupted_runs_than_may_resume_at_once_all_finish() {
    let host = TestHost::serving(&["resume"]).config("resumptions_at_once = 2").start();
    let paths = (0..12).map(|n| format!("resume/{n}?total=6&delay=10"));
    let mut clients: Vec<_> = paths.map(|path| Follower::new(&path)).collect();
    join_all(clients.iter_mut().map(|client| client.open(&host))).await;
    for client in &mut clients {
        let stream = client.stream.take();
        client.events.push(stream.unwrap().next().await.unwrap());
    }
    let host = host.kill().start();
    host.reaches("live_runs", |live| live == 0).await;
    assert_resumptions(&host, 12).await;
    for client in &mut clients {
        let request = client.request(&host);
        client.read(request, || {}).await;
        let numbers = client.events.iter().map(n_of);
        assert!(numbers.eq(1..=6), "{:?}", client.events);
    }
}

#[tokio::test]
async fn a_client_that_is_back_before_its_run_is_resumed_gets_everything() {
    let host = TestHost::serving(&["phoenix"]).config("resumptions_at_once = 1").start();
    let first = host.stream("phoenix/first/crash-loop").await;
    let mut client = Follower::new("phoenix/second/steps?total=5&delay=50");
    client.open(&host).await;
    client.events.push(client.stream.take().unwrap().next().await.unwrap());
    let host = host.kill().start();
    // The first run holds the only place until it is cancelled, and the oldest is taken up first.
    client.open(&host).await;
    host.reaches("turns_total", |turns| turns > 0).await;
    assert_resumptions(&host, 1).await;
    let run = first.headers["bureau-run"].to_str().unwrap();
    let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
    let request = client.request(&host);
    client.read(request, || {}).await;
    assert!(client.ended);
    assert!(client.events.iter().any(|event| event.name == "resumed"), "{:?}", client.events);
    client.saw(&client.replay(&host).await);
    assert!(check_run(&client, &client.events, &mut Counted::new()));
}

#[tokio::test]
async fn runs_wait_while_their_agent_is_not_served_and_go_on_when_it_is_back() {
    let mut host = TestHost::serving(&["phoenix"]).start();
    let mut client = Follower::new("phoenix/one/steps?total=5&delay=50");
    client.open(&host).await;
    client.events.push(client.stream.take().unwrap().next().await.unwrap());
    // Longer than a run that is tried again and again would be kept.
    let mut down = host.kill();
    for _ in 0..4 {
        host = down.serving_instead(&["api"]).start();
        assert_eq!(host.get(&client.path).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(host.metrics().await["live_runs"], 1, "it waits");
        let start = format!("{}-0", client.events[0].id.split_once('-').unwrap().0);
        let seen = host.resume(&client.path, &start).await.next().await.unwrap();
        assert_eq!(seen, client.events[0], "and what it has emitted can be read");
        down = host.kill();
    }
    let host = down.serving_instead(&["phoenix"]).start();
    let request = client.request(&host);
    client.read(request, || {}).await;
    assert!(check_run(&client, &client.events, &mut Counted::new()), "{:?}", client.events);
}

/// Asserts that this many resumptions have begun, once the log has come through.
async fn assert_resumptions(host: &Started, count: usize) {
    let begun = || host.log().iter().filter(|line| line.contains("\"resuming\"")).count();
    while begun() < count {
        // The log is another process's: there is nothing to be woken by.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(begun(), count);
}
