//! What an instance keeps is taken over by another build of its agent as one, once, or not at all.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Started, TestHost, data, header, module, problem};

fn digest(module: &[u8]) -> String {
    bureau::id::Digest::of(module).to_string()
}

/// Has an instance of the old module keep this, and a note beside it.
async fn keep(host: &Started, instance: &str, state: Value) {
    let put = |path: &str| host.request(Method::PUT, &format!("probe/{instance}/{path}"));
    assert_eq!(put("state").json(&state).send().await.unwrap().status(), StatusCode::OK);
    let note = put("storage?key=note").body("a note").send().await.unwrap();
    assert_eq!(note.status(), StatusCode::OK);
}

async fn deploy(host: &Started, guest: &str) {
    let deployed = host.put_module("probe", module(guest)).await;
    assert!(deployed.status().is_success(), "{}", deployed.text().await.unwrap());
}

async fn roll_back(host: &Started) {
    let rolled = host.admin(Method::POST, "/v1/agents/probe/rollback").await;
    assert_eq!(rolled.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_instance_is_taken_over_once_with_its_state_and_its_storage() {
    let host = TestHost::serving(&["probe"]).start();
    keep(&host, "demo", json!({ "how": "ok" })).await;
    deploy(&host, "heir").await;
    let taken = json!({ "from": digest(&module("probe")), "was": { "how": "ok" } });
    assert_eq!(host.json("probe/demo").await, taken);
    assert_eq!(host.json("probe/demo/storage?taken/note").await, json!({ "value": "a note" }));
    assert_eq!(host.json("probe/demo").await, taken, "a second time would wrap it again");

    let host = host.kill().start();
    assert_eq!(host.json("probe/demo").await, taken, "also not after a restart");
    // One that keeps nothing has nothing to take over.
    assert_eq!(host.json("probe/fresh").await, Value::Null);
    // What the new module has written is its own.
    let set = host.request(Method::PUT, "probe/fresh").json(&json!(1)).send().await.unwrap();
    assert_eq!(set.status(), StatusCode::OK);
    let host = host.kill().start();
    assert_eq!(host.json("probe/fresh").await, 1);

    // Back, where nothing migrates, and forth again: the old module has not written.
    roll_back(&host).await;
    assert_eq!(host.json("probe/demo/state").await, taken);
    roll_back(&host).await;
    assert_eq!(host.json("probe/demo").await, taken);
}

#[tokio::test]
async fn a_migration_may_leave_no_state() {
    let host = TestHost::serving(&["probe"]).start();
    keep(&host, "demo", json!({ "how": "forget" })).await;
    deploy(&host, "heir").await;
    assert_eq!(host.json("probe/demo").await, Value::Null);
    let host = host.kill().start();
    assert_eq!(host.json("probe/demo").await, Value::Null);
}

#[tokio::test]
async fn a_migration_that_fails_or_traps_changes_nothing_and_rolling_back_works() {
    let host = TestHost::serving(&["probe"]).start();
    for how in ["fail", "trap"] {
        keep(&host, how, json!({ "how": how })).await;
    }
    deploy(&host, "heir").await;
    for how in ["fail", "trap", "fail"] {
        let refused = host.get(&format!("probe/{how}")).await;
        assert_eq!(problem(refused).await, "503 migration-failed agent");
    }
    assert!(
        host.log().iter().any(|line| line.contains("it was asked to fail")),
        "the log says why"
    );
    assert_eq!(host.json("probe/fresh").await, Value::Null, "others are served");
    let host = host.kill().start();
    assert_eq!(problem(host.get("probe/fail").await).await, "503 migration-failed agent");
    roll_back(&host).await;
    for how in ["fail", "trap"] {
        assert_eq!(host.json(&format!("probe/{how}/state")).await, json!({ "how": how }));
        let note = host.json(&format!("probe/{how}/storage?key=taken/note")).await;
        assert_eq!(note, json!({ "value": null }), "what it had stored is gone with it");
    }
}

#[tokio::test]
async fn a_migration_that_takes_too_long_is_given_up() {
    let host = TestHost::serving(&["probe"]).config("[instances]\nmigration = \"50ms\"").start();
    keep(&host, "demo", json!({ "how": "wait" })).await;
    deploy(&host, "heir").await;
    assert_eq!(problem(host.get("probe/demo").await).await, "503 migration-failed agent");
    roll_back(&host).await;
    assert_eq!(host.json("probe/demo/state").await, json!({ "how": "wait" }));
}

#[tokio::test]
async fn a_host_killed_in_a_migration_migrates_anew() {
    let host = TestHost::serving(&["probe"]).start();
    keep(&host, "demo", json!({ "how": "wait" })).await;
    deploy(&host, "heir").await;
    let cut_off = tokio::spawn(host.request(Method::GET, "probe/demo").send());
    host.logged(|line| line.contains("waiting to take over")).await;
    let how = host.kill();
    assert!(cut_off.await.unwrap().is_err());

    let host = how.config("[agents.probe.config]\ngo = \"yes\"").start();
    let taken = json!({ "from": digest(&module("probe")), "was": { "how": "wait" } });
    assert_eq!(host.json("probe/demo").await, taken);
    assert_eq!(host.json("probe/demo/storage?taken/note").await, json!({ "value": "a note" }));
}

#[tokio::test]
async fn a_run_that_goes_on_on_the_old_module_cannot_undo_a_migration() {
    let host = TestHost::serving(&["probe"]).start();
    for instance in ["migrated", "failing"] {
        let how = if instance == "failing" { "fail" } else { "ok" };
        keep(&host, instance, json!({ "how": how })).await;
    }
    let mut old = Vec::new();
    for instance in ["migrated", "failing"] {
        let mut stream = host.stream(&format!("probe/{instance}/set-when-cancelled")).await;
        assert_eq!(stream.next().await.unwrap().data, "waiting");
        old.push(stream);
    }
    deploy(&host, "heir").await;
    let taken = json!({ "from": digest(&module("probe")), "was": { "how": "ok" } });
    assert_eq!(host.json("probe/migrated").await, taken);
    assert_eq!(problem(host.get("probe/failing").await).await, "503 migration-failed agent");
    for stream in &old {
        let run = header(&stream.headers, "bureau-run");
        host.admin(Method::POST, &format!("/v1/runs/{run}/cancel")).await;
    }
    let [mut migrated, mut failing] = old.try_into().ok().unwrap();
    let refused = migrated.next().await.unwrap().data;
    assert!(refused.contains("a newer build of the agent has taken over"), "{refused}");
    assert_eq!(failing.next().await.unwrap().data, "set", "nobody has taken over");
    assert_eq!((migrated.next().await, failing.next().await), (None, None));
    assert_eq!(host.json("probe/migrated").await, taken);
    let taken = json!({ "from": digest(&module("probe")), "was": "set by the old module" });
    assert_eq!(host.json("probe/failing").await, taken, "what it wrote is taken over");
}

#[tokio::test]
async fn an_interrupted_run_waits_while_its_instance_cannot_be_migrated() {
    let host = TestHost::serving(&[]).config("[agents.probe.config]\nhow = \"fail\"").start();
    deploy(&host, "phoenix").await;
    let mut begun = host.stream("probe/demo/steps?total=30&delay=20").await;
    let run = header(&begun.headers, "bureau-run").to_owned();
    begun.take(3).await;
    deploy(&host, "heir").await;
    let host = host.kill().start();
    host.logged(|line| line.contains("could not be migrated")).await;
    roll_back(&host).await;
    let events = host.resume("probe/demo", &format!("{run}-0")).await.rest().await;
    let steps = data(&events).into_iter().filter(|step| step.starts_with("{\"n\":"));
    let expected: Vec<_> = (1..=30).map(|n| format!("{{\"n\":{n}}}")).collect();
    assert_eq!(steps.collect::<Vec<_>>(), expected);
    assert_eq!(events.iter().filter(|event| event.name == "resumed").count(), 1);
}
