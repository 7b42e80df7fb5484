//! What is asked of who calls an agent.
//!
//! `[auth]` is for all agents, `[agents.NAME.auth]` stands in its place for one. Either says exactly one thing: `tokens`
//! (also as lines of `tokens_file`), `hook`, or `open = true`. One that says nothing is refused, as nothing must not come to mean
//! open. A hook is for the host alone to ask, so it takes no rule of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use super::unit::{Span, Written};
use super::{AgentConfig, Config, ConfigError, Secret, invalid, is_token};
use crate::id::{AgentName, Digest};

/// What is asked of who calls an agent.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Auth {
    /// Nothing.
    #[default]
    Open,
    /// One of the tokens of these digests. The tokens themselves are not kept.
    Tokens(Arc<[Digest]>),
    /// Another agent says who may.
    Hook(Arc<Hook>),
    /// The agent is a hook, and nobody may.
    Closed,
}

/// An agent that is asked whether a request may pass.
#[derive(Debug, Clone, PartialEq)]
pub struct Hook {
    pub agent: AgentName,
    /// How long it may take to answer: the client waits, and what hangs must not add up.
    pub timeout: Duration,
}

/// A table as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct WrittenAuth {
    open: bool,
    tokens: Vec<Secret>,
    tokens_file: Option<PathBuf>,
    hook: Option<String>,
    timeout: Option<Written<Span, Duration>>,
}

impl WrittenAuth {
    /// What the table of this name says.
    pub(super) fn read(self, table: &str) -> Result<Auth, ConfigError> {
        let Self { open, mut tokens, tokens_file, hook, timeout } = self;
        let has_tokens = !tokens.is_empty() || tokens_file.is_some();
        if [open, has_tokens, hook.is_some()].into_iter().filter(|says| *says).count() != 1 {
            return Err(invalid(table, "takes one of `tokens`, `hook` and `open = true`"));
        }
        if timeout.is_some() && hook.is_none() {
            return Err(invalid(format!("{table}.timeout"), "is for a `hook`"));
        }
        if let Some(hook) = hook {
            let agent = hook.parse().map_err(|error| invalid(format!("{table}.hook"), error))?;
            let timeout = timeout.map_or(Duration::from_secs(5), |timeout| timeout.0);
            return Ok(Auth::Hook(Arc::new(Hook { agent, timeout })));
        }
        if open {
            return Ok(Auth::Open);
        }
        if let Some(file) = tokens_file {
            tokens.extend(read_tokens(&file, table)?);
        }
        if !tokens.iter().all(|token| is_token(token.reveal())) {
            let reason = "each must have 16 or more visible ASCII characters, such as `openssl rand -hex 32` prints";
            return Err(invalid(format!("{table}.tokens"), reason));
        }
        Ok(Auth::Tokens(tokens.iter().map(|token| Digest::of(token.reveal().as_bytes())).collect()))
    }
}

/// The lines of a file that are not empty, of which there is one at least.
fn read_tokens(file: &Path, table: &str) -> Result<Vec<Secret>, ConfigError> {
    let bad = |what: String| invalid(format!("{table}.tokens_file"), what);
    let text = std::fs::read_to_string(file)
        .map_err(|error| bad(format!("cannot read {}: {error}", file.display())))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let tokens: Vec<_> = lines.map(|line| Secret::from(line.to_owned())).collect();
    if tokens.is_empty() {
        return Err(bad(format!("{} has no token; it takes one a line", file.display())));
    }
    Ok(tokens)
}

impl Config {
    /// Keeps out everyone from the agents that are hooks.
    pub(super) fn close_hooks(&mut self) -> Result<(), ConfigError> {
        let own = self.agents.values().filter_map(|agent| agent.auth.as_ref());
        let hooks = own.chain([&self.auth]).filter_map(|auth| match auth {
            Auth::Hook(hook) => Some(hook.agent.clone()),
            Auth::Open | Auth::Tokens(_) | Auth::Closed => None,
        });
        for hook in hooks.collect::<Vec<_>>() {
            let unnamed =
                || AgentConfig { limits: self.instances.clone(), ..AgentConfig::default() };
            let agent = self.agents.entry(hook.clone()).or_insert_with(unnamed);
            if agent.auth.replace(Auth::Closed).is_some_and(|own| own != Auth::Closed) {
                let reason = "is for an agent that is a `hook`, which nobody but the host may call";
                return Err(invalid(format!("agents.{hook}.auth"), reason));
            }
        }
        Ok(())
    }
}
