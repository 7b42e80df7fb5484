//! A run that is cancelled ends: as it likes within the grace, and after that with its instance's store.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Started, Stream, TestHost, data, header, problem};

const GRACE: &str = "[instances]\ncancel_grace = \"50ms\"\ncpu = \"1h\"";

async fn cancel(host: &Started, run: &str) {
    let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
}

async fn begun(host: &Started, path: &str) -> (Stream, String) {
    let mut stream = host.stream(path).await;
    assert!(stream.next().await.is_some(), "{path}");
    let run = header(&stream.headers, "bureau-run").to_owned();
    (stream, run)
}

fn code(event: &crate::support::Event) -> Value {
    serde_json::from_str::<Value>(&event.data).unwrap()["code"].clone()
}

#[tokio::test]
async fn what_does_not_end_is_stopped_and_those_beside_it_are_interrupted() {
    let host = TestHost::serving(&["probe"]).config(GRACE).start();
    let (stubborn, run) = begun(&host, "probe/demo/hang").await;
    let (beside, _) = begun(&host, "probe/demo/hang").await;
    let plain = tokio::spawn(host.request(Method::GET, "probe/demo/wait").send());
    host.logged(|line| line.contains("waiting to be released")).await;
    let (elsewhere, other) = begun(&host, "probe/other/cancellable").await;

    cancel(&host, &run).await;
    let ended = stubborn.rest().await;
    assert_eq!((&*ended[0].name, code(&ended[0])), ("failed", json!("cancelled")));
    assert_eq!(host.operator_sees(&format!("/v1/runs/{run}")).await["state"], "cancelled");
    let ended = beside.rest().await;
    assert_eq!((&*ended[0].name, code(&ended[0])), ("failed", json!("interrupted")));
    assert_eq!(problem(plain.await.unwrap().unwrap()).await, "500 interrupted host");
    assert_eq!(host.json("probe/demo/memory").await, json!({ "calls": 1 }), "in a fresh store");

    cancel(&host, &other).await;
    assert_eq!(data(&elsewhere.rest().await)[0], "cancelled", "another instance is not touched");
}

#[tokio::test]
async fn those_beside_it_that_resume_go_on_and_their_streams_with_them() {
    let host = TestHost::serving(&["phoenix"]).config(GRACE).start();
    let (stubborn, run) = begun(&host, "phoenix/demo/stubborn").await;
    let (mut steps, _) = begun(&host, "phoenix/demo/steps?total=200&delay=5").await;
    let answer = tokio::spawn(host.request(Method::GET, "phoenix/demo/answer").send());
    // The answering run is on record once its state is durable.
    loop {
        let runs = host.operator_sees("/v1/runs").await;
        let recorded = runs["runs"].as_array().unwrap().len();
        if recorded == 3 {
            break;
        }
    }
    cancel(&host, &run).await;
    assert_eq!(code(&stubborn.rest().await[0]), "cancelled");
    let mut numbers = vec![1];
    let mut resumed = 0;
    while let Some(event) = steps.next().await {
        match &*event.name {
            "resumed" => resumed += 1,
            _ => numbers
                .push(serde_json::from_str::<Value>(&event.data).unwrap()["n"].as_u64().unwrap()),
        }
    }
    assert_eq!((resumed, numbers), (1, (1..=200).collect()), "each step exactly once");
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.text().await.unwrap(), "answered by a resumption");
}

#[tokio::test]
async fn a_run_that_spins_is_stopped_too() {
    let host = TestHost::serving(&["probe"]).config(GRACE).start();
    let spinning = tokio::spawn(host.request(Method::GET, "probe/demo/spin").send());
    host.logged(|line| line.contains("spinning")).await;
    let runs = host.operator_sees("/v1/runs?agent=probe").await;
    cancel(&host, runs["runs"][0]["run"].as_str().unwrap()).await;
    assert_eq!(problem(spinning.await.unwrap().unwrap()).await, "409 cancelled host");
    assert_eq!(host.json("probe/demo/memory").await, json!({ "calls": 1 }));
}

#[tokio::test]
async fn a_run_that_waits_to_be_resumed_can_be_cancelled() {
    let host = TestHost::serving(&["phoenix"]).config("resumptions_at_once = 1").start();
    let (_, first) = begun(&host, "phoenix/one/crash-loop").await;
    let (_, waiting) = begun(&host, "phoenix/two/crash-loop").await;
    let host = host.kill().start();
    // The first has the only place until it ends.
    host.logged(|line| line.contains("resuming") && line.contains(&first)).await;
    let reader = host.resume("phoenix/two", &format!("{waiting}-1")).await;
    cancel(&host, &waiting).await;
    let ended = reader.rest().await;
    assert_eq!((&*ended[0].name, code(&ended[0])), ("failed", json!("cancelled")));
    assert_eq!(host.operator_sees(&format!("/v1/runs/{waiting}")).await["state"], "cancelled");
    cancel(&host, &first).await;
}
