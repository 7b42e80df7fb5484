//! Which module serves an agent now.
//!
//! **Problem.** A module is swapped while requests come in, and a request must see the old one or the new one,
//! never a half.
//!
//! **Mechanism.** A map from name to an `Arc` that holds the module and what is granted to it. A deployment
//! compiles and checks first, off the async threads, and then moves one pointer. An instance
//! whose module is no longer the current one starts anew with its next request.
//!
//! **Limits.** None of its own. **Cost.** A read lock and an `Arc` per request.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::config::AgentConfig;
use crate::id::{AgentName, Digest};
use crate::wasm::{Engine, LoadError, Module, Variables};

/// A module in service.
pub struct Deployed {
    /// The agent.
    pub agent: AgentName,
    /// The module.
    pub module: Module,
    /// Which deployment of the host, counted up: of two, the later one serves.
    pub(super) version: u64,
    /// What the operator gives the agent to read.
    pub variables: Variables,
}

/// All agents of the host.
pub struct Registry {
    engine: Arc<Engine>,
    configs: BTreeMap<AgentName, AgentConfig>,
    agents: RwLock<BTreeMap<AgentName, Arc<Deployed>>>,
    versions: AtomicU64,
}

/// What a deployment changed.
pub struct Deployment {
    /// The module that serves from now on.
    pub current: Arc<Deployed>,
    /// The digest of the one that served before, if there was one.
    pub previous: Option<Digest>,
}

impl Registry {
    /// A registry without agents.
    pub fn new(engine: Arc<Engine>, configs: BTreeMap<AgentName, AgentConfig>) -> Self {
        Self { engine, configs, agents: RwLock::default(), versions: AtomicU64::new(0) }
    }

    /// The engine that modules are compiled with.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The module that serves an agent now.
    pub fn current(&self, agent: &AgentName) -> Option<Arc<Deployed>> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).get(agent).cloned()
    }

    /// The agents and their modules.
    pub fn all(&self) -> Vec<Arc<Deployed>> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Compiles and checks a module, then lets it serve the agent's next request. One that is refused changes
    /// nothing, and the one that serves already is left as it is.
    pub async fn deploy(&self, agent: AgentName, bytes: Vec<u8>) -> Result<Deployment, LoadError> {
        let engine = self.engine.clone();
        let loaded = tokio::task::spawn_blocking(move || Module::load(&engine, &bytes)).await;
        let module = loaded.map_err(|failed| LoadError::NotComponent(failed.to_string()))??;
        let config = self.configs.get(&agent).map(|agent| agent.config.clone());
        let variables = Arc::new(config.unwrap_or_default());
        let mut agents = self.agents.write().unwrap_or_else(PoisonError::into_inner);
        let previous = agents.get(&agent).cloned();
        if let Some(same) = previous.as_ref().filter(|old| old.module.digest() == module.digest()) {
            let digest = same.module.digest();
            return Ok(Deployment { current: same.clone(), previous: Some(digest) });
        }
        let version = self.versions.fetch_add(1, Ordering::Relaxed);
        let current = Arc::new(Deployed { agent: agent.clone(), module, version, variables });
        agents.insert(agent, current.clone());
        Ok(Deployment { current, previous: previous.map(|old| old.module.digest()) })
    }
}
