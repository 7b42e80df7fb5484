//! Loading modules into a host that runs: what may serve, what serves after a restart, and what the operator is told.

use std::path::{Path, PathBuf};

use bureau::Host;
use bureau::config::{Config, Overrides};
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{
    Change, Disk, InProcess, Kind, Stream, TestHost, another_module, data, header, module, problem,
};

fn digest(module: &[u8]) -> String {
    bureau::id::Digest::of(module).to_string()
}

async fn document(answer: Response) -> Value {
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    answer.json().await.unwrap()
}

/// What a refusal says: its code, and the rest for people.
async fn refused(answer: Response) -> (String, String) {
    assert_eq!(answer.status(), StatusCode::UNPROCESSABLE_ENTITY);
    let problem: Value = answer.json().await.unwrap();
    let text = |member: &str| problem[member].as_str().unwrap().to_owned();
    (text("code"), text("detail"))
}

#[tokio::test]
async fn each_gate_refuses_what_does_not_pass_and_the_old_module_serves_on() {
    let host = TestHost::serving(&["probe"])
        .config("[deployments]\nmodule_bytes = \"4 MiB\"\nhealth_timeout = \"3s\"")
        .config("[instances]\ncpu = \"300ms\"")
        .config("[agents.probe]\nhealth = \"/reply\"\n[agents.waiting]\nhealth = \"/wait\"")
        .config("[agents.broken]\nhealth = \"/trap\"\n[agents.streaming]\nhealth = \"/open-only\"")
        .start();
    let served = header(host.get("probe/demo").await.headers(), "bureau-module").to_owned();

    let large = host.put_module("probe", vec![0; (4 << 20) + 1]).await;
    assert_eq!(problem(large).await, "413 payload-too-large host");

    let text = |component: &str| wat::parse_str(component).unwrap();
    let probe = module("probe");
    let cases = [
        ("probe", b"no module".to_vec(), "module-not-compiled", "not a WebAssembly component"),
        ("probe", probe[..probe.len() / 2].to_vec(), "module-not-compiled", "out of bounds"),
        ("probe", text("(module)"), "module-not-compiled", "wasm32-wasip2"),
        ("probe", text("(component)"), "module-does-not-fit", "bureau:agent/handler@0.1.0"),
        (
            "probe",
            text(r#"(component (import "acme:db/query@1.0.0" (instance)))"#),
            "module-does-not-fit",
            "acme:db/query@1.0.0",
        ),
        (
            "probe",
            text(
                r#"(component (import "bureau:agent/identity@0.1.0"
                    (instance (export "agent" (func (result u32))))))"#,
            ),
            "module-does-not-fit",
            "bureau:agent/identity@0.1.0",
        ),
        (
            "probe",
            text(
                r#"(component (instance $empty)
                    (export "bureau:agent/handler@0.1.0" (instance $empty)))"#,
            ),
            "module-does-not-fit",
            "on-request",
        ),
        (
            "probe",
            text(r#"(component (import "wasi:http/outgoing-handler@0.2.0" (instance)))"#),
            "module-not-granted",
            "needs http",
        ),
        ("probe", module("stuck"), "module-unhealthy", "300 ms without returning"),
        ("probe", module("api"), "module-unhealthy", "GET /reply was answered with 404"),
        ("broken", module("probe"), "module-unhealthy", "GET /trap failed"),
        ("waiting", module("probe"), "module-unhealthy", "within 3000 ms"),
    ];
    for (agent, module, code, names) in cases {
        let (refused, why) = refused(host.put_module(agent, module).await).await;
        assert_eq!(refused, code, "{why}");
        assert!(why.contains(names), "{code}: {why}");
    }
    // The one store that ever served has seen all of it.
    let answer = host.get("probe/demo/memory").await;
    assert_eq!(header(answer.headers(), "bureau-module"), served);
    assert_eq!(answer.json::<Value>().await.unwrap(), json!({ "calls": 1 }));
    let deployments = host.operator_sees("/v1/agents/probe/deployments").await;
    assert_eq!(deployments["deployments"].as_array().unwrap().len(), 1);
    assert_eq!(problem(host.get("broken/demo").await).await, "404 unknown-agent host");

    let healthy = host.put_module("streaming", module("probe")).await;
    assert_eq!(healthy.status(), StatusCode::CREATED, "a stream is an answer");
}

#[tokio::test]
async fn a_module_that_does_not_start_within_the_limits_is_refused() {
    let host = TestHost::serving(&[]).config("[instances]\nmemory_bytes = \"1 MiB\"").start();
    let (refused, why) = refused(host.put_module("probe", module("probe")).await).await;
    assert_eq!(refused, "module-not-instantiated", "{why}");
    assert!(why.contains("memory"), "{why}");
}

#[tokio::test]
async fn a_trial_leaves_no_trace() {
    let host = TestHost::serving(&[]).config("[agents.probe]\nhealth = \"/count?count=3\"").start();
    assert_eq!(host.put_module("probe", module("probe")).await.status(), StatusCode::CREATED);
    assert_eq!(host.operator_sees("/v1/runs").await, json!({ "runs": [], "next": null }));
    assert_eq!(host.metrics().await["turns_total"], 0);
    host.reaches("live_instances", |live| live == 0).await;
}

#[tokio::test]
async fn modules_come_are_swapped_gone_back_on_and_removed() {
    let host = TestHost::serving(&[]).start();
    let (stream, resume) = (module("stream"), module("resume"));
    let first = host.put_module("chat", stream.clone()).await;
    assert_eq!(first.status(), StatusCode::CREATED);
    assert_eq!(header(first.headers(), "etag"), format!("\"{}\"", digest(&stream)));
    let first = document(first).await;
    assert_eq!(first["previous"], Value::Null);
    assert_eq!((&first["generation"], &first["source"]), (&json!(1), &json!("api")));

    let again = document(host.put_module("chat", stream.clone()).await).await;
    assert_eq!((&again["changed"], &again["generation"]), (&json!(false), &json!(1)));

    let conditional = |digest: String| {
        let request = host.operate(Method::PUT, "/v1/agents/chat").body(resume.clone());
        request.header("if-match", format!("\"{digest}\"")).send()
    };
    let stale = conditional(digest(&resume)).await.unwrap();
    assert_eq!(problem(stale).await, "412 digest-mismatch host");
    let second = document(conditional(digest(&stream)).await.unwrap()).await;
    assert_eq!(second["previous"], digest(&stream));
    let exports = json!({ "gained": ["bureau:agent/resumption@0.1.0"], "lost": [] });
    assert_eq!((&second["exports"], &second["generation"]), (&exports, &json!(2)));
    let served = async || {
        let answer = host.request(Method::HEAD, "chat/demo").send().await.unwrap();
        header(answer.headers(), "bureau-module").to_owned()
    };
    assert_eq!(served().await, digest(&resume));

    let roll_back = async |body: Value| {
        let request = host.operate(Method::POST, "/v1/agents/chat/rollback");
        request.json(&body).send().await.unwrap()
    };
    let rolled = document(roll_back(json!({})).await).await;
    assert_eq!(
        (&rolled["digest"], &rolled["source"]),
        (&json!(digest(&stream)), &json!("rollback"))
    );
    assert_eq!(rolled["exports"]["lost"], exports["gained"]);
    assert_eq!(served().await, digest(&stream));
    let unknown = roll_back(json!({ "to": digest(b"never") })).await;
    assert_eq!(problem(unknown).await, "404 unknown-module host");
    for bad in [json!({ "to": "1234" }), json!({ "from": "" })] {
        assert_eq!(problem(roll_back(bad).await).await, "400 bad-request host");
    }
    document(roll_back(json!({ "to": digest(&resume) })).await).await;
    assert_eq!(served().await, digest(&resume));

    let agents = host.operator_sees("/v1/agents").await;
    let chat = &agents["agents"][0];
    assert_eq!((&chat["agent"], &chat["generation"]), (&json!("chat"), &json!(4)));
    assert_eq!((&chat["resumes"], &chat["migrates"]), (&json!(true), &json!(false)));

    let remove = async || host.operate(Method::DELETE, "/v1/agents/chat").send().await.unwrap();
    assert_eq!(remove().await.status(), StatusCode::NO_CONTENT);
    assert_eq!(problem(remove().await).await, "404 unknown-agent host");
    assert_eq!(problem(host.get("chat/demo").await).await, "404 unknown-agent host");
    let past = host.operator_sees("/v1/agents/chat/deployments").await;
    let past = past["deployments"].as_array().unwrap();
    let digests: Vec<_> = past.iter().map(|past| past["digest"].as_str()).collect();
    let (stream, resume) = (digest(&stream), digest(&resume));
    assert_eq!(digests, [None, Some(&*resume), Some(&*stream), Some(&*resume), Some(&*stream)]);
    assert_eq!(past.iter().map(|past| &past["current"]).filter(|now| **now == true).count(), 1);
    document(roll_back(json!({})).await).await;
    assert_eq!(served().await, resume, "what was removed can be gone back to");
    let never = host.operator_sees("/v1/agents").await;
    assert_eq!(never["agents"].as_array().unwrap().len(), 1);
    let unknown = host.operate(Method::POST, "/v1/agents/other/rollback").send().await.unwrap();
    assert_eq!(problem(unknown).await, "404 unknown-agent host");
}

#[tokio::test]
async fn a_restart_serves_what_was_deployed_and_compiles_nothing() {
    let host = TestHost::serving(&["probe"]).start();
    document(host.put_module("chat", module("stream")).await).await;
    document(host.put_module("chat", module("resume")).await).await;
    document(host.put_module("gone", module("api")).await).await;
    host.operate(Method::DELETE, "/v1/agents/gone").send().await.unwrap();
    let host = host.kill().start();
    let answer = host.request(Method::HEAD, "chat/demo").send().await.unwrap();
    assert_eq!(header(answer.headers(), "bureau-module"), digest(&module("resume")));
    assert_eq!(problem(host.get("gone/demo").await).await, "404 unknown-agent host");
    assert_eq!(host.metrics().await["compilations_total"], 0);
    let rolled = host.operate(Method::POST, "/v1/agents/chat/rollback").send().await.unwrap();
    assert_eq!(document(rolled).await["digest"], digest(&module("stream")));
}

#[tokio::test]
async fn a_damaged_cache_entry_is_compiled_anew_and_a_damaged_module_is_told() {
    let host = TestHost::serving(&[]).own_cache();
    let (cache, modules) = (host.data().join("cache"), host.data().join("modules"));
    let host = host.start();
    document(host.put_module("chat", module("stream")).await).await;
    assert_eq!(host.metrics().await["compilations_total"], 1);
    let only = |directory: &Path| {
        let mut entries = std::fs::read_dir(directory).unwrap();
        let entry = entries.next().unwrap().unwrap().path();
        assert!(entries.next().is_none());
        entry
    };
    let damage = |file: &Path| {
        let mut bytes = std::fs::read(file).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(file, bytes).unwrap();
    };
    let host = host.kill();
    damage(&only(&cache));
    let host = host.start();
    assert_eq!(host.metrics().await["compilations_total"], 1);
    let stream = host.stream("chat/demo?steps=1&delay=0").await;
    assert_eq!(data(&stream.rest().await), ["Starting...", "Step 1 complete", "Done!"]);

    let host = host.kill();
    std::fs::remove_file(only(&cache)).unwrap();
    damage(&only(&modules));
    let host = host.start();
    let ready = host.admin(Method::GET, "/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ready.text().await.unwrap().contains("chat"));
    let agents = host.operator_sees("/v1/agents").await;
    assert!(agents["agents"][0]["error"].as_str().unwrap().contains("damaged"), "{agents}");
    // Deploying it again mends it.
    document(host.put_module("chat", module("stream")).await).await;
    assert_eq!(host.admin(Method::GET, "/readyz").await.status(), StatusCode::OK);
    let host = host.kill().start();
    assert_eq!(host.operator_sees("/v1/agents").await["agents"][0]["error"], Value::Null);
}

#[tokio::test]
async fn a_cache_entry_of_another_module_is_not_taken_for_its_own() {
    let host = TestHost::serving(&[]).own_cache().start();
    let cache = host.how().data().join("cache");
    let entry = |guest: &str| {
        let digest = digest(&module(guest));
        let mut entries = std::fs::read_dir(&cache).unwrap().map(|entry| entry.unwrap().path());
        let named = |path: &PathBuf| path.to_string_lossy().contains(&digest);
        entries.find(named).expect("it was compiled")
    };
    document(host.put_module("chat", module("stream")).await).await;
    document(host.put_module("other", module("api")).await).await;
    std::fs::copy(entry("api"), entry("stream")).unwrap();
    let host = host.kill().start();
    assert_eq!(host.metrics().await["compilations_total"], 1);
    let stream = host.stream("chat/demo?steps=0&delay=0").await;
    assert_eq!(data(&stream.rest().await), ["Starting...", "Done!"]);
}

#[tokio::test]
async fn of_a_file_and_the_operator_the_last_one_wins() {
    let host = TestHost::serving(&["stream"]).start();
    document(host.put_module("stream", module("resume")).await).await;
    let served = async |host: &crate::support::Started| {
        let answer = host.request(Method::HEAD, "stream/demo").send().await.unwrap();
        header(answer.headers(), "bureau-module").to_owned()
    };
    // The file is as it was.
    let host = host.kill().start();
    assert_eq!(served(&host).await, digest(&module("resume")));
    // Now it is another one.
    let changed = another_module("stream", 1);
    let how = host.kill().with_file("stream", &changed);
    let host = how.start();
    assert_eq!(served(&host).await, digest(&changed));
    let agents = host.operator_sees("/v1/agents").await;
    assert!(agents["agents"][0]["source"].as_str().unwrap().ends_with("/agents/stream.wasm"));
    // What the operator removes stays away, whatever its file is.
    host.operate(Method::DELETE, "/v1/agents/stream").send().await.unwrap();
    let host = host.kill().start();
    assert_eq!(problem(host.get("stream/demo").await).await, "404 unknown-agent host");
}

#[tokio::test]
async fn an_agent_whose_module_is_gone_can_be_removed() {
    let host = TestHost::serving(&[]).own_cache().start();
    document(host.put_module("chat", module("stream")).await).await;
    let host = host.kill();
    for kept in ["cache", "modules"] {
        std::fs::remove_dir_all(host.data().join(kept)).unwrap();
    }
    let host = host.start();
    assert_eq!(host.admin(Method::GET, "/readyz").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    let removed = host.operate(Method::DELETE, "/v1/agents/chat").send().await.unwrap();
    assert_eq!(removed.status(), StatusCode::NO_CONTENT);
    assert_eq!(host.admin(Method::GET, "/readyz").await.status(), StatusCode::OK);
    assert_eq!(host.operator_sees("/v1/agents").await, json!({ "agents": [] }));
}

#[tokio::test]
async fn a_file_that_is_too_large_is_refused_unread() {
    let directory = tempfile::tempdir().unwrap();
    let large = directory.path().join("large.wasm");
    std::fs::File::create(&large).unwrap().set_len(1 << 40).unwrap();
    let host = TestHost::serving(&["probe"]).linked(&large).start();
    let ready = host.admin(Method::GET, "/readyz").await.text().await.unwrap();
    assert!(ready.contains("large.wasm") && ready.contains("1099511627776 bytes"), "{ready}");
    assert_eq!(host.get("probe/demo/reply").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn old_deployments_go_with_their_modules() {
    let host = TestHost::serving(&[]).config("[deployments]\nkept = 3").own_cache().start();
    for build in 0..6 {
        document(host.put_module("chat", another_module("stream", build)).await).await;
    }
    let past = host.operator_sees("/v1/agents/chat/deployments").await;
    let generations: Vec<_> = past["deployments"].as_array().unwrap().iter().collect();
    let generations: Vec<_> =
        generations.iter().map(|of| of["generation"].as_u64().unwrap()).collect();
    assert_eq!(generations, [6, 5, 4]);
    for kept in ["modules", "cache"] {
        assert_eq!(std::fs::read_dir(host.how().data().join(kept)).unwrap().count(), 3, "{kept}");
    }
}

/// A host on this disk and in this data directory, that serves nobody.
async fn wake(disk: &Disk, data: &Path) -> Host {
    let overrides = Overrides { data: Some(data.into()), ..Overrides::default() };
    let mut config = Config::load(None, overrides).unwrap();
    std::sync::Arc::make_mut(&mut config.instances).live = 2;
    config.journal.cache_bytes = 1 << 20;
    let host = Host::open_on(config, disk.backend()).unwrap();
    host.load().await;
    host
}

fn serves(host: &Host) -> Option<String> {
    let current = host.registry().current(&"chat".parse().unwrap())?;
    Some(current.module.digest().to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_killed_at_any_step_of_a_deployment_comes_back_with_the_old_module_or_the_new() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path();
    let disk = Disk::default();
    let (old, new) = (module("stream"), module("api"));
    let host = wake(&disk, data).await;
    let chat = || "chat".parse().unwrap();
    host.deploy(chat(), old.clone()).await.unwrap();
    let changes = std::sync::Arc::new(std::sync::Mutex::new(Vec::<Change>::new()));
    let before = disk.observe({
        let changes = changes.clone();
        move |change| changes.lock().unwrap().push(change.clone())
    });
    host.deploy(chat(), new.clone()).await.unwrap();
    let changes = changes.lock().unwrap().clone();
    assert!(changes.iter().any(|change| matches!(change.kind, Kind::Sync)), "it is durable");
    drop(host);

    let (old, new) = (digest(&old), digest(&new));
    let modules = data.join("modules");
    let file = modules.join(&new).with_extension("wasm");
    let bytes = std::fs::read(&file).unwrap();
    // Before the row is written: no file, a part of one, or all of it.
    for (name, part) in [("draft", 0), ("draft", bytes.len() / 2), ("wasm", bytes.len())] {
        std::fs::remove_file(&file).or_else(|_| std::fs::metadata(&modules).map(drop)).unwrap();
        std::fs::write(file.with_extension(name), &bytes[..part]).unwrap();
        let host = wake(&Disk::of(before.clone()), data).await;
        assert_eq!(serves(&host), Some(old.clone()));
        assert!(!file.exists() && !file.with_extension("draft").exists(), "nobody needs it");
    }
    // While it is written, and after: all that was written is there, or only what was synced.
    std::fs::write(&file, &bytes).unwrap();
    let (mut written, mut durable, mut unsynced) = (before.clone(), before, Vec::new());
    let mut came_back = Vec::new();
    for change in changes {
        change.apply(&mut written);
        match change.kind {
            Kind::Sync => change.settle(&mut unsynced, &mut durable),
            _ => unsynced.push(change),
        }
        for image in [&written, &durable] {
            let host = wake(&Disk::of(image.clone()), data).await;
            let served = serves(&host).expect("one of the two serves, whole");
            assert!([&old, &new].contains(&&served), "{served}");
            came_back.push(served);
            // The start may have let go of a module that no row had.
            std::fs::write(&file, &bytes).unwrap();
        }
    }
    assert_eq!(came_back.last(), Some(&new), "what was acknowledged is durable");
    assert!(came_back.contains(&old), "a crash before that is one of those that were tried");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_that_cannot_be_made_durable_changes_nothing() {
    let disk = Disk::default();
    let host = InProcess::serving(&["probe"], &disk, |_| {}).await;
    disk.fail(crate::support::Fault { after: 0, forgets: false });
    let failed = host.put_module("probe", module("stream")).await;
    assert_eq!(problem(failed).await, "503 journal-unavailable host");
    disk.heal();
    loop {
        // The journal opens its files again before long, and nothing tells when.
        let again = host.put_module("probe", module("stream")).await;
        if again.status() == StatusCode::OK {
            assert_eq!(document(again).await["previous"], digest(&module("probe")));
            break;
        }
        assert_eq!(problem(again).await, "503 journal-unavailable host");
    }
    host.stop().await;
}

#[tokio::test]
async fn an_operator_sees_instances_runs_and_what_happens() {
    let host = TestHost::serving(&["probe", "stream"]).start();
    let mut happenings = Stream::open(host.operate(Method::GET, "/v1/events")).await;
    let mut waiting = host.stream("probe/a%20b/cancellable").await;
    assert_eq!(waiting.next().await.unwrap().data, "waiting");
    let run = header(&waiting.headers, "bureau-run").to_owned();
    let started = happenings.next().await.unwrap();
    assert_eq!(started.name, "instance-started");
    let started: Value = serde_json::from_str(&started.data).unwrap();
    assert_eq!((&started["agent"], &started["instance"]), (&json!("probe"), &json!("a b")));

    let ended = host.stream("stream/demo?steps=0&delay=0").await;
    let finished = header(&ended.headers, "bureau-run").to_owned();
    ended.rest().await;
    let names = [happenings.next().await.unwrap(), happenings.next().await.unwrap()];
    assert_eq!(names.each_ref().map(|of| &*of.name), ["instance-started", "run-ended"]);
    let told: Value = serde_json::from_str(&names[1].data).unwrap();
    assert_eq!((&told["run"], &told["state"]), (&json!(finished), &json!("finished")));

    let instances = host.operator_sees("/v1/instances?agent=probe").await;
    let [instance] = instances["instances"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(instance["instance"], "a b");
    assert_eq!((&instance["runs"], &instance["idle_ms"]), (&json!(1), &Value::Null));
    assert_eq!(instance["current"], true);
    let runs = host.operator_sees("/v1/runs").await;
    let seen: Vec<_> = runs["runs"].as_array().unwrap().iter().collect();
    let seen: Vec<_> = seen.iter().map(|of| (&of["run"], &of["state"], &of["last_seq"])).collect();
    assert_eq!(
        seen,
        [
            (&json!(finished), &json!("finished"), &json!(2)),
            (&json!(run), &json!("running"), &json!(1))
        ]
    );
    let page = host.operator_sees(&format!("/v1/runs?limit=1&before={finished}")).await;
    assert_eq!(page["runs"][0]["run"], json!(run));
    let none = host.operator_sees("/v1/runs?agent=probe&instance=a").await;
    assert_eq!(none, json!({ "runs": [], "next": null }));

    // A plain request is a run while it goes on, and is not on record.
    let held = tokio::spawn(host.request(Method::GET, "probe/plain/wait").send());
    host.logged(|line| line.contains("waiting to be released")).await;
    let runs = host.operator_sees("/v1/runs?agent=probe&instance=plain").await;
    let plain = runs["runs"][0]["run"].as_str().unwrap().to_owned();
    assert_eq!(host.operator_sees(&format!("/v1/runs/{plain}")).await["state"], "running");
    host.get("probe/plain/release").await;
    assert_eq!(held.await.unwrap().unwrap().status(), StatusCode::OK);
    let gone = host.admin(Method::GET, &format!("/v1/runs/{plain}")).await;
    assert_eq!(problem(gone).await, "404 not-found host");

    // A run's events as its clients get them, from the beginning and from the middle.
    let events = format!("/v1/runs/{finished}/events");
    let all = Stream::open(host.operate(Method::GET, &events)).await.rest().await;
    assert_eq!(data(&all), ["Starting...", "Done!"]);
    let from = |id: &str| host.operate(Method::GET, &events).header("last-event-id", id);
    let rest = Stream::open(from(&all[0].id)).await.rest().await;
    assert_eq!(rest, all[1..]);
    assert_eq!(from(&all[1].id).send().await.unwrap().status(), StatusCode::NO_CONTENT);
    let foreign = Stream::open(from(&format!("{run}-1"))).await.rest().await;
    assert_eq!((&*foreign[0].name, &foreign[1..]), ("reset", &all[..]), "all of it, and why");

    document(host.put_module("stream", module("resume")).await).await;
    let deployed = loop {
        let next = happenings.next().await.unwrap();
        if next.name == "deployed" {
            break serde_json::from_str::<Value>(&next.data).unwrap();
        }
    };
    assert_eq!(deployed["digest"], digest(&module("resume")));
    assert_eq!(deployed["previous"], digest(&module("stream")));
}

#[tokio::test]
async fn an_admin_address_for_others_needs_a_token_and_takes_nothing_without_it() {
    let open = TestHost::serving(&[]).config("admin = \"0.0.0.0:0\"").admin_as_configured();
    let (status, why) = open.refuses();
    assert!(!status.success());
    assert!(why.contains("admin_token") && why.contains("BUREAU_ADMIN_TOKEN"), "{why}");

    let token = "correct-horse-battery";
    let host = TestHost::serving(&["stream"]).config(&format!("admin_token = \"{token}\"")).start();
    for path in ["/healthz", "/readyz"] {
        assert_eq!(host.admin(Method::GET, path).await.status(), StatusCode::OK, "{path}");
    }
    let put = |token: &str| {
        let request = host.operate(Method::PUT, "/v1/agents/chat").body(module("stream"));
        request.bearer_auth(token).send()
    };
    for path in ["/metrics", "/openapi.json", "/v1/agents", "/v1/nothing"] {
        let refused = host.admin(Method::GET, path).await;
        assert_eq!(header(refused.headers(), "www-authenticate"), "Bearer", "{path}");
        assert_eq!(problem(refused).await, "401 unauthorized host", "{path}");
    }
    assert_eq!(problem(put("correct-horse-batterx").await.unwrap()).await, "401 unauthorized host");
    assert_eq!(problem(host.get("chat/demo").await).await, "404 unknown-agent host");
    assert_eq!(put(token).await.unwrap().status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_web_page_cannot_operate_a_host_on_its_visitors_machine() {
    let host = TestHost::serving(&["stream"]).start();
    let from_a_page = host.operate(Method::DELETE, "/v1/agents/stream");
    let from_a_page = from_a_page.header("origin", "https://evil.example").send().await.unwrap();
    assert_eq!(problem(from_a_page).await, "403 cross-origin host");
    let rebound = host.operate(Method::GET, "/v1/agents").header("host", "evil.example:8788");
    assert_eq!(problem(rebound.send().await.unwrap()).await, "403 cross-origin host");
    assert_eq!(host.admin(Method::GET, "/v1/agents").await.status(), StatusCode::OK);
}
