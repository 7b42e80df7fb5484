//! A swap takes effect with the next request and cuts nothing that has begun.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use reqwest::Method;
use serde_json::json;
use tokio::sync::watch;

use crate::support::{
    Connection, Disk, InProcess, Started, Stream, TestHost, another_module, data, header,
};

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

/// Instances, and the streams of each that are open through all swaps.
const INSTANCES: usize = 50;
const STREAMS: usize = 10;
const SWAPS: u8 = 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_swaps_under_load_cut_double_and_lose_nothing() {
    let host = TestHost::serving(&["probe"]).start();
    let (one, agents) = (host.metrics().await, host.operator_sees("/v1/agents").await);
    let first = agents["agents"][0]["digest"].as_str().unwrap().to_owned();
    let builds: Vec<_> = (1..=SWAPS).map(|build| another_module("probe", build)).collect();
    let digest = |build: &Vec<u8>| bureau::id::Digest::of(build).to_string();
    let order: Vec<_> = std::iter::once(first.clone()).chain(builds.iter().map(digest)).collect();

    let streams = (0..INSTANCES * STREAMS).map(|n| {
        let path = format!("probe/{}/emit-until-cancelled?delay=200", n % INSTANCES);
        let host = &host;
        async move { host.stream(&path).await }
    });
    let streams = join_all(streams).await;
    let runs: Vec<_> = streams
        .iter()
        .map(|stream| {
            assert_eq!(header(&stream.headers, "bureau-module"), first);
            header(&stream.headers, "bureau-run").to_owned()
        })
        .collect();

    let swapped = AtomicBool::new(false);
    let swapping = async {
        let mut pace = tokio::time::interval(Duration::from_millis(200));
        for (swap, build) in builds.iter().enumerate() {
            pace.tick().await;
            let deployed = host.put_module("probe", build.clone()).await;
            assert_eq!(deployed.status(), 200);
            // Each run that begins from now on is the new module's.
            let (new, instance) = (&order[swap + 1], swap % INSTANCES);
            let begun = host.stream(&format!("probe/{instance}/emit?count=3")).await;
            let run = header(&begun.headers, "bureau-run").to_owned();
            assert_eq!(header(&begun.headers, "bureau-module"), new);
            assert_eq!(data(&begun.rest().await), ["1", "2", "3"]);
            let record = host.operator_sees(&format!("/v1/runs/{run}")).await;
            assert_eq!((&record["digest"], &record["state"]), (&json!(new), &json!("finished")));
        }
        swapped.store(true, Ordering::Relaxed);
    };
    // Each instance is asked again and again: no answer is an older module's than the one before.
    let asking = join_all((0..INSTANCES).map(async |instance| {
        let mut latest = 0;
        while !swapped.load(Ordering::Relaxed) {
            let answer = host.get(&format!("probe/{instance}/reply")).await;
            let module = header(answer.headers(), "bureau-module").to_owned();
            assert_eq!(answer.text().await.unwrap(), "a reply");
            let now = order.iter().position(|digest| *digest == module).unwrap();
            assert!(now >= latest, "instance {instance} went from {latest} back to {now}");
            latest = now;
        }
    }));
    let (seen, mut counts): (Vec<_>, Vec<_>) = runs.iter().map(|_| watch::channel(0)).unzip();
    let cancelling = async {
        tokio::join!(swapping, asking);
        join_all(counts.iter_mut().map(async |count| {
            let before = *count.borrow();
            let more = count.wait_for(|count| *count > before).await;
            assert!(more.is_ok(), "a stream had nothing after the last swap");
        }))
        .await;
        join_all(runs.iter().map(async |run| {
            let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
            assert_eq!(cancelled.status(), 202, "the run is still under way");
        }))
        .await;
    };
    let reading = streams.into_iter().zip(&runs).zip(seen);
    let reading = join_all(reading.map(|((stream, run), seen)| read(stream, run, seen)));
    tokio::join!(reading, cancelling);
    for run in &runs {
        let record = host.operator_sees(&format!("/v1/runs/{run}")).await;
        assert_eq!((&record["digest"], &record["state"]), (&json!(first), &json!("finished")));
    }
    freed(&host, &one).await;
}

/// Reads a stream to its end, which nothing cuts off, and says how many events it has had: all of them, each once, in order.
async fn read(mut stream: Stream, run: &str, seen: watch::Sender<usize>) {
    while let Some(event) = stream.next().await {
        let n = *seen.borrow() + 1;
        assert_eq!(event.id, format!("{run}-{n}"));
        if event.data == "the end" {
            assert_eq!(stream.next().await, None);
            return;
        }
        assert_eq!(event.data, n.to_string());
        seen.send_replace(n);
    }
    panic!("the stream of {run} was cut after {} events", *seen.borrow());
}

/// Waits until the modules that no run needs any more have left the memory.
async fn freed(host: &Started, one: &std::collections::HashMap<String, u64>) {
    host.reaches("modules", |modules| modules == one["modules"]).await;
    host.reaches("module_bytes", |bytes| bytes == one["module_bytes"]).await;
}
