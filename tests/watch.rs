//! The agents' directory of a host that serves: what changes there is deployed once it is whole, and nothing else is.
//!
//! That nothing else was loaded is known by a later file that was: by then all that had been quiet as long was, too.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bureau::id::Digest;
use reqwest::{Method, StatusCode};

use crate::support::{Started, TestHost, data, guest, header, problem};

/// The bytes of a guest.
fn component(name: &str) -> Vec<u8> {
    fs::read(guest(name)).unwrap()
}

/// Puts a file in place as a whole, as careful programs do.
fn replace(file: &Path, bytes: &[u8]) {
    let mut temporary = file.as_os_str().to_owned();
    temporary.push("~");
    fs::write(&temporary, bytes).unwrap();
    fs::rename(temporary, file).unwrap();
}

/// The lines that say that an agent was deployed.
fn is_deployed(line: &str, agent: &str) -> bool {
    line.contains(r#""message":"deployed""#) && line.contains(&format!(r#""agent":"{agent}""#))
}

impl Started {
    /// A file of the agents' directory.
    fn agent(&self, name: &str) -> PathBuf {
        self.how().agents().join(name)
    }

    /// Adds an agent and waits until it is deployed, after all that was whole before it.
    async fn marked(&self, marker: &str) {
        // Of what is whole at the same time the last by its name is deployed last.
        let marker = format!("z-{marker}");
        replace(&self.agent(&format!("{marker}.wasm")), &component("api"));
        self.logged(|line| is_deployed(line, &marker)).await;
    }

    /// The modules that were deployed for an agent, in order, since the host began.
    fn deployed(&self, agent: &str) -> Vec<String> {
        let lines = self.log().into_iter().filter(|line| is_deployed(line, agent));
        let module = |line: String| {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            line["module"].as_str().unwrap().to_owned()
        };
        lines.map(module).collect()
    }

    /// The errors so far that name this file.
    fn errors(&self, file: &str) -> Vec<String> {
        let is_error = |line: &String| line.contains(r#""level":"ERROR""#) && line.contains(file);
        self.log().into_iter().filter(is_error).collect()
    }

    async fn ready(&self) -> (StatusCode, String) {
        let ready = self.admin(Method::GET, "/readyz").await;
        (ready.status(), ready.text().await.unwrap())
    }
}

#[tokio::test]
async fn a_slow_copy_in_pieces_is_loaded_once_and_whole() {
    let host = TestHost::serving(&["probe"]).start();
    let whole = component("stream");
    let mut copy = File::create(host.agent("copy.wasm")).unwrap();
    for (n, piece) in whole.chunks(whole.len().div_ceil(4)).enumerate() {
        copy.write_all(piece).unwrap();
        host.marked(&format!("after-{n}")).await;
        assert_eq!(problem(host.get("copy/demo").await).await, "404 unknown-agent host");
    }
    drop(copy);
    host.logged(|line| is_deployed(line, "copy")).await;
    host.marked("last").await;
    assert_eq!(host.deployed("copy"), [Digest::of(&whole).to_string()]);
    assert_eq!(host.errors("copy.wasm"), [""; 0]);
    assert_eq!(host.get("copy/demo").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_burst_of_writes_is_one_deployment() {
    let host = TestHost::serving(&["probe"]).start();
    let versions = [component("resume"), component("stream")];
    // A burst in which this process was held up is two; then there is another, of another file.
    let mut bursts = (0..).map(|n| format!("burst-{n}"));
    let agent = bursts.find(|agent| burst(&host.agent(&format!("{agent}.wasm")), &versions));
    let agent = agent.expect("there is no end of names");
    host.marked("after").await;
    assert_eq!(host.deployed(&agent), [Digest::of(&versions[1]).to_string()]);
    assert_eq!(host.errors(&agent), [""; 0]);
}

/// Writes a file many times, each time as a whole; whether it went on without a pause.
fn burst(file: &Path, versions: &[Vec<u8>]) -> bool {
    let mut last = None;
    let mut longest = Duration::ZERO;
    for version in versions.iter().cycle().take(100) {
        fs::write(file, version).unwrap();
        let now = Instant::now();
        longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
        last = Some(now);
    }
    longest < Duration::from_millis(50)
}

#[tokio::test]
async fn a_file_that_an_editor_replaces_serves_the_next_request() {
    let host = TestHost::serving(&["probe"]).start();
    let file = host.agent("probe.wasm");
    let [over, anew] = ["stream", "resume"].map(component);
    let mut expected = vec![Digest::of(&component("probe")).to_string()];

    // Some write another file and rename it over the first, whose name is there all the time,
    replace(&file, &over);
    expected.push(Digest::of(&over).to_string());
    host.logged(|line| is_deployed(line, "probe") && line.contains(&expected[1])).await;
    // and others move the first out of the way and write it anew.
    let backup = host.agent("old.wasm~");
    fs::rename(&file, &backup).unwrap();
    fs::write(&file, &anew).unwrap();
    fs::remove_file(&backup).unwrap();
    expected.push(Digest::of(&anew).to_string());
    host.logged(|line| is_deployed(line, "probe") && line.contains(&expected[2])).await;

    host.marked("after").await;
    assert_eq!(host.deployed("probe"), expected);
    let stream = host.stream("probe/demo").await;
    assert_eq!(header(&stream.headers, "bureau-module"), expected[2]);
    assert!(!host.log().iter().any(|line| line.contains("is gone")), "{:#?}", host.log());
}

#[tokio::test]
async fn a_file_that_is_removed_cuts_no_stream() {
    let host = TestHost::serving(&["probe"]).start();
    let mut stream = host.stream("probe/demo/cancellable").await;
    assert_eq!(stream.next().await.unwrap().data, "waiting");
    fs::remove_file(host.agent("probe.wasm")).unwrap();
    host.logged(|line| line.contains("is gone") && line.contains("\"probe\"")).await;
    assert_eq!(host.get("probe/demo").await.status(), StatusCode::NOT_FOUND);

    let run = header(&stream.headers, "bureau-run");
    let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED, "the run is under way");
    let rest = stream.rest().await;
    assert_eq!(data(&rest)[0], "cancelled", "{rest:?}");
    assert_eq!(rest[1].name, "failed", "and ends in its own way");

    // The file can come back.
    replace(&host.agent("probe.wasm"), &component("stream"));
    let new = Digest::of(&component("stream")).to_string();
    host.logged(|line| is_deployed(line, "probe") && line.contains(&new)).await;
}

#[tokio::test]
async fn a_bad_file_keeps_back_its_own_agent_and_no_other_until_it_is_mended() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.wasm");
    fs::write(&bad, "not a component").unwrap();
    let host = TestHost::serving(&["probe"]).component(&bad).start();
    let (status, why) = host.ready().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(why.contains("bad.wasm"), "{why}");

    // Good ones come and go beside it, and what it says is wrong follows the file.
    host.marked("beside").await;
    fs::write(host.agent("bad.wasm"), &component("stream")[..1000]).unwrap();
    host.marked("between").await;
    assert_eq!(host.errors("bad.wasm").len(), 2);
    let (status, changed) = host.ready().await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(changed.contains("bad.wasm") && changed != why, "{changed}");
    fs::write(host.agent("bad.wasm"), component("stream")).unwrap();
    host.logged(|line| is_deployed(line, "bad")).await;
    host.marked("mended").await;
    assert_eq!(host.ready().await, (StatusCode::OK, "ready\n".to_owned()));

    // What was good serves on when its file turns bad, and so the host is ready still.
    let module = Digest::of(&component("stream")).to_string();
    fs::write(host.agent("bad.wasm"), "not a component either").unwrap();
    host.marked("after").await;
    assert_eq!(host.errors("bad.wasm").len(), 3);
    assert_eq!(host.ready().await.0, StatusCode::OK);
    let stream = host.stream("bad/demo").await;
    assert_eq!(header(&stream.headers, "bureau-module"), module);
}

#[tokio::test]
async fn a_bad_file_that_is_removed_keeps_nothing_back() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("bad.wasm");
    fs::write(&bad, "not a component").unwrap();
    let host = TestHost::serving(&["probe"]).component(&bad).start();
    assert_eq!(host.ready().await.0, StatusCode::SERVICE_UNAVAILABLE);
    fs::remove_file(host.agent("bad.wasm")).unwrap();
    host.marked("after").await;
    assert_eq!(host.ready().await, (StatusCode::OK, "ready\n".to_owned()));
}
