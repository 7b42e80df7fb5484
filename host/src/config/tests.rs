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
        [http]
        heartbeat = "500ms"
        request_body_bytes = 4096
        [cors]
        origins = ["https://example.org", "http://localhost:3000"]
        [instances]
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
    assert_eq!(config.http.heartbeat, Duration::from_millis(500));
    assert_eq!(config.http.request_body_bytes, 4096);
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
        ("[instances]\nruns = 0", "instances.runs"),
        ("[http]\nheartbeat = '0s'", "http.heartbeat"),
        ("[http]\nretry = '999us'", "http.retry"),
        ("[http]\nheader_bytes = 8191", "http.header_bytes"),
        ("[http]\nconnections = 9223372036854775807", "http.connections"),
        ("[instances]\nevent_bytes = '5 MiB'", "journal.backlog_bytes"),
        ("[instances]\nstate_bytes = '9 MiB'", "instances.turn_bytes"),
        ("[instances]\nvalue_bytes = '9 MiB'", "instances.turn_bytes"),
        ("[cors]\norigins = ['https://example.org/']", "cors.origins"),
        ("[cors]\norigins = ['Example.org']", "cors.origins"),
        ("[agents.Chat]", "agents.Chat"),
    ];
    for (text, key) in cases {
        let error = load(text).unwrap_err();
        assert!(matches!(error, ConfigError::Invalid { .. }), "{text:?} gives: {error}");
        assert!(error.to_string().contains(key), "{text:?} gives: {error}");
    }
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
        assert_eq!(de::parse_size(text), bytes, "{text}");
    }
}

#[test]
fn a_log_that_would_go_round_with_every_few_commits_is_refused() {
    let refused = load("journal.log_bytes = \"63 KiB\"").unwrap_err().to_string();
    assert_eq!(refused, "journal.log_bytes: must be at least 64 KiB");
    assert_eq!(load("journal.log_bytes = \"64 KiB\"").unwrap().journal.log_bytes, 64 << 10);
}
