//! `bureau dev`: from a crate to a served agent, and on to its next version while streams go on.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::support::{Lines, Stream, data, http_client, target};

/// An agent whose every reply begins with this word.
fn source(word: &str) -> String {
    r#"
        use bureau_sdk::prelude::*;

        #[derive(Default)]
        struct Word;

        impl Agent for Word {
            async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
                match request.path() {
                    "/word" => return Ok(Reply::text("WORD")),
                    "/release" => {
                        run.set_state("released")?;
                        return Ok(Reply::text("released"));
                    }
                    _ => {}
                }
                run.emit("WORD").await?;
                while run.state::<String>()?.is_empty() {
                    sleep(Duration::from_millis(5)).await;
                }
                run.emit("WORD").await?;
                Ok(Reply::events())
            }
        }

        bureau_sdk::export!(Word);
    "#
    .replace("WORD", word)
}

/// The crate of an agent that depends on the SDK beside the host.
fn manifest(name: &str) -> String {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    format!(
        "[package]\nname = \"{name}\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n\
         [dependencies]\nbureau-sdk = {{ path = {:?} }}\n",
        workspace.join("guest-sdk")
    )
}

/// Saves a file of a crate, in directories that may not be there yet.
fn save(file: &Path, text: &str) {
    std::fs::create_dir_all(file.parent().unwrap()).unwrap();
    std::fs::write(file, text).unwrap();
}

/// The same versions as here, so that what is built can be used.
fn lock(agent: &Path) {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    std::fs::create_dir_all(agent).unwrap();
    std::fs::copy(workspace.join("Cargo.lock"), agent.join("Cargo.lock")).unwrap();
}

struct Developing {
    child: Child,
    url: String,
    log: Lines,
}

impl Drop for Developing {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Develops what is at a path, until this agent of it is served. The tests build into one directory, by the crates' names, so
/// each has names of its own.
fn develop(path: &Path, agent: &str, data: &Path) -> Developing {
    let mut program = Command::new(env!("CARGO_BIN_EXE_bureau"));
    program.arg("dev").arg(path).arg("--data").arg(data);
    program.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    // What the guests have compiled already need not be compiled again.
    program.env("CARGO_TARGET_DIR", target());
    let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = Lines::of(child.stderr.take().unwrap());
    let lines = Lines::of(child.stdout.take().unwrap());
    let mut urls =
        lines.filter_map(|line| Some(line.trim().strip_prefix(agent)?.trim().to_owned()));
    let url = urls.next().expect("it prints a line per agent, with a URL to try");
    Developing { child, url, log }
}

#[tokio::test]
async fn a_saved_change_serves_the_next_request_and_cuts_no_stream() {
    let directory = tempfile::tempdir().unwrap();
    let agent = directory.path().join("word");
    lock(&agent);
    save(&agent.join("Cargo.toml"), &manifest("word"));
    let save = |word| save(&agent.join("src/lib.rs"), &source(word));
    save("first");

    let mut host = develop(&agent, "word", &directory.path().join("data"));
    assert!(host.url.ends_with("/agents/word/demo"), "{}", host.url);
    let client = http_client();
    let url = host.url.clone();
    let word = async || {
        let response = client.get(format!("{url}/word")).send().await.unwrap();
        response.text().await.unwrap()
    };
    assert_eq!(word().await, "first");
    let mut stream = Stream::open(client.get(&url)).await;
    let begun = stream.next().await.unwrap();
    assert_eq!(begun.data, "first");

    let mut said = |what: &str| host.log.any(|line| line.contains(what));
    save("this does not compile: \"");
    assert!(said("could not compile `word`"), "the compiler's own words are shown");
    assert!(said("not all swapped"), "a build that fails is told");
    assert_eq!(word().await, "first", "and changes nothing");
    save("second");
    assert!(said("\"deployed\""));
    assert_eq!(word().await, "second");

    // The old run goes on, on the old module, in the old store, and reads what the new one writes.
    client.get(format!("{url}/release")).send().await.unwrap();
    let rest = stream.rest().await;
    assert_eq!(data(&rest), ["first"]);
}

#[tokio::test]
async fn an_agent_that_does_not_compile_keeps_no_other_from_being_served_and_swapped() {
    let directory = tempfile::tempdir().unwrap();
    let agents = directory.path().join("agents");
    lock(&agents);
    save(
        &agents.join("Cargo.toml"),
        "[workspace]\nmembers = [\"broken\", \"sound\"]\nresolver = \"3\"\n",
    );
    let save =
        |agent: &str, word: &str| save(&agents.join(agent).join("src/lib.rs"), &source(word));
    for (agent, word) in [("broken", "this does not compile: \""), ("sound", "first")] {
        let manifest = manifest(agent).replace("[workspace]\n", "");
        self::save(&agents.join(agent).join("Cargo.toml"), &manifest);
        save(agent, word);
    }
    let mut host = develop(&agents, "sound", &directory.path().join("data"));
    let word = async |agent: &str| {
        let url = host.url.replace("/sound/", &format!("/{agent}/"));
        reqwest::get(format!("{url}/word")).await.unwrap().text().await.unwrap()
    };
    let mut said = |what: &str| host.log.any(|line| line.contains(what));
    assert!(said("not all served"));
    assert_eq!(word("sound").await, "first");
    save("sound", "second");
    assert!(said("\"deployed\""));
    assert_eq!(word("sound").await, "second");
    save("broken", "mended");
    assert!(said("\"broken\""));
    assert_eq!(word("broken").await, "mended");
}

#[tokio::test]
async fn a_crate_that_is_added_later_is_served_once_it_is_all_there() {
    let directory = tempfile::tempdir().unwrap();
    let agents = directory.path().join("agents");
    lock(&agents.join("early"));
    save(&agents.join("early/Cargo.toml"), &manifest("early"));
    save(&agents.join("early/src/lib.rs"), &source("first"));
    let mut host = develop(&agents, "early", &directory.path().join("data"));
    let mut said = |what: &str| host.log.any(|line| line.contains(what));

    let later = agents.join("later");
    lock(&later);
    save(&later.join("Cargo.toml"), &manifest("later"));
    assert!(said("the agents stay as they were"), "a crate without sources is told");
    save(&later.join("src/lib.rs"), &source("more"));
    assert!(said("\"deployed\""));
    for (agent, word) in [("early", "first"), ("later", "more")] {
        let url = host.url.replace("/early/", &format!("/{agent}/"));
        let answer = reqwest::get(format!("{url}/word")).await.unwrap();
        assert_eq!(answer.text().await.unwrap(), word);
    }
}
