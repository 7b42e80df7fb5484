//! `bureau new`: a crate with a small agent in it.
//!
//! **Problem.** The way to a first agent must not lead through a manifest that one has to know by heart.
//!
//! **Mechanism.** Four files from `template/`, with the name and the place of the SDK filled in. The SDK is the one beside the sources that this
//! program was built from, unless another is named. The crate is a workspace of its own, so it builds wherever it is put.
//!
//! **Limits.** It writes into no directory that has something in it, and never over a file.
//!
//! **Cost.** Four files; the first build of the crate then compiles the SDK.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bureau::id::AgentName;
use serde_json::json;

use super::output::Output;

/// Where the SDK is when the program is run where it was built.
const SDK: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../guest-sdk");

/// The files of a crate.
const FILES: [(&str, &str); 4] = [
    ("Cargo.toml", include_str!("template/manifest.toml")),
    ("src/lib.rs", include_str!("template/agent.rs")),
    (".gitignore", include_str!("template/gitignore")),
    ("README.md", include_str!("template/readme.md")),
];

/// Makes the crate.
pub fn new(
    name: &AgentName,
    path: Option<PathBuf>,
    sdk: Option<&Path>,
    output: &Output,
) -> anyhow::Result<()> {
    check_name(name)?;
    let sdk = find_sdk(sdk)?;
    let directory = path.unwrap_or_else(|| PathBuf::from(name.as_str()));
    let shown = directory.display();
    fs::create_dir_all(&directory).with_context(|| format!("cannot make the directory {shown}"))?;
    let mut entries =
        fs::read_dir(&directory).with_context(|| format!("cannot read the directory {shown}"))?;
    anyhow::ensure!(
        entries.next().is_none(),
        "{shown} has something in it; name a directory that is empty or not there with --path"
    );
    for (file, template) in FILES {
        write(&directory.join(file), &fill(template, name, &sdk))?;
    }
    let document = json!({ "agent": name.as_str(), "path": directory, "sdk": sdk });
    output.say(&document, || Ok(what_next(name, &directory)))
}

/// Whether a crate can have the agent's name.
fn check_name(name: &AgentName) -> anyhow::Result<()> {
    let name = name.as_str();
    anyhow::ensure!(
        !name.starts_with(|first: char| first.is_ascii_digit()),
        "{name} is an agent's name and not a crate's, which starts with a letter; \
         a crate of another name can be deployed as {name}"
    );
    anyhow::ensure!(
        name != "bureau-sdk",
        "a crate cannot have the name of the SDK that it needs; a crate of another name can be deployed as {name}"
    );
    Ok(())
}

fn find_sdk(named: Option<&Path>) -> anyhow::Result<String> {
    let place = named.unwrap_or(Path::new(SDK));
    let manifest = fs::read_to_string(place.join("Cargo.toml")).unwrap_or_default();
    let is_sdk = manifest.lines().any(|line| line.trim() == "name = \"bureau-sdk\"");
    let found = place.canonicalize().ok().filter(|_| is_sdk);
    let Some(found) = found else {
        anyhow::bail!(
            "the SDK is not at {}; it is the directory guest-sdk of Bureau's sources: say with --sdk DIR where they are",
            place.display()
        );
    };
    let found = found.into_os_string().into_string();
    found.map_err(|path| anyhow::anyhow!("{} is not UTF-8, which a manifest is", path.display()))
}

fn fill(template: &str, name: &AgentName, sdk: &str) -> String {
    let name = name.as_str();
    // What JSON has for a string, TOML has too, but for DEL.
    let quoted = serde_json::Value::from(sdk).to_string().replace('\u{7f}', "\\u007f");
    let text = template
        .replace("RUST_VERSION", env!("CARGO_PKG_RUST_VERSION"))
        .replace("NAME_AS_FILE", &name.replace('-', "_"))
        .replace("NAME", name);
    // Last, so that nothing in the path is filled in.
    text.replace("\"SDK\"", &quoted)
}

fn write(file: &Path, text: &str) -> anyhow::Result<()> {
    let write = || {
        fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        OpenOptions::new().write(true).create_new(true).open(file)?.write_all(text.as_bytes())
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

fn what_next(name: &AgentName, directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "{name}: made in {directory}\n\n\
         Serve it, and again whenever you save a change:\n\n  \
           bureau dev {directory}\n\n\
         and in another terminal:\n\n  \
           curl http://127.0.0.1:8787/agents/{name}/demo -d '{{\"add\": 2}}'\n  \
           curl -N http://127.0.0.1:8787/agents/{name}/demo/stream\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> AgentName {
        name.parse().unwrap()
    }

    #[test]
    fn a_name_that_no_crate_can_have_is_refused_by_name() {
        assert!(check_name(&name("chat-2")).is_ok());
        for bad in ["2chat", "bureau-sdk"] {
            let error = check_name(&name(bad)).unwrap_err().to_string();
            assert!(error.contains(bad), "{error}");
        }
    }

    #[test]
    fn a_manifest_is_toml_wherever_the_sdk_is() {
        let sdk = "/a \"b\"/c\\d/NAME\u{7f}é";
        let text = fill(FILES[0].1, &name("my-agent"), sdk);
        let manifest: toml::Table = text.parse().unwrap();
        assert_eq!(manifest["package"]["name"].as_str(), Some("my-agent"));
        assert_eq!(manifest["dependencies"]["bureau-sdk"]["path"].as_str(), Some(sdk));
        assert!(manifest.contains_key("workspace"), "it stands alone");
        assert_eq!(manifest["profile"]["release"]["codegen-units"].as_integer(), Some(1));
    }

    #[test]
    fn nothing_is_left_to_be_filled_in() {
        for (file, template) in FILES {
            let text = fill(template, &name("my-agent"), "/sdk");
            assert!(
                !text.contains("NAME") && !text.contains("SDK\"") && !text.contains("VERSION"),
                "{file}: {text}"
            );
        }
    }

    #[test]
    fn a_directory_that_has_something_in_it_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let output = Output::new(super::super::arguments::Form { json: true });
        fs::write(directory.path().join("notes"), "mine").unwrap();
        let error = new(&name("chat"), Some(directory.path().into()), None, &output).unwrap_err();
        assert!(error.to_string().contains("--path"), "{error}");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_not_the_sdk_is_told() {
        let directory = tempfile::tempdir().unwrap();
        assert!(find_sdk(None).is_ok(), "the tests run where the program is built");
        let error = find_sdk(Some(directory.path())).unwrap_err().to_string();
        assert!(
            error.contains("--sdk") && error.contains(directory.path().to_str().unwrap()),
            "{error}"
        );
    }
}
