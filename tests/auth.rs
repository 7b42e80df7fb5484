//! Who may call which agent: tokens, and hooks that are asked first.

use reqwest::redirect::Policy;
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Connection, Started, Stream, TestHost, data, header, module, problem};

const FIRST: &str = "first-0123456789abcdef";
const SECOND: &str = "second-0123456789abcdef";
const OTHER: &str = "other-0123456789abcdef";

/// The probe takes two tokens, the load another one, the rogue none.
fn tokens() -> Started {
    let config = format!(
        "agents.probe.auth.tokens = ['{FIRST}', '{SECOND}']\nagents.load.auth.tokens = ['{OTHER}']"
    );
    TestHost::serving(&["probe", "load", "rogue"]).config(&config).start()
}

/// All agents are behind the gate.
fn gated(config: &str) -> Started {
    TestHost::serving(&["probe", "gate"]).config(&format!("auth.hook = 'gate'\n{config}")).start()
}

/// A request of Ann's, who follows no redirect.
fn as_ann(host: &Started, method: Method, path: &str) -> RequestBuilder {
    plain(host, method, path).header("cookie", "user=ann")
}

fn plain(host: &Started, method: Method, path: &str) -> RequestBuilder {
    let client = Client::builder().redirect(Policy::none()).build().unwrap();
    client.request(method, host.agent_url(path))
}

async fn send(request: RequestBuilder) -> Response {
    request.send().await.expect("the host answers")
}

/// How often the probe's instance was called, as it says when asked once more.
async fn calls(request: RequestBuilder) -> Value {
    send(request).await.json::<Value>().await.unwrap()["calls"].clone()
}

#[tokio::test]
async fn an_agent_with_tokens_takes_each_of_its_own_and_nothing_else() {
    let host = tokens();
    let get = |path: &str, token: &str| host.request(Method::GET, path).bearer_auth(token);
    for token in [FIRST, SECOND] {
        assert_eq!(send(get("probe/demo/reply", token)).await.status(), StatusCode::OK);
    }
    for method in [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS] {
        let without = send(host.request(method.clone(), "probe/demo/memory")).await;
        assert_eq!(without.status(), StatusCode::UNAUTHORIZED, "{method}");
        assert_eq!(header(without.headers(), "www-authenticate"), "Bearer", "{method}");
        assert_eq!(header(without.headers(), "bureau-run"), "", "{method}");
    }
    let without = send(host.request(Method::GET, "probe/demo/memory")).await;
    assert_eq!(problem(without).await, "401 unauthorized host");
    for wrong in [OTHER, &FIRST[1..]] {
        let wrong = send(get("probe/demo/memory", wrong)).await;
        let challenge = header(wrong.headers(), "www-authenticate").to_owned();
        assert_eq!(challenge, "Bearer error=\"invalid_token\"");
        assert_eq!(problem(wrong).await, "401 unauthorized host");
    }
    let twice = get("probe/demo/memory", FIRST).header("authorization", "Bearer x");
    assert_eq!(send(twice).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(calls(get("probe/demo/memory", FIRST)).await, 1, "none of those reached it");
    assert_eq!(send(get("load/one/plain", OTHER)).await.status(), StatusCode::OK);
    assert_eq!(host.get("rogue/demo").await.status(), StatusCode::NO_CONTENT, "it is open");
    assert_eq!(problem(host.get("nobody/demo").await).await, "404 unknown-agent host");
}

#[tokio::test]
async fn what_the_host_has_taken_and_what_only_it_may_say_does_not_reach_the_agent() {
    let host = tokens();
    let request = host.request(Method::GET, "probe/demo/echo").bearer_auth(FIRST);
    let forged = ["bureau-identity-user", "Bureau-Identity-Role", "BUREAU_IDENTITY_USER"];
    let request = forged.into_iter().fold(request, |request, name| request.header(name, "eve"));
    let echo: Value = send(request.header("x-kept", "1")).await.json().await.unwrap();
    let names: Vec<_> = echo["headers"].as_array().unwrap().iter().map(|field| &field[0]).collect();
    assert!(names.contains(&&json!("x-kept")), "{names:?}");
    let gone = |name: &Value| {
        let name = name.as_str().unwrap();
        name == "authorization" || name.contains("identity")
    };
    assert!(!names.into_iter().any(gone), "{echo}");
}

#[tokio::test]
async fn going_on_with_a_stream_takes_the_token_too() {
    let host = tokens();
    let get = |token: &str| host.request(Method::GET, "probe/demo/emit?count=3").bearer_auth(token);
    let events = Stream::open(get(FIRST)).await.rest().await;
    let after = |request: RequestBuilder| request.header("last-event-id", &events[0].id);
    for method in [Method::GET, Method::HEAD] {
        let without = after(host.request(method, "probe/demo/emit?count=3"));
        assert_eq!(send(without).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(send(after(get(OTHER))).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(Stream::open(after(get(SECOND))).await.rest().await, events[1..]);
}

#[tokio::test]
async fn a_preflight_needs_no_token_and_a_page_can_read_the_refusal() {
    let config = format!("auth.tokens = ['{FIRST}']\ncors.origins = ['https://good.example']");
    let host = TestHost::serving(&["probe"]).config(&config).start();
    let from_page =
        |method| host.request(method, "probe/demo/reply").header("origin", "https://good.example");
    let preflight = from_page(Method::OPTIONS).header("access-control-request-method", "POST");
    assert_eq!(send(preflight).await.status(), StatusCode::NO_CONTENT);
    let refused = send(from_page(Method::GET)).await;
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    let allowed = header(refused.headers(), "access-control-allow-origin");
    assert_eq!(allowed, "https://good.example");
    assert_eq!(
        problem(host.get("nobody/demo").await).await,
        "401 unauthorized host",
        "where all are asked, who may not call does not learn which there are"
    );
}

#[tokio::test]
async fn a_refused_upload_is_not_read() {
    let host = tokens();
    let mut upload = Connection::to(&host.url).await;
    upload.send("POST /agents/probe/demo/echo HTTP/1.1\r\nhost: a\r\n").await;
    upload.send("content-length: 104857600\r\nexpect: 100-continue\r\n\r\n").await;
    let answer = upload.until("}").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");

    let host = gated("");
    let mut upload = Connection::to(&host.url).await;
    upload.send("POST /agents/probe/demo/echo HTTP/1.1\r\nhost: a\r\n").await;
    upload.send("content-length: 104857600\r\nexpect: 100-continue\r\n\r\n").await;
    let answer = upload.until("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 302 "), "{answer}");
}

#[tokio::test]
async fn a_hook_lets_a_request_pass_with_an_identity_that_is_not_the_clients() {
    let host = gated("");
    let request = as_ann(&host, Method::POST, "probe/demo/echo").body("a body");
    let request = request.header("bureau-identity-user", "eve").header("x-other", "mine");
    let echo: Value = send(request).await.json().await.unwrap();
    assert_eq!((&echo["method"], &echo["body"]), (&json!("POST"), &json!("a body")));
    let fields = echo["headers"].as_array().unwrap();
    let of = |name: &str| -> Vec<_> { fields.iter().filter(|field| field[0] == name).collect() };
    assert_eq!(of("bureau-identity-user"), [&json!(["bureau-identity-user", "ann"])]);
    assert_eq!(of("x-other"), [&json!(["x-other", "mine"])]);
    assert_eq!(of("cookie").len(), 1, "what the host has no use for is the agent's");
}

#[tokio::test]
async fn whatever_else_a_hook_answers_is_the_clients_answer() {
    let host = gated("");
    for method in [Method::GET, Method::HEAD, Method::PUT] {
        let login = send(plain(&host, method, "probe/demo/memory")).await;
        assert_eq!(login.status(), StatusCode::FOUND);
        assert_eq!(header(login.headers(), "location"), "/login");
    }
    let path = "%70robe/a%2Fb%7E/x//../y?hook=deny";
    let denied = send(as_ann(&host, Method::POST, path).body("a body")).await;
    assert_eq!(denied.status(), StatusCode::FORBIDDEN);
    assert_eq!(header(denied.headers(), "x-why"), "denied");
    let asked: Value = denied.json().await.unwrap();
    assert_eq!(asked["instance"], "probe", "one for each agent");
    assert_eq!((&asked["method"], &asked["body"]), (&json!("POST"), &json!(0)));
    assert!(!asked["headers"].as_array().unwrap().contains(&json!("content-length")), "{asked}");

    let mut raw = Connection::to(&host.url).await;
    raw.send(format!("GET //agents/{path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let answer = raw.rest().await;
    let one_spelling = "/agents/probe/a%2Fb~/x//../y";
    assert!(answer.contains(&format!("\"path\":\"{one_spelling}\"")), "{answer}");
    assert!(answer.contains(&format!("\"uri\":\"{one_spelling}?hook=deny\"")), "{answer}");

    let unserved = send(plain(&host, Method::GET, "nobody/demo?hook=deny")).await;
    let asked: Value = unserved.json().await.unwrap();
    assert_eq!(asked["instance"], "-", "clients make up no instances");
    let bad = as_ann(&host, Method::GET, "probe/demo/memory?hook=bad-request");
    assert_eq!(problem(send(bad).await).await, "400 bad-request agent");
    assert_eq!(calls(as_ann(&host, Method::GET, "probe/demo/memory")).await, 1);
}

#[tokio::test]
async fn a_hook_that_fails_lets_nothing_pass() {
    let host = gated("auth.timeout = '50ms'\ninstances.cancel_grace = '10s'");
    for fault in ["trap", "hang", "events", "nothing", "error"] {
        let path = format!("probe/demo/memory?hook={fault}");
        let failed = problem(send(as_ann(&host, Method::GET, &path)).await).await;
        assert_eq!(failed, "503 auth-unavailable host", "{fault}");
        let source = as_ann(&host, Method::GET, &path).header("accept", "text/event-stream");
        let told = send(source).await.text().await.unwrap();
        assert_eq!(told, "retry: 2000\n", "{fault}: it may come back");
    }
    host.logged(|line| line.contains("the hook was cancelled")).await;
    host.logged(|line| line.contains("the hook takes too long")).await;
    assert_eq!(calls(as_ann(&host, Method::GET, "probe/demo/memory")).await, 1);
    let chunks = send(as_ann(&host, Method::GET, "probe/demo/memory?hook=chunks")).await;
    assert_eq!(chunks.status(), StatusCode::OK, "a body that is streamed is a response");
}

#[tokio::test]
async fn a_client_that_leaves_leaves_no_question_open() {
    let host = gated("");
    let mut leaves = Connection::to(&host.url).await;
    leaves.send("GET /agents/probe/demo?hook=hang HTTP/1.1\r\nhost: a\r\n\r\n").await;
    host.logged(|line| line.contains("the hook hangs")).await;
    drop(leaves);
    host.logged(|line| line.contains("the hook was cancelled")).await;
}

#[tokio::test]
async fn a_hook_is_for_the_host_alone_and_may_be_swapped_or_missing() {
    let host = gated("");
    let direct = send(as_ann(&host, Method::GET, "gate/probe")).await;
    assert_eq!(problem(direct).await, "404 unknown-agent host");
    let get = || as_ann(&host, Method::GET, "probe/demo/memory");
    assert_eq!(calls(get()).await, 1);
    // The rogue answers anything else than what it knows with events.
    assert_eq!(host.put_module("gate", module("rogue")).await.status(), StatusCode::OK);
    assert_eq!(problem(send(get()).await).await, "503 auth-unavailable host");
    assert_eq!(host.put_module("gate", module("gate")).await.status(), StatusCode::OK);
    assert_eq!(calls(get()).await, 2);
    host.admin(Method::DELETE, "/v1/agents/gate").await;
    assert_eq!(problem(send(get()).await).await, "503 auth-unavailable host");
}

#[tokio::test]
async fn a_hook_is_asked_again_when_a_client_comes_back() {
    let host = gated("");
    let get = || as_ann(&host, Method::GET, "probe/demo/emit?count=3");
    let events = Stream::open(get()).await.rest().await;
    let rest = Stream::open(get().header("last-event-id", &events[0].id)).await.rest().await;
    assert_eq!(data(&rest), data(&events[1..]));
    let stranger = plain(&host, Method::GET, "probe/demo/emit?count=3");
    let stranger = send(stranger.header("last-event-id", &events[0].id)).await;
    assert_eq!(stranger.status(), StatusCode::FOUND);
}

#[tokio::test]
async fn an_agents_own_rule_stands_in_place_of_that_of_all() {
    let config = "agents.probe.auth.open = true\nagents.load.auth.tokens_file = 'TOKENS'";
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("\n{FIRST}\n {SECOND} \n")).unwrap();
    let config = config.replace("TOKENS", file.path().to_str().unwrap());
    let host = TestHost::serving(&["probe", "load", "gate", "rogue"])
        .config(&format!("auth.hook = 'gate'\n{config}"))
        .start();
    let status = async |request| send(request).await.status().as_u16();
    assert_eq!(status(plain(&host, Method::GET, "probe/demo/reply")).await, 200);
    assert_eq!(status(plain(&host, Method::GET, "rogue/demo")).await, 302);
    assert_eq!(status(as_ann(&host, Method::GET, "load/one/plain")).await, 401);
    let second = plain(&host, Method::GET, "load/one/plain").bearer_auth(SECOND);
    assert_eq!(status(second).await, 200);
}

#[tokio::test]
async fn access_to_a_run_is_access_to_its_instance() {
    let host = tokens();
    let asked = host.request(Method::GET, "probe/demo/emit?count=1").bearer_auth(FIRST);
    let run = header(send(asked).await.headers(), "bureau-run").to_owned();
    let paths = [
        format!("/runs/{run}"),
        format!("/runs/{run}/status"),
        "/instances/probe/demo/runs".into(),
        "/instances/probe/demo/events".into(),
        "/instances/probe/demo/stream".into(),
    ];
    for path in &paths {
        for wrong in [host.at(Method::GET, path), host.at(Method::GET, path).bearer_auth(OTHER)] {
            assert_eq!(problem(send(wrong).await).await, "401 unauthorized host", "{path}");
        }
        let right = send(host.at(Method::GET, path).bearer_auth(FIRST)).await;
        assert!(right.status().is_success(), "{path}: {}", right.status());
    }
    let cancel = host.at(Method::DELETE, &paths[0]);
    assert_eq!(problem(send(cancel).await).await, "401 unauthorized host");

    let host = gated("");
    let run =
        header(send(as_ann(&host, Method::GET, "probe/demo/emit")).await.headers(), "bureau-run")
            .to_owned();
    let status = || host.at(Method::GET, &format!("/runs/{run}/status"));
    assert_eq!(send(status().header("cookie", "user=ann")).await.status(), StatusCode::OK);
    assert!(!send(status()).await.status().is_success(), "the hook is asked");
}
