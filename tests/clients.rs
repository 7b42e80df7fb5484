//! Clients that mean no good, over raw sockets: each is answered or let go in a known way, and afterwards the host serves and has
//! nothing left of them.

use std::time::Duration;

use reqwest::Method;
use tokio::time::timeout;

use crate::support::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, Frames, HEADERS, PING, RST_STREAM, SETTINGS,
    WINDOW_UPDATE, frame, head,
};
use crate::support::{Connection, Started, TestHost};

/// Errors of HTTP/2.
const PROTOCOL_ERROR: u32 = 1;
const FLOW_CONTROL_ERROR: u32 = 3;
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// The setting of what a client takes on a new stream.
const INITIAL_WINDOW: u16 = 4;

/// What the host says to these bytes until it closes the connection: the statuses and codes of its answers.
async fn says(host: &Started, request: impl AsRef<[u8]>) -> Vec<String> {
    let mut connection = Connection::to(&host.url).await;
    connection.send(request).await;
    answers(&connection.rest().await)
}

fn answers(text: &str) -> Vec<String> {
    let answers = text.split("HTTP/1.1 ").skip(1).map(|answer| {
        let code = answer.split_once("\"code\":\"").and_then(|(_, rest)| rest.split_once('"'));
        format!("{} {}", &answer[..3], code.map_or("", |(code, _)| code)).trim_end().to_owned()
    });
    answers.collect()
}

/// Waits until nothing is left of any client, and asks for something.
async fn is_unharmed(host: &Started) {
    for figure in ["connections", "live_runs"] {
        let calm = host.reaches(figure, |figure| figure == 0);
        timeout(Duration::from_secs(60), calm).await.unwrap_or_else(|_| panic!("{figure} stays"));
    }
    let answer = says(host, request("GET", "/agents/probe/calm/reply", "", "")).await;
    assert_eq!(answer, ["200"]);
}

/// Asks all runs to end: a client's leaving does not end them.
async fn cancel_all(host: &Started) {
    let runs = host.operator_sees("/v1/runs?limit=1000").await;
    for run in runs["runs"].as_array().unwrap().iter().filter(|run| run["ended"].is_null()) {
        let cancel = format!("/v1/runs/{}/cancel", run["run"].as_str().unwrap());
        let cancelled = host.admin(Method::POST, &cancel).await.status().as_u16();
        assert!(matches!(cancelled, 202 | 409), "it is ending, or has just ended: {cancelled}");
    }
}

/// A request that is the connection's last.
fn request(method: &str, target: &str, fields: &str, body: &str) -> String {
    format!("{method} {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{fields}\r\n{body}")
}

#[tokio::test]
async fn heads_that_are_slow_or_huge_are_refused() {
    let config = "http = { header_timeout = '500ms', header_bytes = '8 KiB', header_count = 20 }";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let path = "/agents/probe/a/reply";
    let fields = |count: usize| "a: b\r\n".repeat(count);
    // Beside these there are two.
    assert_eq!(says(&host, request("GET", path, &fields(18), "")).await, ["200"]);
    assert_eq!(says(&host, request("GET", path, &fields(19), "")).await, ["431"]);
    assert_eq!(says(&host, request("GET", path, &fields(4000), "")).await, ["431"]);
    let huge = |size: usize| format!("a: {}\r\n", "b".repeat(size));
    assert_eq!(says(&host, request("GET", path, &huge(7 << 10), "")).await, ["200"]);
    // More than the kernel takes, so that the client is still sending when it is answered.
    for size in [8 << 10, 3 << 20] {
        assert_eq!(says(&host, request("GET", path, &huge(size), "")).await, ["431"]);
        let target = format!("/agents/probe/{}/reply", "x".repeat(size));
        assert_eq!(says(&host, request("GET", &target, "", "")).await, ["431"]);
    }
    // Lines without end, and trailers.
    assert_eq!(says(&host, "G".repeat(1 << 20)).await, ["431"]);
    let chunked = "transfer-encoding: chunked\r\n";
    let trailers = format!("0\r\n{}\r\n", fields(21));
    let echo = "/agents/probe/a/echo";
    assert_eq!(says(&host, request("POST", echo, chunked, &trailers)).await, ["400 bad-body"]);
    let trailers = format!("0\r\n{}\r\n", huge(1 << 20));
    assert_eq!(says(&host, request("POST", echo, chunked, &trailers)).await, ["400 bad-body"]);

    // A byte now and then, however often.
    let mut slow = Connection::to(&host.url).await;
    for byte in request("GET", path, &fields(18), "").bytes().cycle() {
        if slow.offer([byte]).await.is_err() {
            break;
        }
        let heard = timeout(Duration::from_millis(20), slow.read(1)).await;
        if heard.is_ok_and(|read| read == 0) {
            break;
        }
    }
    assert_eq!(slow.text(), "");
    is_unharmed(&host).await;
}

#[tokio::test]
async fn bodies_that_are_slow_or_large_are_refused_and_the_client_hears_of_it() {
    let config = "http = { body_timeout = '1s', bodies_bytes = '100 KiB' }\ninstances.request_body_bytes = '64 KiB'";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let echo = "/agents/probe/a/echo";
    let length = |length: usize| format!("content-length: {length}\r\n");
    // Clients that look for an answer only when they have sent all.
    for (size, expected) in [
        (64 << 10, "200"),
        ((64 << 10) + 1, "413 payload-too-large"),
        (3 << 20, "413 payload-too-large"),
    ] {
        let body = "x".repeat(size);
        assert_eq!(says(&host, request("POST", echo, &length(size), &body)).await, [expected]);
        let chunked = format!("{size:x}\r\n{body}\r\n0\r\n\r\n");
        let coding = "transfer-encoding: chunked\r\n";
        assert_eq!(says(&host, request("POST", echo, coding, &chunked)).await, [expected]);
    }
    // Nobody reads a body for an agent that there is none of.
    let nobody = request("POST", "/agents/nobody/a/echo", &length(3 << 20), &"x".repeat(3 << 20));
    assert_eq!(says(&host, nobody).await, ["404 unknown-agent"]);
    // One that is not even asked for.
    let expecting = format!("expect: 100-continue\r\n{}", length(1 << 30));
    assert_eq!(says(&host, request("POST", echo, &expecting, "")).await, ["413 payload-too-large"]);

    // One that goes on sending when it has its answer: nothing breaks, or the answer could be lost.
    let mut late = Connection::to(&host.url).await;
    late.send(request("POST", echo, &length(3 << 20), &"x".repeat(64 << 10))).await;
    late.until("payload-too-large").await;
    for _ in 1..48 {
        late.send("x".repeat(64 << 10)).await;
    }
    assert_eq!(answers(&late.rest().await), ["413 payload-too-large"]);

    // Two that would have more than all may.
    let most = request("POST", echo, &length(64 << 10), &"x".repeat(60 << 10));
    let mut first = Connection::to(&host.url).await;
    first.send(&most).await;
    first.taken().await;
    assert_eq!(says(&host, &most).await, ["503 bodies-busy"]);
    assert_eq!(answers(&first.rest().await), ["408 body-timeout"]);

    let mut slow = Connection::to(&host.url).await;
    slow.send(request("POST", echo, &length(9999), "")).await;
    while timeout(Duration::from_millis(20), slow.read(4096)).await.is_err() {
        slow.send("x").await;
    }
    assert_eq!(answers(&slow.rest().await), ["408 body-timeout"]);
    is_unharmed(&host).await;
}

#[tokio::test]
async fn what_two_servers_may_read_differently_is_refused_or_ends_the_connection() {
    let host = TestHost::serving(&["probe"]).config("http.body_timeout = '500ms'").start();
    let path = "/agents/probe/a/memory";
    // What another server may take for a second request. If this one does, it answers twice.
    let smuggled =
        "GET /agents/probe/smuggled/memory HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let hidden = format!("0\r\n\r\n{smuggled}");
    let hidden = hidden.as_str();
    let length = format!("content-length: {}\r\n", hidden.len());
    let with =
        |fields: &str, body: &str| format!("POST {path} HTTP/1.1\r\nhost: a\r\n{fields}\r\n{body}");
    for (what, sent, expected) in [
        (
            "a length beside a coding",
            with(&format!("{length}transfer-encoding: chunked\r\n"), hidden),
            "200",
        ),
        (
            "a coding beside a length",
            with(&format!("transfer-encoding: chunked\r\n{length}"), hidden),
            "200",
        ),
        ("two lengths", with(&format!("content-length: 0\r\n{length}"), hidden), "400"),
        ("two lengths in one", with("content-length: 0, 5\r\n", hidden), "400"),
        ("the same length twice in one", with("content-length: 5, 5\r\n", hidden), "400"),
        ("a length with a sign", with("content-length: +5\r\n", hidden), "400"),
        ("a negative length", with("content-length: -5\r\n", hidden), "400"),
        ("a length in hexadecimal", with("content-length: 0x5\r\n", hidden), "400"),
        ("no length in its field", with("content-length: \r\n", hidden), "400"),
        ("a huge length", with("content-length: 99999999999999999999\r\n", hidden), "400"),
        ("an unknown coding", with("transfer-encoding: xchunked\r\n", hidden), "400"),
        ("a coding after it", with("transfer-encoding: chunked, identity\r\n", hidden), "400"),
        (
            "a coding before it",
            with("transfer-encoding: gzip, chunked\r\n", hidden),
            "400 bad-request",
        ),
        (
            "it twice",
            with("transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n", hidden),
            "400 bad-request",
        ),
        (
            "it twice in one",
            with("transfer-encoding: chunked, chunked\r\n", hidden),
            "400 bad-request",
        ),
        ("it in quotes", with("transfer-encoding: \"chunked\"\r\n", hidden), "400"),
        (
            "it after a tabulator of another kind",
            with("transfer-encoding: \x0bchunked\r\n", hidden),
            "400",
        ),
        (
            "it with a space before the colon",
            with("transfer-encoding : chunked\r\n", hidden),
            "400",
        ),
        ("it on a folded line", with("transfer-encoding:\r\n chunked\r\n", hidden), "400"),
        (
            "a field on a folded line",
            with("x: y\r\n transfer-encoding: chunked\r\n", hidden),
            "400",
        ),
        ("a space before the first field", with(" x: y\r\n", ""), "400"),
        (
            "a return without its line feed",
            with("x: y\rtransfer-encoding: chunked\r\n", hidden),
            "400",
        ),
        ("a NUL in a value", with("x: a\0b\r\n", ""), "400"),
        ("a name that is none", with("x\u{e9}: y\r\n", ""), "400"),
        ("no name", with(": y\r\n", ""), "400"),
        ("no colon", with("x\r\n", ""), "400"),
        ("a second host", with("host: b\r\n", ""), "400 bad-request"),
        ("no host", format!("GET {path} HTTP/1.1\r\n\r\n"), "400 bad-request"),
        (
            "another host in the target",
            format!("GET http://b{path} HTTP/1.1\r\nhost: a\r\n\r\n"),
            "400 bad-request",
        ),
        (
            "a user in the target",
            format!("GET http://b@a{path} HTTP/1.1\r\nhost: a\r\n\r\n"),
            "400 bad-request",
        ),
        (
            "a coding in HTTP/1.0",
            format!(
                "POST {path} HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{hidden}"
            ),
            "400",
        ),
        ("no version", format!("GET {path}\r\n\r\n"), "400"),
        ("another version", format!("GET {path} HTTP/1.2\r\nhost: a\r\n\r\n"), "400"),
        ("two spaces", format!("GET  {path} HTTP/1.1\r\nhost: a\r\n\r\n"), "400"),
        ("a tabulator for a space", format!("GET\t{path} HTTP/1.1\r\nhost: a\r\n\r\n"), "400"),
        ("a method that is none", format!("G(T {path} HTTP/1.1\r\nhost: a\r\n\r\n"), "400"),
    ] {
        let mut connection = Connection::to(&host.url).await;
        connection.send(sent).await;
        let text = connection.rest().await;
        assert_eq!(answers(&text), [expected], "{what}: {text}");
    }
    // How a chunk says its size.
    for (what, body, expected) in [
        ("an extension", "5;a=\"b\"\r\nhello\r\n0\r\n\r\n", "200"),
        ("leading zeros", "000005\r\nhello\r\n0\r\n\r\n", "200"),
        ("a negative size", "-5\r\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("a size with a prefix", "0x5\r\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("a size that is too large", "10000000000000005\r\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("the largest size", "ffffffffffffffff\r\nhello\r\n0\r\n\r\n", "408 body-timeout"),
        ("no size", "\r\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("a line feed in an extension", "5;a\nb\r\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("a size without its return", "5\nhello\r\n0\r\n\r\n", "400 bad-body"),
        ("more than its size", "5\r\nhello!\r\n0\r\n\r\n", "400 bad-body"),
        ("a last chunk that is folded", "5\r\nhello\r\n0\r\n x\r\n\r\n", "400 bad-body"),
    ] {
        let sent = request("POST", path, "transfer-encoding: chunked\r\n", body);
        let mut connection = Connection::to(&host.url).await;
        connection.send(sent).await;
        let text = connection.rest().await;
        assert_eq!(answers(&text), [expected], "{what}: {text}");
    }
    // What is allowed, and harmless where a proxy takes it too.
    let lines = format!("GET {path} HTTP/1.1\nhost: a\nconnection: close\n\n");
    assert_eq!(says(&host, lines).await, ["200"], "lines without returns");
    let same = "content-length: 0\r\ncontent-length: 0\r\nconnection: close\r\n";
    assert_eq!(says(&host, with(same, "")).await, ["200"], "the same length twice");
    let twice = format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n{smuggled}");
    assert_eq!(says(&host, twice).await, ["200", "200"], "two requests that are two");

    let calls = host.json("probe/smuggled/memory").await["calls"].clone();
    assert_eq!(calls, 2, "nothing was taken for a second request but that");
    is_unharmed(&host).await;
}

#[tokio::test]
async fn absurd_names_and_ids_are_refused_or_are_names() {
    let host = TestHost::serving(&["probe"]).start();
    let long = "x".repeat(257);
    let huge = "x".repeat(60 << 10);
    let many = "/".repeat(20_000);
    for (target, expected) in [
        ("/agents/probe/%00/reply", "400 bad-name"),
        ("/agents/probe/a%0d%0ab/reply", "400 bad-name"),
        ("/agents/probe/a%1bb/reply", "400 bad-name"),
        ("/agents/probe/a%7f/reply", "400 bad-name"),
        ("/agents/probe/a%c2%85/reply", "400 bad-name"),
        // The slash in two bytes, half a character, a surrogate, and more than there is.
        ("/agents/probe/%c0%af/reply", "400 bad-name"),
        ("/agents/probe/%e2%9c/reply", "400 bad-name"),
        ("/agents/probe/%ed%a0%80/reply", "400 bad-name"),
        ("/agents/probe/%f4%90%80%80/reply", "400 bad-name"),
        ("/agents/probe/%ff/reply", "400 bad-name"),
        (&format!("/agents/probe/{long}/reply"), "400 bad-name"),
        (&format!("/agents/probe/{huge}/reply"), "400 bad-name"),
        (&format!("/agents/{huge}/a/reply"), "400 bad-name"),
        ("/agents/%70robe%00/a/reply", "400 bad-name"),
        ("/agents/..%2fprobe/a/reply", "400 bad-name"),
        ("/agents/PROBE/a/reply", "400 bad-name"),
        ("/agents//a/reply", "404 unknown-agent"),
        ("/../agents/probe/a/reply", "404 not-found"),
        ("/agents/probe", "404 not-found"),
        ("/agents/probe/", "404 not-found"),
        (&many, "404 not-found"),
        ("*", "404 not-found"),
        ("agents/probe/a/reply", "400"),
        ("/agents/probe/a/reply#b", "200"),
        ("/agents/probe/a\u{e9}/reply", "200"),
        // What looks like a path is a name like others: nothing is resolved.
        ("/agents/probe/%2e%2e/reply", "200"),
        ("/agents/probe/../reply", "200"),
        ("/agents/probe/%2500/reply", "200"),
        ("/agents/probe/%zz/reply", "200"),
        ("/agents/probe/%2f%2e%2e%2fetc/reply", "200"),
    ] {
        let sent = request("GET", target, "", "");
        let shown: String = target.chars().take(60).collect();
        assert_eq!(says(&host, sent).await, [expected], "{shown}");
    }
    let connect = request("CONNECT", "a", "", "");
    assert_eq!(says(&host, connect).await, ["404 not-found"]);
    for id in [
        "".to_owned(),
        "\u{2713}".into(),
        "\u{7f}".into(),
        "\t".into(),
        "x".repeat(60 << 10),
        "01ARZ3NDEKTSV4RRFFQ69G5FAV-".into(),
        "01ARZ3NDEKTSV4RRFFQ69G5FAV--1".into(),
        "01ARZ3NDEKTSV4RRFFQ69G5FAV-99999999999999999999".into(),
        "7ZZZZZZZZZZZZZZZZZZZZZZZZZ-18446744073709551615".into(),
        "8ZZZZZZZZZZZZZZZZZZZZZZZZZ-1".into(),
        "'; DROP TABLE runs; --".into(),
    ] {
        let shown: String = id.chars().take(60).collect();
        let fields = format!("last-event-id: {id}\r\n");
        let sent = request("GET", "/agents/probe/a/emit?count=1", &fields, "");
        let expected = if id == "\u{7f}" { "400" } else { "200" };
        assert_eq!(says(&host, sent).await, [expected], "{shown:?}");
    }
    is_unharmed(&host).await;
}

#[tokio::test]
async fn a_client_may_leave_at_every_step_of_a_request_and_of_its_answer() {
    let host = TestHost::serving(&["probe"]).start();
    let plain = "POST /agents/probe/a/echo HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody";
    let chunked = "POST /agents/probe/a/emit?count=1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n";
    let http2 = [
        &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
        &frame(SETTINGS, 0, 0, &[]),
        &frame(HEADERS, END_HEADERS, 1, &head("/agents/probe/a/emit?count=1", &[])),
        &frame(DATA, END_STREAM, 1, b"body"),
    ]
    .concat();
    for request in [plain.as_bytes(), chunked.as_bytes(), &http2] {
        for length in 0..=request.len() {
            for how in 0..3 {
                let mut connection = Connection::to(&host.url).await;
                connection.send(&request[..length]).await;
                match how {
                    // Says no more, and waits; breaks; goes.
                    0 if length < request.len() => {
                        connection.finish().await;
                        connection.rest().await;
                    }
                    1 => connection.reset(),
                    _ => drop(connection),
                }
            }
        }
    }
    for path in ["reply", "emit?count=100&delay=1", "chunks?count=100", "cancellable"] {
        for length in 0..200 {
            let mut connection = Connection::to(&host.url).await;
            connection.send(request("GET", &format!("/agents/probe/a/{path}"), "", "")).await;
            let mut left = length;
            while left > 0 {
                match connection.read(left).await {
                    0 => break,
                    read => left -= read,
                }
            }
            if length % 2 == 0 { connection.reset() } else { drop(connection) }
        }
    }
    cancel_all(&host).await;
    is_unharmed(&host).await;
}

#[tokio::test]
async fn connections_past_the_limit_wait_and_past_that_of_their_address_are_closed() {
    let config = "http = { connections = 5, connections_per_address = 3 }";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let stream = async |address: [u8; 4]| {
        let mut connection = Connection::from(address, &host.url).await;
        connection.send(request("GET", "/agents/probe/a/hang", "", "")).await;
        connection.until("waiting").await;
        connection
    };
    let (one, other) = ([127, 0, 0, 1], [127, 0, 0, 2]);
    let mut first = Vec::from([stream(one).await, stream(one).await, stream(one).await]);
    for _ in 0..3 {
        let refused = Connection::from(one, &host.url).await;
        assert_eq!(refused.rest().await, "");
    }
    let figures = host.metrics().await;
    assert_eq!((figures["connections"], figures["connections_refused_total"]), (3, 3));
    let second = [stream(other).await, stream(other).await];
    // There is room for no more, so this one waits for what becomes of the others.
    let mut third = Connection::from(other, &host.url).await;
    third.send(request("GET", "/agents/probe/a/reply", "", "")).await;
    assert_eq!(host.metrics().await["connections"], 5);
    drop(first.pop());
    third.until("a reply").await;
    drop((first, second, third));
    host.reaches("connections", |open| open == 0).await;
}

#[tokio::test]
async fn five_hundred_idle_streams_leave_nothing_behind() {
    const STREAMS: u64 = 500;
    let host = TestHost::serving(&["probe"]).start();
    let mut streams = Vec::new();
    for _ in 0..STREAMS {
        let mut stream = Connection::to(&host.url).await;
        stream.send(request("GET", "/agents/probe/idle/cancellable", "", "")).await;
        stream.until("waiting").await;
        streams.push(stream);
    }
    let figures = host.metrics().await;
    assert_eq!((figures["connections"], figures["live_runs"]), (STREAMS, STREAMS));
    drop(streams);
    cancel_all(&host).await;
    is_unharmed(&host).await;
}

#[tokio::test]
async fn http2_that_floods_or_breaks_the_protocol_ends_with_its_connection() {
    let config =
        "http = { heartbeat = '500ms', header_bytes = '8 KiB', streams_per_connection = 16 }";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let url = &host.url;
    let path = "/agents/probe/a/reply";
    let whole = END_STREAM | END_HEADERS;

    // Requests that are taken back before they are looked at.
    let mut storm = Frames::to(url, &[]).await;
    let request = |stream: u32| {
        let reset = frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]);
        [frame(HEADERS, whole, stream, &head(path, &[])), reset].concat()
    };
    let requests: Vec<u8> = (0..10_000).flat_map(|n| request(2 * n + 1)).collect();
    drop(storm.connection.offer(requests).await);
    assert_eq!(storm.end().await, Some(ENHANCE_YOUR_CALM), "resets");

    // A head without end.
    let mut endless = Frames::to(url, &[]).await;
    endless.send(HEADERS, END_STREAM, 1, &head(path, &[])).await;
    let more: Vec<u8> =
        (0..10_000).flat_map(|_| frame(CONTINUATION, 0, 1, &[0, 1, b'a', 1, b'b'])).collect();
    drop(endless.connection.offer(more).await);
    assert_eq!(endless.end().await, Some(ENHANCE_YOUR_CALM), "continuations");

    // A body of nothing, for ever.
    let mut empty = Frames::to(url, &[]).await;
    empty.send(HEADERS, END_HEADERS, 1, &head(path, &[])).await;
    drop(empty.connection.offer(frame(DATA, 0, 1, &[]).repeat(10_000)).await);
    assert_eq!(empty.end().await, Some(ENHANCE_YOUR_CALM), "empty frames");

    // A head that is never ended: the host's pings find no answer.
    let mut silent = Frames::to(url, &[]).await;
    silent.send(HEADERS, END_STREAM, 1, &head(path, &[])).await;
    silent.end().await;

    let get = |fields: &[(&str, &str)]| frame(HEADERS, whole, 1, &head(path, fields));
    for (what, sent, error) in [
        ("a frame that is too large", frame(DATA, 0, 1, &[0; 20_000]), 6),
        ("data on no stream", frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        ("data on a stream that is none", frame(DATA, 0, 5, b"x"), PROTOCOL_ERROR),
        ("a stream of the host's", frame(HEADERS, whole, 2, &head(path, &[])), PROTOCOL_ERROR),
        ("a head that is no HPACK", frame(HEADERS, whole, 1, &[0xff; 64]), PROTOCOL_ERROR),
        (
            "a window past its end",
            frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]),
            FLOW_CONTROL_ERROR,
        ),
        ("a window by nothing", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL_ERROR),
        ("a name in capitals", get(&[("A", "b")]), PROTOCOL_ERROR),
        ("a line in a value", get(&[("a", "b\r\nc: d")]), PROTOCOL_ERROR),
        ("settings of an odd size", frame(SETTINGS, 0, 0, &[0; 5]), PROTOCOL_ERROR),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 1, &[]), PROTOCOL_ERROR),
    ] {
        let mut client = Frames::to(url, &[]).await;
        client.connection.send(sent).await;
        assert_eq!(client.end().await, Some(error), "{what}");
    }
    is_unharmed(&host).await;
}

#[tokio::test]
async fn http2_requests_that_are_wrong_end_alone() {
    let config =
        "http = { header_bytes = '8 KiB', header_count = 20, streams_per_connection = 16 }";
    let host = TestHost::serving(&["probe"]).config(config).start();
    let mut client = Frames::to(&host.url, &[]).await;
    let path = "/agents/probe/a/reply";
    let large = "x".repeat(8 << 10);
    for (stream, (what, fields, expected)) in (1..).step_by(2).zip([
        ("fields enough", &[("a", "b"); 20][..], Ok("")),
        ("too many fields", &[("a", "b"); 21], Ok("too-many-header-fields")),
        ("a large field", &[("a", &large)], Ok("")),
        ("a host", &[("host", "a")], Ok("")),
        ("another host", &[("host", "b")], Ok("bad-request")),
        ("a length of nothing", &[("content-length", "0")], Ok("")),
        ("a length of something", &[("content-length", "5")], Err(PROTOCOL_ERROR)),
        ("a field of HTTP/1", &[("connection", "close")], Err(PROTOCOL_ERROR)),
        ("a coding", &[("transfer-encoding", "chunked")], Err(PROTOCOL_ERROR)),
        ("a pseudo field after others", &[("a", "b"), (":path", "/")], Err(PROTOCOL_ERROR)),
    ]) {
        client.get(stream, path, fields).await;
        let frame = loop {
            let frame = client.next().await.unwrap_or_else(|| panic!("{what} ends the connection"));
            if frame.stream == stream && matches!(frame.kind, DATA | RST_STREAM)
                || frame.kind == HEADERS && frame.flags & END_STREAM != 0
            {
                break frame;
            }
        };
        let text = String::from_utf8_lossy(&frame.payload).into_owned();
        match expected {
            Ok(code) if frame.kind == RST_STREAM => panic!("{what} is no {code:?}"),
            Ok(code) => assert!(text.contains(code), "{what}: {text}"),
            Err(error) => assert_eq!((frame.kind, frame.error()), (RST_STREAM, error), "{what}"),
        }
    }
    // More streams than there may be: the last ones are refused and the others go on.
    for n in 0..20 {
        client.get(101 + 2 * n, "/agents/probe/a/hang", &[]).await;
    }
    for n in 16..20 {
        let refused = client.until(RST_STREAM).await;
        assert_eq!((refused.stream, refused.error()), (101 + 2 * n, REFUSED_STREAM));
    }
    client.send(PING, 0, 0, &[1; 8]).await;
    assert_eq!(client.until(PING).await.payload, [1; 8]);
    host.reaches("live_runs", |runs| runs == 16).await;
}

#[tokio::test]
async fn pings_and_settings_in_a_flood_are_answered_one_by_one_and_not_gathered() {
    let config = "http.write_stall = '300ms'";
    let host = TestHost::serving(&["probe"]).config(config).start();
    for (kind, payload) in [(PING, &[0; 8][..]), (SETTINGS, &[0, 4, 0, 0, 0xff, 0xff])] {
        let flood = frame(kind, 0, 0, payload).repeat(10_000);
        let mut client = Frames::to(&host.url, &[]).await;
        client.connection.send(&flood).await;
        for _ in 0..10_000 {
            while client.until(kind).await.flags == 0 {}
        }
        client.get(1, "/agents/probe/a/reply", &[]).await;
        client.until(DATA).await;
        // A client that does not read the answers is not read from, and in the end cut off.
        let mut deaf = Connection::narrow(&host.url).await;
        deaf.send("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        deaf.send(frame(SETTINGS, 0, 0, &[])).await;
        while deaf.offer(&flood).await.is_ok() {}
    }
    is_unharmed(&host).await;
}

#[tokio::test]
async fn a_stream_of_http2_without_a_window_waits_and_holds_up_no_other() {
    let host = TestHost::serving(&["probe"])
        .config("http.write_stall = '100ms'\nhttp.heartbeat = '1s'")
        .start();
    let mut client = Frames::to(&host.url, &[(INITIAL_WINDOW, 0)]).await;
    client.get(1, "/agents/probe/a/emit?count=3", &[]).await;
    assert_eq!(client.until(HEADERS).await.stream, 1);
    // Longer than a write may be stuck: the host's pings are answered.
    for _ in 0..2 {
        client.until(PING).await;
    }
    client.get(3, "/agents/probe/a/reply", &[]).await;
    assert_eq!(client.until(HEADERS).await.stream, 3);
    client.send(WINDOW_UPDATE, 0, 3, &[0, 0, 1, 0]).await;
    let reply = client.until(DATA).await;
    assert_eq!((reply.stream, reply.payload), (3, b"a reply".to_vec()));
    client.send(WINDOW_UPDATE, 0, 1, &[0, 1, 0, 0]).await;
    let events = client.until(DATA).await;
    assert_eq!(events.stream, 1);
    drop(client);
    is_unharmed(&host).await;
}
