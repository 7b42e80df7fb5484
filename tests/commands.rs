//! The commands, as they are typed.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{TestHost, data, target};

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
