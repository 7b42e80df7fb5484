//! A swap takes effect with the next request and cuts nothing that has begun.

use reqwest::Method;
use serde_json::json;

use crate::support::{Connection, Disk, InProcess, data, header};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn runs_that_have_begun_finish_on_their_module_and_new_ones_run_on_the_next() {
    let host = InProcess::serving(&["probe"], &Disk::default(), |_| {}).await;
    let mut streams = Vec::new();
    for instance in 0..20 {
        let mut stream = host.stream(&format!("probe/{instance}/cancellable")).await;
        assert_eq!(stream.next().await.unwrap().data, "waiting");
        streams.push(stream);
    }
    let old = header(&streams[0].headers, "bureau-module").to_owned();
    let new = host.deploy("probe", "stream").await;
    assert_ne!(new, old);
    for instance in 0..20 {
        let stream = host.stream(&format!("probe/{instance}?steps=1&delay=0")).await;
        assert_eq!(header(&stream.headers, "bureau-module"), new);
        assert_eq!(data(&stream.rest().await), ["Starting...", "Step 1 complete", "Done!"]);
    }
    for stream in &streams {
        let run = header(&stream.headers, "bureau-run");
        let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
        assert_eq!(cancelled.status(), 202, "the old run is still under way");
    }
    for stream in streams {
        assert_eq!(header(&stream.headers, "bureau-module"), old);
        let [last, failed] = stream.rest().await.try_into().expect("no stream is cut");
        assert_eq!((&*last.data, &*failed.name), ("cancelled", "failed"));
    }
    host.reaches("live_instances", |live| live == 20).await;
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_was_slow_to_come_does_not_bring_the_old_module_back() {
    let host = InProcess::serving(&["probe"], &Disk::default(), |_| {}).await;
    let mut slow = Connection::to(&host.url).await;
    slow.send("POST /agents/probe/demo/memory HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n")
        .await;
    // The rest of it comes when the module it came to is no longer the current one.
    assert_eq!(host.json("probe/other/memory").await, json!({ "calls": 1 }));
    let stream = host.deploy("probe", "stream").await;
    let new = host.deploy("probe", "probe").await;
    assert_ne!(stream, new);
    assert_eq!(host.json("probe/demo/memory").await, json!({ "calls": 1 }));
    slow.send("{}").await;
    let answer = slow.until("calls\":").await;
    assert!(answer.contains(&new), "{answer}");
    assert_eq!(host.json("probe/demo/memory").await, json!({ "calls": 3 }), "one store served all");
    host.stop().await;
}
