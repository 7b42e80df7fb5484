//! The commands, as they are typed.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::JoinHandle;

use reqwest::Method;
use serde_json::{Value, json};

use crate::support::{Lines, TestHost, data, guest, header, seen, target};

/// The program with these arguments, which knows of no host but one that they name.
fn bureau(arguments: &[&str]) -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_bureau"));
    program.args(arguments).env_remove("BUREAU_ADMIN").env_remove("BUREAU_ADMIN_TOKEN");
    // What the guests have compiled already need not be compiled again.
    program.env("CARGO_TARGET_DIR", target());
    program
}

/// What a command that succeeds prints.
fn said(mut command: Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap();
    let (stdout, stderr) = (String::from_utf8(stdout).unwrap(), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
    stdout
}

/// What a command that fails says, and its exit status.
fn refused(mut command: Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&stdout), "", "{command:?}");
    (status.code().expect("it ends by itself"), String::from_utf8(stderr).unwrap())
}

fn path(path: &Path) -> &str {
    path.to_str().expect("it is UTF-8")
}

#[tokio::test]
async fn a_new_crate_builds_and_serves_at_once() {
    let directory = tempfile::tempdir().unwrap();
    // The SDK has a dependency of this name, which is no reason why an agent should not have it.
    let made = directory.path().join("percent-encoding");
    let document = said(bureau(&["new", "percent-encoding", "--json", "--path", path(&made)]));
    let document: Value = serde_json::from_str(&document).unwrap();
    assert_eq!((&document["agent"], &document["path"]), (&json!("percent-encoding"), &json!(made)));
    let (status, error) = refused(bureau(&["new", "percent-encoding", "--path", path(&made)]));
    assert_eq!(status, 1);
    assert!(error.starts_with("bureau: ") && error.contains("has something in it"), "{error}");

    // The same versions as here, so that what is built can be used.
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::copy(workspace.join("Cargo.lock"), made.join("Cargo.lock")).unwrap();
    let built: Value =
        serde_json::from_str(&said(bureau(&["build", "--json", path(&made)]))).unwrap();
    let [component] = built["components"].as_array().unwrap().as_slice() else {
        panic!("a crate has a component: {built}")
    };
    let file = Path::new(component["path"].as_str().unwrap());
    let bytes = std::fs::read(file).unwrap();
    assert_eq!(component["size"], bytes.len());
    assert_eq!(component["digest"], bureau::id::Digest::of(&bytes).to_string());

    let host = TestHost::serving(&[]).component(file).start();
    assert_eq!(host.json("percent-encoding/demo").await, json!({ "count": 0 }));
    let added = host.post("percent-encoding/demo", &json!({ "add": 2 })).await;
    assert_eq!(added.json::<Value>().await.unwrap(), json!({ "count": 2 }));
    let wrong = host.post("percent-encoding/demo", &json!({ "add": "two" })).await;
    assert_eq!(wrong.status(), 400);
    let events = host.stream("percent-encoding/demo/stream?delay=1").await.rest().await;
    assert_eq!(data(&events), [r#"{"n":2}"#, r#"{"n":1}"#, r#"{"n":0}"#]);
}

#[test]
fn a_command_that_fails_says_why_and_wrong_usage_is_told_from_it() {
    // A port that is taken, and on which no one listens.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind(([127, 0, 0, 1], 0).into()).unwrap();
    let admin = format!("http://{}", taken.local_addr().unwrap());
    let (status, error) = refused(bureau(&["agents", "--admin", &admin]));
    assert_eq!(status, 1);
    assert!(error.starts_with(&format!("bureau: no host answers at {admin}/ (")), "{error}");
    assert!(error.contains("bureau serve"), "{error}");
    let (status, error) = refused({
        let mut command = bureau(&["agents"]);
        command.env("BUREAU_ADMIN", &admin);
        command
    });
    assert_eq!(status, 1);
    assert!(error.contains(&admin), "{error}");
    let (status, error) = refused({
        let mut command = bureau(&["agents", "--admin", &admin]);
        command.env("BUREAU_ADMIN_TOKEN", "a\nb");
        command
    });
    assert_eq!(status, 1);
    assert!(error.contains("BUREAU_ADMIN_TOKEN"), "{error}");
    let (status, error) = refused(bureau(&["deploy", "chat", "there-is-no-such.wasm"]));
    assert_eq!(status, 1);
    assert!(error.starts_with("bureau: cannot read there-is-no-such.wasm: "), "{error}");

    for wrong in [&["deploy", "Chat", "a.wasm"][..], &["cancel", "7"], &["runs", "--limit", "0"]] {
        let (status, error) = refused(bureau(wrong));
        assert_eq!(status, 2, "{wrong:?}: {error}");
    }
    let (status, error) = refused(bureau(&["new", "2nd"]));
    assert_eq!(status, 1);
    assert!(error.contains("starts with a letter"), "{error}");
}

/// An admin address where each connection gets the next of these answers, and no more: accidents that a host has only by chance.
/// Returns its URL, and the heads of the requests that came.
fn scripted(answers: Vec<String>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let serving = std::thread::spawn(move || {
        let answer = |answer: String| {
            let (mut connection, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                connection.read_exact(&mut byte).unwrap();
                head.extend(byte);
            }
            connection.write_all(answer.as_bytes()).unwrap();
            String::from_utf8(head).unwrap().to_lowercase()
        };
        answers.into_iter().map(answer).collect()
    });
    (url, serving)
}

fn answer(status: &str, kind: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\nconnection: close\r\n\r\n{body}")
}

fn document(document: &Value) -> String {
    answer("200 OK", "application/json", &document.to_string())
}

fn problem(status: &str, code: &str) -> String {
    let problem = json!({ "detail": "it says no", "code": code });
    answer(status, "application/problem+json", &problem.to_string())
}

const RUN: &str = "01ARZ3NDEKTSV4RRFFQ69G5FAV";

fn run(state: &str, code: Option<&str>) -> Value {
    let time = "2026-11-25T02:51:21.123Z";
    json!({
        "run": RUN, "agent": "chat", "instance": "demo", "digest": "a".repeat(64), "state": state,
        "code": code, "started": time, "ended": null, "last_seq": 3, "interruptions": 0,
    })
}

#[test]
fn a_tail_shows_each_event_once_whatever_breaks() {
    let events = |text: String| answer("200 OK", "text/event-stream", &text);
    let event = |id: &str, n: u32| format!("id: {id}\nevent: n\ndata: {n}\n\n");
    let [first, third] = [1, 3].map(|n| event(&format!("{RUN}-{n}"), n));
    let second = event("an-id-of-its-own", 2);
    let (url, asked) = scripted(vec![
        document(&run("running", None)),
        // It breaks off in the middle of an event, and before an answer.
        events(format!(":\nretry: 1\n{first}{}", second.trim_end())),
        String::new(),
        problem("503 Service Unavailable", "draining"),
        // An event comes twice, and the stream ends before the run.
        events(format!("{first}{second}")),
        events(third),
        "HTTP/1.1 204 No Content\r\n\r\n".into(),
        document(&run("failed", Some("agent-trapped"))),
    ]);
    let Output { status, stdout, stderr } =
        bureau(&["tail", "chat", "demo", RUN, "--json", "--admin", &url]).output().unwrap();
    let (shown, error) = (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap());
    let shown: Vec<Value> = shown.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = [format!("{RUN}-1"), "an-id-of-its-own".into(), format!("{RUN}-3")];
    let expected = expected.iter().zip(["1", "2", "3"]);
    let expected = expected.map(|(id, data)| json!({ "id": id, "event": "n", "data": data }));
    assert_eq!(shown, expected.collect::<Vec<_>>(), "{error}");
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.ends_with("bureau: the run failed (agent-trapped)\n"), "{error}");

    let heads = asked.join().unwrap();
    let after = |head: &String| {
        let id = head.lines().find_map(|line| line.strip_prefix("last-event-id: "));
        id.map(|id| id.rsplit('-').next().unwrap().to_owned())
    };
    let after: Vec<_> = heads.iter().filter(|head| head.contains("/events ")).map(after).collect();
    let asked = [None, Some("1"), Some("1"), Some("1"), Some("2"), Some("3")];
    assert_eq!(after, asked.map(|seq| seq.map(str::to_owned)));
}

#[test]
fn runs_are_gathered_past_pages_that_have_none() {
    let page = |runs: usize, next: Option<&str>| {
        document(&json!({ "runs": vec![run("finished", None); runs], "next": next }))
    };
    let (url, asked) = scripted(vec![page(2, Some("A")), page(0, Some("B")), page(1, Some("C"))]);
    let shown = said(bureau(&["runs", "chat", "a/b&c", "--limit", "3", "--json", "--admin", &url]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((shown["runs"].as_array().unwrap().len(), &shown["next"]), (3, &json!("C")));
    let heads = asked.join().unwrap();
    let asked = heads.iter().map(|head| head.lines().next().unwrap());
    let of = "agent=chat&instance=a%2fb%26c";
    let expected =
        ["limit=3&", "limit=1&", "limit=1&"].into_iter().zip(["", "&before=a", "&before=b"]);
    let expected =
        expected.map(|(limit, before)| format!("get /v1/runs?{limit}{of}{before} http/1.1"));
    assert!(asked.eq(expected), "{heads:?}");
}

#[test]
fn what_a_host_refuses_by_the_head_is_told_though_the_connection_broke() {
    let component = tempfile::NamedTempFile::new().unwrap();
    // More than the connection has room for.
    component.as_file().set_len(64 << 20).unwrap();
    let file = path(component.path());
    let (url, asked) =
        scripted(vec![String::new(), problem("413 Payload Too Large", "payload-too-large")]);
    let (status, error) = refused(bureau(&["deploy", "chat", file, "--admin", &url]));
    assert_eq!(status, 1);
    assert!(error.ends_with("bureau: it says no (payload-too-large)\n"), "{error}");
    for head in asked.join().unwrap() {
        assert!(head.starts_with("put /v1/agents/chat http/1.1"), "{head}");
        assert!(head.contains(&format!("content-length: {}\r\n", 64 << 20)), "{head}");
    }

    let (url, _) = scripted(vec![answer("200 OK", "text/html", "<html>")]);
    let (status, error) = refused(bureau(&["agents", "--admin", &url]));
    assert_eq!(status, 1);
    assert!(
        error.contains(&format!("{url}/v1/agents answered 200 OK, and not as a host")),
        "{error}"
    );
}

/// A command that goes on until it is dropped.
struct Running {
    child: Child,
    lines: Lines,
}

impl Running {
    fn of(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = Lines::of(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn document(&mut self) -> Value {
        serde_json::from_str(&self.lines.next().expect("it goes on")).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[tokio::test]
async fn a_first_day() {
    let directory = tempfile::tempdir().unwrap();
    let made = directory.path().join("day-one");
    // The agent does not look whether it is cancelled.
    let host = TestHost::serving(&[]).config("[instances]\ncancel_grace = \"50ms\"").start();
    let ask = |arguments: &[&str]| {
        let mut command = bureau(arguments);
        command.env("BUREAU_ADMIN", &host.admin);
        command
    };
    let json = |arguments: &[&str]| -> Value {
        let mut command = ask(arguments);
        command.arg("--json");
        serde_json::from_str(&said(command)).unwrap()
    };
    said(ask(&["new", "day-one", "--path", path(&made)]));
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::copy(workspace.join("Cargo.lock"), made.join("Cargo.lock")).unwrap();
    let build = |to: &str| {
        let built = json(&["build", path(&made)]);
        let component = &built["components"][0];
        let file = directory.path().join(to);
        std::fs::copy(component["path"].as_str().unwrap(), &file).unwrap();
        (file, component["digest"].as_str().unwrap().to_owned())
    };
    let (first, first_digest) = build("first.wasm");
    let short = |digest: &str| digest[..12].to_owned();
    let told = said(ask(&["deploy", "day-one", path(&first)]));
    assert_eq!(told, format!("day-one: {} serves (generation 1)\n", short(&first_digest)));
    let again = json(&["deploy", "day-one", path(&first)]);
    assert_eq!((&again["changed"], &again["digest"]), (&json!(false), &json!(first_digest)));
    assert_eq!(json(&["agents"])["agents"][0]["digest"], json!(first_digest));

    // A tail meets a run that is under way, and every later one, on whichever module.
    host.post("day-one/demo", &json!({ "add": 2 })).await;
    let mut stream = host.stream("day-one/demo/stream?delay=600000").await;
    let run = stream.headers["bureau-run"].to_str().unwrap().to_owned();
    let event = stream.next().await.unwrap();
    let mut tail = Running::of(ask(&["tail", "day-one", "demo", "--json"]));
    assert_eq!(tail.document(), json!({ "id": event.id, "event": "count", "data": "{\"n\":2}" }));
    said(ask(&["cancel", &run]));
    for event in stream.rest().await {
        let seen = json!({ "id": event.id, "event": event.name, "data": event.data });
        assert_eq!(tail.document(), seen);
    }
    let events = host.stream("day-one/demo/stream?delay=1").await.rest().await;
    assert_eq!(events.len(), 3);
    for (event, n) in events.iter().zip([2, 1, 0]) {
        let data = format!("{{\"n\":{n}}}");
        assert_eq!(tail.document(), json!({ "id": event.id, "event": "count", "data": data }));
    }

    let source = made.join("src/lib.rs");
    let text = std::fs::read_to_string(&source).unwrap();
    std::fs::write(&source, text.replace(".name(\"count\")", ".name(\"tick\")")).unwrap();
    let (second, second_digest) = build("second.wasm");
    assert_ne!(first_digest, second_digest);
    let (status, error) =
        refused(ask(&["deploy", "day-one", path(&second), "--if-current", &second_digest]));
    assert_eq!(status, 1);
    assert!(error.ends_with("(digest-mismatch)\n"), "{error}");
    let told = said(ask(&["deploy", "day-one", path(&second), "--if-current", &first_digest[..8]]));
    let (one, two) = (short(&first_digest), short(&second_digest));
    assert_eq!(told, format!("day-one: {one} -> {two} (generation 2)\n"));
    let events = host.stream("day-one/demo/stream?delay=1").await.rest().await;
    assert_eq!(events[0].name, "tick");
    for event in events {
        assert_eq!(tail.document(), json!({ "id": event.id, "event": "tick", "data": event.data }));
    }

    assert_eq!(
        said(ask(&["rollback", "day-one"])),
        format!("day-one: {two} -> {one} (generation 3)\n")
    );
    let told = said(ask(&["rollback", "day-one", "--to", &two]));
    assert_eq!(told, format!("day-one: {one} -> {two} (generation 4)\n"));
    let past = json(&["deployments", "day-one"]);
    let digests: Vec<_> =
        past["deployments"].as_array().unwrap().iter().map(|past| &past["digest"]).collect();
    assert_eq!(digests, [&second_digest, &first_digest, &second_digest, &first_digest]);

    assert_eq!(json(&["instances", "day-one"])["instances"][0]["instance"], "demo");

    // A run that is cancelled ends its tail with a failure.
    let stream = host.stream("day-one/demo/stream?delay=600000").await;
    let run = stream.headers["bureau-run"].to_str().unwrap().to_owned();
    said(ask(&["cancel", &run]));
    let Output { status, stderr, .. } = ask(&["tail", "day-one", "demo", &run]).output().unwrap();
    let error = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{error}");
    assert!(error.starts_with("bureau: the run was cancelled"), "{error}");
    let runs = json(&["runs", "day-one", "demo", "--limit", "1"]);
    assert_eq!(
        (&runs["runs"][0]["run"], &runs["runs"][0]["state"]),
        (&json!(run), &json!("cancelled"))
    );

    said(ask(&["remove", "day-one"]));
    assert_eq!(host.get("day-one/demo").await.status(), 404);
    let (status, error) = refused(ask(&["remove", "day-one"]));
    assert_eq!(status, 1);
    assert!(error.ends_with("(unknown-agent)\n"), "{error}");
}

#[tokio::test]
async fn a_tail_meets_a_run_with_its_first_event_however_late() {
    let host = TestHost::serving(&["probe"]).start();
    let ask = |arguments: &[&str]| {
        let mut command = bureau(arguments);
        command.env("BUREAU_ADMIN", &host.admin);
        command
    };
    let late = tokio::spawn(host.request(Method::GET, "probe/demo/emit-late").send());
    let run = seen("a run in flight", async || {
        let listed = host.operator_sees("/v1/runs?agent=probe&instance=demo").await;
        listed["runs"][0]["run"].as_str().map(str::to_owned)
    })
    .await;
    let mut of_instance = Running::of(ask(&["tail", "probe", "demo", "--json"]));
    let mut of_run = Running::of(ask(&["tail", "probe", "demo", &run, "--json"]));
    let marker = host.stream("probe/demo/cancellable").await.take(1).await;
    assert_eq!(of_instance.document()["id"], marker[0].id, "it has looked while both go on");
    assert_eq!(host.json("probe/demo/release").await["released"], 1);
    assert!(late.await.unwrap().unwrap().text().await.unwrap().contains("late"));
    let event = json!({ "id": format!("{run}-1"), "event": "message", "data": "late" });
    assert_eq!(of_instance.document(), event);
    assert_eq!(of_run.document(), event);
}

#[tokio::test]
async fn a_tail_says_how_a_run_ended_that_emitted_nothing() {
    let host = TestHost::serving(&["probe"]).config("[instances]\ncancel_grace = \"50ms\"").start();
    let ask = |arguments: &[&str]| {
        let mut command = bureau(arguments);
        command.env("BUREAU_ADMIN", &host.admin);
        command.output().unwrap()
    };
    let opened = host.stream("probe/demo/open-then?delay=600000").await;
    let cancelled = header(&opened.headers, "bureau-run");
    ask(&["cancel", cancelled]);
    let keyed = host.request(Method::GET, "probe/demo/echo").header("idempotency-key", "\"1\"");
    let keyed = keyed.send().await.unwrap();
    let answered = header(keyed.headers(), "bureau-run");
    for (run, printed, code, said) in [
        (cancelled, &[format!("{cancelled}-1")][..], 1, "bureau: the run was cancelled\n"),
        (answered, &[], 0, ""),
    ] {
        let Output { status, stdout, stderr } = ask(&["tail", "probe", "demo", run, "--json"]);
        let ids = stdout.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let ids = ids.map(|line| serde_json::from_slice::<Value>(line).unwrap()["id"].take());
        assert!(ids.eq(printed.iter().map(|id| json!(id))), "{run}");
        assert_eq!((status.code(), String::from_utf8(stderr).unwrap()), (Some(code), said.into()));
    }
}

#[test]
fn a_component_is_inspected_without_a_host() {
    let json = |file: &Path| -> Value {
        serde_json::from_str(&said(bureau(&["inspect", path(file), "--json"]))).unwrap()
    };
    let seen = json(&guest("resume"));
    assert_eq!((&seen["fits"], &seen["refused"]), (&json!(true), &Value::Null));
    let size = std::fs::metadata(guest("resume")).unwrap().len();
    assert_eq!(seen["size"], json!(size));
    let exports = ["bureau:agent/handler@0.1.0", "bureau:agent/resumption@0.1.0"];
    assert_eq!(seen["exports"], json!(exports));
    let needs = seen["capabilities"].as_array().unwrap();
    assert!(needs.contains(&json!({ "name": "clocks", "provision": "given" })), "{needs:?}");

    // A new instance pays for each import, so what is only linked into an agent must not bring any.
    let imports = json(&guest("load"))["imports"].take();
    let of_wasi = imports.as_array().unwrap().iter().map(|import| import.as_str().unwrap());
    let of_wasi = of_wasi.filter(|import| !import.starts_with("bureau:"));
    let of_wasi: Vec<_> = of_wasi.map(|import| import.split_once('@').unwrap().0).collect();
    let expected = [
        "wasi:cli/environment",
        "wasi:cli/exit",
        "wasi:cli/stderr",
        "wasi:cli/stdout",
        "wasi:clocks/monotonic-clock",
        "wasi:clocks/monotonic-clock",
        "wasi:clocks/wall-clock",
        "wasi:io/error",
        "wasi:io/streams",
    ];
    assert_eq!(of_wasi, expected);

    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("greedy.wasm");
    let component = r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance)))"#;
    std::fs::write(&file, wat::parse_str(component).unwrap()).unwrap();
    let seen = bureau(&["inspect", path(&file), "--json"]).output().unwrap();
    assert_eq!(seen.status.code(), Some(1));
    let seen: Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["fits"], false);
    assert!(seen["refused"].as_str().unwrap().contains("needs http"), "{seen}");
    std::fs::write(&file, "no module").unwrap();
    let (status, error) = refused(bureau(&["inspect", path(&file)]));
    assert_eq!(status, 1);
    assert!(error.contains("not a WebAssembly component"), "{error}");
}

#[tokio::test]
async fn a_data_directory_is_checked_and_stays_as_it_was() {
    let host = TestHost::serving(&["probe"]).start();
    host.get("probe/one/count?count=5").await.text().await.unwrap();
    let stream = host.stream("probe/two/hang").await;
    let check = |host: &TestHost| bureau(&["check", "--data", path(&host.data())]);
    let (status, error) = refused(check(host.how()));
    assert_eq!(status, 1);
    let expected = format!("{} is in use by another host\n", host.how().journal().display());
    assert!(error.ends_with(&expected), "{error}");

    let host = host.kill();
    drop(stream);
    let files = || {
        let all = std::fs::read_dir(host.data()).unwrap().map(|entry| entry.unwrap().path());
        let mut all: Vec<_> = all.filter(|path| path.is_file()).collect();
        all.sort();
        all.into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = files();
    assert!(said(check(&host)).ends_with("\nconsistent   yes\n"));
    let mut as_json = check(&host);
    as_json.arg("--json");
    let report: Value = serde_json::from_str(&said(as_json)).unwrap();
    assert_eq!((&report["consistent"], &report["violations"]), (&json!(true), &json!([])));
    let counts = &report["counts"];
    let named = ["runs", "unfinished", "events", "instances", "documents", "deployments"];
    assert_eq!(named.map(|name| counts[name].as_u64().unwrap()), [2, 1, 6, 2, 1, 1]);
    assert!(counts["log_records"].as_u64() > Some(0), "{report}");
    assert!(files() == before, "a file was changed");

    let modules = host.data().join("modules");
    let module = std::fs::read_dir(&modules).unwrap().next().unwrap().unwrap().path();
    std::fs::write(&module, "another").unwrap();
    let digest = module.file_stem().unwrap().to_str().unwrap();
    let wrong = format!("deployments probe 1: the file of module {digest} has other bytes\n");
    let Output { status, stdout, stderr } = check(&host).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(1), "{stdout}{stderr}");
    assert!(stdout.ends_with(&format!("{wrong}consistent   no\n")), "{stdout}");
    let last_words = format!("bureau: {} is not consistent: ", host.data().display());
    assert!(stderr.starts_with(&last_words), "{stderr}");
}
