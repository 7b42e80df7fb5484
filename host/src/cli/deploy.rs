//! Changing what a host serves: `deploy`, `rollback`, `remove`.
//!
//! **Problem.** A module takes seconds to upload and to compile, and may be refused for many reasons. Whoever deploys it wants to see
//! that something goes on, and then exactly what has changed.
//!
//! **Mechanism.** The file is streamed, with its length, and what the connection has taken is told as [`Progress`] on standard error:
//! one line that changes on a terminal, a line for each phase elsewhere. The answer says what changed. A digest may be given by
//! how it begins; it is looked up among the agent's deployments, and one that several begin with is an error.
//!
//! **Limits.** A host that refuses a module before it has read all of it may close the connection before its reason is read; then it is
//! asked again, without the module.
//!
//! **Cost.** A buffer of [`CHUNK`], whatever the size of the module.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal as _, Write as _};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context as _;
use bureau::id::AgentName;
use futures_util::{TryStreamExt as _, stream};
use reqwest::header::{CONTENT_LENGTH, CONTENT_TYPE, IF_MATCH};
use reqwest::{Body, Method, RequestBuilder};
use serde::Deserialize;
use serde_json::json;
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;

use super::arguments::DigestPrefix;
use super::client::{Client, ClientError, read};
use super::output::{Output, clean, short, size};

/// What is read of the file at once.
const CHUNK: usize = 64 << 10;

/// How long a host may take to refuse a module of which it sees no more than the size.
const REFUSING: Duration = Duration::from_secs(5);

/// What a deployment has changed.
#[derive(Debug, Deserialize)]
struct Deployment {
    agent: String,
    digest: String,
    previous: Option<String>,
    generation: u64,
    changed: bool,
    exports: Exports,
}

#[derive(Debug, Default, Deserialize)]
struct Exports {
    gained: Vec<String>,
    lost: Vec<String>,
}

/// Deploys a file under a name.
pub async fn deploy(
    client: &Client,
    name: &AgentName,
    file: &Path,
    if_current: Option<&DigestPrefix>,
    output: &Output,
) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read {}", file.display());
    let component = File::open(file).await.with_context(unreadable)?;
    let metadata = component.metadata().await.with_context(unreadable)?;
    anyhow::ensure!(metadata.is_file(), "{} is not a file", file.display());
    let length = metadata.len();
    let mut request = client
        .request(Method::PUT, &["v1", "agents", name.as_str()])
        .header(CONTENT_TYPE, "application/wasm")
        .header(CONTENT_LENGTH, length);
    if let Some(prefix) = if_current {
        let digest = resolve(client, name, prefix).await?;
        request = request.header(IF_MATCH, format!("\"{digest}\""));
    }
    let (sent, mut uploaded) = watch::channel(0);
    // What is appended meanwhile is not what was announced.
    let chunks = ReaderStream::with_capacity(component.take(length), CHUNK);
    let chunks =
        chunks.inspect_ok(move |chunk| sent.send_modify(|sent| *sent += chunk.len() as u64));
    let mut progress = Progress::new(file.display().to_string(), length);
    let without_body = request.try_clone();
    let mut answer = pin!(client.document(request.body(Body::wrap_stream(chunks))));
    let answer = loop {
        tokio::select! {
            answer = &mut answer => break answer,
            Ok(()) = uploaded.changed() => progress.uploaded(*uploaded.borrow_and_update()),
        }
    };
    progress.finish();
    let answer = match answer {
        Err(broken @ ClientError::Broken { .. }) => {
            if let Some(request) = without_body {
                refused_at_once(client, request).await?;
            }
            anyhow::bail!(
                "{broken}; `bureau agents` says whether {name} was deployed nevertheless"
            );
        }
        answer => answer?,
    };
    output.say(&answer, || Ok(what_changed(&read(&answer)?)))
}

/// Asks once more what broke off, and holds the body back: a host that refuses by the head alone has said so, but on a
/// connection that it closed while more was being sent an answer may be lost.
async fn refused_at_once(client: &Client, request: RequestBuilder) -> Result<(), ClientError> {
    let held_back = stream::pending::<io::Result<Vec<u8>>>();
    let answer = client.send(request.body(Body::wrap_stream(held_back)));
    match tokio::time::timeout(REFUSING, answer).await {
        Ok(Err(refused @ ClientError::Refused { .. })) => Err(refused),
        _ => Ok(()),
    }
}

/// Deploys an earlier module of an agent.
pub async fn rollback(
    client: &Client,
    name: &AgentName,
    to: Option<&DigestPrefix>,
    output: &Output,
) -> anyhow::Result<()> {
    let mut request = client.request(Method::POST, &["v1", "agents", name.as_str(), "rollback"]);
    if let Some(prefix) = to {
        request = request.json(&json!({ "to": resolve(client, name, prefix).await? }));
    }
    let answer = client.document(request).await?;
    output.say(&answer, || Ok(what_changed(&read(&answer)?)))
}

/// Has an agent served no more.
pub async fn remove(client: &Client, name: &AgentName, output: &Output) -> anyhow::Result<()> {
    client.send(client.request(Method::DELETE, &["v1", "agents", name.as_str()])).await?;
    output.say(&json!({ "agent": name.as_str(), "removed": true }), || {
        Ok(format!("{name}: removed; runs that have begun finish"))
    })
}

/// The digest that begins so.
async fn resolve(
    client: &Client,
    name: &AgentName,
    prefix: &DigestPrefix,
) -> anyhow::Result<String> {
    #[derive(Deserialize)]
    struct List {
        deployments: Vec<Past>,
    }
    #[derive(Deserialize)]
    struct Past {
        digest: Option<String>,
    }
    if let Some(digest) = prefix.whole() {
        return Ok(digest.to_string());
    }
    let path = ["v1", "agents", name.as_str(), "deployments"];
    let List { deployments } = read(&client.get(&path, &[]).await?)?;
    let digests = deployments.into_iter().filter_map(|past| past.digest);
    the_only_one(name, prefix, digests)
}

fn the_only_one(
    name: &AgentName,
    prefix: &DigestPrefix,
    digests: impl Iterator<Item = String>,
) -> anyhow::Result<String> {
    let prefix = prefix.as_str();
    // A module may have been deployed more than once.
    let mut found: BTreeSet<_> = digests.filter(|digest| digest.starts_with(prefix)).collect();
    if found.len() > 1 {
        let found: Vec<_> = found.into_iter().collect();
        anyhow::bail!(
            "more than one module of {name} begins with {prefix}; give more of one of {}",
            found.join(", ")
        );
    }
    found.pop_first().with_context(|| {
        format!(
            "no kept deployment of {name} begins with {prefix}; `bureau deployments {name}` lists them"
        )
    })
}

fn what_changed(deployment: &Deployment) -> String {
    let Deployment { agent, digest, previous, generation, changed, exports } = deployment;
    let digest = short(digest);
    let mut text = match previous {
        _ if !changed => format!("{agent}: {digest} serves already"),
        None => format!("{agent}: {digest} serves (generation {generation})"),
        Some(previous) => {
            format!("{agent}: {} -> {digest} (generation {generation})", short(previous))
        }
    };
    for (sign, names) in [('+', &exports.gained), ('-', &exports.lost)] {
        for name in names {
            text.push_str(&format!("\n  {sign} {name}"));
        }
    }
    clean(&text).into_owned()
}

/// What is told while a module is on its way.
struct Progress {
    what: String,
    total: u64,
    is_terminal: bool,
    percent: Option<u64>,
    compiling: bool,
}

impl Progress {
    fn new(what: String, total: u64) -> Self {
        let is_terminal = io::stderr().is_terminal();
        let mut progress = Self { what, total, is_terminal, percent: None, compiling: false };
        match is_terminal {
            true => progress.uploaded(0),
            false => progress.show(&format!("uploading {} ({})", progress.what, size(total))),
        }
        progress
    }

    /// The connection has taken this many bytes.
    fn uploaded(&mut self, bytes: u64) {
        if bytes >= self.total {
            if !self.compiling {
                self.show("compiling and checking");
            }
            self.compiling = true;
            return;
        }
        // Not for each chunk: a terminal is slower than a loopback.
        let percent = Some(bytes * 100 / self.total);
        if self.is_terminal && self.percent != percent {
            self.percent = percent;
            self.show(&format!("uploading {}: {} of {}", self.what, size(bytes), size(self.total)));
        }
    }

    /// Nothing more is to be told.
    fn finish(&self) {
        if self.is_terminal {
            self.show("");
        }
    }

    fn show(&self, text: &str) {
        let text = clean(text);
        let mut stderr = io::stderr().lock();
        // Progress that cannot be told is no reason to stop.
        let _ = match self.is_terminal {
            true => write!(stderr, "\r\u{1b}[2K{text}").and_then(|()| stderr.flush()),
            false => writeln!(stderr, "{text}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(begin: &str) -> String {
        format!("{begin:0<64}")
    }

    fn changed(previous: Option<&str>, changed: bool) -> String {
        let answer = json!({
            "agent": "chat",
            "digest": digest("9f8e7d6c5b4a"),
            "previous": previous.map(digest),
            "generation": 3,
            "since": "2026-11-25T02:51:21.123Z",
            "source": "api",
            "changed": changed,
            "exports": { "gained": ["bureau:agent/resumption@0.1.0"], "lost": ["old\u{1b}[2J"] },
        });
        what_changed(&read(&answer).unwrap())
    }

    #[test]
    fn a_deployment_says_what_it_changed() {
        let exports = "\n  + bureau:agent/resumption@0.1.0\n  - old\\u{1b}[2J";
        for (previous, said) in [
            (Some("1a2b3c4d5e6f"), "chat: 1a2b3c4d5e6f -> 9f8e7d6c5b4a (generation 3)"),
            (None, "chat: 9f8e7d6c5b4a serves (generation 3)"),
        ] {
            assert_eq!(changed(previous, true), format!("{said}{exports}"));
        }
        let said = changed(Some("9f8e7d6c5b4a"), false);
        assert!(said.starts_with("chat: 9f8e7d6c5b4a serves already"), "{said}");
    }

    #[test]
    fn a_prefix_stands_for_one_module_however_often_it_was_deployed() {
        let name: AgentName = "chat".parse().unwrap();
        let all = ["aaaaaaaa1", "aaaaaaaa2", "bbbbbbbb", "bbbbbbbb"].map(digest);
        let find = |prefix: &str| {
            let prefix = prefix.parse().unwrap();
            the_only_one(&name, &prefix, all.iter().cloned()).map_err(|error| error.to_string())
        };
        assert_eq!(find("bbbbbbbb"), Ok(all[2].clone()));
        assert_eq!(find("aaaaaaaa2"), Ok(all[1].clone()));
        let ambiguous = find("aaaaaaaa").unwrap_err();
        assert!(ambiguous.contains(&all[0]) && ambiguous.contains(&all[1]), "{ambiguous}");
        assert!(!ambiguous.contains(&all[2]), "{ambiguous}");
        let unknown = find("cccccccc").unwrap_err();
        assert!(unknown.contains("bureau deployments chat"), "{unknown}");
    }
}
