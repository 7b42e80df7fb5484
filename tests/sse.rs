//! The cases of Server-Sent Events with resume that hosts get wrong, each on a real socket.
//!
//! Each test's name begins with the case it shows. How an event is framed is tested where that is done, as a
//! pure function; here is what needs a connection, a journal or a guest.

use futures_util::future::join_all;
use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Connection, Event, Started, Stream, TestHost, data, header, problem};

/// `1` to `count`, as the probe's `/emit` says them.
fn numbers(range: impl Iterator<Item = usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

fn run_of(stream: &Stream) -> String {
    header(&stream.headers, "bureau-run").to_owned()
}

/// The first events of a stream that goes on, its run, and the stream.
async fn begun(host: &Started, path: &str, count: usize) -> (Stream, String) {
    let mut stream = host.stream(path).await;
    let run = run_of(&stream);
    assert_eq!(data(&stream.take(count).await), numbers(1..=count));
    (stream, run)
}

/// Emits this many events in a run that ends, and returns the run.
async fn finished(host: &Started, instance: &str, count: usize) -> String {
    let stream = host.stream(&format!("{instance}/emit?count={count}")).await;
    let run = run_of(&stream);
    assert_eq!(stream.rest().await.len(), count);
    run
}

/// Reads a body until this is in it.
async fn body_until(response: &mut Response, what: &str) -> String {
    let mut text = String::new();
    while !text.contains(what) {
        let chunk = response.chunk().await.expect("the body does not break");
        text.push_str(std::str::from_utf8(&chunk.expect("the body goes on")).unwrap());
    }
    text
}

fn get(path: &str, headers: &str) -> String {
    format!("GET /agents/{path} HTTP/1.1\r\nhost: bureau\r\n{headers}\r\n")
}

// Framing, as far as it needs a guest and a connection.

#[tokio::test]
async fn very_large_event_at_the_limit_arrives_whole_at_a_client_that_reads_a_byte_at_a_time() {
    let host = TestHost::serving(&["probe"]).config("instances.event_bytes = '64 KiB'").start();
    let path = "probe/demo/emit-raw";
    let largest = "x".repeat(64 << 10);

    let body = json!([{ "data": largest }]).to_string();
    let mut connection = Connection::to(&host.url).await;
    let length = body.len();
    // To a client of HTTP/1.0 the body is not chunked: what comes is the stream itself.
    let head = format!("POST /agents/{path} HTTP/1.0\r\ncontent-length: {length}\r\n\r\n");
    connection.send(head + &body).await;
    while connection.read(1).await > 0 {}
    let text = connection.text();
    assert!(text.ends_with(&format!("\ndata: {largest}\n\n")), "{} bytes", text.len());

    let over = host.post(path, &json!([{ "data": format!("{largest}x") }])).await;
    let answer = json!({ "error": "the event is larger than 65536 bytes, the limit" });
    assert_eq!(over.json::<Value>().await.unwrap(), answer, "the guest is told `too-large`");
}

#[tokio::test]
async fn cr_lf_or_nul_in_id_or_event_name_is_refused_as_the_guests_error() {
    let host = TestHost::serving(&["probe"]).start();
    for bad in ["a\rb", "a\nb", "a\0b", "a\r\ndata: b"] {
        for field in ["id", "name"] {
            let event = json!([{ field: bad, "data": "x" }]);
            let response = host.post("probe/demo/emit-raw", &event).await;
            let answer: Value = response.json().await.unwrap();
            let error = answer["error"].as_str().unwrap();
            assert!(error.contains(&format!("event's {field}")), "{bad:?}: {error}");
        }
    }
    // Neither bytes on the wire nor an end of the instance: events before and after it are whole.
    let events = json!([{ "data": "before" }, { "name": "a\nb", "data": "x" }]);
    let body = host.post("probe/demo/emit-raw", &events).await.text().await.unwrap();
    assert!(body.ends_with("\ndata: before\n\n"), "{body}");
}

#[tokio::test]
async fn id_is_on_every_event_and_an_agents_own_takes_the_place_of_the_cursor() {
    let host = TestHost::serving(&["probe"]).start();
    let events = json!([{ "data": "" }, { "data": "x", "id": "order-1", "name": "sold" }]);
    let response = host.post("probe/demo/emit-raw", &events).await;
    let run = header(response.headers(), "bureau-run").to_owned();
    let frames = format!("id: {run}-1\ndata:\n\nid: order-1\nevent: sold\ndata: x\n\n");
    assert_eq!(response.text().await.unwrap(), format!(":\nretry: 2000\n{frames}"));
}

#[tokio::test]
async fn truncated_tail_comes_again_on_resume() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 3).await;
    // The client has all of event 1 and half of event 2, so its last id is that of 1.
    let mut connection = Connection::to(&host.url).await;
    connection.send(get("probe/demo", &format!("last-event-id: {run}-0\r\n"))).await;
    connection.until(&format!("id: {run}-2\n")).await;
    drop(connection);
    let rest = host.resume("probe/demo", &format!("{run}-1")).await.rest().await;
    assert_eq!(data(&rest), ["2", "3"]);
}

#[tokio::test]
async fn heartbeat_is_a_comment_without_a_blank_line() {
    let host = TestHost::serving(&["probe"]).config("http.heartbeat = '20ms'").start();
    let mut response = host.get("probe/demo/hang").await;
    let run = header(response.headers(), "bureau-run").to_owned();
    let event = format!("id: {run}-1\ndata: waiting\n\n");
    let text = body_until(&mut response, &format!("{event}:\n:\n:\n")).await;
    let before = format!(":\nretry: 2000\n{event}");
    let beats = text.strip_prefix(&before).expect("the event comes after the preamble");
    assert_eq!(beats.replace(":\n", ""), "", "nothing else while nothing happens");
}

// HTTP.

#[tokio::test]
async fn headers_say_stream_and_keep_proxies_from_holding_it_back() {
    let host = TestHost::serving(&["probe"]).start();
    let http2 = Client::builder().http2_prior_knowledge().build().unwrap();
    let path = host.agent_url("probe/demo/emit");
    for (client, version) in [(Client::new(), "HTTP/1.1"), (http2, "HTTP/2.0")] {
        let response = client.get(&path).send().await.unwrap();
        assert_eq!(format!("{:?}", response.version()), version);
        assert_eq!(response.status(), StatusCode::OK);
        let headers = response.headers();
        for (name, value) in [
            ("content-type", "text/event-stream"),
            ("cache-control", "no-cache, no-transform"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
            ("content-length", ""),
            ("connection", ""),
        ] {
            assert_eq!(header(headers, name), value, "{version}: {name}");
        }
    }
}

#[tokio::test]
async fn first_byte_is_flushed_before_the_first_event_is_there() {
    let host = TestHost::serving(&["probe"]).start();
    let mut connection = Connection::to(&host.url).await;
    // It opens its stream, and is to emit in an hour.
    connection.send(get("probe/demo/open-then?delay=3600000", "")).await;
    let text = connection.until(":\nretry: 2000\n").await;
    assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
    assert!(!text.contains("data:"), "{text}");
}

#[tokio::test]
async fn head_has_headers_only_and_starts_no_run() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/other", 3).await;
    let mut connection = Connection::to(&host.url).await;
    let ask = |path: &str, headers: &str| get(path, headers).replacen("GET", "HEAD", 1);
    connection.send(ask("probe/demo/memory", "")).await;
    let head = connection.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: text/event-stream\r\n"), "{head}");
    assert!(!head.contains("bureau-run"), "there is no run: {head}");
    let resumed = format!("last-event-id: {run}-1\r\nconnection: close\r\n");
    connection.send(ask("probe/other/emit", &resumed)).await;
    let both = connection.rest().await;
    let second = both.strip_prefix(&head).expect("a body comes after neither head");
    assert!(second.contains(&format!("bureau-run: {run}\r\n")), "{second}");
    assert!(second.ends_with("\r\n\r\n"), "{second}");
    assert_eq!(host.json("probe/demo/memory").await["calls"], 1, "the agent was not called");
}

#[tokio::test]
async fn accept_that_is_absent_or_any_streams_and_one_that_excludes_all_is_406_without_a_run() {
    let host = TestHost::serving(&["probe"]).start();
    let mut connection = Connection::to(&host.url).await;
    connection.send(get("probe/demo/count?count=1", "connection: close\r\n")).await;
    let absent = connection.rest().await;
    assert!(absent.contains("content-type: text/event-stream\r\n"), "{absent}");

    let count = |accept: &str| {
        let request = host.request(Method::GET, "probe/demo/count?count=1");
        request.header("accept", accept).send()
    };
    for accept in ["*/*", "text/event-stream", "text/html, */*;q=0.1"] {
        let response = count(accept).await.unwrap();
        assert_eq!(header(response.headers(), "content-type"), "text/event-stream", "{accept}");
        response.bytes().await.unwrap();
    }
    for accept in ["image/png", "text/event-stream;q=0", "image/*, audio/mpeg;q=0.9"] {
        let response = count(accept).await.unwrap();
        assert_eq!(problem(response).await, "406 not-acceptable host", "{accept}");
    }
    assert_eq!(host.json("probe/demo/state").await, 4, "a refused request starts no run");
}

#[tokio::test]
async fn status_204_is_for_a_client_whose_id_is_the_last_of_a_run_that_is_over() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 2).await;
    let caught_up = host.resume("probe/demo/emit", &format!("{run}-2")).await;
    assert_eq!(caught_up.status, StatusCode::NO_CONTENT);
    assert_eq!(run_of(&caught_up), run);
    assert_eq!(caught_up.rest().await, []);
}

#[tokio::test]
async fn any_other_non_200_is_never_for_what_a_retry_would_mend() {
    let host = TestHost::serving(&["probe"]).config("instances.runs = 1").start();
    let (_stream, _) = begun(&host, "probe/busy/emit-held?count=1", 1).await;
    let ask = |accept| host.request(Method::GET, "probe/busy/reply").header("accept", accept);
    let to_others = ask("*/*").send().await.unwrap();
    assert_eq!(header(to_others.headers(), "retry-after"), "2");
    assert_eq!(problem(to_others).await, "429 instance-busy host");
    let to_event_sources = ask("text/event-stream").send().await.unwrap();
    assert_eq!(to_event_sources.status(), StatusCode::OK);
    assert_eq!(to_event_sources.text().await.unwrap(), "retry: 2000\n");
}

#[tokio::test]
async fn while_draining_streams_end_with_retry_and_new_ones_are_told_to_come_back() {
    let host = TestHost::serving(&["probe"]).config("http.retry = '1500ms'").start();
    let mut streaming = host.get("probe/demo/emit-held?count=1").await;
    body_until(&mut streaming, "data: 1\n\n").await;
    // A request whose head is half there belongs to a connection that the drain does not close.
    let mut late = Connection::to(&host.url).await;
    late.send("GET /agents/probe/demo/reply HTTP/1.1\r\nhost: bureau\r\n").await;
    late.taken().await;

    host.signal("TERM");
    let mut rest = String::new();
    while let Some(chunk) = streaming.chunk().await.expect("the body ends cleanly") {
        rest.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    assert_eq!(rest, "retry: 1500\n", "a whole stream that says when to come back");
    late.send("accept: text/event-stream\r\n\r\n").await;
    let answer = late.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nretry: 1500\n"), "{answer}");
}

#[tokio::test]
async fn cors_lets_configured_origins_in_and_a_last_event_id_needs_no_preflight() {
    let config = "cors.origins = ['https://example.org']";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let preflight = |origin: &str| {
        let request = host.request(Method::OPTIONS, "probe/demo/count?count=1");
        let request = request.header("origin", origin).header("accept", "*/*");
        let request = request.header("access-control-request-method", "POST");
        request.header("access-control-request-headers", "last-event-id, content-type").send()
    };
    let allowed = preflight("https://example.org").await.unwrap();
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
    for (name, value) in [
        ("access-control-allow-origin", "https://example.org"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "last-event-id, content-type"),
        ("bureau-run", ""),
    ] {
        assert_eq!(header(allowed.headers(), name), value, "{name}");
    }
    assert_eq!(host.json("probe/demo/state").await, Value::Null, "a preflight starts no run");
    let other = preflight("https://example.com").await.unwrap();
    assert_eq!(header(other.headers(), "access-control-allow-origin"), "");

    let request = host.request(Method::GET, "probe/demo/emit?count=100");
    let stream = Stream::open(request.header("origin", "https://example.org")).await;
    assert_eq!(header(&stream.headers, "access-control-allow-origin"), "https://example.org");
    let exposed = header(&stream.headers, "access-control-expose-headers").to_owned();
    assert!(exposed.contains("bureau-run") && exposed.contains("bureau-module"), "{exposed}");
    for Event { id, .. } in stream.rest().await {
        let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        assert!(id.len() <= 128 && id.bytes().all(safe), "{id} would need a preflight");
    }
}

#[tokio::test]
async fn idle_disconnect_is_noticed_by_the_heartbeat() {
    // With one connection at most, the next client is served only when this one's is seen to be gone.
    let config = "[http]\nheartbeat = '20ms'\nconnections = 1";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let mut connection = Connection::to(&host.url).await;
    // Bytes of a next request keep the host from looking whether the client is there.
    connection.send(get("probe/demo/hang", "") + "GET /left").await;
    connection.until("data: waiting\n\n").await;
    drop(connection);
    assert_eq!(host.get("probe/other/reply").await.text().await.unwrap(), "a reply");
}

#[tokio::test]
async fn idle_disconnect_on_http2_is_noticed_by_keep_alive() {
    let host = TestHost::serving(&["probe"]).config("http.heartbeat = '20ms'").start();
    let mut silent = Connection::to(&host.url).await;
    // The preface and empty settings, and then no answer to any ping.
    silent.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await;
    assert!(!silent.rest().await.is_empty(), "it was served before it was cut");
}

#[tokio::test]
async fn slow_reader_costs_constant_memory_and_no_one_else_anything_and_can_resume() {
    const COUNT: usize = 10_000;
    let host = TestHost::serving(&["probe"])
        .config("http.write_stall = '100ms'")
        .log("bureau=debug")
        .start();
    let mut stalled = Connection::narrow(&host.url).await;
    // 20 MB, which no buffer between two sockets holds.
    let path = format!("/agents/probe/demo/emit?count={COUNT}&size=2000");
    stalled.send(format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let head = stalled.until("\r\n\r\n").await;
    let (_, run) = head.split_once("bureau-run: ").unwrap();
    let run = run.split_once("\r\n").unwrap().0.to_owned();

    let other = host.resume("probe/demo", &format!("{run}-0")).await.rest().await;
    assert_eq!(other.len(), COUNT, "the guest came to its end, and another reader to all of it");
    host.logged(|line| line.contains("a connection broke")).await;
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!(peak < 1 << 20, "{peak} bytes were held in memory");

    let text = stalled.rest().await;
    let (whole, _truncated) = text.rsplit_once("\n\n").expect("some events came");
    let ids = whole.lines().filter_map(|line| line.strip_prefix("id: "));
    let got: Vec<_> = ids.map(str::to_owned).collect();
    assert!(got.len() < COUNT, "the stalled client was cut off");
    let rest = host.resume("probe/demo", got.last().unwrap()).await.rest().await;
    let rest = rest.into_iter().map(|event| event.id);
    let ids: Vec<_> = got.into_iter().chain(rest).collect();
    assert_eq!(ids, other.into_iter().map(|event| event.id).collect::<Vec<_>>());
}

#[tokio::test]
async fn compression_is_never_on_a_stream() {
    let host = TestHost::serving(&["probe"]).start();
    let request = host.request(Method::GET, "probe/demo/emit?count=1");
    let response = request.header("accept-encoding", "gzip, br, zstd").send().await.unwrap();
    assert_eq!(header(response.headers(), "content-encoding"), "");
    assert!(response.text().await.unwrap().ends_with("data: 1\n\n"));
}

#[tokio::test]
async fn http2_carries_many_streams_on_one_connection() {
    const STREAMS: usize = 200;
    let host = TestHost::serving(&["probe"]).config("http.connections = 1").start();
    let client = Client::builder().http2_prior_knowledge().build().unwrap();
    let open = |n: usize| {
        Stream::open(client.get(host.agent_url(&format!("probe/i{}/emit-held?count=1", n % 10))))
    };
    let mut streams = join_all((0..STREAMS).map(open)).await;
    for stream in &mut streams {
        assert_eq!(stream.next().await.unwrap().data, "1", "all of them are open at once");
    }
    for n in 0..10 {
        let released = client.get(host.agent_url(&format!("probe/i{n}/release"))).send();
        assert_eq!(released.await.unwrap().json::<Value>().await.unwrap()["released"], 20);
    }
    for stream in streams {
        assert_eq!(data(&stream.rest().await), ["2"]);
    }
}

// Resume.

#[tokio::test]
async fn id_that_is_garbage_8_kib_latin_1_utf_8_overflowing_or_negative_is_not_resumable() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 3).await;
    let own = |seq: &str| format!("{run}{seq}").into_bytes();
    let ids = [
        b"garbage".to_vec(),
        b"-".to_vec(),
        vec![b'0'; 8 << 10],
        b"caf\xe9".to_vec(),
        "caf\u{e9} \u{2713}".into(),
        own("-18446744073709551616"),
        own("--1"),
        own("-01"),
        own("-"),
        own(""),
        own("-1-1"),
        own("-1").to_ascii_lowercase(),
    ];
    for id in ids {
        let shown = String::from_utf8_lossy(&id).into_owned();
        let request = host.request(Method::GET, "probe/demo/emit?count=1");
        let stream = Stream::open(request.header("last-event-id", id)).await;
        let fresh = run_of(&stream);
        let events = stream.rest().await;
        let [reset, event] = events.try_into().expect("a reset and the event of a fresh run");
        assert_eq!((&*reset.name, &*reset.id), ("reset", &*format!("{fresh}-0")), "{shown}");
        let echo: String = shown.chars().take(128).collect();
        let said: Value = serde_json::from_str(&reset.data).unwrap();
        assert_eq!(said, json!({ "id": echo, "reason": "unknown" }));
        assert_eq!((&*event.data, &*event.id), ("1", &*format!("{fresh}-1")), "{shown}");
    }
    let empty = host.resume("probe/demo/emit?count=1", "").await;
    assert_eq!(data(&empty.rest().await), ["1"], "an empty id is none");
}

/// Asks to resume by an id that cannot be, and returns why not.
async fn refusal(host: &Started, instance: &str, id: &str) -> Value {
    let events = host.resume(&format!("{instance}/emit?count=1"), id).await.rest().await;
    let [reset, event] = events.try_into().expect("a reset and the event of a fresh run");
    assert_eq!((&*reset.name, &*event.data), ("reset", "1"));
    let said: Value = serde_json::from_str(&reset.data).unwrap();
    assert_eq!(said["id"], id);
    said["reason"].clone()
}

#[tokio::test]
async fn id_in_the_future_of_its_run_is_not_resumable() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 3).await;
    assert_eq!(refusal(&host, "probe/demo", &format!("{run}-4")).await, "future");
    let (_stream, run) = begun(&host, "probe/demo/emit-held?count=3", 3).await;
    assert_eq!(refusal(&host, "probe/demo", &format!("{run}-4")).await, "future");
    let most = format!("{run}-{}", u64::MAX);
    assert_eq!(refusal(&host, "probe/demo", &most).await, "future");
}

#[tokio::test]
async fn id_of_another_instance_or_agent_shows_no_event_of_it() {
    let host = TestHost::serving(&["probe", "stream"]).start();
    let ended = finished(&host, "probe/secret", 3).await;
    let (_stream, live) = begun(&host, "probe/secret/emit-held?count=3", 3).await;
    let own = json!([{ "data": "secret", "id": "order-1" }, { "data": "secret" }]);
    host.post("probe/secret/emit-raw", &own).await.bytes().await.unwrap();
    for id in [&*format!("{ended}-1"), &*format!("{live}-1"), "order-1"] {
        assert_eq!(refusal(&host, "probe/demo", id).await, "unknown", "{id}");
        let events = host.resume("stream/secret?steps=0", id).await.rest().await;
        assert_eq!(events[0].name, "reset", "{id}");
        assert_eq!(data(&events[1..]), ["Starting...", "Done!"], "{id}");
    }
}

#[tokio::test]
async fn id_that_has_expired_is_not_resumable_and_reset_says_so() {
    let host = TestHost::serving(&["probe"]).config("journal.retain_for = '1ms'").start();
    let stream = host.post("probe/demo/emit-raw", &json!([{ "data": "x", "id": "own" }])).await;
    let run = header(stream.headers(), "bureau-run").to_owned();
    stream.bytes().await.unwrap();
    host.reaches("trimmed_runs_total", |runs| runs > 0).await;
    assert_eq!(refusal(&host, "probe/demo", &format!("{run}-1")).await, "expired");
    assert_eq!(refusal(&host, "probe/demo", "own").await, "unknown", "its id is forgotten");
}

#[tokio::test]
async fn history_of_100_000_events_is_delivered_by_one_connection_in_order() {
    const COUNT: usize = 100_000;
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", COUNT).await;
    let mut stream = host.resume("probe/demo", &format!("{run}-0")).await;
    for n in 1..=COUNT {
        let event = stream.next().await.expect("the stream goes on");
        assert_eq!((event.data, event.id), (n.to_string(), format!("{run}-{n}")));
    }
    assert_eq!(stream.next().await, None);
    let near_the_end = format!("{run}-{}", COUNT - 1);
    let last = host.resume("probe/demo", &near_the_end).await.rest().await;
    assert_eq!(data(&last), [COUNT.to_string()]);
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!(peak < 1 << 20, "{peak} bytes were held in memory");
}

#[tokio::test]
async fn resume_while_live_replays_then_follows_without_gap_or_duplicate() {
    // A tail that keeps a few events only: the others are replayed from the store.
    let host = TestHost::serving(&["probe"]).config("journal.tail_bytes = 512").start();
    let (first, run) = begun(&host, "probe/demo/emit-held?count=100", 100).await;
    let resume = |seq: usize| {
        let (host, run) = (&host, &run);
        async move {
            let mut stream = host.resume("probe/demo", &format!("{run}-{seq}")).await;
            assert_eq!(data(&stream.take(100 - seq).await), numbers(seq + 1..=100), "{seq}");
            stream
        }
    };
    let resumed = join_all([0, 1, 50, 98, 99, 100].map(resume)).await;
    assert_eq!(host.json("probe/demo/release").await["released"], 1);
    for stream in resumed.into_iter().chain([first]) {
        assert_eq!(data(&stream.rest().await), numbers(101..=200));
    }
}

#[tokio::test]
async fn last_event_and_end_reach_a_live_reader_in_this_order() {
    let host = TestHost::serving(&["probe"]).start();
    for _ in 0..20 {
        let (first, run) = begun(&host, "probe/demo/emit-held?count=1", 1).await;
        let id = format!("{run}-1");
        let others = join_all((0..10).map(|_| host.resume("probe/demo", &id))).await;
        // The last event and the end of the run are one turn.
        host.get("probe/demo/release").await;
        let readers = others.into_iter().chain([first]);
        for rest in join_all(readers.map(Stream::rest)).await {
            assert_eq!(data(&rest), ["2"], "the data comes before the end");
        }
    }
}

#[tokio::test]
async fn resume_after_the_end_gives_the_rest_then_the_end_then_204() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 5).await;
    let host = host.kill().start();
    let rest = host.resume("probe/demo/emit", &format!("{run}-3")).await.rest().await;
    assert_eq!(data(&rest), ["4", "5"]);
    let end = host.resume("probe/demo/emit", &rest[1].id).await;
    assert_eq!(end.status, StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn two_readers_and_a_double_resume_are_byte_identical() {
    let host = TestHost::serving(&["probe"]).start();
    let mut live = host.get("probe/demo/emit-held?count=10").await;
    let run = header(live.headers(), "bureau-run").to_owned();
    let start = body_until(&mut live, "data: 10\n\n").await;
    let resume = || {
        let request = host.request(Method::GET, "probe/demo");
        request.header("last-event-id", format!("{run}-0")).send()
    };
    let (one, other) = (resume().await.unwrap(), resume().await.unwrap());
    host.get("probe/demo/release").await;
    let one = one.text().await.unwrap();
    assert_eq!(other.text().await.unwrap(), one);
    assert_eq!(start + &live.text().await.unwrap(), one, "and as it was the first time");
    assert_eq!(resume().await.unwrap().text().await.unwrap(), one, "and ever after");
}

#[tokio::test]
async fn reconnect_storm_of_1000_at_once_is_served() {
    const CLIENTS: usize = 1000;
    let host = TestHost::serving(&["probe"]).start();
    let (first, run) = begun(&host, "probe/demo/emit-held?count=20", 20).await;
    let reconnect = |n: usize| {
        let (host, run) = (&host, &run);
        async move { (n % 20, host.resume("probe/demo", &format!("{run}-{}", n % 20)).await) }
    };
    let back = join_all((0..CLIENTS).map(reconnect)).await;
    host.get("probe/demo/release").await;
    let rest = async |(seq, stream): (usize, Stream)| {
        assert_eq!(data(&stream.rest().await), numbers(seq + 1..=40));
    };
    join_all(back.into_iter().map(rest)).await;
    assert_eq!(first.rest().await.len(), 20);
    let peak = host.metrics().await["buffered_bytes_peak"];
    assert!(peak < 4 << 20, "{peak} bytes were held in memory");
}

#[tokio::test]
async fn post_initiated_stream_is_resumed_by_post_and_never_runs_twice() {
    let host = TestHost::serving(&["probe"]).start();
    let path = "probe/demo/count?count=3";
    let post = || host.request(Method::POST, path).body("the same body again");
    let events = Stream::open(post()).await.rest().await;
    assert_eq!(events.len(), 3);
    // A page's library sends the whole request again, each time that its tab is shown.
    for event in &events[..2] {
        let again = Stream::open(post().header("last-event-id", &event.id)).await.rest().await;
        let seen = events.iter().position(|each| each == event).unwrap() + 1;
        assert_eq!(again, events[seen..]);
    }
    let end = Stream::open(post().header("last-event-id", &events[2].id)).await;
    assert_eq!(end.status, StatusCode::NO_CONTENT);
    assert_eq!(host.json("probe/demo/state").await, 3, "the run counted once");
}

#[tokio::test]
async fn id_of_the_agents_own_is_looked_up_in_its_instance() {
    let host = TestHost::serving(&["probe"]).start();
    let events = json!([
        { "data": "1", "id": "order-1" },
        { "data": "2" },
        { "data": "3", "id": "a:b,c=\"d\"" },
        { "data": "4" },
    ]);
    host.post("probe/demo/emit-raw", &events).await.bytes().await.unwrap();
    let rest = host.resume("probe/demo", "order-1").await.rest().await;
    assert_eq!(data(&rest), ["2", "3", "4"]);
    assert_eq!(data(&host.resume("probe/demo", "a:b,c=\"d\"").await.rest().await), ["4"]);
    // The last event of an id counts, so that an agent may number each run's from 1.
    host.post("probe/demo/emit-raw", &events).await.bytes().await.unwrap();
    let again = host.resume("probe/demo", "order-1").await.rest().await;
    assert_eq!(data(&again), ["2", "3", "4"]);
    assert_ne!(again[0].id, rest[0].id, "they are those of the second run");
}

#[tokio::test]
async fn id_of_an_agent_that_looks_like_a_cursor_is_refused() {
    let host = TestHost::serving(&["probe"]).start();
    let run = finished(&host, "probe/demo", 1).await;
    let events = json!([{ "data": "forged", "id": format!("{run}-1") }]);
    let answer: Value = host.post("probe/demo/emit-raw", &events).await.json().await.unwrap();
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("cannot look like a cursor"), "{error}");
}

#[tokio::test]
async fn clean_close_comes_only_at_the_end_of_a_run() {
    let host = TestHost::serving(&["probe"]).config("http.heartbeat = '5ms'").start();
    let mut response = host.get("probe/demo/emit-held?count=1").await;
    // The connection is not rotated, however long nothing happens.
    body_until(&mut response, &":\n".repeat(20)).await;
    host.get("probe/demo/release").await;
    let rest = response.text().await.expect("the end is clean");
    assert!(rest.ends_with("data: 2\n\n"), "{rest}");

    let (mut stream, _) = begun(&host, "probe/demo/emit-held?count=1", 1).await;
    drop(host.kill());
    let end = stream.try_next().await.expect("this is not the end");
    assert!(end.is_err(), "what is cut off does not look complete: {end:?}");
}
