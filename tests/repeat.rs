//! Requests that can be repeated never run twice, and those that do not wait find their run later.

use std::collections::BTreeSet;

use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::json;

use crate::support::{Connection, Started, Stream, TestHost, data, header, problem};

fn keyed(host: &Started, path: &str, key: &str) -> RequestBuilder {
    host.request(Method::POST, path).header("idempotency-key", key)
}

/// Status, run and body of an answer.
async fn whole(request: RequestBuilder) -> (StatusCode, String, String) {
    let response = request.send().await.unwrap();
    let (status, run) = (response.status(), header(response.headers(), "bureau-run").to_owned());
    (status, run, response.text().await.unwrap())
}

#[tokio::test]
async fn a_hundred_at_once_are_one_run_whatever_it_answers() {
    let host = TestHost::serving(&["probe"]).start();
    let cases = [
        ("memory", StatusCode::OK),
        ("count?count=3", StatusCode::OK),
        ("bad-request", StatusCode::BAD_REQUEST),
        ("panic", StatusCode::BAD_GATEWAY),
        ("events-nothing", StatusCode::NO_CONTENT),
    ];
    for (at, (path, expected)) in cases.into_iter().enumerate() {
        let path = format!("probe/instance-{at}/{path}");
        let requests = (0..100).map(|_| tokio::spawn(whole(keyed(&host, &path, "k"))));
        let mut answers = BTreeSet::new();
        for request in requests.collect::<Vec<_>>() {
            let (status, run, body) = request.await.unwrap();
            // What tells when a client should come back is of the stream, not of the run.
            answers.insert((status.as_u16(), run, body.replace(":\nretry: 2000\n", "")));
        }
        assert_eq!(answers.len(), 1, "{path}: {answers:#?}");
        assert_eq!(answers.first().unwrap().0, expected, "{path}");
        let runs = host.json_of(&format!("/instances/probe/instance-{at}/runs")).await;
        assert_eq!(runs["runs"].as_array().unwrap().len(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_key_is_one_requests_and_one_instances() {
    let host = TestHost::serving(&["probe"]).start();
    let (_, first, _) = whole(keyed(&host, "probe/demo/echo", "k").body("x")).await;
    let (_, quoted, _) = whole(keyed(&host, "probe/demo/echo", "\"k\"").body("x")).await;
    assert_eq!(quoted, first, "also as a string of structured fields");
    let (_, elsewhere, _) = whole(keyed(&host, "probe/other/echo", "k").body("x")).await;
    assert_ne!(elsewhere, first);
    for other in [
        keyed(&host, "probe/demo/echo", "k").body("y"),
        keyed(&host, "probe/demo/echo?x", "k").body("x"),
        host.request(Method::PUT, "probe/demo/echo").header("idempotency-key", "k").body("x"),
    ] {
        assert_eq!(problem(other.send().await.unwrap()).await, "422 key-reused host");
    }
    for wrong in ["", "a b", &"k".repeat(256)] {
        let refused = keyed(&host, "probe/demo/echo", wrong).send().await.unwrap();
        assert_eq!(problem(refused).await, "400 bad-request host", "{wrong:?}");
    }
}

#[tokio::test]
async fn what_was_answered_is_answered_again_after_a_kill() {
    let host = TestHost::serving(&["probe", "phoenix"]).start();
    let put = |host: &Started| keyed(host, "probe/demo/memory", "plain").body("x");
    let before = whole(put(&host)).await;
    let mut stream =
        Stream::open(keyed(&host, "phoenix/demo/steps?total=40&delay=5", "stream")).await;
    stream.take(5).await;
    let run = header(&stream.headers, "bureau-run").to_owned();
    let mut lost = Stream::open(keyed(&host, "probe/demo/hang", "lost")).await;
    lost.take(1).await;

    let host = host.kill().start();
    assert_eq!(whole(put(&host)).await, before, "though the instance has begun anew");
    let again = Stream::open(keyed(&host, "phoenix/demo/steps?total=40&delay=5", "stream")).await;
    assert_eq!(header(&again.headers, "bureau-run"), run);
    let steps: Vec<_> =
        again.rest().await.into_iter().filter(|event| event.name != "resumed").collect();
    assert_eq!(steps.len(), 40, "it goes on, and is read from its start");
    let lost = Stream::open(keyed(&host, "probe/demo/hang", "lost")).await.rest().await;
    assert_eq!((data(&lost)[0], &*lost[1].name), ("waiting", "failed"), "and is not run again");
}

#[tokio::test]
async fn a_request_that_was_refused_before_it_ran_may_come_again() {
    let host = TestHost::serving(&["probe"]).config("[instances]\nruns = 1").start();
    let mut held = host.stream("probe/demo/emit-held?count=1").await;
    held.take(1).await;
    let ask = || keyed(&host, "probe/demo/memory", "k").send();
    assert_eq!(problem(ask().await.unwrap()).await, "429 instance-busy host");
    // At once, as the refusal must have been durable.
    let host = host.kill().config("\n").start();
    let answer = keyed(&host, "probe/demo/memory", "k").send().await.unwrap();
    assert_eq!(answer.json::<serde_json::Value>().await.unwrap(), json!({ "calls": 1 }));
}

#[tokio::test]
async fn who_does_not_wait_is_told_where_the_run_is() {
    let host = TestHost::serving(&["probe"]).start();
    let ask =
        |path: &str| host.request(Method::POST, path).header("prefer", "wait=1, respond-async");
    for (path, status, says) in [
        ("probe/demo/memory", StatusCode::OK, "calls"),
        ("probe/demo/emit?count=3", StatusCode::OK, "data: 3"),
        ("probe/demo/panic", StatusCode::BAD_GATEWAY, "agent-trapped"),
        ("probe/demo/events-nothing", StatusCode::NO_CONTENT, ""),
    ] {
        let accepted = ask(path).send().await.unwrap();
        assert_eq!(accepted.status(), StatusCode::ACCEPTED, "{path}");
        assert_eq!(header(accepted.headers(), "preference-applied"), "respond-async");
        let place = header(accepted.headers(), "location").to_owned();
        let document: serde_json::Value = accepted.json().await.unwrap();
        assert_eq!(document["url"], place);
        let (found, _, body) = whole(host.at(Method::GET, &place)).await;
        assert!(found == status && body.contains(says), "{path}: {found} {body}");
        assert!(host.json_of(&format!("{place}/status")).await["ended"].is_string());
    }
    let chunks = ask("probe/demo/chunks?count=1").send().await.unwrap();
    let place = header(chunks.headers(), "location").to_owned();
    let lost = host.at(Method::GET, &place).send().await.unwrap();
    assert_eq!(problem(lost).await, "409 reply-not-kept host");
}

#[tokio::test]
async fn a_run_can_be_cancelled_before_it_has_emitted_anything() {
    let host = TestHost::serving(&["probe"]).config("[instances]\ncancel_grace = \"50ms\"").start();
    let request = host.request(Method::POST, "probe/demo/wait").header("prefer", "respond-async");
    let place = header(request.send().await.unwrap().headers(), "location").to_owned();
    host.logged(|line| line.contains("waiting to be released")).await;
    let waiting = tokio::spawn(host.at(Method::GET, &place).send());
    let cancelled = host.at(Method::DELETE, &place).send().await.unwrap();
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
    assert_eq!(problem(waiting.await.unwrap().unwrap()).await, "409 cancelled host");
    assert_eq!(host.json_of(&format!("{place}/status")).await["state"], "cancelled");
}

#[tokio::test]
async fn a_client_that_leaves_at_once_leaves_no_run_that_nobody_runs() {
    let host = TestHost::serving(&["probe"]).start();
    for n in 0..50 {
        let mut connection = Connection::to(&host.url).await;
        let head = "content-length: 0\r\nhost: a\r\n\r\n";
        let path = format!("/agents/probe/demo-{n}/memory");
        connection.send(format!("POST {path} HTTP/1.1\r\nidempotency-key: k\r\n{head}")).await;
        drop(connection);
        let again = keyed(&host, &format!("probe/demo-{n}/memory"), "k").send().await.unwrap();
        assert_eq!(again.json::<serde_json::Value>().await.unwrap(), json!({ "calls": 1 }));
    }
}
