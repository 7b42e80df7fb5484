//! A run as a thing that clients hold: who began it may leave, and whoever may ask for its instance can read it, and end it.

use reqwest::header::ACCEPT;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde_json::Value;

use crate::support::{Started, Stream, TestHost, data, header, problem};

/// Begins a run that has emitted this many and waits to be released.
async fn held(host: &Started, instance: &str, count: usize) -> (Stream, String) {
    let mut stream = host.stream(&format!("{instance}/emit-held?count={count}")).await;
    assert_eq!(stream.take(count).await.len(), count);
    let run = header(&stream.headers, "bureau-run").to_owned();
    (stream, run)
}

async fn release(host: &Started, instance: &str) {
    assert_eq!(host.json(&format!("{instance}/release")).await["released"], 1);
}

#[tokio::test]
async fn whoever_attaches_reads_all_of_it_in_the_format_of_their_own() {
    let host = TestHost::serving(&["probe"]).start();
    let (first, run) = held(&host, "probe/demo", 3).await;
    let path = format!("/runs/{run}");
    let mut attached = Stream::open(host.at(Method::GET, &path)).await;
    assert_eq!(data(&attached.take(3).await), ["1", "2", "3"]);
    let behind = host.at(Method::GET, &path).header("last-event-id", format!("{run}-2"));
    let mut behind = Stream::open(behind).await;
    assert_eq!(data(&behind.take(1).await), ["3"]);
    let formats = ["text/plain", "application/x-ndjson", "application/json"];
    let read = formats
        .map(|format| tokio::spawn(host.at(Method::GET, &path).header(ACCEPT, format).send()));
    release(&host, "probe/demo").await;
    let rest = first.rest().await;
    assert_eq!(data(&rest), ["4", "5", "6"]);
    assert_eq!(attached.rest().await, rest);
    assert_eq!(behind.rest().await, rest);
    let mut bodies = Vec::new();
    for response in read {
        bodies.push(response.await.unwrap().unwrap().text().await.unwrap());
    }
    assert_eq!(bodies[0], "123456");
    let lines = bodies[1].lines().map(|line| serde_json::from_str(line).unwrap());
    let document: Value = serde_json::from_str(&bodies[2]).unwrap();
    assert_eq!(lines.collect::<Vec<Value>>(), *document["events"].as_array().unwrap());
    assert_eq!(document["events"][5]["id"], format!("{run}-6"));

    let over = Stream::open(host.at(Method::GET, &path)).await.rest().await;
    assert_eq!(data(&over), ["1", "2", "3", "4", "5", "6"], "also when it is over");
    let caught_up = host.at(Method::GET, &path).header("last-event-id", format!("{run}-6"));
    assert_eq!(caught_up.send().await.unwrap().status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_id_that_is_not_of_the_run_is_told_and_all_of_it_read() {
    let host = TestHost::serving(&["probe"]).start();
    let runs = [(); 2].map(|()| host.stream("probe/demo/emit?count=1"));
    let [one, other] = runs;
    let (one, other) = (one.await, other.await);
    let [one, other] = [one, other].map(|of| header(&of.headers, "bureau-run").to_owned());
    for (sent, reason) in [(format!("{other}-1"), "unknown"), (format!("{one}-9"), "future")] {
        let request = host.at(Method::GET, &format!("/runs/{one}")).header("last-event-id", sent);
        let events = Stream::open(request).await.rest().await;
        assert_eq!((&*events[0].name, &*events[1].data), ("reset", "1"));
        assert!(events[0].data.contains(reason), "{events:?}");
    }
}

#[tokio::test]
async fn a_run_says_how_it_stands_until_it_is_cancelled() {
    let host = TestHost::serving(&["probe"]).start();
    let mut stream = host.stream("probe/demo/cancellable").await;
    stream.take(1).await;
    let run = header(&stream.headers, "bureau-run").to_owned();
    let status = || async { host.json_of(&format!("/runs/{run}/status")).await };
    let running = status().await;
    assert_eq!((&running["state"], &running["last_seq"]), (&"running".into(), &1.into()));
    assert_eq!((&running["agent"], &running["instance"]), (&"probe".into(), &"demo".into()));
    let cancel = || host.at(Method::DELETE, &format!("/runs/{run}")).send();
    assert_eq!(cancel().await.unwrap().status(), StatusCode::ACCEPTED);
    assert_eq!(data(&stream.rest().await)[0], "cancelled");
    let ended = status().await;
    assert_eq!((&ended["state"], &ended["code"]), (&"cancelled".into(), &"cancelled".into()));
    assert!(ended["ended"].is_string());
    assert_eq!(problem(cancel().await.unwrap()).await, "409 run-ended host");
}

#[tokio::test]
async fn what_is_no_run_is_not_found() {
    let host = TestHost::serving(&["probe"]).start();
    let absent = "01J8Z2V9F6T3X0K4M5N7P8Q9RS";
    let ask = |method, path: String| {
        let request: RequestBuilder = host.at(method, &path);
        async move { problem(request.send().await.unwrap()).await }
    };
    let not_found = "404 not-found host";
    assert_eq!(ask(Method::GET, format!("/runs/{absent}")).await, not_found);
    assert_eq!(ask(Method::GET, format!("/runs/{absent}/status")).await, not_found);
    assert_eq!(ask(Method::DELETE, format!("/runs/{absent}")).await, not_found);
    assert_eq!(ask(Method::GET, "/runs/x".into()).await, "400 bad-name host");
    assert_eq!(ask(Method::POST, format!("/runs/{absent}")).await, "405 method-not-allowed host");
}

#[tokio::test]
async fn an_instances_runs_are_listed_newest_first_a_page_at_a_time() {
    let host = TestHost::serving(&["probe"]).start();
    let mut runs = Vec::new();
    for instance in ["demo", "other", "demo", "demo"] {
        let stream = host.stream(&format!("probe/{instance}/emit?count=1")).await;
        if instance == "demo" {
            runs.push(header(&stream.headers, "bureau-run").to_owned());
        }
        stream.rest().await;
    }
    // Those of one millisecond are in the order of their ids.
    runs.sort_by(|a, b| b.cmp(a));
    let page = host.json_of("/instances/probe/demo/runs?limit=2").await;
    let ids = |page: &Value| -> Vec<String> {
        let runs = page["runs"].as_array().unwrap().iter();
        runs.map(|run| run["run"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(ids(&page), runs[..2]);
    let next = page["next"].as_str().expect("there is more");
    let rest = host.json_of(&format!("/instances/probe/demo/runs?limit=2&before={next}")).await;
    assert_eq!(ids(&rest), runs[2..]);
    assert!(rest["next"].is_null());
}

#[tokio::test]
async fn who_follows_an_instance_hears_every_run_of_it_and_of_no_other() {
    let host = TestHost::serving(&["probe"]).start();
    let (_before, _) = held(&host, "probe/demo", 2).await;
    let path = "/instances/probe/demo/events";
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut request = host.at(Method::GET, path).send().await.unwrap();
        let first = request.chunk().await.unwrap().unwrap();
        assert!(first.starts_with(b":\n"), "it is heard from now on");
        followers.push(request);
    }
    host.stream("probe/other/emit?count=1").await.rest().await;
    let begun = host.stream("probe/demo/emit?count=2").await;
    let begun = header(&begun.headers, "bureau-run").to_owned();
    release(&host, "probe/demo").await;
    for mut follower in followers {
        let mut heard = String::new();
        while heard.matches("data: ").count() < 4 {
            heard += &String::from_utf8_lossy(&follower.chunk().await.unwrap().unwrap());
        }
        let of_begun = heard.matches(&format!("id: {begun}-")).count();
        assert_eq!(of_begun, 2, "{heard}");
        assert!(heard.contains("data: 3\n") && heard.contains("data: 4\n"), "{heard}");
    }
}

#[tokio::test]
async fn a_page_that_was_loaded_again_finds_the_run_that_goes_on() {
    let host = TestHost::serving(&["probe"]).start();
    let latest = || host.at(Method::GET, "/instances/probe/demo/stream");
    assert_eq!(latest().send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let (_old, _) = held(&host, "probe/demo", 1).await;
    let (_new, run) = held(&host, "probe/demo", 1).await;
    let response = latest().send().await.unwrap();
    assert_eq!(header(response.headers(), "x-vercel-ai-ui-message-stream"), "v1");
    assert_eq!(host.json("probe/demo/release").await["released"], 2);
    let stream = response.text().await.unwrap();
    assert!(stream.contains(&format!("\"messageId\":\"{run}\"")), "{stream}");
    assert!(stream.contains("\"delta\":\"2\"") && stream.ends_with("data: [DONE]\n\n"), "{stream}");
    assert_eq!(latest().send().await.unwrap().status(), StatusCode::NO_CONTENT);
}

/// The text of a UI message stream.
fn ui_text(stream: &str) -> String {
    let parts = stream.lines().filter_map(|line| line.strip_prefix("data: {"));
    let parts = parts.map(|part| serde_json::from_str::<Value>(&format!("{{{part}")).unwrap());
    parts.filter_map(|part| Some(part["delta"].as_str()?.to_owned())).collect()
}

/// The text of lines, each at most once.
fn line_text(lines: &str, seen: &mut u64) -> String {
    let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut text = String::new();
    for line in lines {
        *seen += 1;
        assert_eq!(line["seq"], *seen, "no gap, and none twice");
        text += line["data"].as_str().unwrap();
    }
    text
}

#[tokio::test]
async fn readers_of_all_formats_that_leave_and_return_agree() {
    const EVENTS: usize = 40;
    const UI_MESSAGES: &str = "text/event-stream; protocol=ui-message-stream";
    let host = TestHost::serving(&["probe"]).start();
    let (first, run) = held(&host, "probe/demo", EVENTS).await;
    let path = format!("/runs/{run}");
    let get = |accept: &str| host.at(Method::GET, &path).header(ACCEPT, accept);
    // Each format twice: read for a while, and left.
    for accept in ["text/plain", UI_MESSAGES, "application/json"] {
        for _ in 0..2 {
            let mut response = get(accept).send().await.unwrap();
            assert!(response.chunk().await.unwrap().is_some(), "{accept}");
        }
    }
    let mut seen = 0;
    let mut lines = get("application/x-ndjson").send().await.unwrap();
    let mut left = String::new();
    while left.matches('\n').count() < EVENTS {
        left += &String::from_utf8_lossy(&lines.chunk().await.unwrap().unwrap());
    }
    drop(lines);
    let mut by_lines = line_text(&left, &mut seen);
    let mut by_events = Stream::open(get("text/event-stream")).await;
    let mut events = by_events.take(EVENTS / 2).await;
    let last = events.last().unwrap().id.clone();
    drop(by_events);
    // All of them are back before the rest comes.
    let text = tokio::spawn(get("text/plain").send());
    let ui_messages = tokio::spawn(get(UI_MESSAGES).send());
    let document = tokio::spawn(get("application/json").send());
    let after = format!("{run}-{seen}");
    let lines = tokio::spawn(get("application/x-ndjson").header("last-event-id", after).send());
    let mut by_events = Stream::open(get("text/event-stream").header("last-event-id", &last)).await;
    events.extend(by_events.take(1).await);
    release(&host, "probe/demo").await;
    events.extend(by_events.rest().await);
    first.rest().await;

    let expected: String = (1..=2 * EVENTS).map(|n| n.to_string()).collect();
    assert_eq!(data(&events).concat(), expected);
    let body = async |request: tokio::task::JoinHandle<reqwest::Result<reqwest::Response>>| {
        request.await.unwrap().unwrap().text().await.unwrap()
    };
    assert_eq!(body(text).await, expected);
    assert_eq!(ui_text(&body(ui_messages).await), expected);
    by_lines += &line_text(&body(lines).await, &mut seen);
    assert_eq!(by_lines, expected);
    let document: Value = serde_json::from_str(&body(document).await).unwrap();
    let document = document["events"].as_array().unwrap().iter();
    assert_eq!(document.map(|event| event["data"].as_str().unwrap()).collect::<String>(), expected);
}
