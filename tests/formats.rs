//! One run in every format: what a client takes decides, and where that leaves a choice, the agent.

use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Started, TestHost, header, problem};

const EVENTS: &str = r#"[
    {"data": "Hel"}, {"name": "progress", "data": "{\"percent\":50}"}, {"name": "text-delta", "data": "lo\r\n"}
]"#;

fn present(host: &Started, wish: &str) -> RequestBuilder {
    host.request(Method::POST, &format!("probe/demo/present?key={wish}")).body(EVENTS)
}

async fn answer(request: RequestBuilder) -> (Response, String) {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let content_type = header(response.headers(), CONTENT_TYPE.as_str()).to_owned();
    (response, content_type)
}

async fn text(request: RequestBuilder) -> (String, String) {
    let (response, content_type) = answer(request).await;
    (content_type, response.text().await.unwrap())
}

/// The parts of a UI message stream.
fn parts(stream: &str) -> Vec<Value> {
    let stream = stream.strip_suffix("data: [DONE]\n\n").expect("it says that it is over");
    let frames = stream.split_terminator("\n\n").map(|frame| frame.strip_prefix("data: ").unwrap());
    frames.map(|frame| serde_json::from_str(frame).unwrap()).collect()
}

#[tokio::test]
async fn the_agents_wish_counts_where_the_client_takes_anything() {
    let host = TestHost::serving(&["probe"]).start();
    let (kind, stream) = text(present(&host, "events")).await;
    assert_eq!(kind, "text/event-stream");
    assert!(stream.contains("event: progress\ndata: {\"percent\":50}\n"), "{stream}");
    let (kind, stream) = text(present(&host, "text")).await;
    assert_eq!((&*kind, &*stream), ("text/plain; charset=utf-8", "Hello\r\n"));
    let (kind, stream) = text(present(&host, "lines")).await;
    assert_eq!((&*kind, stream.lines().count()), ("application/x-ndjson", 3));
    let (kind, stream) = text(present(&host, "document")).await;
    assert_eq!(kind, "application/json");
    let document: Value = serde_json::from_str(&stream).unwrap();
    assert_eq!(document["events"][1]["data"], "{\"percent\":50}");
    assert_eq!(document["state"], "finished");
    let (response, kind) = answer(present(&host, "ui-messages")).await;
    assert_eq!(kind, "text/event-stream");
    assert_eq!(header(response.headers(), "x-vercel-ai-ui-message-stream"), "v1");
    let parts = parts(&response.text().await.unwrap());
    let progress = json!({ "type": "data-progress", "data": { "percent": 50 } });
    assert!(parts.contains(&progress), "{parts:?}");
}

#[tokio::test]
async fn the_clients_word_goes_over_the_agents() {
    let host = TestHost::serving(&["probe"]).start();
    for (accept, expected) in [
        ("text/plain", "text/plain; charset=utf-8"),
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.5, text/event-stream;q=0.1", "application/json"),
        ("text/event-stream", "text/event-stream"),
        ("text/html, application/pdf", "text/event-stream"),
    ] {
        let (kind, _) = text(present(&host, "ui-messages").header(ACCEPT, accept)).await;
        assert_eq!(kind, expected, "{accept}");
    }
    let refused = present(&host, "text").header(ACCEPT, "image/png").send().await.unwrap();
    assert_eq!(problem(refused).await, "406 not-acceptable host");
    let runs = host.json_of("/instances/probe/demo/runs").await;
    assert_eq!(runs["runs"].as_array().unwrap().len(), 5, "what is refused begins no run");
}

#[tokio::test]
async fn a_run_that_fails_is_no_whole_text() {
    let host = TestHost::serving(&["probe"]).start();
    let broken =
        host.request(Method::GET, "probe/demo/panic-after-emit").header(ACCEPT, "text/plain");
    let (response, _) = answer(broken).await;
    assert!(response.text().await.is_err(), "it breaks off");
    let failed = host.request(Method::GET, "probe/demo/panic-after-emit");
    let (_, lines) = text(failed.header(ACCEPT, "application/x-ndjson")).await;
    let last: Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "failed");
}

#[tokio::test]
async fn lines_go_on_where_a_client_stopped() {
    let host = TestHost::serving(&["probe"]).start();
    let (_, all) = text(present(&host, "lines")).await;
    let second: Value = serde_json::from_str(all.lines().nth(1).unwrap()).unwrap();
    let resumed = host.request(Method::GET, "probe/demo").header(ACCEPT, "application/x-ndjson");
    let resumed = resumed.header("last-event-id", second["id"].as_str().unwrap());
    let (kind, rest) = text(resumed).await;
    assert_eq!(
        (&*kind, rest.lines().collect::<Vec<_>>()),
        ("application/x-ndjson", vec![all.lines().nth(2).unwrap()])
    );
}
