//! Agents that are plain `wasi:http`, 0.3 and 0.2: what they are asked and what they answer passes through as it comes.

use std::fmt::Write as _;
use std::time::Duration;

use bureau::config::JournalLimits;
use bureau::id::InstanceKey;
use bureau::journal::{Journal, Options};
use futures_util::StreamExt as _;
use reqwest::{Body, Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    Connection, Disk, InProcess, Started, Stream, TestHost, another_module, guest, header, module,
    problem,
};

/// An agent of each version.
const BOTH: [&str; 2] = ["service", "proxy"];

/// What their `/sse` writes.
const SSE: &str =
    "retry: 10\n\nid: 1\r\ndata: one\r\n\r\n: still here\n\ndata: two\rdata: \u{e9}\r\r";

fn get(path: &str) -> String {
    format!("GET /agents/{path} HTTP/1.1\r\nhost: agents.example:81\r\n\r\n")
}

async fn runs(host: &Started) -> Vec<Value> {
    let runs = host.operator_sees("/v1/runs").await;
    runs["runs"].as_array().unwrap().clone()
}

/// Waits until no run is in flight.
async fn no_runs(host: &Started) {
    no_runs_but(host, 0).await;
}

/// Waits until so many runs are in flight.
async fn no_runs_but(host: &Started, count: usize) {
    while runs(host).await.len() != count {
        // The host's own books: there is nothing to be woken by.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The id of the only run in flight.
async fn only_run(host: &Started) -> String {
    loop {
        if let [run] = &*runs(host).await {
            return run["run"].as_str().unwrap().to_owned();
        }
    }
}

async fn cancel(host: &Started, run: &str) {
    let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_request_arrives_and_an_event_stream_written_by_hand_passes_byte_for_byte() {
    let host = TestHost::serving(&BOTH).start();
    for agent in BOTH {
        let answer = host.get(&format!("{agent}/demo/sse")).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(header(answer.headers(), "content-type"), "text/event-stream");
        assert_eq!(header(answer.headers(), "x-accel-buffering"), "no");
        assert_eq!(header(answer.headers(), "bureau-run").len(), 26);
        assert_eq!(header(answer.headers(), "bureau-module").len(), 64);
        assert_eq!(answer.text().await.unwrap(), SSE, "{agent}");

        let request = host.request(Method::PATCH, &format!("{agent}/demo/head/%2F?a=%20b"));
        let request = request.header("accept", "image/png").header("x-own", &b"\xe9"[..]);
        let told = request.send().await.unwrap().text().await.unwrap();
        let host_of = host.url.strip_prefix("http://").unwrap();
        let first = told.lines().next().unwrap();
        assert!(first.ends_with(&format!(" {host_of} /head/%2F?a=%20b")), "{told}");
        assert!(first.contains("Patch") && first.to_lowercase().contains("http"), "{told}");
        assert!(told.contains("x-own: \\xe9\n") && !told.contains("host:"), "{told}");

        let bare = host.get(&format!("{agent}/demo?x")).await;
        assert_eq!(bare.status(), StatusCode::NOT_FOUND, "the guest's own");
        assert_eq!(bare.text().await.unwrap(), "not here");
    }
    no_runs(&host).await;
}

#[tokio::test]
async fn a_body_without_end_goes_both_ways_at_once_and_waits_for_who_is_slow() {
    const PIECES: usize = 768;
    const PIECE: usize = 64 << 10;
    let limits = "[instances]\nrequest_body_bytes = \"64 MiB\"\nmemory_bytes = \"16 MiB\"";
    let host = TestHost::serving(&BOTH).config(limits).start();
    for agent in BOTH {
        // Nothing is sent before the echo of what was: whoever kept a body until it is whole would wait for ever.
        let (mut sender, body) = tokio::sync::mpsc::channel::<Result<Vec<u8>, std::io::Error>>(1);
        let first = vec![1; 100];
        sender.send(Ok(first.clone())).await.unwrap();
        let body = futures_util::stream::unfold(body, |mut body| async {
            Some((body.recv().await?, body))
        });
        let request = host.request(Method::POST, &format!("{agent}/demo/echo"));
        let answer = request.body(Body::wrap_stream(body)).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let mut echo = answer.bytes_stream();
        let mut received = 0;
        while received < first.len() {
            received += echo.next().await.unwrap().unwrap().len();
        }
        let sending = tokio::spawn(async move {
            for n in 0..PIECES {
                let piece = vec![u8::try_from(n % 251).unwrap(); PIECE];
                if sender.send(Ok(piece)).await.is_err() {
                    return (sender, false);
                }
            }
            (sender, true)
        });
        let mut count = 0;
        while count < PIECES * PIECE {
            for byte in echo.next().await.expect("it goes on").expect("it is whole") {
                assert_eq!(usize::from(byte), (count / PIECE) % 251, "{agent}, at {count}");
                count += 1;
            }
        }
        (sender, _) = sending.await.unwrap();
        drop(sender);
        assert!(echo.next().await.is_none(), "{agent}");
    }
    no_runs(&host).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_stops_the_guest_and_through_it_the_sender() {
    const WHOLE: usize = 64 << 20;
    let limits = "[instances]\nrequest_body_bytes = \"128 MiB\"\nmemory_bytes = \"16 MiB\"";
    let host = TestHost::serving(&BOTH).config(limits).start();
    for agent in BOTH {
        let mut client = Connection::narrow(&host.url).await;
        let head = format!(
            "POST /agents/{agent}/demo/echo HTTP/1.1\r\nhost: a\r\ncontent-length: {WHOLE}\r\n\r\n"
        );
        client.send(head).await;
        let piece = vec![7; 64 << 10];
        let mut sent = 0;
        // What both sides' sockets and the few pieces on the way take is less than the whole.
        while tokio::time::timeout(Duration::from_secs(1), client.send(&piece)).await.is_ok() {
            sent += piece.len();
            assert!(sent < WHOLE, "{agent}: somebody keeps it all");
        }
        drop(client);
        no_runs(&host).await;
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let host = TestHost::serving(&["service"]).start();
    for path in ["echo", "pass"] {
        let mut client = Connection::to(&host.url).await;
        let head = format!(
            "POST /agents/service/demo/{path} HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\
             connection: close, te\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n"
        );
        client.send(head).await;
        client.send("3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n").await;
        let answer = client.rest().await;
        assert!(answer.ends_with("3\r\nabc\r\n0\r\nx-sum: 42\r\n\r\n"), "{path}: {answer}");
    }
    no_runs(&host).await;
}

#[tokio::test]
async fn a_client_that_leaves_is_missed() {
    let host = TestHost::serving(&BOTH).start();
    for agent in BOTH {
        let mut client = Connection::to(&host.url).await;
        client.send(get(&format!("{agent}/demo/ticks"))).await;
        client.until("tick\n").await;
        assert_eq!(runs(&host).await.len(), 1);
        assert_eq!(host.metrics().await["calls"], 1);
        drop(client);
        host.logged(|line| line.contains("nobody takes") && line.contains(agent)).await;
        no_runs(&host).await;
    }
    assert_eq!(host.metrics().await["calls"], 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_guest_keeps_is_durable_before_what_it_writes_then_leaves() {
    const COUNT: u64 = 200;
    let disk = Disk::default();
    let host = InProcess::serving(&BOTH, &disk, |_| {}).await;
    for agent in BOTH {
        let mut client = Connection::to(&host.url).await;
        client.send(get(&format!("{agent}/demo/remember/{COUNT}"))).await;
        let mut seen = 0;
        while seen < COUNT {
            assert_ne!(client.read(256).await, 0);
            let text = client.text();
            let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
            // Numbers between the sizes of chunks.
            let numbers = body.split("\r\n").skip(1).step_by(2).flat_map(str::lines);
            seen = numbers.filter_map(|number| number.parse().ok()).max().unwrap_or(0);
            let options = Options { file: "crashed.redb".into(), limits: JournalLimits::default() };
            let (journal, _) = Journal::open_on(disk.survivor().backend(), options).unwrap();
            let key = InstanceKey::new(agent.parse().unwrap(), "demo").unwrap();
            let kept = journal.state(&key).unwrap().map_or(0, |state| state.parse().unwrap());
            assert!(seen <= kept, "{agent}: {seen} was seen and {kept} is kept");
            journal.close().await;
        }
    }
    host.stop().await;
}

#[tokio::test]
async fn calls_of_0_3_interleave_and_those_of_0_2_take_turns() {
    let host = TestHost::serving(&BOTH).start();
    for agent in BOTH {
        let mut first = Connection::to(&host.url).await;
        first.send(get(&format!("{agent}/demo/ticks"))).await;
        first.until("tick\n").await;
        let mut second = Connection::to(&host.url).await;
        second.send(get(&format!("{agent}/demo/sse"))).await;
        let elsewhere = host.get(&format!("{agent}/other/sse")).await;
        assert_eq!(elsewhere.text().await.unwrap(), SSE, "another instance is not concerned");
        if agent == "proxy" {
            // Nobody waits for this one when its turn comes.
            let mut left = Connection::to(&host.url).await;
            left.send(get("proxy/demo/silence")).await;
            left.taken().await;
            drop(left);
            drop(first);
        }
        second.until("one\r\n").await;
        no_runs_but(&host, usize::from(agent == "service")).await;
    }
    let untaken = host.log().iter().filter(|line| line.contains("nobody takes the body")).count();
    assert_eq!(untaken, 1, "of the first");
}

#[tokio::test]
async fn what_breaks_in_the_middle_does_not_look_whole_and_the_next_request_finds_a_fresh_instance()
{
    let host = TestHost::serving(&BOTH).config("[instances]\nmemory_bytes = \"16 MiB\"").start();
    for path in ["service/demo/trap", "service/demo/memory", "proxy/demo/trap"] {
        let mut client = Connection::to(&host.url).await;
        client.send(get(path)).await;
        let answer = client.until("so far\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let answer = client.rest().await;
        assert!(!answer.contains("0\r\n\r\n"), "{path}: {answer:?}");
        no_runs(&host).await;
        let agent = path.split('/').next().unwrap();
        let next = host.get(&format!("{agent}/demo/status/204")).await;
        assert_eq!(next.status(), StatusCode::NO_CONTENT);
    }
    host.logged(|line| line.contains("memory-limit")).await;
}

#[tokio::test]
async fn those_beside_one_that_traps_end_with_it() {
    let host = TestHost::serving(&["service"]).start();
    let late = tokio::spawn(host.request(Method::GET, "service/demo/late").send());
    host.logged(|line| line.contains("late")).await;
    let mut silent = Connection::to(&host.url).await;
    silent.send(get("service/demo/silence")).await;
    silent.until("hush\n").await;
    let trapped = host.get("service/demo/trap").await;
    assert!(trapped.bytes().await.is_err());
    assert_eq!(problem(late.await.unwrap().unwrap()).await, "502 agent-trapped agent");
    assert!(!silent.rest().await.contains("0\r\n\r\n"));
    no_runs(&host).await;
}

#[tokio::test]
async fn a_body_beyond_the_limit_is_refused_and_the_guest_hears_of_it() {
    let limits = "[instances]\nrequest_body_bytes = 1000\n[http]\nbody_timeout = \"100ms\"";
    let host = TestHost::serving(&BOTH).config(limits).start();
    for agent in BOTH {
        let path = format!("{agent}/demo/count");
        let whole = host.request(Method::POST, &path).body(vec![0; 1000]).send().await.unwrap();
        assert_eq!(whole.text().await.unwrap(), "1000");
        let said = host.request(Method::POST, &path).body(vec![0; 1001]).send().await.unwrap();
        assert_eq!(problem(said).await, "413 payload-too-large host", "beforehand");

        let head = |path: &str| {
            format!("POST /agents/{path} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
        };
        let mut client = Connection::to(&host.url).await;
        client.send(head(&path)).await;
        client.send(format!("3e9\r\n{}\r\n", "x".repeat(1001))).await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
        let broken = |line: &str| line.contains("broke off") && line.contains(agent);
        host.logged(broken).await;

        let mut client = Connection::to(&host.url).await;
        client.send(head(&path)).await;
        client.send("3\r\nabc\r\n").await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
        no_runs(&host).await;
    }
}

#[tokio::test]
async fn a_swap_lets_a_stream_go_on_where_it_began() {
    let host = TestHost::serving(&["service"]).start();
    let mut client = Connection::to(&host.url).await;
    client.send(get("service/demo/ticks")).await;
    client.until("tick\n").await;
    let deployed = host.put_module("service", another_module("service", 2)).await;
    assert_eq!(deployed.status(), StatusCode::OK);
    let digest = deployed.json::<Value>().await.unwrap()["digest"].as_str().unwrap().to_owned();
    let next = host.get("service/demo/status/200").await;
    assert_eq!(header(next.headers(), "bureau-module"), digest);
    let before = client.text().len();
    while client.text().len() < before + 1000 {
        assert_ne!(client.read(4096).await, 0, "it goes on");
    }
    assert!(!client.text().contains(&digest));
    drop(client);
    no_runs(&host).await;

    // To a module of another kind, and back.
    assert_eq!(host.put_module("service", module("proxy")).await.status(), StatusCode::OK);
    assert_eq!(host.get("service/demo/nothing").await.status(), 500);
    assert_eq!(host.put_module("service", module("probe")).await.status(), StatusCode::OK);
    assert_eq!(host.json("service/demo/memory").await, json!({ "calls": 1 }));
    assert_eq!(host.put_module("service", module("service")).await.status(), StatusCode::OK);
    assert_eq!(host.get("service/demo/sse").await.text().await.unwrap(), SSE);
}

#[tokio::test]
async fn a_cancelled_run_breaks_off() {
    let grace = "[instances]\ncancel_grace = \"50ms\"\ncpu = \"1h\"";
    let host = TestHost::serving(&BOTH).config(grace).start();
    for path in
        ["service/demo/ticks", "proxy/demo/ticks", "service/demo/silence", "proxy/demo/silence"]
    {
        let mut client = Connection::to(&host.url).await;
        client.send(get(path)).await;
        client.until(if path.ends_with("ticks") { "tick\n" } else { "hush\n" }).await;
        cancel(&host, &only_run(&host).await).await;
        assert!(!client.rest().await.contains("0\r\n\r\n"), "{path}");
        no_runs(&host).await;
    }
    // It is the one that is cancelled, and its guest hears of it in time.
    let host = TestHost::serving(&BOTH).config("[instances]\ncancel_grace = \"1h\"").start();
    let mut happenings = Stream::open(host.operate(Method::GET, "/v1/events")).await;
    for agent in BOTH {
        let mut client = Connection::to(&host.url).await;
        client.send(get(&format!("{agent}/demo/ticks"))).await;
        client.until("tick\n").await;
        let run = only_run(&host).await;
        cancel(&host, &run).await;
        assert!(!client.rest().await.contains("0\r\n\r\n"), "{agent}");
        host.logged(|line| line.contains("nobody takes") && line.contains(agent)).await;
        no_runs(&host).await;
        let started = happenings.next().await.unwrap();
        let ended = happenings.next().await.unwrap();
        assert_eq!((&*started.name, &*ended.name), ("instance-started", "run-ended"));
        let ended: Value = serde_json::from_str(&ended.data).unwrap();
        assert_eq!((&ended["run"], &ended["state"]), (&json!(run), &json!("cancelled")));

        let mut client = Connection::to(&host.url).await;
        let head = "host: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n";
        client.send(format!("POST /agents/{agent}/demo/count HTTP/1.1\r\n{head}")).await;
        cancel(&host, &only_run(&host).await).await;
        let answer = client.until("\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 409"), "{agent}: {answer}");
        host.logged(|line| line.contains("broke off") && line.contains(agent)).await;
        no_runs(&host).await;
        let ended = happenings.next().await.unwrap();
        assert_eq!(ended.name, "run-ended");
    }

    let host = TestHost::serving(&BOTH).config(grace).start();
    // What has not answered gets the grace; then its store is stopped.
    for path in ["service/demo/late", "service/demo/spin"] {
        let waiting = tokio::spawn(host.request(Method::GET, path).send());
        cancel(&host, &only_run(&host).await).await;
        assert_eq!(problem(waiting.await.unwrap().unwrap()).await, "409 cancelled host", "{path}");
    }
    assert_eq!(host.get("service/demo/sse").await.text().await.unwrap(), SSE);
}

#[tokio::test]
async fn a_head_has_no_body_and_what_http_cannot_carry_is_a_problem() {
    let host = TestHost::serving(&BOTH).start();
    for agent in BOTH {
        let head = host.request(Method::HEAD, &format!("{agent}/demo/length/5/5")).send();
        let head = head.await.unwrap();
        assert_eq!(head.status(), StatusCode::OK);
        assert_eq!(header(head.headers(), "content-length"), "5");
        assert_eq!(head.bytes().await.unwrap().len(), 0);

        let right = host.get(&format!("{agent}/demo/length/5/5")).await;
        assert_eq!(header(right.headers(), "content-length"), "5");
        assert_eq!(right.text().await.unwrap(), "xxxxx");
        for wrong in ["5/3", "3/5"] {
            let path = format!("{agent}/demo/length/{wrong}");
            // It breaks off with its head or after it.
            let whole = match host.request(Method::GET, &path).send().await {
                Ok(answer) => answer.bytes().await.is_ok(),
                Err(_) => false,
            };
            assert!(!whole, "{path}");
        }
        for status in [204, 304, 418, 599] {
            let answer = host.get(&format!("{agent}/demo/status/{status}")).await;
            assert_eq!((answer.status().as_u16(), &*answer.text().await.unwrap()), (status, ""));
        }
        for status in [100, 101, 103] {
            let answer = host.get(&format!("{agent}/demo/status/{status}")).await;
            assert_eq!(problem(answer).await, "502 bad-response agent");
        }
        no_runs(&host).await;
    }
    for path in ["service/demo/error", "proxy/demo/nothing"] {
        assert_eq!(problem(host.get(path).await).await, "500 agent-failed agent", "{path}");
    }
}

#[tokio::test]
async fn the_operator_sees_what_kind_an_agent_is_and_its_health_is_asked_for() {
    let mut health = String::new();
    for (agent, path) in [("service", "/sse"), ("proxy", "/sse")] {
        let _ = writeln!(health, "[agents.{agent}]\nhealth = \"{path}\"");
    }
    let host = TestHost::serving(&BOTH).config(&health).start();
    let agents = host.operator_sees("/v1/agents").await;
    let kind =
        |at: usize| (agents["agents"][at]["agent"].clone(), agents["agents"][at]["kind"].clone());
    assert_eq!(kind(0), (json!("proxy"), json!("wasi-http-0.2")));
    assert_eq!(kind(1), (json!("service"), json!("wasi-http-0.3")));
    drop(host);

    let sick = "[agents.service]\nhealth = \"/status/503\"\n[agents.proxy]\nhealth = \"/nothing\"";
    let host = TestHost::serving(&[]).config(sick).start();
    for (agent, why) in [("service", "503"), ("proxy", "returned an error")] {
        let refused = host.put_module(agent, module(agent)).await;
        assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
        let refused = refused.text().await.unwrap();
        assert!(refused.contains(why), "{refused}");
    }

    for (agent, kind) in
        [("service", "wasi-http-0.3"), ("proxy", "wasi-http-0.2"), ("probe", "agent")]
    {
        let inspected = std::process::Command::new(env!("CARGO_BIN_EXE_bureau"))
            .args(["inspect", "--json"])
            .arg(guest(agent))
            .output()
            .unwrap();
        let inspected: Value = serde_json::from_slice(&inspected.stdout).unwrap();
        assert_eq!((&inspected["kind"], &inspected["fits"]), (&json!(kind), &json!(true)));
    }
}
