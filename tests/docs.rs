//! The documents say what is true: what the README prints as a default is one.

use std::path::Path;

use bureau::config::{Config, Overrides};

#[test]
fn the_readme_shows_every_setting_with_its_default() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let (_, rest) = text.split_once("```toml\n").expect("the README shows the configuration");
    let (shown, _) = rest.split_once("```").expect("the block ends");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), shown).unwrap();
    let mut config = Config::load(Some(file.path()), Overrides::default()).unwrap();
    assert_eq!(config.agents.len(), 1, "the one agent of the example");
    config.agents.clear();
    assert_eq!(config, Config::load(None, Overrides::default()).unwrap());

    // Every key is shown: the settings that `Debug` prints are the README's.
    let keys = format!("{config:#?}");
    let keys = keys.lines().filter_map(|line| line.trim().split_once(": ")).map(|(key, _)| key);
    for key in keys.filter(|key| {
        let tables = [
            "tls",
            "http",
            "cors",
            "auth",
            "deployments",
            "instances",
            "outbound",
            "journal",
            "agents",
        ];
        !tables.contains(key)
    }) {
        assert!(shown.contains(&format!("{key} = ")), "the README does not show {key}");
    }
}
