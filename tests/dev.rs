//! `bureau dev`: from a crate to a served agent, and on to its next version while streams go on.

use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use crate::support::{Stream, data, target};

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

struct Developing {
    child: Child,
    url: String,
    log: Lines<BufReader<ChildStderr>>,
}

impl Drop for Developing {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn develop(agent: &Path, data: &Path) -> Developing {
    let mut program = Command::new(env!("CARGO_BIN_EXE_bureau"));
    program.arg("dev").arg(agent).arg("--data").arg(data);
    program.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
    // What the guests have compiled already need not be compiled again.
    program.env("CARGO_TARGET_DIR", target());
    let mut child = program.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = BufReader::new(child.stderr.take().unwrap()).lines();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let urls = lines.filter_map(|line| Some(line.trim().strip_prefix("word")?.trim().to_owned()));
    let url = urls.take(1).last().expect("it prints a line per agent, with a URL to try");
    Developing { child, url, log }
}

#[tokio::test]
async fn a_saved_change_serves_the_next_request_and_cuts_no_stream() {
    let directory = tempfile::tempdir().unwrap();
    let agent = directory.path().join("word");
    std::fs::create_dir_all(agent.join("src")).unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let manifest = format!(
        "[package]\nname = \"word\"\nedition = \"2024\"\n[lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n\
         [dependencies]\nbureau-sdk = {{ path = {:?} }}\n",
        workspace.join("guest-sdk")
    );
    std::fs::write(agent.join("Cargo.toml"), manifest).unwrap();
    // The same versions as here, so that what is built can be used.
    std::fs::copy(workspace.join("Cargo.lock"), agent.join("Cargo.lock")).unwrap();
    let save = |word| std::fs::write(agent.join("src/lib.rs"), source(word)).unwrap();
    save("first");

    let mut host = develop(&agent, &directory.path().join("data"));
    assert!(host.url.ends_with("/agents/word/demo"), "{}", host.url);
    let client = reqwest::Client::new();
    let url = host.url.clone();
    let word = async || {
        let response = client.get(format!("{url}/word")).send().await.unwrap();
        response.text().await.unwrap()
    };
    assert_eq!(word().await, "first");
    let mut stream = Stream::open(client.get(&url)).await;
    let begun = stream.next().await.unwrap();
    assert_eq!(begun.data, "first");

    let mut said = |what: &str| host.log.any(|line| line.unwrap().contains(what));
    save("this does not compile: \"");
    assert!(said("not swapped"), "a build that fails is told");
    assert_eq!(word().await, "first", "and changes nothing");
    save("second");
    assert!(said("\"deployed\""));
    assert_eq!(word().await, "second");

    // The old run goes on, on the old module, in the old store, and reads what the new one writes.
    client.get(format!("{url}/release")).send().await.unwrap();
    let rest = stream.rest().await;
    assert_eq!(data(&rest), ["first"]);
}
