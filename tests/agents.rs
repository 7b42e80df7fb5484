//! What an agent may do, what becomes of it, and what no agent can do to another.

use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Connection, Started, Stream, TestHost, data, problem};

fn run_of(stream: &Stream) -> String {
    stream.headers["bureau-run"].to_str().unwrap().to_owned()
}

/// Opens a stream that has emitted `1` and waits to be released.
async fn held(host: &Started, instance: &str) -> Stream {
    let mut stream = host.stream(&format!("{instance}/emit-held?count=1")).await;
    assert_eq!(stream.next().await.unwrap().data, "1");
    stream
}

/// Lets the stream go, and checks that nothing happened to it.
async fn release(host: &Started, instance: &str, held: Stream) {
    assert_eq!(host.json(&format!("{instance}/release")).await["released"], 1);
    assert_eq!(data(&held.rest().await), ["2"]);
}

/// Opens a stream whose call has come to spin, so that its instance begins no other.
async fn spinning(host: &Started) -> Stream {
    let mut stream = host.stream("probe/demo/spin-after-emit").await;
    assert_eq!(stream.next().await.unwrap().data, "before");
    host.logged(|line| line.contains("spinning")).await;
    stream
}

async fn put(host: &Started, path: &str, body: impl Into<reqwest::Body>) -> reqwest::Response {
    host.request(Method::PUT, path).body(body).send().await.unwrap()
}

// What a run does to its HTTP response.

#[tokio::test]
async fn a_response_leaves_after_the_state_it_wrote_is_durable() {
    let mut host = TestHost::serving(&["probe"]).start();
    for n in 0..10 {
        let response = put(&host, "probe/demo/state", n.to_string()).await;
        assert_eq!(response.status(), StatusCode::OK);
        // Killed in the moment of the answer.
        host = host.kill().start();
        assert_eq!(host.json("probe/demo/state").await, n);
    }
}

#[tokio::test]
async fn the_first_event_makes_the_answer_a_stream_that_ends_with_the_call() {
    let host = TestHost::serving(&["probe"]).start();
    let stream = held(&host, "probe/demo").await;
    assert_eq!(stream.status, StatusCode::OK);
    assert_eq!(stream.headers["content-type"], "text/event-stream");
    release(&host, "probe/demo", stream).await;

    let opened = host.stream("probe/demo/open-only").await;
    assert_eq!(opened.headers["content-type"], "text/event-stream");
    assert_eq!(opened.rest().await, [], "a stream that was opened needs no event");
    let late = host.stream("probe/demo/open-then").await;
    assert_eq!(data(&late.rest().await), ["late"]);
}

#[tokio::test]
async fn a_response_after_an_event_is_dropped() {
    let host = TestHost::serving(&["probe"]).start();
    let stream = host.stream("probe/demo/reply-after-emit").await;
    assert_eq!(data(&stream.rest().await), ["before"]);
    host.logged(|line| line.contains("it is dropped")).await;
}

#[tokio::test]
async fn chunks_leave_as_they_are_written_under_a_head_that_left_before() {
    let host = TestHost::serving(&["probe"]).start();
    let mut response = host.get("probe/demo/chunks-endless?size=10&delay=1").await;
    assert_eq!(response.status(), StatusCode::OK, "the head is there before an end is");
    let mut read = Vec::new();
    while read.len() < 40 {
        read.extend_from_slice(&response.chunk().await.unwrap().unwrap());
    }
    assert!(read.starts_with(b"0.........\n0.........\n"));
}

#[tokio::test]
async fn chunks_wait_in_the_guest_while_the_client_does_not_read_and_none_is_lost() {
    const SIZE: usize = 50_000;
    const COUNT: usize = 2000;
    let host = TestHost::serving(&["probe"]).start();
    let mut client = Connection::narrow(&host.url).await;
    let path = format!("/agents/probe/demo/chunks?count={COUNT}&size={SIZE}");
    client.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let written = async || host.json("probe/demo/chunks-told").await["written"].as_u64().unwrap();
    // Until nothing moves any more: the host and the kernel have taken what they take.
    let (mut before, mut still) = (0, 0);
    while still < 20 {
        let now = written().await;
        still = if now > 0 && now == before { still + 1 } else { 0 };
        before = now;
    }
    assert!(before < COUNT as u64, "100 MB were taken that no one has read");
    let answer = client.rest().await;
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    assert_eq!(body.len(), COUNT * (SIZE + 1));
    for (n, line) in (1..).zip(body.lines()) {
        assert!(line.len() == SIZE && line.starts_with(&format!("{n}.")), "chunk {n}");
    }
    assert_eq!(written().await, COUNT as u64);
}

#[tokio::test]
async fn chunks_end_for_the_guest_when_the_client_leaves() {
    let host = TestHost::serving(&["probe"]).start();
    let mut response = host.get("probe/demo/chunks-endless?size=1000").await;
    response.chunk().await.unwrap().unwrap();
    drop(response);
    while host.json("probe/demo/chunks-told").await["left"] != 1 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn chunks_of_a_guest_that_traps_do_not_look_complete() {
    let host = TestHost::serving(&["probe"]).start();
    let http2 = reqwest::Client::builder().http2_prior_knowledge().build().unwrap();
    for client in [reqwest::Client::new(), http2] {
        let url = host.agent_url("probe/demo/chunks-trap?count=3");
        let whole = async { client.get(url).send().await?.text().await };
        assert!(whole.await.is_err(), "a body that was cut off is an error");
    }
    assert_eq!(host.get("probe/demo/chunks?count=1").await.text().await.unwrap(), "1\n");
}

#[tokio::test]
async fn no_event_is_204() {
    let host = TestHost::serving(&["probe"]).start();
    let response = host.get("probe/demo/events-nothing").await;
    assert_eq!(response.status(), StatusCode::NO_CONTENT);
    assert_eq!(response.bytes().await.unwrap(), "");
}

#[tokio::test]
async fn an_error_before_an_event_is_a_problem_and_only_a_bad_request_says_why() {
    let host = TestHost::serving(&["probe"]).start();
    host.json("probe/demo/memory").await;
    let bad = host.get("probe/demo/bad-request").await.text().await.unwrap();
    assert!(bad.contains("the probe was asked to blame you"), "{bad}");
    let at_length = host.get("probe/demo/bad-request-at-length").await.text().await.unwrap();
    assert_eq!(at_length.matches('\u{e9}').count(), 8 << 10, "16 KiB of it are told");
    let other = host.get("probe/demo/error").await.text().await.unwrap();
    assert!(!other.contains("the probe was asked"), "{other}");
    host.logged(|line| line.contains("the probe was asked to fail")).await;
    for (path, expected) in [
        ("bad-request", "400 bad-request agent"),
        ("error", "500 agent-failed agent"),
        ("cancelled", "409 cancelled host"),
    ] {
        let response = host.get(&format!("probe/demo/{path}")).await;
        assert_eq!(problem(response).await, expected);
    }
    assert_eq!(host.json("probe/demo/memory").await["calls"], 2, "the instance lives on");
}

// Failing, and what it does to others.

/// Limits that what goes wrong runs into soon.
const TIGHT: &str = "[instances]\ncpu = '100ms'\nmemory_bytes = '16 MiB'";

/// What goes wrong, and the problem that it is.
const FAILURES: [(&str, &str); 4] = [
    ("panic", "502 agent-trapped agent"),
    ("trap", "502 agent-trapped agent"),
    ("spin", "502 cpu-limit agent"),
    ("eat-memory", "502 memory-limit agent"),
];

#[tokio::test]
async fn a_failure_before_an_event_is_a_problem_and_the_next_request_finds_a_fresh_instance() {
    let host = TestHost::serving(&["probe"]).config(TIGHT).start();
    put(&host, "probe/demo/state", "1").await;
    let neighbour = held(&host, "probe/neighbour").await;
    for (path, expected) in FAILURES {
        assert_eq!(host.json("probe/demo/memory").await["calls"], 1, "{path}");
        let failed = host.get(&format!("probe/demo/{path}")).await;
        assert_eq!(problem(failed).await, expected);
    }
    assert_eq!(host.json("probe/demo/memory").await["calls"], 1, "its memory is gone");
    assert_eq!(host.json("probe/demo/state").await, 1, "its state is not");
    release(&host, "probe/neighbour", neighbour).await;
}

#[tokio::test]
async fn a_failure_after_an_event_is_a_durable_last_event_of_all_runs_of_the_instance() {
    let mut host = TestHost::serving(&["probe"]).config(TIGHT).start();
    let errors = [("bad-request", "400 bad-request agent"), ("error", "500 agent-failed agent")];
    for (path, expected) in FAILURES.into_iter().chain(errors) {
        let neighbour = held(&host, "probe/neighbour").await;
        let flatmate = held(&host, "probe/demo").await;
        let id = format!("{}-1", run_of(&flatmate));
        let stream = host.stream(&format!("probe/demo/{path}-after-emit")).await;
        let run = run_of(&stream);
        let events = stream.rest().await;
        assert_eq!(events.len(), 2, "{path}: {events:?}");
        assert_eq!((&*events[0].data, &*events[1].name), ("before", "failed"), "{path}");
        assert_eq!(events[1].id, format!("{run}-2"));
        let fault: Value = serde_json::from_str(&events[1].data).unwrap();
        let code = expected.split(' ').nth(1).unwrap();
        assert_eq!((&fault["code"], fault.get("status")), (&json!(code), None));

        if expected.starts_with("502") {
            // One store, one fate: the other call in it fails with it.
            let rest = flatmate.rest().await;
            assert_eq!((rest.len(), &*rest[0].name), (1, "failed"), "{path}");
            assert_eq!(rest[0].data, events[1].data);
            host = host.kill().start();
            assert_eq!(host.resume("probe/demo", &id).await.rest().await, rest, "it is durable");
            drop(neighbour);
        } else {
            release(&host, "probe/demo", flatmate).await;
            release(&host, "probe/neighbour", neighbour).await;
        }
        let again = host.resume("probe/demo", &events[0].id).await.rest().await;
        assert_eq!(again, events[1..], "{path}");
        assert_eq!(host.get("probe/demo/reply").await.status(), StatusCode::OK, "{path}");
    }
}

#[tokio::test]
async fn a_guest_that_spins_does_not_hold_up_its_neighbours() {
    let host = TestHost::serving(&["probe"]).start();
    // More of them than there are workers, each for its five seconds.
    let mut spinning = join_all((0..8).map(async |n| {
        let mut stream = host.stream(&format!("probe/spinner-{n}/spin-after-emit")).await;
        stream.next().await.unwrap();
        stream
    }))
    .await;
    let stream = host.stream("probe/neighbour/emit?count=3&delay=1").await;
    assert_eq!(stream.rest().await.len(), 3);
    // So many that they would not be over before the spinners if each waited for some of those.
    for _ in 0..1500 {
        assert_eq!(host.get("probe/neighbour/reply").await.status(), StatusCode::OK);
    }
    for stream in &mut spinning {
        assert_eq!(stream.next().now_or_never(), None, "all of them spin on");
    }
}

#[tokio::test]
async fn a_guest_that_floods_keeps_a_bounded_share_of_memory_and_loses_no_event_that_was_taken() {
    let host = TestHost::serving(&["probe"]).start();
    let neighbour = held(&host, "probe/neighbour").await;
    let stream = host.stream("probe/demo/flood?count=20000&size=1000").await;
    let events = stream.rest().await;
    assert!((1000..20_000).contains(&events.len()), "{} events", events.len());
    for (n, event) in (1..).zip(&events) {
        assert!(event.data.starts_with(&format!("{n}.")), "{}", event.data);
    }
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!(peak < 2 << 20, "{peak} bytes were held for readers");
    release(&host, "probe/neighbour", neighbour).await;
}

#[tokio::test]
async fn a_turn_that_outgrows_its_limit_is_the_guests_failure_and_leaves_nothing() {
    let config = "[instances]\nturn_bytes = '64 KiB'\nevent_bytes = 1024\nstate_bytes = 1024\nvalue_bytes = 1024";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let filled = host.get("probe/demo/fill?count=1000&size=1000").await;
    assert_eq!(problem(filled).await, "502 turn-limit agent");
    assert_eq!(host.json("probe/demo/storage-list").await, json!([]));
    assert_eq!(host.get("probe/demo/fill?count=60&size=1000").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stream_that_began_in_half_a_turn_has_not_begun() {
    // The run is on record already, so only the stream's beginning is taken back.
    let host = TestHost::serving(&["phoenix"]).start();
    let failed = host.get("phoenix/demo/trap-in-turn").await;
    assert_eq!(problem(failed).await, "502 agent-trapped agent");
}

#[tokio::test]
async fn an_instance_that_never_finishes_starting_is_stopped_and_harms_no_other() {
    let host = TestHost::serving(&["stuck", "probe"]).config(TIGHT).start();
    let stuck = (0..4).map(async |n| problem(host.get(&format!("stuck/{n}/")).await).await);
    let stuck = join_all(stuck);
    let neighbour = host.stream("probe/demo/emit?count=20&delay=5").await;
    let (stuck, neighbour) = tokio::join!(stuck, neighbour.rest());
    assert_eq!(stuck, ["502 cpu-limit agent"; 4]);
    assert_eq!(neighbour.len(), 20);
    assert_eq!(problem(host.get("stuck/0/").await).await, "502 cpu-limit agent", "again and again");
}

#[tokio::test]
async fn calls_that_come_together_do_not_share_the_limits_of_a_turn() {
    let config = "[instances]\nturn_bytes = '64 KiB'\nevent_bytes = 1024\nstate_bytes = '48 KiB'\nvalue_bytes = 1024";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let document = serde_json::to_string(&"x".repeat(40 << 10)).unwrap();
    // The first of them starts the instance, so the others are there when it begins to serve.
    let puts = (0..16).map(|_| {
        let put = host.request(Method::PUT, "probe/demo/state").body(document.clone());
        async { put.send().await.unwrap().status() }
    });
    assert_eq!(join_all(puts).await, [StatusCode::OK; 16]);
}

#[tokio::test]
async fn half_a_turn_is_never_seen() {
    let host = TestHost::serving(&["probe"]).config(TIGHT).start();
    put(&host, "probe/demo/state", "\"before\"").await;
    for (path, expected) in FAILURES {
        let failed = host.get(&format!("probe/demo/{path}-in-turn")).await;
        assert_eq!(problem(failed).await, expected, "the event was never there");
        assert_eq!(host.json("probe/demo/state").await, "before", "{path}");

        let stream = host.stream(&format!("probe/demo/{path}-in-turn-after-emit")).await;
        let run = run_of(&stream);
        let events = stream.rest().await;
        assert_eq!(events.len(), 2, "{path}: {events:?}");
        assert_eq!((&*events[0].data, &*events[1].name), ("before", "failed"), "{path}");
        assert_eq!(events[1].id, format!("{run}-2"), "no number is left out");
        assert_eq!(host.json("probe/demo/state").await, "before", "{path}");
    }
    let whole = host.stream("probe/demo/bad-request-in-turn").await.rest().await;
    assert_eq!(whole[0].data, "never seen", "a call that returns has whole turns");
    assert_eq!(host.json("probe/demo/state").await, "never seen");
}

// Instances.

#[tokio::test]
async fn calls_on_one_instance_interleave_while_one_streams() {
    let host = TestHost::serving(&["probe"]).start();
    let stream = held(&host, "probe/demo").await;
    let waiting = host.get("probe/demo/wait");
    let others = async {
        for calls in 1..=3 {
            assert_eq!(host.json("probe/demo/memory").await["calls"], calls);
        }
        let emitted = host.stream("probe/demo/emit?count=5&delay=1").await.rest().await;
        assert_eq!(emitted.len(), 5);
        assert_eq!(host.metrics().await["live_instances"], 1, "all are of one instance");
        // The call that waits may have come after the stream was released.
        let mut released = 0;
        while released < 2 {
            let answer = host.json("probe/demo/release").await;
            released += answer["released"].as_u64().unwrap();
        }
    };
    let (waited, ()) = tokio::join!(waiting, others);
    assert_eq!(waited.text().await.unwrap(), "released");
    assert_eq!(data(&stream.rest().await), ["2"]);
}

#[tokio::test]
async fn concurrent_first_calls_share_one_instance() {
    let host = TestHost::serving(&["probe"]).start();
    let calls = join_all((0..50).map(|_| host.json("probe/demo/memory"))).await;
    let mut calls: Vec<_> = calls.iter().map(|said| said["calls"].as_u64().unwrap()).collect();
    calls.sort_unstable();
    assert_eq!(calls, (1..=50).collect::<Vec<_>>());
    assert_eq!(host.json("probe/other/memory").await["calls"], 1, "another name is another one");
}

#[tokio::test]
async fn memory_goes_with_an_idle_instance_and_state_and_storage_do_not() {
    let host = TestHost::serving(&["probe"]).config("instances.idle = '20ms'").start();
    let busy = held(&host, "probe/busy").await;
    host.json("probe/demo/memory").await;
    put(&host, "probe/demo/state", "\"kept\"").await;
    put(&host, "probe/demo/storage?key=a", "kept").await;
    host.reaches("live_instances", |live| live == 1).await;
    assert_eq!(host.json("probe/demo/memory").await["calls"], 1, "it began anew");
    assert_eq!(host.json("probe/demo/state").await, "kept");
    assert_eq!(host.json("probe/demo/storage?key=a").await["value"], "kept");
    release(&host, "probe/busy", busy).await;
}

#[tokio::test]
async fn past_the_cap_the_idle_instances_go_that_were_used_least_recently() {
    let host = TestHost::serving(&["probe"]).config("instances.live = 8").start();
    let calls =
        async |name: &str| host.json(&format!("probe/{name}/memory")).await["calls"].clone();
    let busy = held(&host, "probe/busy").await;
    calls("long").await;
    let mut long = host.stream("probe/long/cancellable").await;
    long.next().await.unwrap();
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(calls(name).await, 1);
    }
    // Time passes, by the guest's clock, so that what comes is later by the host's as well.
    let opened = host.stream("probe/busy/open-then?delay=5").await;
    assert_eq!(opened.rest().await.len(), 1);
    assert_eq!(calls("a").await, 2);
    host.admin(Method::POST, &format!("/v1/runs/{}/cancel", run_of(&long))).await;
    assert_eq!(long.rest().await.len(), 2);

    assert_eq!(calls("g").await, 1, "there is room for it");
    assert_eq!(calls("a").await, 3, "this was used a moment ago");
    assert_eq!(calls("long").await, 2, "and a call of this has just ended");
    release(&host, "probe/busy", busy).await;
    assert_eq!(calls("b").await, 1, "this went, and its memory with it");
}

#[tokio::test]
async fn names_beyond_the_cap_do_not_push_out_the_instances_that_found_room() {
    let host = TestHost::serving(&["probe"]).config("instances.live = 80").start();
    let calls =
        async |name: String| host.json(&format!("probe/{name}/memory")).await["calls"].clone();
    for n in 0..80 {
        assert_eq!(calls(format!("early-{n}")).await, 1);
    }
    for n in 0..200 {
        assert_eq!(calls(format!("late-{n}")).await, 1);
    }
    for n in 16..80 {
        assert_eq!(calls(format!("early-{n}")).await, 2, "only a few of them went");
    }
    assert_eq!(calls("late-199".into()).await, 2, "one that came last is there to be called again");
    assert_eq!(calls("late-0".into()).await, 1, "the first of them went for others");

    let others = async |names: &str, count: usize| {
        for n in 0..count {
            assert_eq!(calls(format!("{names}-{n}")).await, 1);
        }
    };
    assert_eq!(calls("soon".into()).await, 1);
    others("then", 20).await;
    assert_eq!(calls("soon".into()).await, 1, "it went too");
    others("after", 100).await;
    assert_eq!(calls("soon".into()).await, 2, "but was called again soon, so it stayed");
}

#[tokio::test]
async fn when_every_instance_is_at_work_a_new_one_is_refused_until_one_is_idle() {
    let host = TestHost::serving(&["probe"]).config("instances.live = 2").start();
    let one = held(&host, "probe/one").await;
    let two = held(&host, "probe/two").await;
    let refused = host.get("probe/three/reply").await;
    assert_eq!(refused.headers()["retry-after"], "2");
    assert_eq!(problem(refused).await, "503 host-busy host");
    assert_eq!(host.json("probe/one/memory").await["calls"], 1, "those that live are served");
    release(&host, "probe/one", one).await;
    assert_eq!(host.get("probe/three/reply").await.text().await.unwrap(), "a reply");
    release(&host, "probe/two", two).await;
}

#[tokio::test]
async fn more_runs_at_once_than_the_limit_are_refused() {
    let host = TestHost::serving(&["probe"]).config("instances.runs = 2").start();
    let one = held(&host, "probe/demo").await;
    let two = held(&host, "probe/demo").await;
    let refused = host.get("probe/demo/reply").await;
    assert_eq!(refused.headers()["retry-after"], "2");
    assert_eq!(problem(refused).await, "429 instance-busy host");
    assert_eq!(host.get("probe/other/reply").await.status(), StatusCode::OK);
    drop((one, two));
}

#[tokio::test]
async fn more_requests_than_the_mailbox_holds_are_refused() {
    let host = TestHost::serving(&["probe"]).config("instances.mailbox = 1").start();
    let _spinning = spinning(&host).await;
    // While it spins, for five seconds at most, one request may wait.
    let mut requests: FuturesUnordered<_> = (0..4).map(|_| host.get("probe/demo/reply")).collect();
    for _ in 0..3 {
        let refused = requests.next().await.expect("four requests were sent");
        assert_eq!(problem(refused).await, "429 instance-busy host");
    }
}

#[tokio::test]
async fn a_request_that_waited_for_an_instance_that_failed_is_served_by_the_next() {
    let host = TestHost::serving(&["probe"]).config("instances.cpu = '300ms'").start();
    let mut spinning = spinning(&host).await;
    assert_eq!(host.json("probe/demo/memory").await["calls"], 1);
    assert_eq!(spinning.next().await.unwrap().name, "failed");
}

// What an agent is given.

#[tokio::test]
async fn state_is_any_json_document_and_nothing_else() {
    let config = "instances.state_bytes = '1 KiB'";
    let host = TestHost::serving(&["probe", "rogue"]).config(config).start();
    assert_eq!(host.json("probe/demo/state").await, Value::Null, "there is none at first");
    let document = json!({ "a": [1, 2.5, null, "\u{2713}\n"], "b": { "c": true } });
    let set = host.request(Method::PUT, "probe/demo/state").json(&document).send().await.unwrap();
    assert_eq!(set.json::<Value>().await.unwrap(), document, "a guest reads its own writes");
    assert_eq!(host.json("probe/demo/state").await, document);
    assert_eq!(host.json("probe/other/state").await, Value::Null);

    let largest = format!("\"{}\"", "x".repeat(1022));
    let too_large = format!("\"{}\"", "x".repeat(1023));
    for (document, said) in [
        (&*largest, "Ok(())"),
        (&too_large, "Err(StoreError::TooLarge(1024))"),
        ("{\"a\":", "Err(StoreError::Invalid(\"not a JSON document: EOF"),
        ("", "Err(StoreError::Invalid(\"not a JSON document: EOF"),
        ("1 2", "Err(StoreError::Invalid(\"not a JSON document: trailing"),
        ("[1]", "Ok(())"),
    ] {
        let answer =
            put(&host, "rogue/demo/state", document.to_owned()).await.text().await.unwrap();
        assert!(answer.starts_with(said), "{answer}");
    }
}

#[tokio::test]
async fn storage_sets_gets_deletes_and_lists_by_prefix_in_order() {
    let host = TestHost::serving(&["probe"]).config("instances.value_bytes = 64").start();
    let get = async |key: &str| {
        host.json(&format!("probe/demo/storage?key={key}")).await["value"].clone()
    };
    let list = async |query: &str| {
        let pairs = host.json(&format!("probe/demo/storage-list?{query}")).await;
        let keys =
            pairs.as_array().unwrap().iter().map(|pair| pair[0].as_str().unwrap().to_owned());
        keys.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(get("a").await, Value::Null);
    for key in ["n/2", "n/1", "n/10", "m", "o", "n/3"] {
        let set = put(&host, &format!("probe/demo/storage?key={key}"), format!("<{key}>")).await;
        let said = set.json::<Value>().await.unwrap();
        assert_eq!(said["value"], format!("<{key}>"), "a guest reads its own writes");
    }
    assert_eq!(list("").await, "m n/1 n/10 n/2 n/3 o");
    assert_eq!(list("prefix=n/").await, "n/1 n/10 n/2 n/3");
    assert_eq!(list("prefix=n/&limit=2").await, "n/1 n/10");
    assert_eq!(list("prefix=n/&after=n/10").await, "n/2 n/3");
    assert_eq!(list("prefix=n/&after=o").await, "");
    let deleted = host.request(Method::DELETE, "probe/demo/storage?key=n/1").send().await.unwrap();
    assert_eq!(deleted.json::<Value>().await.unwrap()["value"], Value::Null);
    assert_eq!(list("prefix=n/1").await, "n/10");
    assert_eq!(host.json("probe/other/storage?key=m").await["value"], Value::Null);

    let host = host.kill().start();
    assert_eq!(host.json("probe/demo/storage?key=n/2").await["value"], "<n/2>");
    let key = "k".repeat(513);
    for (key, value, why) in [
        ("a", "x".repeat(65), "larger than 64 bytes"),
        ("", String::new(), "this one is empty"),
        (&key, String::new(), "this one is longer"),
    ] {
        let refused = put(&host, &format!("probe/demo/storage?key={key}"), value).await;
        assert_eq!(problem(refused).await, "500 agent-failed agent");
        host.logged(|line| line.contains(why)).await;
    }
}

#[tokio::test]
async fn a_run_that_is_not_on_record_is_found_by_whoever_cancels_it() {
    let host = TestHost::serving(&["probe"]).start();
    let mut body = host.get("probe/demo/chunks-endless?delay=5").await;
    let run = body.headers()["bureau-run"].to_str().unwrap().to_owned();
    let cancel = async || {
        let path = format!("/v1/runs/{run}/cancel");
        host.admin(Method::POST, &path).await.status()
    };
    assert!(body.chunk().await.unwrap().is_some(), "it is under way");
    assert_eq!(cancel().await, StatusCode::ACCEPTED);
    drop(body);
    while cancel().await == StatusCode::ACCEPTED {
        // The guest learns at its next write that its client has left.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert_eq!(cancel().await, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn an_agent_reaches_nothing_that_it_was_not_given() {
    let host = TestHost::serving(&["probe"]).start();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let reached =
        host.json(&format!("probe/demo/reach?key={}", listener.local_addr().unwrap())).await;
    let nothing = json!({
        "network": null, "files": null, "own files": null, "environment": 0, "arguments": 0,
    });
    assert_eq!(reached, nothing);
}

#[tokio::test]
async fn several_things_are_awaited_within_one_call() {
    let host = TestHost::serving(&["probe"]).start();
    let waited = host.json("probe/demo/together").await;
    assert_eq!(waited, json!({ "both": ["one", "two"], "first": "short" }));
}

#[tokio::test]
async fn an_agent_is_given_its_own_configuration_and_no_other() {
    let config = "[agents.probe.config]\nmodel = 'small'\n[agents.other.config]\nkey = 'secret'";
    let host = TestHost::serving(&["probe"]).config(config).start();
    assert_eq!(host.json("probe/demo/config?key=model").await["value"], "small");
    assert_eq!(host.json("probe/demo/config?key=key").await["value"], Value::Null);
}

#[tokio::test]
async fn an_agent_is_told_who_it_is() {
    let host = TestHost::serving(&["probe"]).start();
    let one = host.json("probe/some%20name/identity").await;
    assert_eq!((&one["agent"], &one["instance"]), (&json!("probe"), &json!("some name")));
    let other = host.json("probe/other/identity").await;
    assert_eq!((&other["instance"], &other["module"]), (&json!("other"), &one["module"]));
    assert_ne!(other["run"], one["run"]);
}

#[tokio::test]
async fn a_run_that_is_cancelled_is_told_and_ends_as_it_likes() {
    let host = TestHost::serving(&["probe"]).start();
    let mut stream = host.stream("probe/demo/cancellable").await;
    let run = run_of(&stream);
    assert_eq!(stream.next().await.unwrap().data, "waiting");
    let neighbour = held(&host, "probe/demo").await;
    let path = format!("/v1/runs/{run}/cancel");
    let cancel = || host.admin(Method::POST, &path);
    assert_eq!(cancel().await.status(), StatusCode::ACCEPTED);
    let events = stream.rest().await;
    assert_eq!((events.len(), &*events[0].data, &*events[1].name), (2, "cancelled", "failed"));
    let fault: Value = serde_json::from_str(&events[1].data).unwrap();
    assert_eq!(fault["code"], "cancelled");
    assert_eq!(problem(cancel().await).await, "409 run-ended host");
    release(&host, "probe/demo", neighbour).await;
}

#[tokio::test]
async fn a_client_that_goes_away_changes_nothing_for_the_run() {
    let host = TestHost::serving(&["probe"]).start();
    let stream = held(&host, "probe/demo").await;
    let id = format!("{}-1", run_of(&stream));
    drop(stream);
    assert_eq!(host.json("probe/demo/release").await["released"], 1);
    assert_eq!(data(&host.resume("probe/demo", &id).await.rest().await), ["2"]);
}

#[tokio::test]
async fn an_id_that_cannot_be_resumed_reaches_the_agent_and_opens_its_stream_with_reset() {
    let host = TestHost::serving(&["probe"]).start();
    let ask = |id: &str| {
        let request = host.request(Method::GET, "probe/demo/last-event-id");
        request.header("last-event-id", id).send()
    };
    let said = ask("garbage").await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(said["lastEventId"], "garbage");
    let none = host.json("probe/demo/last-event-id").await;
    assert_eq!(none["lastEventId"], Value::Null);

    let stream = host.resume("probe/demo/emit?count=2", "garbage").await;
    let run = run_of(&stream);
    let events = stream.rest().await;
    assert_eq!((events.len(), &*events[0].name), (3, "reset"));
    let reset: Value = serde_json::from_str(&events[0].data).unwrap();
    assert_eq!(reset, json!({ "id": "garbage", "reason": "unknown" }));
    let again = host.resume("probe/demo", &events[0].id).await.rest().await;
    assert_eq!((events[0].id.clone(), again), (format!("{run}-0"), events[1..].to_vec()));
}
