use super::limits::MIB;
use super::*;

/// Loads a file of this text.
fn load(text: &str) -> Result<Config, ConfigError> {
    let file = tempfile::Builder::new().prefix("bureau").suffix(".toml").tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    Config::load(Some(file.path()), Overrides::default())
}

#[test]
fn defaults_are_valid() {
    let config = Config::load(None, Overrides::default()).unwrap();
    assert_eq!(config.listen.to_string(), "127.0.0.1:8787");
    assert_eq!(config.admin.to_string(), "127.0.0.1:8788");
    assert_eq!(config.data, Path::new(".bureau"));
    assert_eq!(config, load("").unwrap());
}

#[test]
fn a_file_sets_what_it_names_and_leaves_the_rest() {
    let config = load(
        r#"
        listen = "[::1]:80"
        data = "/var/lib/bureau"
        grace = "1m 30s"
        resumptions_at_once = 4
        [tls]
        cert = "/etc/cert.pem"
        key = "/etc/key.pem"
        [http]
        heartbeat = "500ms"
        [cors]
        origins = ["https://example.org", "http://localhost:3000"]
        [instances]
        request_body_bytes = 4096
        event_bytes = "64 KiB"
        [journal]
        retain_for = "7days"
        retain_bytes = "100GiB"
        [agents.chat.config]
        model = "small"
        "#,
    )
    .unwrap();
    assert_eq!(config.listen.to_string(), "[::1]:80");
    assert_eq!(config.data, Path::new("/var/lib/bureau"));
    assert_eq!(config.grace, Duration::from_secs(90));
    assert_eq!(config.resumptions_at_once, 4);
    let (cert, key) = ("/etc/cert.pem".into(), "/etc/key.pem".into());
    assert_eq!(config.tls, Some(TlsFiles { cert, key }));
    assert_eq!(config.http.heartbeat, Duration::from_millis(500));
    assert_eq!(config.instances.request_body_bytes, 4096);
    assert_eq!(config.http.retry, HttpLimits::default().retry);
    assert_eq!(config.instances.event_bytes, 64 * KIB);
    assert_eq!(config.journal.retain_bytes, 100 * GIB);
    assert_eq!(config.agents[&"chat".parse().unwrap()].config["model"], "small");
    assert!(config.cors.allows("https://example.org"));
    assert!(!config.cors.allows("https://example.com"));
}

#[test]
fn the_command_line_goes_over_the_file() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "listen = '127.0.0.1:1'\nadmin = '127.0.0.1:2'").unwrap();
    let overrides = Overrides { listen: Some(([0; 4], 3).into()), ..Overrides::default() };
    let config = Config::load(Some(file.path()), overrides).unwrap();
    assert_eq!((config.listen.port(), config.admin.port()), (3, 2));

    std::fs::write(file.path(), "tls.cert = 'a'\ntls.key = 'b'").unwrap();
    let overrides = Overrides { tls_key: Some("c".into()), ..Overrides::default() };
    let config = Config::load(Some(file.path()), overrides).unwrap();
    assert_eq!(config.tls, Some(TlsFiles { cert: "a".into(), key: "c".into() }));
}

#[test]
fn what_cannot_be_read_is_named_with_file_line_column_and_key() {
    let cases = [
        ("[http]\nheartbeats = '1s'", "line 2, column 1", "heartbeats"),
        ("[htpp]", "line 1, column 2", "htpp"),
        ("[http]\nheartbeat = 15", "line 2, column 13", "heartbeat"),
        ("[http]\n\nheartbeat = 'soon'", "line 3, column 13", "soon"),
        ("[journal]\ncache_bytes = '3 MB'", "line 2, column 15", "64 KiB"),
        ("[journal]\ncache_bytes = -1", "line 2, column 15", "64 KiB"),
        ("[instances]\nlive = 1.5", "line 2, column 8", "live"),
        ("[instances]\nruns = 0", "line 2, column 8", "must be more than 0"),
        ("[http]\nstreams_per_connection = 4294967296", "line 2, column 26", "is too large"),
        ("[http]\nheartbeat = '0s'", "line 2, column 13", "must be at least 1ms"),
        ("[http]\nretry = '999us'", "line 2, column 9", "must be at least 1ms"),
        ("[agents.chat.limits]\n\ncpu = 5", "line 3, column 7", "cpu"),
        ("[agents.chat.limits]\nlog_bytes = 5", "line 2, column 1", "log_bytes"),
        ("[agents.chat]\nallow_hosts = ['a/b']", "line 2, column 15", "nothing follows its port"),
        ("[agents.chat]\nenv = {}", "line 2, column 1", "env"),
        ("listen = 'here'", "line 1, column 10", "listen"),
        ("grace = ", "line 1, column 9", "grace"),
    ];
    for (text, place, key) in cases {
        let error = load(text).unwrap_err().to_string();
        assert!(error.contains("bureau") && error.contains(".toml: "), "{error}");
        assert!(error.contains(place) && error.contains(key), "{text:?} gives: {error}");
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error =
        Config::load(Some(Path::new("/nowhere/bureau.toml")), Overrides::default()).unwrap_err();
    assert!(error.to_string().contains("/nowhere/bureau.toml"), "{error}");
}

#[test]
fn what_makes_no_sense_is_refused_by_its_key() {
    let cases = [
        ("[http]\nheader_bytes = 8191", "http.header_bytes"),
        ("[http]\nheader_count = 16385", "http.header_count"),
        ("[http]\nconnections = 9223372036854775807", "http.connections"),
        ("[tls]\ncert = 'a'", "tls.key"),
        ("[tls]\nkey = 'a'", "tls.cert"),
        ("[instances]\nevent_bytes = '5 MiB'", "journal.backlog_bytes"),
        ("[instances]\nstate_bytes = '9 MiB'", "instances.turn_bytes"),
        ("[instances]\nvalue_bytes = '9 MiB'", "instances.turn_bytes"),
        ("[instances]\nturn_bytes = '257 MiB'", "instances.turn_bytes"),
        ("[agents.chat.limits]\nrequest_body_bytes = '4 GiB'", "limits.request_body_bytes"),
        ("[cors]\norigins = ['https://example.org/']", "cors.origins"),
        ("[cors]\norigins = ['Example.org']", "cors.origins"),
        ("[outbound]\nrequests = 9223372036854775807", "outbound.requests"),
        ("[agents.Chat]", "agents.Chat"),
        ("[agents.chat]\nsecrets = ['BUREAU_NO_SUCH']", "agents.chat.secrets"),
        ("[agents.chat]\nsecrets = ['PATH']\nconfig = { PATH = '' }", "agents.chat.secrets"),
        ("[agents.chat]\nfiles = '/nowhere'", "agents.chat.files"),
        ("[agents.chat]\nfiles = '/dev/null'", "agents.chat.files"),
        ("[agents.chat.limits]\nevent_bytes = '9 MiB'", "agents.chat.limits.event_bytes"),
    ];
    for (text, key) in cases {
        let error = load(text).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { .. }), "{text:?} gives: {error}");
        assert!(error.to_string().contains(key), "{text:?} gives: {error}");
    }
}

#[test]
fn an_agents_limits_go_over_those_of_all() {
    let config = load(
        r#"
        [agents.small.limits]
        live = 3
        memory_bytes = "8 MiB"
        [agents.large.limits]
        memory_bytes = "1 GiB"
        [instances]
        live = 10
        cpu = "1s"
        "#,
    )
    .unwrap();
    let [small, large, other] =
        ["small", "large", "other"].map(|name| config.agent(&name.parse().unwrap()).limits);
    assert_eq!([small.live, large.live, other.live], [3, 10, 10]);
    assert_eq!([small.memory_bytes, large.memory_bytes], [8 * MIB, GIB as usize]);
    assert_eq!(other, config.instances);
    assert_eq!([small.cpu, large.cpu], [Duration::from_secs(1); 2]);
    assert_eq!(config.largest_memory(), GIB as usize);
}

#[test]
fn what_is_printed_says_the_same_when_it_is_read() {
    let written = r#"
        listen = "[::1]:80"
        agents_dir = "a \"dir\""
        grace = "1m 30s"
        [tls]
        cert = "a"
        key = "b"
        [http]
        retry = "1500ms"
        [cors]
        origins = ["https://example.org"]
        [instances]
        event_bytes = 65537
        idle = "0s"
        [journal]
        retain_bytes = 0
        [agents.chat]
        health = "/health"
        allow-hosts = ["*.example.org:8443", "http://[::1]"]
        secrets = ["PATH"]
        files = "/"
        config = { "a key" = "a \"value\"\n" }
        limits = { cpu = "1s" }
    "#;
    for text in ["", written] {
        let config = load(text).unwrap();
        let printed = config.print();
        assert_eq!(load(&printed).unwrap(), config, "{printed}");
    }
}

#[test]
fn what_is_printed_has_every_limit_and_no_secret() {
    let written = "admin_token = '0123456789abcdef'\nagents.chat.secrets = ['PATH']";
    let config = load(written).unwrap();
    let printed = config.print();
    let path = std::env::var("PATH").unwrap();
    assert_eq!(config.agent(&"chat".parse().unwrap()).secrets["PATH"].reveal(), path);
    assert!(!printed.contains(&path) && !format!("{config:?}").contains(&path), "{printed}");
    assert!(printed.contains("secrets = [\"PATH\"]"), "{printed}");
    for line in
        ["retry = \"2s\"", "memory_bytes = \"128 MiB\"", "retain_for = \"7days\"", "live = 4096"]
    {
        assert!(printed.lines().any(|printed| printed == line), "{line} is not in {printed}");
    }
    assert!(printed.contains("# admin_token: set, and not shown"), "{printed}");
    assert!(!printed.contains("0123456789abcdef"), "{printed}");
}

#[test]
fn who_may_call_is_said_in_one_way_or_refused() {
    let cases = [
        ("[auth]", "auth: takes one of"),
        ("[agents.chat.auth]", "agents.chat.auth: takes one of"),
        ("[auth]\nopen = true\nhook = 'gate'", "auth: takes one of"),
        ("[auth]\ntokens = []", "auth: takes one of"),
        ("[auth]\ntokens = ['short']", "auth.tokens: each must have 16"),
        ("[auth]\nopen = true\ntimeout = '1s'", "auth.timeout: is for a `hook`"),
        ("[auth]\nhook = 'Gate'", "auth.hook: "),
        ("[auth]\ntokens_file = '/nowhere/tokens'", "auth.tokens_file: cannot read"),
        ("[agents.gate.auth]\nopen = true\n[auth]\nhook = 'gate'", "agents.gate.auth: is for"),
        ("[agents.gate.auth]\nhook = 'gate'", "agents.gate.auth: is for"),
    ];
    for (text, message) in cases {
        let error = load(text).unwrap_err().to_string();
        assert!(error.starts_with(message) && !error.contains("short"), "{text:?} gives: {error}");
    }
    let config =
        load("auth.hook = 'gate'\nagents.chat.auth.tokens = ['0123456789abcdef']").unwrap();
    let auth = |name: &str| config.auth(&name.parse().unwrap());
    assert!(matches!(auth("other"), Auth::Hook(hook) if hook.timeout == Duration::from_secs(5)));
    assert!(matches!(auth("chat"), Auth::Tokens(tokens) if tokens.len() == 1));
    assert_eq!(auth("gate"), &Auth::Closed);
    assert!(!config.print().contains("0123456789abcdef"));
}

#[test]
fn sizes() {
    let cases = [
        ("0B", Some(0)),
        ("64 KiB", Some(65_536)),
        ("2MiB", Some(2 << 20)),
        ("1  GiB", Some(1 << 30)),
        ("64", None),
        ("KiB", None),
        ("1.5 MiB", None),
        ("-1 B", None),
        ("17179869184 GiB", None),
    ];
    for (text, bytes) in cases {
        assert_eq!(unit::parse_size(text), bytes, "{text}");
    }
}

#[test]
fn a_log_that_would_go_round_with_every_few_commits_is_refused() {
    let refused = load("journal.log_bytes = \"63 KiB\"").unwrap_err().to_string();
    assert_eq!(refused, "journal.log_bytes: must be at least 64 KiB");
    assert_eq!(load("journal.log_bytes = \"64 KiB\"").unwrap().journal.log_bytes, 64 << 10);
}

#[test]
fn the_readme_shows_the_defaults() {
    let readme = include_str!("../../../README.md");
    let (_, rest) = readme.split_once("```toml\nlisten").expect("the block of the configuration");
    let (block, _) = rest.split_once("```").unwrap();
    let shown = Config { agents: BTreeMap::new(), ..load(&format!("listen{block}")).unwrap() };
    assert_eq!(shown, load("").unwrap());
    for (name, _) in shown.instances.print().into_iter().chain(shown.http.print()) {
        assert!(
            block.contains(&format!("\n{name} = ")) || block.contains(&format!("\n# {name} = ")),
            "{name}"
        );
    }
}
