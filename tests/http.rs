//! What the two addresses and the command line answer, right requests and wrong ones.

use std::process::{Command, Output};

use reqwest::{Client, Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::support::{Connection, Started, Stream, TestHost, header, problem};

#[tokio::test]
async fn what_is_not_there_or_has_no_name_is_a_problem_that_says_so() {
    let host = TestHost::serving(&["probe"]).start();
    let long = format!("/agents/probe/{}/reply", "x".repeat(257));
    for (path, expected) in [
        ("/", "404 not-found host"),
        ("/nothing", "404 not-found host"),
        ("/agents/probe", "404 not-found host"),
        ("/agents/nobody/demo/reply", "404 unknown-agent host"),
        ("/agents/Probe/demo/reply", "400 bad-name host"),
        ("/agents/probe/%ff/reply", "400 bad-name host"),
        ("/agents/probe/a%0Ab/reply", "400 bad-name host"),
        (&long, "400 bad-name host"),
    ] {
        let response = reqwest::get(format!("{}{path}", host.url)).await.unwrap();
        assert_eq!(problem(response).await, expected, "{path}");
    }
    // What is below an instance is the agent's, and so is its answer.
    let theirs = host.get("probe/demo/nothing").await;
    assert_eq!(theirs.status(), StatusCode::NOT_FOUND);
    assert_eq!(theirs.text().await.unwrap(), "Not found");
}

#[tokio::test]
async fn the_operators_routes_take_their_methods_only_and_are_on_their_address_only() {
    let host = TestHost::serving(&["probe"]).start();
    let stream = host.stream("probe/demo/emit?count=1").await;
    let ended = header(&stream.headers, "bureau-run").to_owned();
    stream.rest().await;
    let ended = format!("/v1/runs/{ended}/cancel");
    let unknown = "/v1/runs/01ARZ3NDEKTSV4RRFFQ69G5FAV/cancel";
    for (method, path, expected) in [
        (Method::POST, "/healthz", "405 method-not-allowed host"),
        (Method::DELETE, "/readyz", "405 method-not-allowed host"),
        (Method::PUT, "/metrics", "405 method-not-allowed host"),
        (Method::GET, unknown, "405 method-not-allowed host"),
        (Method::GET, "/nothing", "404 not-found host"),
        (Method::GET, "/agents/probe/demo/reply", "404 not-found host"),
        (Method::POST, "/v1/runs/mine/cancel", "400 bad-name host"),
        (Method::POST, unknown, "404 not-found host"),
        (Method::POST, &ended, "409 run-ended host"),
    ] {
        let response = host.admin(method.clone(), path).await;
        let allow = header(response.headers(), "allow").to_owned();
        assert_eq!(problem(response).await, expected, "{method} {path}");
        let takes = if path == unknown { "POST" } else { "GET, HEAD" };
        assert_eq!(allow, if expected.starts_with("405") { takes } else { "" }, "{method} {path}");
    }
    for (path, start) in
        [("/healthz", "ok\n"), ("/readyz", "ready\n"), ("/metrics", "# HELP bureau_")]
    {
        let answer = host.admin(Method::GET, path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert!(answer.text().await.unwrap().starts_with(start), "{path}");
        let public = reqwest::get(format!("{}{path}", host.url)).await.unwrap();
        assert_eq!(problem(public).await, "404 not-found host", "{path}");
    }
}

#[tokio::test]
async fn metrics_count_what_happens() {
    let host = TestHost::serving(&["probe"]).start();
    let before = host.metrics().await;
    host.stream("probe/demo/emit?count=7").await.rest().await;
    let mut held = host.stream("probe/demo/emit-held?count=3").await;
    held.take(3).await;
    let after = host.metrics().await;
    assert_eq!(after["events_total"] - before["events_total"], 10);
    assert!(after["turns_total"] - before["turns_total"] >= 2);
    assert!(after["commits_total"] - before["commits_total"] >= 2);
    assert_eq!((after["live_runs"], after["live_instances"]), (1, 1));
    assert!(after["buffered_bytes"] > 0);
}

#[tokio::test]
async fn readyz_is_not_ready_while_a_module_is_bad_and_says_which() {
    let directory = tempfile::tempdir().unwrap();
    let bad = directory.path().join("broken.wasm");
    std::fs::write(&bad, "not a component").unwrap();
    let host = TestHost::serving(&["probe"]).component(&bad).start();
    let ready = host.admin(Method::GET, "/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let why = ready.text().await.unwrap();
    assert!(why.starts_with("not loaded: ") && why.contains("broken.wasm"), "{why}");
    assert_eq!(host.admin(Method::GET, "/healthz").await.status(), StatusCode::OK);
    assert_eq!(host.get("probe/demo/reply").await.status(), StatusCode::OK, "the others serve");
    assert_eq!(problem(host.get("broken/demo").await).await, "404 unknown-agent host");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_and_one_at_the_limit_is_not() {
    let host =
        TestHost::serving(&["probe"]).config("instances.request_body_bytes = '1 KiB'").start();
    let post = |size| {
        let request = host.request(Method::POST, "probe/demo/echo");
        request.body("x".repeat(size)).send()
    };
    let fits = post(1024).await.unwrap().json::<Value>().await.unwrap();
    assert_eq!(fits["body"].as_str().unwrap().len(), 1024);
    assert_eq!(problem(post(1025).await.unwrap()).await, "413 payload-too-large host");

    // Without a content-length it is noticed when it comes.
    let mut chunked = Connection::to(&host.url).await;
    chunked.send("POST /agents/probe/demo/echo HTTP/1.1\r\nhost: a\r\n").await;
    chunked.send("transfer-encoding: chunked\r\n\r\n").await;
    chunked.send(format!("401\r\n{}\r\n", "x".repeat(1025))).await;
    let answer = chunked.until("}").await;
    assert!(
        answer.starts_with("HTTP/1.1 413 ") && answer.contains("payload-too-large"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_is_slow_or_breaks_off_is_refused_and_starts_no_run() {
    let host = TestHost::serving(&["probe"]).config("http.body_timeout = '20ms'").start();
    let head = "POST /agents/probe/demo/memory HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n";
    let mut slow = Connection::to(&host.url).await;
    slow.send(format!("{head}half")).await;
    let answer = slow.until("}").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("body-timeout"), "{answer}");

    let mut broken = Connection::to(&host.url).await;
    broken.send(format!("{head}half")).await;
    broken.finish().await;
    broken.rest().await;
    assert_eq!(host.json("probe/demo/memory").await["calls"], 1);
}

#[tokio::test]
async fn every_answer_of_a_run_says_which_run_on_which_module() {
    let host = TestHost::serving(&["probe"]).start();
    let response = host.get("probe/demo/identity").await;
    let headers = response.headers().clone();
    let said: Value = response.json().await.unwrap();
    let module = header(&headers, "bureau-module");
    assert_eq!((module, header(&headers, "bureau-run")), {
        (said["module"].as_str().unwrap(), said["run"].as_str().unwrap())
    });
    assert_eq!(module.len(), 64);
    let mut runs = vec![header(&headers, "bureau-run").to_owned()];
    for path in
        ["reply", "emit?count=1", "events-nothing", "bad-request", "error", "panic", "chunks"]
    {
        let response = host.get(&format!("probe/demo/{path}")).await;
        assert_eq!(header(response.headers(), "bureau-module"), module, "{path}");
        let run = header(response.headers(), "bureau-run").to_owned();
        assert!(run.len() == 26 && !runs.contains(&run), "{path}: {run}");
        runs.push(run);
    }
    let refused = host.get("nobody/demo").await;
    assert_eq!(header(refused.headers(), "bureau-run"), "", "there was no run");
}

/// Has the rogue answer with this head.
async fn rogue(host: &Started, status: u16, headers: &[(&str, &str)]) -> Response {
    host.post("rogue/demo/reply", &json!({ "status": status, "headers": headers })).await
}

#[tokio::test]
async fn headers_that_belong_to_the_connection_are_dropped_and_others_pass_as_they_are() {
    let host = TestHost::serving(&["rogue"]).start();
    let hop_by_hop = [
        ("Connection", "x-secret"),
        ("keep-alive", "timeout=1"),
        ("proxy-connection", "close"),
        ("proxy-authenticate", "Basic"),
        ("te", "trailers"),
        ("trailer", "x"),
        ("transfer-encoding", "gzip"),
        ("upgrade", "websocket"),
        ("content-length", "999"),
    ];
    let own = [
        ("x-Twice", "one"),
        ("x-twice", "two"),
        ("x-latin", "caf\u{e9}"),
        ("bureau-run", "forged"),
    ];
    let response = rogue(&host, 418, &[&hop_by_hop[..], &own].concat()).await;
    assert_eq!(response.status(), StatusCode::IM_A_TEAPOT);
    let headers = response.headers();
    for (name, _) in hop_by_hop {
        let left = if name == "content-length" { "0" } else { "" };
        assert_eq!(header(headers, name), left, "{name}");
    }
    assert_eq!(headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["one", "two"]);
    assert_eq!(headers["x-latin"].as_bytes(), b"caf\xe9", "a byte for each character");
    assert_ne!(headers["bureau-run"], "forged");
    assert_eq!(headers.get_all("bureau-run").iter().count(), 1);
}

#[tokio::test]
async fn a_response_that_http_cannot_carry_is_the_agents_problem() {
    let host = TestHost::serving(&["rogue"]).start();
    for (status, headers, fault) in [
        (42, [("x", "y")], "status 42 "),
        (101, [("x", "y")], "status 101 "),
        (199, [("x", "y")], "status 199 "),
        (600, [("x", "y")], "status 600 "),
        (65535, [("x", "y")], "status 65535 "),
        (200, [("", "y")], "\"\" is not a header field's name"),
        (200, [("a b", "y")], "\"a b\" is not"),
        (200, [("a\r\nb", "y")], "is not a header field's name"),
        (200, [("x", "a\r\nb: c")], "the value of x "),
        (200, [("x", "a\0")], "the value of x "),
        (200, [("x", "\u{100}")], "the value of x "),
    ] {
        let response = rogue(&host, status, &headers).await;
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY, "{fault}");
        assert!(!header(response.headers(), "bureau-run").is_empty());
        let text = response.text().await.unwrap();
        let problem: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(
            (&problem["code"], &problem["source"]),
            (&json!("bad-response"), &json!("agent"))
        );
        assert!(problem["detail"].as_str().unwrap().contains(fault), "{fault}: {text}");
    }
    assert_eq!(rogue(&host, 200, &[]).await.status(), StatusCode::OK, "it goes on");
}

#[tokio::test]
async fn names_are_percent_decoded_and_what_follows_them_is_not() {
    let host = TestHost::serving(&["probe"]).start();
    for (written, name) in [
        ("a%2Fb", "a/b"),
        ("%E2%9C%93", "\u{2713}"),
        ("%70lain", "plain"),
        ("a+b%20c", "a+b c"),
        ("100%25", "100%"),
    ] {
        let identity = host.json(&format!("probe/{written}/identity")).await;
        assert_eq!(identity["instance"], name);
    }
    host.request(Method::PUT, "probe/a%62c/state").body("1").send().await.unwrap();
    assert_eq!(host.json("probe/abc/state").await, 1, "two spellings are one instance");

    let mut connection = Connection::to(&host.url).await;
    let target = "/agents/%70robe/a%2Fb/echo?x=%41+%zz&/../y";
    connection.send(format!("GET {target} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let answer = connection.rest().await;
    assert!(answer.contains(&format!("\"url\":\"{target}\"")), "{answer}");
}

#[tokio::test]
async fn a_request_reaches_the_agent_whole() {
    let host = TestHost::serving(&["probe"]).start();
    let request = host.request(Method::from_bytes(b"BREW").unwrap(), "probe/demo/echo?x=1");
    let request = request.header("x-twice", "one").header("x-twice", "two").body("a body");
    let echo: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(echo["method"], "BREW");
    assert_eq!(echo["url"], "/agents/probe/demo/echo?x=1");
    assert_eq!(echo["body"], "a body");
    let headers = echo["headers"].as_array().unwrap();
    let twice: Vec<_> = headers.iter().filter(|field| field[0] == "x-twice").collect();
    assert_eq!(twice, [&json!(["x-twice", "one"]), &json!(["x-twice", "two"])]);
}

#[tokio::test]
async fn the_hosts_origins_go_over_what_an_agent_says_of_them() {
    let config = "cors.origins = ['https://good.example']";
    let host = TestHost::serving(&["rogue"]).config(config).start();
    let any = json!({ "status": 200, "headers": [["access-control-allow-origin", "*"]] });
    let allowed = async |origin: &str| {
        let request = host.request(Method::POST, "rogue/demo/reply").json(&any);
        let response = request.header("origin", origin).send().await.unwrap();
        assert_eq!(response.status(), 200);
        let allowed = response.headers().get("access-control-allow-origin");
        allowed.map(|origin| origin.to_str().unwrap().to_owned())
    };
    assert_eq!(allowed("https://good.example").await.as_deref(), Some("https://good.example"));
    assert_eq!(allowed("https://evil.example").await, None);
}

#[tokio::test]
async fn http1_and_http2_are_answered_alike_on_one_port() {
    let host = TestHost::serving(&["probe"]).start();
    let http1 = Client::builder().http1_only().build().unwrap();
    let http2 = Client::builder().http2_prior_knowledge().build().unwrap();
    for (client, version) in [(http1, "HTTP/1.1"), (http2, "HTTP/2.0")] {
        let post = client.post(host.agent_url("probe/demo/echo")).body("a body");
        let response = post.send().await.unwrap();
        assert_eq!(format!("{:?}", response.version()), version);
        let echo = response.json::<Value>().await.unwrap();
        assert_eq!((&echo["method"], &echo["body"]), (&json!("POST"), &json!("a body")));
        assert_eq!(echo["url"], "/agents/probe/demo/echo", "{version}");
        let stream = Stream::open(client.get(host.agent_url("probe/demo/emit?count=3"))).await;
        assert_eq!(stream.rest().await.len(), 3, "{version}");
        let chunks = client.get(host.agent_url("probe/demo/chunks?count=3"));
        assert_eq!(chunks.send().await.unwrap().text().await.unwrap(), "1\n2\n3\n", "{version}");
        let unknown = client.get(host.agent_url("nobody/demo")).send().await.unwrap();
        assert_eq!(problem(unknown).await, "404 unknown-agent host", "{version}");
    }
}

#[tokio::test]
async fn what_a_guest_prints_is_in_the_log_with_agent_instance_and_run() {
    let host = TestHost::serving(&["probe"]).start();
    let response = host.get("probe/a%20b/log").await;
    let run = header(response.headers(), "bureau-run").to_owned();
    for stream in ["stdout", "stderr"] {
        let message = format!("a line on {stream} {}", ".".repeat(5000));
        let line = host.logged(|line| line.contains(&message)).await;
        let line: Value =
            serde_json::from_str(&line).expect("the log is JSON where no one watches");
        assert_eq!(line["message"], message);
        assert_eq!(line["level"], "INFO");
        assert_eq!((&line["agent"], &line["instance"]), (&json!("probe"), &json!("a b")));
        assert_eq!((&line["run"], &line["stream"]), (&json!(run), &json!(stream)));
    }
}

// The command line.

#[tokio::test]
async fn a_configuration_that_is_wrong_is_refused_with_its_place() {
    for (config, says) in [
        ("[http]\nheartbeats = '1s'", &["line 2, column 1", "heartbeats"][..]),
        ("[htpp]", &["line 1, column 2", "htpp"]),
        ("[http]\n\nheartbeat = 'soon'", &["line 3, column 13", "soon"]),
        ("[agents.probe]\nenv = {}", &["line 2, column 1", "env"]),
        ("[instances]\nruns = 0", &["line 2, column 8", "more than 0"]),
        ("[cors]\norigins = ['Example.org']", &["cors.origins", "Example.org"]),
    ] {
        let (status, stderr) = TestHost::serving(&[]).config(config).refuses();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(stderr.starts_with("bureau: "), "{stderr}");
        assert!(says.iter().all(|say| stderr.contains(say)), "{config:?}: {stderr}");
        let of_file = !says[0].starts_with("line") || stderr.contains("bureau.toml: ");
        assert!(of_file, "the file is named: {stderr}");
    }
}

/// Runs the program, which ends of itself: its exit code, and what it says.
fn bureau(arguments: &[&str]) -> (Option<i32>, String) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_bureau"));
    let Output { status, stdout, stderr } = program.args(arguments).output().unwrap();
    (status.code(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[test]
fn help_names_the_commands_and_each_commands_help_its_options() {
    for (arguments, says) in [
        (&["--help"][..], &["serve", "dev", "/agents/{agent}/{instance}", "--log-format"][..]),
        (
            &["serve", "--help"],
            &["--agents", "--listen", "--admin", "--data", "--config", "SIGTERM"],
        ),
        (&["dev", "--help"], &["PATH", "--listen", "wasm32-wasip2"]),
    ] {
        let (code, text) = bureau(arguments);
        assert_eq!(code, Some(0), "{text}");
        assert!(says.iter().all(|say| text.contains(say)), "{arguments:?}: {text}");
    }
}

#[test]
fn what_the_command_line_cannot_mean_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let data = data.path().to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = ["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data", data];
    let serve = |more: &[&str]| bureau(&[&["serve"], &free[..], more].concat());
    for ((code, text), expected, says) in [
        (bureau(&["server"]), 2, "'server'"),
        (bureau(&["serve", "--agent", "."]), 2, "'--agent'"),
        (bureau(&["serve", "--listen", "here"]), 2, "'here'"),
        (serve(&["--agents"]), 2, "--agents <DIR>"),
        (serve(&["--agents", "/nowhere"]), 1, "/nowhere"),
        (serve(&["--agents", ".", "--config", "/nowhere.toml"]), 1, "/nowhere.toml"),
        (
            bureau(&["serve", "--agents", ".", "--listen", &taken]),
            1,
            &*format!("{taken} (--listen)"),
        ),
    ] {
        assert_eq!(code, Some(expected), "{says}: {text}");
        assert!(text.contains(says), "{says}: {text}");
    }
}

#[tokio::test]
async fn port_0_picks_ports_and_the_ready_line_names_them() {
    // Both are read off the line; an answer on each shows that they are true.
    let host = TestHost::serving(&["probe"]).start();
    for url in [&host.url, &host.admin] {
        assert!(!url.ends_with(":0"), "{url}");
    }
    assert_ne!(host.url, host.admin);
    assert_eq!(host.get("probe/demo/reply").await.status(), StatusCode::OK);
    assert_eq!(host.admin(Method::GET, "/healthz").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn running_out_of_file_descriptors_slows_accepting_and_ends_nothing() {
    let host = TestHost::serving(&["probe"]).after("ulimit -n 64").start();
    let mut connections = Vec::new();
    for _ in 0..100 {
        connections.push(Connection::to(&host.url).await);
    }
    host.logged(|line| line.contains("cannot accept a connection")).await;
    drop(connections);
    assert_eq!(host.get("probe/one/count?count=1").await.status(), 200);
}
