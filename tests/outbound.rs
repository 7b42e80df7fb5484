//! What an operator grants an agent: hosts to send requests to, secrets, files. What is not granted is not there.

use std::net::ToSocketAddrs as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring::default_provider;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use crate::support::{Started, TestHost, Upstream, guest, header, module};

/// Both versions of `wasi:http`, as the guest's paths.
const BY: [&str; 2] = ["fetch", "fetch?0.2"];

/// A host that serves the guest with this in the agent's table.
fn granting(granted: &str) -> TestHost {
    TestHost::serving(&["granted"]).config(&format!("[agents.granted]\n{granted}"))
}

/// What the guest gets when it sends a request.
async fn fetch(host: &Started, by: &str, ask: Value) -> Value {
    host.post(&format!("granted/demo/{by}"), &ask).await.json().await.expect("the guest says it")
}

async fn get(host: &Started, by: &str, url: &str) -> Value {
    fetch(host, by, json!({ "url": url })).await
}

/// What the guest gets of its disk.
async fn on_disk(host: &Started, what: &str, path: &str) -> Value {
    let asked = host.request(Method::POST, &format!("granted/demo/{what}"));
    asked.body(path.to_owned()).send().await.unwrap().json().await.unwrap()
}

#[tokio::test]
async fn a_guest_reaches_what_it_is_granted() {
    let upstream = Upstream::start().await;
    let host = granting(&format!("allow_hosts = ['{}']", upstream.url(""))).start();
    for by in BY {
        let ask = json!({ "url": upstream.url("/echo"), "headers": [["x-word", "sesame"]] });
        let got = fetch(&host, by, ask).await;
        assert_eq!(got["status"], 200, "{by}: {got}");
        let echo: Value = serde_json::from_str(got["body"].as_str().unwrap()).unwrap();
        assert_eq!(echo["method"], "GET");
        let headers = echo["headers"].as_array().unwrap();
        assert!(headers.contains(&json!(["x-word", "sesame"])), "{headers:?}");
        let hosts: Vec<_> = headers.iter().filter(|field| field[0] == "host").collect();
        assert_eq!(hosts, [&json!(["host", upstream.address.to_string()])]);
    }
    let ask = json!({ "url": upstream.url("/echo"), "method": "PUT", "body": "streamed" });
    let got = fetch(&host, "fetch", ask).await;
    let echo: Value = serde_json::from_str(got["body"].as_str().unwrap()).unwrap();
    assert_eq!((&echo["method"], &echo["body"]), (&json!("PUT"), &json!("streamed")));
    assert_eq!(upstream.connections(), 1, "it is kept, whatever version asks");

    let cut = get(&host, "fetch", &upstream.url("/cut")).await;
    assert_eq!(cut["error"], "HttpResponseIncomplete");
}

#[tokio::test]
async fn what_is_not_granted_is_refused_by_its_error_and_told_to_the_operator() {
    let upstream = Upstream::start().await;
    let port = upstream.port();
    let host = granting(&format!(
        "allow_hosts = ['http://127.0.0.1:{port}', 'http://*:{port}', '*.example.org']"
    ))
    .start();
    let denied = "HttpRequestDenied";
    let invalid = "HttpRequestUriInvalid";
    let cases = [
        (format!("https://127.0.0.1:{port}/echo"), denied),
        ("http://127.0.0.1/echo".into(), denied),
        (format!("http://127.0.0.2:{port}/echo"), denied),
        (format!("http://[::1]:{port}/echo"), denied),
        (format!("http://localhost:{port}/echo"), denied),
        ("https://example.org/".into(), denied),
        ("https://evilexample.org/".into(), denied),
        ("http://a.example.org/".into(), denied),
        (format!("http://2130706433:{port}/echo"), invalid),
        (format!("http://0x7f000001:{port}/echo"), invalid),
        (format!("http://0177.0.0.1:{port}/echo"), invalid),
        (format!("http://127.1:{port}/echo"), invalid),
        (format!("http://user@127.0.0.1:{port}/echo"), invalid),
    ];
    for by in BY {
        for (url, error) in &cases {
            assert_eq!(get(&host, by, url).await, json!({ "error": error }), "{by} {url}");
        }
    }
    let line = host.logged(|line| line.contains("http://127.0.0.2")).await;
    for what in ["granted", "demo", "allow_hosts", &format!("http://127.0.0.2:{port}")] {
        assert!(line.contains(what), "{what} is not in {line}");
    }
    // As many as are said were refused by now.
    get(&host, "fetch", &cases[0].0).await;
    host.logged(|line| line.contains("more requests are refused")).await;
    let refusals = host.log().iter().filter(|line| line.contains("would grant it")).count();
    assert_eq!(refusals, 16);

    // What a redirect leads to is asked for like anything else.
    let url = upstream.url(&format!("/redirect?http://127.0.0.2:{port}/echo"));
    let redirected = get(&host, "fetch", &url).await;
    assert_eq!(redirected["status"], 302);
    assert_eq!(upstream.seen().len(), 1, "nothing else has come");

    for (name, value) in [("host", "inside.test"), ("connection", "x"), ("transfer-encoding", "x")]
    {
        let ask = json!({ "url": upstream.url("/echo"), "headers": [[name, value]] });
        for by in BY {
            let got = fetch(&host, by, ask.clone()).await;
            assert_eq!(got["error"], "HeaderError::Forbidden", "{by} {name}");
        }
    }
}

#[tokio::test]
async fn a_name_of_this_machine_is_refused_where_its_address_is_not_granted() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = name.trim();
    let found = (name, 0).to_socket_addrs().map(|found| found.map(|at| at.ip()).collect());
    let found: Vec<_> = found.unwrap_or_default();
    if found.is_empty() || !found.iter().all(|address| address.is_loopback()) {
        // A machine whose name says where others reach it shows nothing here; the client's own tests do.
        return;
    }
    let upstream = Upstream::start().await;
    let url = format!("http://{name}:{}/echo", upstream.port());
    let host = granting(&format!("allow_hosts = ['http://*:{}']", upstream.port())).start();
    for by in BY {
        assert_eq!(get(&host, by, &url).await, json!({ "error": "DestinationIpProhibited" }));
    }
    assert_eq!(upstream.connections(), 0);
    let line = host.logged(|line| line.contains("neither public nor granted")).await;
    assert!(line.contains(&format!("http://{}:{}", found[0], upstream.port())), "{line}");
    let nowhere = format!("http://no-such.invalid:{}/", upstream.port());
    let error = get(&host, "fetch", &nowhere).await["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("DnsError"), "{error}");
}

#[tokio::test]
async fn a_module_that_asks_for_others_is_refused_where_no_host_is_granted() {
    let host = TestHost::serving(&["probe"]).config("[agents.none]\nallow_hosts = []").start();
    let refused = host.put_module("granted", module("granted")).await;
    assert_eq!(refused.status(), 422);
    let refused: Value = refused.json().await.unwrap();
    assert_eq!(refused["code"], "module-not-granted");
    let why = refused["detail"].as_str().unwrap();
    for what in
        ["wasi:http/client@0.3.0", "wasi:http/outgoing-handler@0.2", "`allow_hosts` in [agents."]
    {
        assert!(why.contains(what), "{what} is not in {why}");
    }
    assert!(!why.contains("wasi:http/types"), "types are everyone's: {why}");

    assert_eq!(host.put_module("none", module("granted")).await.status(), 201);
    let got = host.post("none/demo/fetch", &json!({ "url": "https://example.org/" })).await;
    assert_eq!(got.json::<Value>().await.unwrap(), json!({ "error": "HttpRequestDenied" }));
}

#[tokio::test]
async fn a_grant_that_is_taken_back_is_looked_at_when_the_host_starts() {
    let host = granting("allow_hosts = ['https://example.org']").start();
    let (_, how) = host.terminate();
    let host = how.configured("").start();
    let agents = host.operator_sees("/v1/agents").await;
    let error = agents["agents"][0]["error"].as_str().expect("it does not serve");
    assert!(error.contains("allow_hosts"), "{error}");
}

#[tokio::test]
async fn a_body_streams_through_a_guest() {
    let upstream = Upstream::start().await;
    let host = granting(&format!("allow_hosts = ['{}']", upstream.url(""))).start();
    let asked = host.request(Method::POST, "granted/demo/stream").body(upstream.url("/drip"));
    let mut answer: Response = asked.send().await.unwrap();
    assert_eq!(
        answer.chunk().await.unwrap().unwrap(),
        "one\n",
        "before the server has written more"
    );
    upstream.go_on();
    assert_eq!(answer.chunk().await.unwrap().unwrap(), "two\n");
    assert_eq!(answer.chunk().await.unwrap(), None);
}

#[tokio::test]
async fn an_agent_has_its_own_share_of_requests() {
    let upstream = Upstream::start().await;
    let url = upstream.url("/drip");
    let granted = format!("allow_hosts = ['{}']", upstream.url(""));
    let host = granting(&granted)
        .config(&format!("[agents.other]\n{granted}"))
        .config("[outbound]\nrequests = 2\nconnect_timeout = '100ms'\nresponse_timeout = '50ms'")
        .with_file("other", &module("granted"))
        .start();
    let hold = async |instance: &str| -> Value {
        let asked = host.request(Method::POST, &format!("{instance}/hold")).body(url.clone());
        asked.send().await.unwrap().json().await.unwrap()
    };
    assert_eq!(hold("granted/demo").await, json!({ "held": 1 }));
    assert_eq!(hold("granted/another").await, json!({ "held": 1 }));
    assert_eq!(hold("granted/demo").await, json!({ "error": "ConnectionLimitReached" }));
    let by_2 = get(&host, "fetch?0.2", &upstream.url("/echo")).await;
    assert_eq!(by_2, json!({ "error": "ConnectionLimitReached" }));
    assert_eq!(hold("other/demo").await, json!({ "held": 1 }), "it has its own");
    let ask = json!({ "url": upstream.url("/never") });
    let late: Value = host.post("other/demo/fetch", &ask).await.json().await.unwrap();
    assert_eq!(late, json!({ "error": "HttpResponseTimeout" }));
}

/// A certificate authority of the test's own.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    /// What a server of this name uses, which speaks these protocols.
    fn server(&self, name: &str, protocols: &[&str]) -> ServerConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap();
        let config = config.with_no_client_auth();
        let mut config = config.with_single_cert(vec![certificate.der().clone()], key).unwrap();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().into()).collect();
        config
    }
}

#[tokio::test]
async fn tls_is_checked_by_what_the_machine_trusts() {
    let (trusted, foreign) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    let roots = directory.path().join("roots.pem");
    std::fs::write(&roots, trusted.0.pem()).unwrap();
    let both = Upstream::start_tls(trusted.server("localhost", &["h2", "http/1.1"])).await;
    let old = Upstream::start_tls(trusted.server("localhost", &["http/1.1"])).await;
    let untrusted = Upstream::start_tls(foreign.server("localhost", &["h2"])).await;
    let misnamed = Upstream::start_tls(trusted.server("other.test", &["h2"])).await;
    let plain = Upstream::start().await;
    let urls = [&both, &old, &untrusted, &misnamed, &plain]
        .map(|upstream| format!("https://localhost:{}", upstream.port()));
    let host = granting(&format!("allow_hosts = {urls:?}"))
        .after(&format!("export SSL_CERT_FILE={}", roots.display()))
        .start();
    let [both_url, old_url, untrusted, misnamed, plain] = urls.map(|url| format!("{url}/echo"));
    for (url, version) in [(&both_url, "HTTP/2.0"), (&old_url, "HTTP/1.1")] {
        for by in BY {
            let got = get(&host, by, url).await;
            let echo: Value = serde_json::from_str(got["body"].as_str().expect(version)).unwrap();
            assert_eq!(echo["version"], version, "{by}");
        }
    }
    assert_eq!((both.connections(), old.connections()), (1, 1));
    for (url, error) in [
        (&untrusted, "TlsCertificateError"),
        (&misnamed, "TlsCertificateError"),
        (&plain, "TlsProtocolError"),
    ] {
        for by in BY {
            assert_eq!(get(&host, by, url).await, json!({ "error": error }), "{by}");
        }
    }
}

/// What must be nowhere.
const SECRET: &str = "sesame-4711";

#[tokio::test]
async fn a_secret_is_read_by_its_agent_and_seen_nowhere_else() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    let [roots, file] = ["roots.pem", "secret"].map(|name| directory.path().join(name));
    std::fs::write(&roots, authority.0.pem()).unwrap();
    std::fs::write(&file, format!("{SECRET}-of-a-file\n")).unwrap();
    let plain = Upstream::start().await;
    let tls = Upstream::start_tls(authority.server("localhost", &["h2"])).await;
    let urls = [plain.url("/echo"), format!("https://localhost:{}/echo", tls.port())];
    let hosts = urls.each_ref().map(|url| url.trim_end_matches("/echo"));
    let host = granting(&format!(
        "allow_hosts = {hosts:?}\nsecrets = ['KEY', 'FILED']\nconfig = {{ model = 'small' }}"
    ))
    .config("[agents.other]\nconfig = {}")
    .with_file("other", &module("probe"))
    .after(&format!(
        "export SSL_CERT_FILE={} KEY={SECRET} FILED_FILE={}",
        roots.display(),
        file.display()
    ))
    .log("trace")
    .start();

    let value = async |path: &str| host.json(path).await["value"].clone();
    assert_eq!(value("granted/demo/config?KEY").await, SECRET);
    assert_eq!(value("granted/demo/config?FILED").await, format!("{SECRET}-of-a-file"));
    assert_eq!(value("granted/demo/config?model").await, "small");
    assert_eq!(value("granted/demo/config?PATH").await, Value::Null, "only what is named");
    assert_eq!(value("other/demo/config?key=KEY").await, Value::Null, "another agent's");
    // It goes where its agent sends it, by both protocols.
    for (url, upstream) in urls.iter().zip([&plain, &tls]) {
        for by in BY {
            let bearer = format!("Bearer {SECRET}");
            let ask = json!({ "url": url, "headers": [["authorization", bearer]] });
            assert_eq!(fetch(&host, by, ask).await["status"], 200);
        }
        assert!(upstream.seen()[1]["headers"].to_string().contains(SECRET));
    }
    let mut answers = Vec::new();
    for path in [
        "/v1/agents",
        "/v1/agents/granted/deployments",
        "/v1/instances",
        "/v1/runs",
        "/metrics",
        "/healthz",
        "/readyz",
        "/openapi.json",
    ] {
        answers.push(host.admin(Method::GET, path).await.text().await.unwrap());
    }
    let agent = &answers[0];
    assert!(agent.contains("KEY") && agent.contains("FILED") && agent.contains("model"), "{agent}");
    for path in ["granted/demo/config?KEY", "granted/demo/nothing", "nobody/demo"] {
        let answer = host.request(Method::DELETE, path).send().await.unwrap();
        if answer.status().is_client_error() || answer.status().is_server_error() {
            answers.push(answer.text().await.unwrap());
        }
    }
    for answer in &answers {
        assert!(!answer.contains(SECRET), "{answer}");
    }
    let log = host.log();
    assert!(log.iter().any(|line| line.contains("TRACE")), "it logs all that it can");
    let leak = log.iter().find(|line| line.contains(SECRET));
    assert_eq!(leak, None);
}

#[test]
fn a_secret_that_is_not_there_keeps_the_host_from_starting() {
    let (status, error) = granting("secrets = ['NO_SUCH_KEY']").refuses();
    assert_eq!(status.code(), Some(1));
    assert!(
        error.contains("agents.granted.secrets: neither NO_SUCH_KEY nor NO_SUCH_KEY_FILE"),
        "{error}"
    );
}

#[tokio::test]
async fn a_directory_is_read_and_neither_changed_nor_left() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    std::fs::create_dir_all(at("given/inner")).unwrap();
    std::fs::write(at("given/inner/a"), "in it").unwrap();
    std::fs::write(at("outside"), "outside").unwrap();
    for (link, to) in [
        ("given/within", Path::new("inner/a")),
        ("given/up", Path::new("../outside")),
        ("given/absolute", &at("outside")),
        ("given/passwd", Path::new("/etc/passwd")),
        ("given/parent", Path::new("..")),
    ] {
        std::os::unix::fs::symlink(to, at(link)).unwrap();
    }
    let granted = format!("allow_hosts = []\nfiles = {:?}", at("given"));
    let host = granting(&granted)
        .config("[agents.other]\nallow_hosts = []")
        .with_file("other", &module("granted"))
        .start();
    for path in ["/inner/a", "inner/a", "/within", "/inner/../within"] {
        assert_eq!(on_disk(&host, "read", path).await, json!({ "text": "in it" }), "{path}");
    }
    let listed = on_disk(&host, "list", "/").await;
    assert_eq!(listed, json!({ "text": "absolute inner parent passwd up within" }));
    for path in [
        "/up",
        "/absolute",
        "/passwd",
        "/parent/outside",
        "/../outside",
        "../outside",
        "/inner/../../outside",
        "/etc/passwd",
        &at("outside").display().to_string(),
    ] {
        let read = on_disk(&host, "read", path).await;
        assert!(read["error"].is_string(), "{path}: {read}");
    }
    for (what, path) in [
        ("write", "/new"),
        ("write", "/inner/a"),
        ("append", "/inner/a"),
        ("remove", "/inner/a"),
        ("make", "/made"),
        ("write", "/up"),
    ] {
        let done = on_disk(&host, what, path).await;
        assert!(done["error"].is_string(), "{what} {path}: {done}");
    }
    assert_eq!(std::fs::read_to_string(at("given/inner/a")).unwrap(), "in it");
    assert_eq!(std::fs::read_to_string(at("outside")).unwrap(), "outside");
    assert_eq!(std::fs::read_dir(at("given")).unwrap().count(), 6);
    let other =
        host.request(Method::POST, "other/demo/read").body("/inner/a").send().await.unwrap();
    assert!(other.json::<Value>().await.unwrap()["error"].is_string(), "it is given no files");

    std::fs::rename(at("given"), at("taken")).unwrap();
    let gone = host.request(Method::POST, "granted/another/list").body("/").send().await.unwrap();
    assert_eq!(gone.status(), 503);
    host.logged(|line| line.contains("given cannot be opened")).await;
    let (_, error) = granting(&granted).refuses();
    assert!(error.contains("agents.granted.files"), "{error}");
}

#[tokio::test]
async fn what_a_module_asks_for_and_is_given_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let files = directory.path().display().to_string();
    let granted = format!(
        "allow_hosts = ['*.example.org:8443']\nsecrets = ['PATH']\nfiles = '{files}'\nconfig = {{ model = 'small' }}"
    );
    let host = granting(&granted).start();
    let seen = host.operator_sees("/v1/agents").await["agents"][0].clone();
    let asked = seen["capabilities"].as_array().unwrap();
    let expected = [
        json!({ "name": "configuration", "provision": "given", "of": ["model", "PATH"] }),
        json!({ "name": "files", "provision": "given", "of": [files] }),
        json!({ "name": "http", "provision": "given", "of": ["https://*.example.org:8443"] }),
        json!({ "name": "http-types", "provision": "given" }),
    ];
    for capability in expected {
        assert!(asked.contains(&capability), "{capability} is not in {asked:?}");
    }
    let config = directory.path().join("bureau.toml");
    std::fs::write(&config, format!("[agents.granted]\n{granted}")).unwrap();
    let inspect = |arguments: &[&Path]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_bureau"));
        program.arg("inspect").arg(guest("granted")).args(arguments).output().unwrap()
    };
    let by = inspect(&["--config".as_ref(), &config, "--agent".as_ref(), "granted".as_ref()]);
    let text = String::from_utf8(by.stdout).unwrap();
    assert!(by.status.success(), "{text}");
    assert!(text.contains("http (https://*.example.org:8443)"), "{text}");
    assert!(text.contains("configuration (model, PATH)"), "{text}");
    let path = std::env::var("PATH").unwrap();
    assert!(!text.contains(&path) && !seen.to_string().contains(&path), "{text}");
    let without = inspect(&[]);
    assert_eq!(without.status.code(), Some(1));
    let text = String::from_utf8(without.stdout).unwrap();
    assert!(
        text.contains("http (not given)") && text.contains("files (there, and empty)"),
        "{text}"
    );
    assert!(
        header(host.get("granted/demo/config?model").await.headers(), "content-type")
            .contains("json")
    );
}
