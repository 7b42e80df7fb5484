//! What an agent may take: each limit ends what went over it with a problem that says which and how much, on record if it streamed,
//! touches nobody else, and leaves nothing behind in the host.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Event, Started, Stream, TestHost, data, header, module, problem};

/// The problem of an agent, as the event `failed` has it, or a response of this status.
fn document(status: Option<u16>, [title, detail, code]: [&str; 3]) -> String {
    let status = status.map_or(String::new(), |status| format!(r#""status":{status},"#));
    format!(
        r#"{{"type":"about:blank","title":"{title}",{status}"detail":"{detail}","code":"{code}","source":"agent"}}"#
    )
}

const EVENTS: [&str; 3] =
    ["Run events limit", "the run emitted more than 5 events", "run-events-limit"];
const BYTES: [&str; 3] =
    ["Run bytes limit", "the run emitted more than 100 bytes of events", "run-bytes-limit"];
const TIME: [&str; 3] =
    ["Run time limit", "the run went on for more than 100 ms", "run-time-limit"];
const COMPUTING: [&str; 3] =
    ["Run CPU limit", "the run computed for more than 50 ms", "run-cpu-limit"];
const TRAPPED: [&str; 3] = ["Agent trapped", "the agent crashed", "agent-trapped"];

/// A glutton for each limit of a run, whose calls have this long to return, and a neighbour.
fn gluttons(grace: &str) -> TestHost {
    let limits = [
        ("events", "run_events = 5"),
        ("bytes", "run_bytes = 100\nevent_bytes = 100"),
        ("time", "run_time = '100ms'"),
        ("computing", "run_cpu = '50ms'"),
        ("handles", "handles = 500"),
    ];
    let host = TestHost::serving(&["probe"])
        .config(&format!("[instances]\nidle = '20ms'\ncpu = '1h'\ncancel_grace = '{grace}'"));
    limits.into_iter().fold(host, |host, (agent, limits)| {
        let limits = format!("[agents.{agent}.limits]\n{limits}");
        host.with_file(agent, &module("glutton")).config(&limits)
    })
}

/// The path below `/agents/` of a run that goes over a limit, how many events it emits, and the problem that it ends with.
const RUNS: [(&str, usize, [&str; 3]); 4] = [
    ("events/demo/emit", 5, EVENTS),
    ("bytes/demo/emit?size=30", 3, BYTES),
    ("time/demo/open", 0, TIME),
    ("computing/demo/compute", 0, COMPUTING),
];

/// What the host holds.
async fn held(host: &Started) -> [u64; 5] {
    let metrics = host.metrics().await;
    ["live_instances", "live_runs", "calls", "buffered_bytes", "sending_bytes"]
        .map(|name| metrics[name])
}

/// Waits until the host holds this again.
async fn holds_again(host: &Started, before: [u64; 5]) {
    let mut now = held(host).await;
    let again = async {
        while now != before {
            // Polling another process's figures: there is nothing to be woken by.
            tokio::time::sleep(Duration::from_millis(5)).await;
            now = held(host).await;
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    assert!(again.is_ok(), "it held {before:?} and holds {now:?}: {:#?}", host.log());
}

/// A stream of another agent that goes on meanwhile.
async fn neighbour(host: &Started) -> Stream {
    let mut stream = host.stream("probe/neighbour/emit-held?count=1").await;
    assert_eq!(stream.next().await.unwrap().data, "1");
    stream
}

async fn is_complete(host: &Started, neighbour: Stream) {
    assert_eq!(host.json("probe/neighbour/release").await["released"], 1);
    assert_eq!(data(&neighbour.rest().await), ["2"]);
}

fn run_of(stream: &Stream) -> String {
    header(&stream.headers, "bureau-run").to_owned()
}

/// Reads a run to its end, which is this problem after so many events, and returns its id and all of it.
async fn fails(
    host: &Started,
    path: &str,
    emitted: usize,
    what: [&str; 3],
) -> (String, Vec<Event>) {
    let stream = host.stream(path).await;
    let run = run_of(&stream);
    let events = stream.rest().await;
    assert_eq!(events.len(), emitted + 1, "{path}: {events:?}");
    let last = &events[emitted];
    assert_eq!((&*last.name, &*last.data), ("failed", &*document(None, what)), "{path}");
    assert_eq!(last.id, format!("{run}-{}", emitted + 1));
    let record = host.operator_sees(&format!("/v1/runs/{run}")).await;
    assert_eq!((&record["state"], &record["code"]), (&json!("failed"), &json!(what[2])), "{path}");
    (run, events)
}

#[tokio::test]
async fn a_run_that_goes_over_a_limit_ends_with_it_for_good_and_its_call_returns() {
    let host = gluttons("1h").start();
    let neighbour = neighbour(&host).await;
    let before = held(&host).await;
    let mut ended = Vec::new();
    for (path, emitted, what) in RUNS {
        ended.push((path, fails(&host, path, emitted, what).await));
        holds_again(&host, before).await;
    }
    assert_eq!(host.metrics().await["stopped_instances_total"], 0, "each returned as it was told");
    is_complete(&host, neighbour).await;

    let host = host.kill().start();
    for (path, (run, events)) in ended {
        let instance = path.rsplit_once('/').unwrap().0;
        let again = host.resume(instance, &format!("{run}-0")).await.rest().await;
        assert_eq!(again, events, "{path}");
    }
}

#[tokio::test]
async fn a_call_that_does_not_return_is_stopped_with_its_instance() {
    let host = gluttons("20ms").start();
    let neighbour = neighbour(&host).await;
    let before = held(&host).await;
    let stubborn = |path: &str| match path.contains('?') {
        true => format!("{path}&stubborn=true"),
        false => format!("{path}?stubborn=true"),
    };
    let spinning = ("computing/demo/spin", 0, COMPUTING);
    for (stopped, (path, emitted, what)) in (1..).zip(RUNS.into_iter().chain([spinning])) {
        fails(&host, &stubborn(path), emitted, what).await;
        host.reaches("stopped_instances_total", |total| total == stopped).await;
        holds_again(&host, before).await;
    }

    let beside = host.stream("events/demo/open").await;
    fails(&host, &stubborn("events/demo/emit"), 5, EVENTS).await;
    let ended = beside.rest().await;
    let ended: Value = serde_json::from_str(&ended.last().unwrap().data).unwrap();
    assert_eq!(ended["code"], "interrupted", "it shared the instance");
    holds_again(&host, before).await;
    is_complete(&host, neighbour).await;
}

#[tokio::test]
async fn a_run_that_has_not_answered_is_answered_with_the_limit() {
    let host = gluttons("20ms")
        .config(
            "[agents.tight.limits]\ncpu = '100ms'\nmemory_bytes = '16 MiB'\nturn_bytes = '64 KiB'",
        )
        .config("event_bytes = 1024\nstate_bytes = 1024\nvalue_bytes = 1024")
        .with_file("tight", &module("probe"))
        .start();
    let neighbour = neighbour(&host).await;
    let before = held(&host).await;
    let cpu = ["CPU limit", "the agent ran for 100 ms without returning to the host", "cpu-limit"];
    let memory =
        ["Memory limit", "the agent needs more than 16777216 bytes of memory", "memory-limit"];
    let turn = [
        "Turn limit",
        "the agent wrote more than 65536 bytes without waiting for anything",
        "turn-limit",
    ];
    let handles = [
        "Handle limit",
        "the agent holds more than 500 calls, streams and runs at once",
        "handle-limit",
    ];
    for (path, what) in [
        ("handles/demo/handles?count=1000", handles),
        ("time/demo/wait", TIME),
        ("time/demo/wait?stubborn=true", TIME),
        // A trap takes the turn back, and with it the stream, but not what it came from.
        ("events/demo/emit-and-trap", EVENTS),
        ("tight/demo/spin", cpu),
        ("tight/demo/eat-memory", memory),
        ("tight/demo/fill?count=1000&size=1000", turn),
        ("tight/demo/trap", TRAPPED),
    ] {
        let answer = host.get(path).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{path}");
        assert_eq!(answer.text().await.unwrap(), document(Some(502), what), "{path}");
        holds_again(&host, before).await;
    }
    // A request that waited for an instance that failed is counted as one of the next.
    let spinning = host.stream("tight/busy/spin-after-emit").await;
    // From here on its instance begins no other.
    host.logged(|line| line.contains("busy") && line.contains("spinning")).await;
    assert_eq!(host.json("tight/busy/memory").await["calls"], 1);
    assert_eq!(spinning.rest().await[1].data, document(None, cpu));
    holds_again(&host, before).await;

    let body = host.get("time/demo/chunks").await;
    assert_eq!(body.status(), StatusCode::OK);
    assert!(body.text().await.is_err(), "a body that was cut off is not whole");
    holds_again(&host, before).await;
    is_complete(&host, neighbour).await;
}

#[tokio::test]
async fn a_run_that_is_resumed_goes_on_counting() {
    let host = TestHost::serving(&["phoenix"]).config("instances.run_events = 5").start();
    let mut stream = host.stream("phoenix/demo/steps?total=200&delay=5").await;
    let run = run_of(&stream);
    stream.take(3).await;
    let host = host.kill().start();
    let events = host.resume("phoenix/demo", &format!("{run}-0")).await.rest().await;
    assert_eq!(events.len(), 6, "{events:?}");
    assert_eq!((&*events[5].name, &*events[5].data), ("failed", &*document(None, EVENTS)));
}

// Agents.

#[tokio::test]
async fn an_agent_has_so_many_live_instances_and_its_idle_ones_make_room() {
    let limits = "[agents.probe.limits]\nlive = 2";
    let other = module("probe");
    let host = TestHost::serving(&["probe"]).with_file("other", &other).config(limits).start();
    let calls = async |path: &str| host.json(&format!("{path}/memory")).await["calls"].clone();
    assert_eq!(calls("probe/idle").await, 1);
    let one = neighbour(&host).await;
    assert_eq!(calls("probe/two").await, 1, "the idle one made room");
    let before = held(&host).await;
    let mut two = host.stream("probe/two/cancellable").await;
    two.next().await.unwrap();
    let refused = host.get("probe/three/reply").await;
    assert_eq!(refused.headers()["retry-after"], "2");
    let document = refused.json::<Value>().await.unwrap();
    assert_eq!(
        (&document["status"], &document["code"], &document["detail"]),
        (
            &json!(503),
            &json!("agent-full"),
            &json!("the agent keeps no more than 2 instances live, and all are in use")
        )
    );
    assert_eq!(calls("other/one").await, 1, "another agent is served");
    assert_eq!(calls("probe/two").await, 2, "and those that live are");
    host.admin(Method::POST, &format!("/v1/runs/{}/cancel", run_of(&two))).await;
    drop(two.rest().await);
    assert_eq!(calls("probe/three").await, 1);
    assert_eq!(calls("probe/idle").await, 1, "its memory is gone");
    assert_eq!(held(&host).await[1..3], before[1..3], "runs and calls");
    is_complete(&host, one).await;
}

#[tokio::test]
async fn an_agent_has_its_own_idle_time() {
    let config = "[instances]\nidle = '1h'\n[agents.short.limits]\nidle = '20ms'";
    let host = TestHost::serving(&["probe"]).with_file("short", &module("probe"));
    let host = host.config(config).start();
    let calls = async |path: &str| host.json(&format!("{path}/memory")).await["calls"].clone();
    assert_eq!((calls("probe/demo").await, calls("short/demo").await), (json!(1), json!(1)));
    host.reaches("live_instances", |live| live == 1).await;
    assert_eq!((calls("probe/demo").await, calls("short/demo").await), (json!(2), json!(1)));
}

#[tokio::test]
async fn an_agent_has_so_many_runs_at_once_in_all_of_its_instances() {
    let limits = "[agents.probe.limits]\nruns_per_agent = 2";
    let other = module("probe");
    let host = TestHost::serving(&["probe"]).with_file("other", &other).config(limits).start();
    let one = neighbour(&host).await;
    let before = held(&host).await;
    let two = host.stream("probe/two/cancellable").await;
    for instance in ["three", "two"] {
        let refused = host.get(&format!("probe/{instance}/reply")).await;
        assert_eq!(refused.headers()["retry-after"], "2");
        let document = refused.json::<Value>().await.unwrap();
        assert_eq!(
            (&document["status"], &document["code"], &document["detail"]),
            (
                &json!(429),
                &json!("agent-busy"),
                &json!("the agent takes no more than 2 requests at once")
            )
        );
    }
    assert_eq!(host.get("other/one/reply").await.status(), StatusCode::OK);
    host.admin(Method::POST, &format!("/v1/runs/{}/cancel", run_of(&two))).await;
    drop(two.rest().await);
    host.reaches("calls", |calls| calls == before[2]).await;
    assert_eq!(host.get("probe/three/reply").await.status(), StatusCode::OK);
    // A store that fails takes its calls with it, and they are not counted for ever.
    for _ in 0..3 {
        assert_eq!(problem(host.get("probe/three/trap").await).await, "502 agent-trapped agent");
        host.reaches("calls", |calls| calls == before[2]).await;
    }
    host.reaches("calls", |calls| calls == 1).await;
    assert_eq!(host.json("probe/neighbour/release").await["released"], 1);
    assert_eq!(data(&one.rest().await), ["2"]);
}

// What an instance keeps and says.

#[tokio::test]
async fn an_instance_stores_so_many_keys_and_bytes_and_is_told_when_it_is_full() {
    let host = TestHost::serving(&["probe"])
        .with_file("keys", &module("glutton"))
        .with_file("bytes", &module("glutton"))
        .config("[agents.keys.limits]\nstorage_keys = 5")
        .config("[agents.bytes.limits]\nstorage_bytes = 100\nvalue_bytes = 100");
    let says = async |host: &Started, path: &str| host.get(path).await.text().await.unwrap();
    let keys = "it cannot be stored: the storage of an instance takes at most 5 keys";
    // Of 14 bytes each, with their keys.
    let bytes = "it cannot be stored: the storage of an instance takes at most 100 bytes of keys and values";
    let host = host.start();
    let neighbour = neighbour(&host).await;
    assert_eq!(says(&host, "keys/demo/storage?count=3").await, "3: all");
    assert_eq!(says(&host, "keys/demo/storage").await, format!("5: {keys}"));
    assert_eq!(says(&host, "keys/other/storage").await, format!("5: {keys}"), "each has its own");
    assert_eq!(says(&host, "bytes/demo/storage").await, format!("7: {bytes}"));
    is_complete(&host, neighbour).await;

    // What is there is counted when it is first written to.
    let host = host.kill().start();
    assert_eq!(says(&host, "keys/demo/storage?from=5").await, format!("0: {keys}"));
    assert_eq!(says(&host, "keys/demo/storage?count=5&size=99").await, "5: all", "in their places");
    assert_eq!(says(&host, "bytes/demo/storage?from=7").await, format!("0: {bytes}"));
    assert_eq!(says(&host, "bytes/demo/storage?count=7&size=11").await, format!("2: {bytes}"));
    for agent in ["keys", "bytes"] {
        assert_eq!(says(&host, &format!("{agent}/demo/forget?from=0")).await, "forgotten");
    }
    assert_eq!(says(&host, "keys/demo/storage?from=5").await, format!("1: {keys}"));
    assert_eq!(says(&host, "bytes/demo/storage?from=7").await, format!("1: {bytes}"));
}

#[tokio::test]
async fn lines_beyond_so_many_a_second_are_dropped_and_counted() {
    let host = TestHost::serving(&["glutton", "probe"])
        .config("[instances]\nidle = '20ms'\n[agents.glutton.limits]\nlog_lines = 10")
        .start();
    let neighbour = neighbour(&host).await;
    assert_eq!(host.get("glutton/demo/log?count=500").await.status(), StatusCode::OK);
    // Told when the instance goes, or before that.
    let told = host.logged(|line| line.contains("lines were dropped")).await;
    assert!(told.contains("an instance logs no more than 10 in a second"), "{told}");
    let dropped = host.metrics().await["dropped_log_lines_total"];
    let logged = host.log().iter().filter(|line| line.contains("glutton says")).count() as u64;
    assert!(logged >= 10 && dropped > 0, "{logged} were logged and {dropped} dropped");
    assert_eq!(logged + dropped, 500);
    is_complete(&host, neighbour).await;
}

// What a store is made of.

#[tokio::test]
async fn an_instance_of_more_parts_than_it_may_have_does_not_start() {
    let text = |part: &str, count: usize| {
        let parts = (0..count)
            .map(|n| format!("(core module $m{n} {part}) (core instance (instantiate $m{n}))"));
        let agent = include_str!("guests/agent.wat").replace("BODY", "unreachable");
        let at = agent.rfind(')').unwrap();
        let parts = parts.collect::<String>();
        wat::parse_str(format!("{}{parts})", &agent[..at])).unwrap()
    };
    let many = [
        (
            "instances",
            "",
            "core_instances",
            [
                "Core instance limit",
                "the agent is made of more than 8 core instances",
                "core-instance-limit",
            ],
        ),
        (
            "memories",
            "(memory 1)",
            "memories",
            ["Memories limit", "the agent has more than 8 memories", "memories-limit"],
        ),
        (
            "tables",
            "(table 1 funcref)",
            "tables",
            ["Table limit", "the agent has more than 8 tables", "table-limit"],
        ),
    ];
    let mut host = TestHost::serving(&["probe"]);
    for (agent, part, ..) in many {
        host = host.with_file(agent, &text(part, 10));
    }
    // Without the limits they are deployed, and trap.
    let host = host.config("[instances]\nidle = '20ms'").start();
    for (agent, ..) in many {
        assert_eq!(
            problem(host.get(&format!("{agent}/demo")).await).await,
            "502 agent-trapped agent"
        );
    }
    let mut host = host.kill();
    for (agent, _, limit, _) in many {
        host = host.config(&format!("[agents.{agent}.limits]\n{limit} = 8"));
    }
    let host = host.start();
    let neighbour = neighbour(&host).await;
    let before = held(&host).await;
    for (agent, part, _, what) in many {
        let answer = host.get(&format!("{agent}/demo")).await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{agent}");
        assert_eq!(answer.text().await.unwrap(), document(Some(502), what));
        let refused = host.put_module(agent, text(part, 9)).await;
        assert_eq!(problem(refused).await, "422 module-not-instantiated agent", "{agent}");
        holds_again(&host, before).await;
    }
    is_complete(&host, neighbour).await;
}

/// What an agent may return against the ABI.
const VIOLATIONS: [(&str, &str); 6] = [
    ("a result that is neither", "(i32.store8 (i32.const 0) (i32.const 7)) i32.const 0"),
    ("a reply of no case", "(i32.store8 (i32.const 4) (i32.const 9)) i32.const 0"),
    ("a result that lies outside memory", "i32.const 0x7ffffff0"),
    ("a result that is not aligned", "i32.const 2"),
    (
        "text that is not UTF-8",
        "(i32.store8 (i32.const 0) (i32.const 1)) (i32.store8 (i32.const 4) (i32.const 2))
        (i32.store (i32.const 8) (i32.const 512)) (i32.store (i32.const 12) (i32.const 4)) i32.const 0",
    ),
    (
        "a list that reaches beyond memory",
        "(i32.store16 (i32.const 8) (i32.const 200)) (i32.store (i32.const 28) (i32.const 0x10001)) i32.const 0",
    ),
];

#[tokio::test]
async fn a_return_against_the_abi_ends_the_runs_of_the_instance_as_a_trap() {
    let host = TestHost::serving(&["probe"]).config("instances.idle = '20ms'").start();
    let neighbour = neighbour(&host).await;
    let before = held(&host).await;
    let deploy = async |body: &str| {
        let agent = include_str!("guests/agent.wat").replace("BODY", body);
        let deployed = host.put_module("violator", wat::parse_str(agent).unwrap()).await;
        assert!(deployed.status().is_success(), "{:?}", deployed.text().await);
    };
    deploy("(i32.store8 (i32.const 4) (i32.const 1)) i32.const 0").await;
    assert_eq!(host.get("violator/demo").await.status(), StatusCode::NO_CONTENT, "it can be right");
    for (what, body) in VIOLATIONS {
        deploy(body).await;
        let answer = host.get("violator/demo").await;
        assert_eq!(answer.status(), StatusCode::BAD_GATEWAY, "{what}");
        assert_eq!(answer.text().await.unwrap(), document(Some(502), TRAPPED), "{what}");
        let streaming = "(call $open (local.get 0)) (call $flush (local.get 0) (i32.const 1024))";
        deploy(&format!("{streaming} {body}")).await;
        let (run, events) = fails(&host, "violator/demo", 0, TRAPPED).await;
        let again = host.resume("violator/demo", &format!("{run}-0")).await.rest().await;
        assert_eq!(again, events, "{what}");
        holds_again(&host, before).await;
    }
    is_complete(&host, neighbour).await;
}
