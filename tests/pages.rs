//! What the seed page shows: the examples, and what a client gets from them.

use reqwest::StatusCode;
use serde_json::json;

use crate::support::{TestHost, data};

#[tokio::test]
async fn the_api_agent_answers_json_and_keeps_its_state() {
    let host = TestHost::serving(&["api"]).start();
    assert_eq!(
        host.json("api/demo/status").await,
        json!({"status": "ok", "state": {"count": 0, "last_action": null}})
    );
    let acted = host.post("api/demo/action", &json!({"action": "hi"})).await;
    assert_eq!(acted.json::<serde_json::Value>().await.unwrap(), json!({"success": true}));
    let state = json!({"status": "ok", "state": {"count": 1, "last_action": "hi"}});
    assert_eq!(host.json("api/demo/status").await, state);

    let host = host.kill().start();
    assert_eq!(host.json("api/demo/status").await, state, "the state outlives kill -9");
    assert_eq!(host.json("api/other/status").await["state"]["count"], 0, "instances are apart");
}

#[tokio::test]
async fn the_api_agent_says_what_is_wrong() {
    let host = TestHost::serving(&["api"]).start();
    let method = host.get("api/demo/action").await;
    assert_eq!(method.status(), StatusCode::METHOD_NOT_ALLOWED);
    let request = host.request(reqwest::Method::POST, "api/demo/action").body("{\"act");
    let bad = request.send().await.unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    let problem: serde_json::Value = bad.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["source"]), (&json!("bad-request"), &json!("agent")));
    assert!(problem["detail"].as_str().unwrap().contains("column 5"), "{problem}");
    assert_eq!(host.get("api/demo/else").await.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_stream_agent_streams_both_of_the_pages_ways() {
    let expected =
        ["Starting...", "Step 1 complete", "Step 2 complete", "Step 3 complete", "Done!"];
    let host = TestHost::serving(&["stream"]).start();
    let stream = host.stream("stream/demo?steps=3&delay=1").await;
    let run = stream.headers["bureau-run"].to_str().unwrap().to_owned();
    let events = stream.rest().await;
    assert_eq!(data(&events), expected);
    let ids: Vec<_> = events.iter().map(|event| event.id.clone()).collect();
    assert_eq!(ids, (1..=5).map(|seq| format!("{run}-{seq}")).collect::<Vec<_>>());

    let raw = host.get("stream/demo/raw?steps=3&delay=1").await;
    assert_eq!(raw.headers()["content-type"], "text/event-stream");
    let bytes: String = expected.iter().map(|data| format!("data: {data}\n\n")).collect();
    assert_eq!(raw.text().await.unwrap(), bytes, "byte for byte what the agent wrote");
}
