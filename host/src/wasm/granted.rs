//! What the operator gives one agent, beyond its instance.
//!
//! **Problem.** Whatever leads out of the sandbox is the operator's to give, to one agent and not to the next.
//!
//! **Mechanism.** Made of the agent's configuration when the host opens, and shared by all its stores: so are its connections to others, and
//! what it may have of them at once. What is not configured is not there. Secrets are read like the rest of the configuration, by name.
//!
//! **Limits.** A change takes a restart. **Cost.** A client for each agent that is granted hosts, which is idle until it is used.

use std::io;
use std::sync::Arc;

use wasmtime_wasi::{FsPerms, WasiCtxBuilder};

use crate::config::{AgentConfig, OutboundLimits};
use crate::fetch::{Client, Network};
use crate::wasm::capabilities::{Asked, Capability, Provision};

/// What one agent is given.
#[derive(Default)]
pub struct Granted {
    config: AgentConfig,
    client: Option<Client>,
}

impl Granted {
    /// What this configuration gives.
    pub fn new(config: AgentConfig, network: &Arc<Network>, limits: &OutboundLimits) -> Self {
        let client = |hosts: Vec<_>| Client::new(network.clone(), hosts.into(), limits.clone());
        let client = config.allow_hosts.clone().map(client);
        Self { config, client }
    }

    /// Whether the agent has that.
    pub(super) fn provision(&self, capability: Capability) -> Provision {
        match capability {
            Capability::Instance
            | Capability::Configuration
            | Capability::Clocks
            | Capability::Random
            | Capability::Output
            | Capability::HttpTypes => Provision::Given,
            Capability::Files if self.config.files.is_some() => Provision::Given,
            Capability::Http if self.client.is_some() => Provision::Given,
            Capability::Files | Capability::Sockets => Provision::Empty,
            Capability::Http => Provision::Withheld,
        }
    }

    /// What the agent has of what a module asks for.
    pub(super) fn answer(&self, capability: Capability) -> Asked {
        let (provision, of) = (self.provision(capability), self.names(capability));
        Asked { name: capability, provision, of }
    }

    /// What the agent has of it, by name: the hosts, the names of its configuration and its secrets, the directory.
    fn names(&self, capability: Capability) -> Vec<String> {
        let AgentConfig { config, secrets, files, allow_hosts, .. } = &self.config;
        match capability {
            Capability::Configuration => config.keys().chain(secrets.keys()).cloned().collect(),
            Capability::Files => files.iter().map(|files| files.display().to_string()).collect(),
            Capability::Http => allow_hosts.iter().flatten().map(ToString::to_string).collect(),
            Capability::Instance
            | Capability::Clocks
            | Capability::Random
            | Capability::Output
            | Capability::Sockets
            | Capability::HttpTypes => Vec::new(),
        }
    }

    /// A value that the agent reads by this name.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let AgentConfig { config, secrets, .. } = &self.config;
        let secret = || secrets.get(name).map(|secret| secret.reveal());
        config.get(name).map(String::as_str).or_else(secret)
    }

    /// All that the agent reads.
    pub(super) fn values(&self) -> Vec<(String, String)> {
        let AgentConfig { config, secrets, .. } = &self.config;
        let config = config.iter().map(|(name, value)| (name.clone(), value.clone()));
        let secrets = secrets.iter().map(|(name, value)| (name.clone(), value.reveal().into()));
        config.chain(secrets).collect()
    }

    /// What sends the agent's requests, if it may send any.
    pub(super) fn client(&self) -> Option<&Client> {
        self.client.as_ref()
    }

    /// Whether there is a directory to be opened.
    pub(super) fn has_files(&self) -> bool {
        self.config.files.is_some()
    }

    /// Opens the agent's directory as the root of its files, if it has one.
    pub(super) fn open_files(&self, wasi: &mut WasiCtxBuilder) -> io::Result<()> {
        let Some(files) = &self.config.files else { return Ok(()) };
        wasi.preopened_dir(files, "/", FsPerms::ReadOnly).map(drop).map_err(|cause| {
            io::Error::other(format!("{} cannot be opened: {cause:#}", files.display()))
        })
    }
}
