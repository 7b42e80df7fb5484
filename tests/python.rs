//! An agent in another language: a Python component, built by componentize-py from the same `wit/`.
//!
//! It needs `componentize-py` on the path, or named by `COMPONENTIZE_PY`; without it the test says that it did
//! not run. `.ci/run` installs it.

use std::path::Path;
use std::process::Command;

use serde_json::json;

use crate::support::{TestHost, data};

#[tokio::test]
async fn an_agent_in_python_serves_and_streams() {
    let program = std::env::var("COMPONENTIZE_PY").unwrap_or_else(|_| "componentize-py".into());
    if Command::new(&program).arg("--version").output().is_err() {
        println!("not run: componentize-py is not installed (pip install componentize-py==0.25.1)");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let component = directory.path().join("python.wasm");
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut build = Command::new(program);
    build.arg("-d").arg(workspace.join("wit")).args(["-w", "agent", "componentize", "app", "-o"]);
    build.arg(&component).current_dir(workspace.join("tests/guests/python"));
    assert!(build.status().unwrap().success(), "componentize-py takes wit/ and the agent");

    let host = TestHost::serving(&[]).component(&component).start();
    let called = |calls: u64| json!({ "status": "ok", "calls": calls });
    assert_eq!(host.json("python/demo/status").await, called(1));
    assert_eq!(host.json("python/demo/status").await, called(2));
    let stream = host.stream("python/demo/stream?steps=3&delay=1").await;
    let events = stream.rest().await;
    assert_eq!(data(&events), ["Step 1 complete", "Step 2 complete", "Step 3 complete"]);
    let bad = host.get("python/demo/stream?steps=x").await;
    assert_eq!(bad.status(), 400, "a typed error crosses the language");
}
