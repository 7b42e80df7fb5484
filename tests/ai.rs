//! An agent that asks a model: whatever the provider does, the run ends as it is documented, and nothing is emitted twice.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::provider::{End, Provider, Script, chunk, words};
use crate::support::{Event, Started, Stream, TestHost, header};

fn host(provider: &Provider) -> Started {
    TestHost::serving(&["chat"]).config(&provider.config()).start()
}

async fn ask(host: &Started, prompt: &str) -> Stream {
    let request = host.request(Method::POST, "chat/demo").json(&json!({ "prompt": prompt }));
    Stream::open(request.header("accept", "text/event-stream")).await
}

async fn answer(host: &Started, prompt: &str) -> Vec<Event> {
    ask(host, prompt).await.rest().await
}

/// Events as `name data`.
fn told(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{} {}", event.name, event.data)).collect()
}

fn whole(wire: &str) -> Script {
    Script::Stream(vec![wire.as_bytes().to_vec()], End::Whole)
}

const FINISH: &str =
    r#"finish {"finishReason":"stop","usage":{"inputTokens":1,"outputTokens":2,"totalTokens":3}}"#;

/// The code of the event `failed` that ends these, and those before it.
fn failed(events: &[Event]) -> (Vec<String>, Value) {
    let (last, before) = events.split_last().expect("there is an end");
    assert_eq!(last.name, "failed", "{events:?}");
    (told(before), serde_json::from_str::<Value>(&last.data).unwrap()["code"].clone())
}

#[tokio::test]
async fn wherever_the_provider_splits_its_answer_each_word_comes_once() {
    let wire = words(&["Gr\u{fc}\u{df}e ", "\u{1f980}"]);
    let bytes = wire.as_bytes();
    let mut scripts: Vec<_> = (1..bytes.len())
        .map(|at| Script::Stream(vec![bytes[..at].to_vec(), bytes[at..].to_vec()], End::Whole))
        .collect();
    scripts.push(Script::Stream(bytes.iter().map(|byte| vec![*byte]).collect(), End::Whole));
    let count = scripts.len();
    let provider = Provider::start(scripts).await;
    let host = host(&provider);
    for n in 0..count {
        let path = format!("chat/of-{n}");
        let request = host.request(Method::POST, &path).json(&json!({ "prompt": "hi" }));
        let events = Stream::open(request.header("accept", "text/event-stream")).await.rest().await;
        let expected = ["text-delta Gr\u{fc}\u{df}e ", "text-delta \u{1f980}", FINISH];
        assert_eq!(told(&events), expected, "split {n}");
    }
}

#[tokio::test]
async fn what_was_said_is_kept_and_told_the_next_time() {
    let provider = Provider::start([whole(&words(&["One."])), whole(&words(&["Two."]))]).await;
    let host = host(&provider);
    answer(&host, "first").await;
    answer(&host, "second").await;
    let asked = provider.asked();
    let said = json!([
        { "role": "system", "content": "You are a helpful assistant." },
        { "role": "user", "content": "first" },
        { "role": "assistant", "content": "One." },
        { "role": "user", "content": "second" },
    ]);
    assert_eq!((&asked[1]["messages"], &asked[1]["model"]), (&said, &json!("small")));
    let kept = host.json("chat/demo").await;
    assert_eq!(kept["messages"].as_array().unwrap().len(), 4);
}

#[tokio::test]
async fn tools_are_called_and_their_results_told() {
    let call = |index, id, name, arguments| {
        let function = json!({ "name": name, "arguments": arguments });
        chunk(json!({ "tool_calls": [{ "index": index, "id": id, "function": function }] }), None)
    };
    let wire = call(0, "a", "time", "")
        + &call(1, "b", "roll_dice", "{\"sid")
        + &chunk(
            json!({ "tool_calls": [{ "index": 1, "function": { "arguments": "es\":1}" } }] }),
            None,
        )
        + &call(2, "c", "fly", "{}")
        + &chunk(json!({}), Some("tool_calls"));
    let provider = Provider::start([whole(&wire), whole(&words(&["Done."]))]).await;
    let events = told(&answer(&host(&provider), "what time is it?").await);
    assert_eq!(
        events[..3],
        [
            r#"tool-call {"input":{},"toolCallId":"a","toolName":"time"}"#,
            r#"tool-call {"input":{"sides":1},"toolCallId":"b","toolName":"roll_dice"}"#,
            r#"tool-call {"input":{},"toolCallId":"c","toolName":"fly"}"#,
        ]
    );
    assert!(events[3].starts_with(r#"tool-result {"output":1"#), "{events:?}");
    assert_eq!(
        events[4..],
        [
            r#"tool-result {"errorText":"a die has at least 2 sides","toolCallId":"b"}"#,
            r#"tool-result {"errorText":"there is no tool \"fly\"","toolCallId":"c"}"#,
            "step {}",
            "text-delta Done.",
            FINISH,
        ]
    );
    let messages = &provider.asked()[1]["messages"];
    assert_eq!(messages[2]["tool_calls"][1]["function"]["arguments"], "{\"sides\":1}");
    let error = json!({ "role": "tool", "tool_call_id": "b", "content": "Error: a die has at least 2 sides" });
    assert_eq!(messages[4], error);
}

#[tokio::test]
async fn what_fails_before_the_answer_is_tried_again_and_what_would_fail_again_is_not() {
    let refuse = |status, fields| Script::Refuse(status, fields, "{}".into());
    let provider = Provider::start([
        refuse(429, "retry-after: 0\r\n"),
        refuse(503, "retry-after: Sun, 06 Nov 1994 08:49:37 GMT\r\n"),
        whole(&words(&["Yes."])),
        Script::Close,
        whole(&words(&["Again."])),
        refuse(401, ""),
        refuse(500, ""),
        refuse(500, ""),
        refuse(500, ""),
        refuse(429, "retry-after: 3600\r\n"),
    ])
    .await;
    let host = host(&provider);
    assert_eq!(told(&answer(&host, "hi").await), ["text-delta Yes.", FINISH]);
    assert_eq!(told(&answer(&host, "hi").await), ["text-delta Again.", FINISH]);
    for requests in [6, 9, 10] {
        let (before, code) = failed(&answer(&host, "hi").await);
        assert_eq!((before.len(), code), (0, json!("agent-failed")));
        assert_eq!(provider.asked().len(), requests);
    }
    host.logged(|line| line.contains("the model's provider answers 401")).await;
}

#[tokio::test]
async fn what_fails_in_the_middle_ends_the_run_and_is_not_tried_again() {
    let word = chunk(json!({ "content": "One" }), None).into_bytes();
    let error = b"data: {\"error\": {\"message\": \"it fell over\"}}\n\n".to_vec();
    let provider = Provider::start([
        Script::Stream(vec![word.clone(), error], End::Whole),
        Script::Stream(vec![word.clone()], End::Cut),
        Script::Stream(vec![word.clone()], End::Whole),
        Script::Stream(vec![word, b"data: nonsense\n\n".to_vec()], End::Whole),
    ])
    .await;
    let host = host(&provider);
    for (n, why) in ["it fell over", "broke off", "broke off", "protocol"].iter().enumerate() {
        let (before, code) = failed(&answer(&host, "hi").await);
        assert_eq!((before, code), (vec!["text-delta One".to_owned()], json!("agent-failed")));
        host.logged(|line| line.contains(why)).await;
        assert_eq!(provider.asked().len(), n + 1);
    }
    assert_eq!(host.json("chat/demo").await, json!({ "messages": [] }), "nothing is kept of them");
}

#[tokio::test]
async fn a_run_that_is_cancelled_drops_the_connection_and_says_nothing_more() {
    let word = chunk(json!({ "content": "One" }), None).into_bytes();
    let mut provider = Provider::start([Script::Stream(vec![word], End::Stall)]).await;
    let host = host(&provider);
    let mut stream = ask(&host, "hi").await;
    assert_eq!(stream.next().await.unwrap().data, "One");
    let run = header(&stream.headers, "bureau-run").to_owned();
    let cancelled = host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    assert_eq!(cancelled.status(), StatusCode::ACCEPTED);
    provider.left.recv().await.expect("the provider sees its client leave");
    let (before, code) = failed(&stream.rest().await);
    assert_eq!((before.len(), code), (0, json!("cancelled")));
    assert_eq!(host.operator_sees(&format!("/v1/runs/{run}")).await["state"], "cancelled");
}

#[tokio::test]
async fn the_messages_of_a_front_end_are_the_conversation() {
    let provider = Provider::start([whole(&words(&["Hello."]))]).await;
    let host = host(&provider);
    let message =
        json!({ "id": "m1", "role": "user", "parts": [{ "type": "text", "text": "hi" }] });
    let body = json!({ "id": "demo", "messages": [message], "trigger": "submit-message" });
    let request = host.request(Method::POST, "chat/demo").json(&body);
    let events = Stream::open(request.header("accept", "text/event-stream")).await.rest().await;
    assert_eq!(told(&events), ["text-delta Hello.", FINISH]);
    assert_eq!(provider.asked()[0]["messages"][1], json!({ "role": "user", "content": "hi" }));
    let refused = host.post("chat/demo", &json!({ "question": "hi" })).await;
    assert_eq!(refused.status(), StatusCode::BAD_REQUEST);
}
