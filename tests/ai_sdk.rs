//! The AI SDK's own client against the `chat` example: `tests/ai-sdk/client.mjs` sends, loses its connection, resumes and
//! stops, with the packages that are pinned beside it.
//!
//! It needs `node`, and `npm ci --prefix tests/ai-sdk`; without them the tests say that they did not run. `.ci/run` installs
//! the packages.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::oneshot;

use crate::support::provider::{End, Provider, Script, chunk, words};
use crate::support::{PATIENCE, TestHost};

/// The client that is current, and the first of its protocol, which refuses a part that has a member too many.
const CURRENT: &str = "ai";
const STRICT: &str = "ai-5";

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("tests/ai-sdk")
}

/// Whether the client can run here.
fn installed() -> bool {
    let node = std::process::Command::new("node").arg("--version").output().is_ok();
    let installed = node && directory().join("node_modules").exists();
    if !installed {
        println!("not run: it needs node, and `npm ci --prefix tests/ai-sdk`");
    }
    installed
}

/// A client that runs.
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(package: &str, host: &str, scenario: &str) -> Self {
        let mut node = Command::new("node");
        node.arg("client.mjs").args([package, host, scenario]).current_dir(directory());
        let mut child = node.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let stdout = child.stdout.take().expect("it was asked for");
        Self { child, lines: BufReader::new(stdout).lines() }
    }

    async fn line(&mut self) -> Option<String> {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await;
        line.expect("it prints a line, or ends").unwrap()
    }

    /// The next document that it prints.
    async fn next(&mut self) -> Value {
        let line = self.line().await.expect("it goes on");
        serde_json::from_str(&line).unwrap()
    }

    /// The rest of what it prints.
    async fn rest(mut self) -> Vec<Value> {
        let mut rest = Vec::new();
        while let Some(line) = self.line().await {
            rest.push(serde_json::from_str(&line).unwrap());
        }
        assert!(self.child.wait().await.unwrap().success());
        rest
    }
}

/// What the client printed, and what the provider was asked.
async fn scenario(
    package: &str,
    scenario: &str,
    scripts: impl IntoIterator<Item = Script>,
) -> (Vec<Value>, Vec<Value>) {
    let provider = Provider::start(scripts).await;
    let host = TestHost::serving(&["chat"]).config(&provider.config()).start();
    let printed = Client::start(package, &host.url, scenario).rest().await;
    (printed, provider.asked())
}

fn word(word: &str) -> Vec<u8> {
    chunk(json!({ "content": word }), None).into_bytes()
}

/// The parts of a message of one step that says this.
fn said(text: &str, state: &str) -> Value {
    json!([{ "type": "step-start" }, { "type": "text", "text": text, "state": state }])
}

#[tokio::test]
async fn a_message_is_assembled_and_goes_back_with_the_next() {
    if !installed() {
        return;
    }
    let call = |index, id, name, arguments| {
        let function = json!({ "name": name, "arguments": arguments });
        let call = json!({ "index": index, "id": id, "function": function });
        chunk(json!({ "tool_calls": [call] }), None)
    };
    let calls = chunk(json!({ "reasoning_content": "Hm." }), None)
        + &chunk(json!({ "content": "Let me see. " }), None)
        + &call(0, "a", "time", "{}")
        + &call(1, "b", "roll_dice", "{\"sides\":1}")
        + &chunk(json!({}), Some("tool_calls"));
    let answers = [calls, words(&["It is ", "late."]), words(&["You are welcome."])];
    for package in [CURRENT, STRICT] {
        let scripts = answers.clone().map(|wire| Script::Stream(vec![wire.into()], End::Whole));
        let (mut printed, asked) = scenario(package, "send", scripts).await;
        let first = &mut printed[0];
        assert_eq!((&first["status"], &first["error"]), (&json!("ready"), &Value::Null));
        assert_eq!(
            first["parts"],
            json!([
                "start",
                "start-step",
                "reasoning-start",
                "reasoning-delta",
                "reasoning-end",
                "text-start",
                "text-delta",
                "text-end",
                "tool-input-available",
                "tool-input-available",
                "tool-output-available",
                "tool-output-error",
                "finish-step",
                "start-step",
                "text-start",
                "text-delta",
                "text-delta",
                "text-end",
                "finish-step",
                "finish",
            ])
        );
        let message = &mut first["message"];
        let time = message["parts"][3]["output"].take();
        assert!(time.is_u64(), "{time}");
        // The current client keeps the block's id.
        message["parts"][1].as_object_mut().unwrap().remove("id");
        assert_eq!(
            message["parts"],
            json!([
                { "type": "step-start" },
                { "type": "reasoning", "text": "Hm.", "state": "done" },
                { "type": "text", "text": "Let me see. ", "state": "done" },
                { "type": "tool-time", "toolCallId": "a", "state": "output-available", "input": {}, "output": null },
                {
                    "type": "tool-roll_dice", "toolCallId": "b", "state": "output-error", "input": { "sides": 1 },
                    "errorText": "a die has at least 2 sides",
                },
                { "type": "step-start" },
                { "type": "text", "text": "It is late.", "state": "done" },
            ])
        );
        let usage = json!({ "inputTokens": 1, "outputTokens": 2, "totalTokens": 3 });
        assert_eq!(message["metadata"], json!({ "finishReason": "stop", "usage": usage }));
        assert_eq!(printed[1]["message"]["parts"], said("You are welcome.", "done"));

        let [_, told, again] = &*asked else { panic!("{asked:#?}") };
        let mut conversation = told["messages"].as_array().unwrap().clone();
        conversation.push(json!({ "role": "assistant", "content": "It is late." }));
        conversation.push(json!({ "role": "user", "content": "Thanks." }));
        assert_eq!(again["messages"], json!(conversation), "nothing of the message is lost");
    }
}

#[tokio::test]
async fn a_connection_that_is_cut_is_resumed_from_the_start_of_the_message() {
    if !installed() {
        return;
    }
    let (release, held) = oneshot::channel();
    let rest = words(&["two."]).into_bytes();
    let provider =
        Provider::start([Script::Stream(vec![word("One, ")], End::Held(held, rest))]).await;
    let host = TestHost::serving(&["chat"]).config(&provider.config()).start();
    let mut client = Client::start(CURRENT, &host.url, "cut");
    let cut = client.next().await;
    assert_eq!((&cut["status"], &cut["error"]), (&json!("error"), &json!("network error")));
    assert_eq!(cut["message"]["parts"], said("One, ", "streaming"));
    assert_eq!(client.next().await, "resumed");
    release.send(()).expect("the run goes on");
    let resumed = client.rest().await;
    let [chat, reloaded, after] = &*resumed else { panic!("{resumed:#?}") };
    for resumed in [chat, reloaded] {
        assert_eq!((&resumed["status"], &resumed["error"]), (&json!("ready"), &Value::Null));
        assert_eq!(resumed["message"]["id"], cut["message"]["id"]);
        assert_eq!(resumed["message"]["parts"], said("One, two.", "done"));
        assert_eq!(resumed["messages"], 2);
    }
    assert_eq!(after, &Value::Null, "it is over: there is nothing to come back to");
    assert_eq!(provider.asked().len(), 1);
}

#[tokio::test]
async fn a_run_that_is_stopped_ends_the_message_with_an_abort() {
    if !installed() {
        return;
    }
    let script = Script::Stream(vec![word("One, ")], End::Stall);
    let (printed, _) = scenario(CURRENT, "stop", [script]).await;
    let [chat] = &*printed else { panic!("{printed:#?}") };
    assert_eq!((&chat["status"], &chat["error"]), (&json!("ready"), &Value::Null));
    let parts = ["start", "start-step", "text-start", "text-delta", "text-end", "abort"];
    assert_eq!(chat["parts"], json!(parts));
    assert_eq!(chat["message"]["parts"], said("One, ", "done"));
}

#[tokio::test]
async fn a_provider_that_fails_in_the_middle_is_an_error_of_the_chat() {
    if !installed() {
        return;
    }
    let script = Script::Stream(vec![word("One, ")], End::Cut);
    let (printed, _) = scenario(CURRENT, "fail", [script]).await;
    let [chat] = &*printed else { panic!("{printed:#?}") };
    let error = json!("the agent returned an error");
    assert_eq!((&chat["status"], &chat["error"]), (&json!("error"), &error));
    let parts = ["start", "start-step", "text-start", "text-delta", "text-end", "error"];
    assert_eq!(chat["parts"], json!(parts));
    assert_eq!(chat["message"]["parts"], said("One, ", "done"));
}

#[test]
fn the_client_is_configured_as_the_readme_says() {
    let readme = std::fs::read_to_string(directory().join("../../README.md")).unwrap();
    let client = std::fs::read_to_string(directory().join("client.mjs")).unwrap();
    let lines: Vec<_> =
        client.lines().map(str::trim).filter(|line| line.starts_with("prepare")).collect();
    assert_eq!(lines.len(), 2);
    assert!(lines.iter().all(|line| readme.contains(line)), "{lines:#?}");
}
