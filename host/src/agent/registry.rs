//! Which module serves an agent, now and after the next start.
//!
//! **Problem.** A module is swapped while requests come in, and a request must see the old one or the new one,
//! never a half; a module that does not work must not replace one that does; and a host that is killed at any moment must come
//! back with one of the two.
//!
//! **Mechanism.** A map from name to an `Arc` that holds the module and what is granted to it. A deployment passes the
//! [gates](crate::wasm::Gate) one after the other, beside what serves; then its bytes are kept under their digest, then it
//! becomes a row in the journal, and only then one pointer moves and the deployment is acknowledged. An instance
//! whose module is no longer the current one starts anew with its next request; the old module is freed with the last run that needs it.
//! Rollback is the deployment of a module that was deployed before, removal one of no module.
//!
//! ```text
//!   bytes -> size -> compilation -> interface, capabilities -> instantiation, health -> file -> row -> pointer
//!            `----------------- refused: nothing has changed -----------------'
//! ```
//!
//! **Limits.** [`DeploymentLimits`](crate::config::DeploymentLimits); one deployment at a time. **Cost.** A read lock and an `Arc` per request; a deployment
//! compiles, starts one instance, and waits for the disk thrice.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::SystemTime;

use crate::agent::modules::Modules;
use crate::agent::trial::Trial;
use crate::config::{AgentConfig, Config, InstanceLimits};
use crate::fetch::Network;
use crate::id::{AgentName, Digest};
use crate::journal::{DeploymentRecord, Journal, StoreError};
use crate::wasm::{Engine, Feed, Granted, Happening, LoadError, Module, Running};

/// Where a deployment comes from when it comes from no file.
pub const API: &str = "api";
const ROLLBACK: &str = "rollback";

/// A module in service.
pub struct Deployed {
    /// The agent.
    pub agent: AgentName,
    /// The module.
    pub module: Arc<Module>,
    /// The deployment that it is on record by.
    pub record: DeploymentRecord,
    /// What the operator gives the agent.
    pub granted: Arc<Granted>,
    /// What its instances may take.
    pub limits: Arc<InstanceLimits>,
    /// Counted up over the host's life whenever another module serves: of two, the later one serves.
    pub(super) version: u64,
}

impl Deployed {
    /// What its stores run.
    pub(super) fn running(&self) -> Running {
        let module = &self.module;
        Running { module: module.digest(), version: self.version, resumes: module.resumes() }
    }
}

/// All agents of the host.
pub struct Registry {
    engine: Arc<Engine>,
    journal: Journal,
    feed: Arc<Feed>,
    config: Arc<Config>,
    /// What agents are given that the configuration names; the others get nothing.
    granted: BTreeMap<AgentName, Arc<Granted>>,
    nothing: Arc<Granted>,
    modules: Arc<Modules>,
    agents: RwLock<Agents>,
    versions: AtomicU64,
    /// Held while a deployment goes from its first gate to its acknowledgement.
    deploying: tokio::sync::Mutex<()>,
    known: RwLock<Known>,
}

/// What serves each agent.
type Agents = BTreeMap<AgentName, Arc<Deployed>>;

/// What is on record.
#[derive(Default)]
struct Known {
    /// The deployments of each agent, oldest first. None of them is empty.
    deployments: BTreeMap<AgentName, Vec<DeploymentRecord>>,
    /// Why an agent that is deployed does not serve.
    failed: BTreeMap<AgentName, String>,
}

/// What a deployment changed.
pub struct Deployment {
    /// The module that serves from now on.
    pub current: Arc<Deployed>,
    /// The digest of the one that served before, if there was one.
    pub previous: Option<Digest>,
    /// Whether anything changed.
    pub changed: bool,
    /// The exports that the agent has now and had not before, and the other way round, if it was served before.
    pub gained: Vec<String>,
    pub lost: Vec<String>,
}

/// Why nothing was deployed.
#[derive(Debug, thiserror::Error)]
pub enum DeployError {
    #[error(transparent)]
    Refused(#[from] LoadError),
    #[error("no agent of this name was ever deployed here")]
    UnknownAgent,
    #[error("no deployment of this agent that is kept has the module {0}")]
    UnknownModule(Digest),
    #[error("no deployment of this agent that is kept has another module than the one that serves")]
    NothingBefore,
    #[error("the agent is served by {}, not by the module that was named", current(.0))]
    Mismatch(Option<Digest>),
    #[error("the module cannot be kept in the data directory: {0}")]
    NotKept(#[from] io::Error),
    #[error("the kept module cannot be loaded: {0}")]
    NotLoaded(String),
    #[error("the deployment cannot be put on record: {0}")]
    NotRecorded(#[from] StoreError),
    #[error("the deployment ended early: {0}")]
    Broken(#[from] tokio::task::JoinError),
}

fn current(digest: &Option<Digest>) -> String {
    digest.map_or("no module".into(), |digest| digest.to_string())
}

/// An agent that is deployed and does not serve.
pub struct Failed {
    pub record: DeploymentRecord,
    pub why: String,
}

impl Registry {
    /// A registry that knows what was deployed and serves nothing yet. `directory` is where modules are kept.
    pub fn new(
        engine: Arc<Engine>,
        journal: Journal,
        feed: Arc<Feed>,
        config: Arc<Config>,
        directory: PathBuf,
    ) -> Result<Self, StoreError> {
        let mut known = Known::default();
        for record in journal.deployments()? {
            known.deployments.entry(record.agent.clone()).or_default().push(record);
        }
        let network = Arc::new(Network::of_system());
        let granted = config.agents.iter().map(|(agent, of)| {
            (agent.clone(), Arc::new(Granted::new(of.clone(), &network, &config.outbound)))
        });
        Ok(Self {
            engine,
            journal,
            feed,
            granted: granted.collect(),
            nothing: Arc::default(),
            config,
            modules: Arc::new(Modules::new(directory)),
            agents: RwLock::default(),
            versions: AtomicU64::new(0),
            deploying: tokio::sync::Mutex::default(),
            known: RwLock::new(known),
        })
    }

    /// The engine that modules are compiled with.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What the operator gives an agent.
    pub fn granted(&self, agent: &AgentName) -> &Arc<Granted> {
        self.granted.get(agent).unwrap_or(&self.nothing)
    }

    /// The module that serves an agent now.
    pub fn current(&self, agent: &AgentName) -> Option<Arc<Deployed>> {
        self.agents().get(agent).cloned()
    }

    /// The agents and their modules.
    pub fn all(&self) -> Vec<Arc<Deployed>> {
        self.agents().values().cloned().collect()
    }

    /// The agents that are deployed and do not serve.
    pub fn failed(&self) -> Vec<Failed> {
        let known = self.known();
        let failed = known.failed.iter().filter_map(|(agent, why)| {
            let record = known.newest(agent)?.clone();
            Some(Failed { record, why: why.clone() })
        });
        failed.collect()
    }

    /// The kept deployments of an agent, oldest first; none if there never was one.
    pub fn deployments(&self, agent: &AgentName) -> Option<Vec<DeploymentRecord>> {
        self.known().deployments.get(agent).cloned()
    }

    fn agents(&self) -> RwLockReadGuard<'_, Agents> {
        self.agents.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn agents_mut(&self) -> RwLockWriteGuard<'_, Agents> {
        self.agents.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self) -> RwLockReadGuard<'_, Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn known_mut(&self) -> RwLockWriteGuard<'_, Known> {
        self.known.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loads what is deployed, as far as that goes, and returns what serves now. What does not is known as [failed](Self::failed).
    pub async fn load(&self) -> Vec<Arc<Deployed>> {
        let _one_at_a_time = self.deploying.lock().await;
        let records: Vec<_> = {
            let known = self.known();
            let agents = known.deployments.keys().filter(|agent| self.current(agent).is_none());
            agents.filter_map(|agent| known.newest(agent).cloned()).collect()
        };
        let mut loaded = Vec::new();
        for record in records {
            let Some(digest) = record.module else { continue };
            match self.load_known(&record.agent, digest).await {
                Ok(module) => {
                    let deployed = Arc::new(self.deployed(module, record));
                    self.serve(deployed.clone());
                    loaded.push(deployed);
                }
                Err(error) => {
                    tracing::error!(agent = %record.agent, module = %digest, "{error}");
                    self.known_mut().failed.insert(record.agent, error.to_string());
                }
            }
        }
        if let Err(error) = self.clean().await {
            tracing::warn!(%error, "modules that no deployment has are still there");
        }
        loaded
    }

    /// Has a module serve the agent's next request, once it has passed the gates and is durable. One that is refused changes
    /// nothing, and the one that serves already is left as it is. With `instead_of`, only if that is the one that serves. It must be
    /// awaited to its end.
    pub async fn deploy(
        &self,
        agent: AgentName,
        bytes: Vec<u8>,
        source: &str,
        instead_of: Option<Digest>,
    ) -> Result<Deployment, DeployError> {
        let _one_at_a_time = self.deploying.lock().await;
        self.check_current(&agent, instead_of)?;
        self.check_size(bytes.len() as u64)?;
        let digest = Digest::of(&bytes);
        let current = self.current(&agent);
        if let Some(same) = current.filter(|current| current.module.digest() == digest) {
            // A file is remembered by its last deployment, so that a change of it is one.
            if source == API || self.is_known(&agent, source, digest) {
                return Ok(Deployment::unchanged(same));
            }
            return self.put(agent, same.module.clone(), source).await;
        }
        let (engine, granted) = (self.engine.clone(), self.granted(&agent).clone());
        let (module, bytes) = tokio::task::spawn_blocking(move || {
            Module::load(&engine, &bytes, &granted).map(|module| (Arc::new(module), bytes))
        })
        .await??;
        self.try_out(&agent, &module).await?;
        let modules = self.modules.clone();
        tokio::task::spawn_blocking(move || modules.put(digest, &bytes)).await??;
        self.put(agent, module, source).await
    }

    /// Has a module serve that was deployed before: this one, or the last that is not the one that serves.
    pub async fn roll_back(
        &self,
        agent: AgentName,
        to: Option<Digest>,
        instead_of: Option<Digest>,
    ) -> Result<Deployment, DeployError> {
        let _one_at_a_time = self.deploying.lock().await;
        let digest = {
            let known = self.known();
            let deployments = known.deployments.get(&agent).ok_or(DeployError::UnknownAgent)?;
            let modules = deployments.iter().rev().filter_map(|record| record.module);
            let now = known.module(&agent);
            match to {
                Some(to) if modules.clone().any(|module| module == to) => to,
                Some(to) => return Err(DeployError::UnknownModule(to)),
                None => {
                    let mut others = modules.filter(|module| Some(*module) != now);
                    others.next().ok_or(DeployError::NothingBefore)?
                }
            }
        };
        self.check_current(&agent, instead_of)?;
        let current = self.current(&agent);
        if let Some(same) = current.filter(|current| current.module.digest() == digest) {
            return Ok(Deployment::unchanged(same));
        }
        let module = self.load_known(&agent, digest).await?;
        self.try_out(&agent, &module).await?;
        self.put(agent, module, ROLLBACK).await
    }

    /// Has the agent's next request find nothing. Runs that have begun finish. With `source`, only if the agent is deployed from there.
    /// Whether it was served.
    pub async fn remove(
        &self,
        agent: &AgentName,
        source: Option<&str>,
        instead_of: Option<Digest>,
    ) -> Result<bool, DeployError> {
        let _one_at_a_time = self.deploying.lock().await;
        self.check_current(agent, instead_of)?;
        let served = self.known().newest(agent).cloned();
        let from = |record: &DeploymentRecord| source.is_none_or(|source| record.source == source);
        let served = served.filter(|record| record.module.is_some()).filter(from);
        let Some(DeploymentRecord { module: previous, .. }) = served else {
            return Ok(false);
        };
        // A file that is still there must not bring back what the operator removed.
        let record = self.record(agent, None, source.unwrap_or(API).to_owned());
        self.put_on_record(&record).await?;
        self.known_mut().failed.remove(agent);
        let removed = self.agents_mut().remove(agent);
        // Behind the lock, as it may be the last to hold a module.
        drop(removed);
        self.tell(record, previous);
        Ok(true)
    }

    /// The files of this directory that agents are deployed from and that are not there.
    pub(super) fn without_file(&self, directory: &Path) -> Vec<String> {
        let known = self.known();
        let newest = known.deployments.keys().filter_map(|agent| known.newest(agent));
        let gone = |record: &&DeploymentRecord| {
            let file = Path::new(&record.source);
            record.module.is_some() && file.parent() == Some(directory) && !file.exists()
        };
        newest.filter(gone).map(|record| record.source.clone()).collect()
    }

    /// Whether the last deployment from this source was that of this module.
    fn is_known(&self, agent: &AgentName, source: &str, digest: Digest) -> bool {
        let known = self.known();
        let last = known.of(agent).iter().rev().find(|record| record.source == source);
        last.is_some_and(|record| record.module == Some(digest))
    }

    /// Whether a file is as it was when it was last deployed. One is news again when what is deployed does not serve: it may mend that.
    pub fn is_unchanged(&self, agent: &AgentName, source: &str, digest: Digest) -> bool {
        !self.known().failed.contains_key(agent) && self.is_known(agent, source, digest)
    }

    /// Whether the agent's module is the expected one, if any is.
    fn check_current(
        &self,
        agent: &AgentName,
        expected: Option<Digest>,
    ) -> Result<(), DeployError> {
        let current = self.known().module(agent);
        match expected {
            Some(expected) if current != Some(expected) => Err(DeployError::Mismatch(current)),
            _ => Ok(()),
        }
    }

    /// Whether a module may have so many bytes.
    pub(super) fn check_size(&self, bytes: u64) -> Result<(), LoadError> {
        let limit = self.config.deployments.module_bytes;
        if bytes > limit as u64 { Err(LoadError::TooLarge { bytes, limit }) } else { Ok(()) }
    }

    async fn load_known(
        &self,
        agent: &AgentName,
        digest: Digest,
    ) -> Result<Arc<Module>, DeployError> {
        let granted = self.granted(agent).clone();
        let (engine, modules) = (self.engine.clone(), self.modules.clone());
        let loaded = tokio::task::spawn_blocking(move || {
            Module::load_known(&engine, digest, &granted, || modules.get(digest))
        });
        match loaded.await? {
            Ok(module) => Ok(Arc::new(module)),
            Err(error) => Err(DeployError::NotLoaded(format!("{digest}: {error}"))),
        }
    }

    async fn try_out(&self, agent: &AgentName, module: &Arc<Module>) -> Result<(), LoadError> {
        let record = self.record(agent, Some(module.digest()), String::new());
        let health = self.config.agents.get(agent).and_then(|config| config.health.as_deref());
        let trial = Trial {
            engine: &self.engine,
            journal: &self.journal,
            feed: &self.feed,
            health,
            health_timeout: self.config.deployments.health_timeout,
        };
        trial.pass(&self.deployed(module.clone(), record)).await
    }

    /// A deployment that is not on record yet.
    fn record(
        &self,
        agent: &AgentName,
        module: Option<Digest>,
        source: String,
    ) -> DeploymentRecord {
        let known = self.known();
        let generation = known.newest(agent).map_or(1, |newest| newest.generation + 1);
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let at_ms = since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        DeploymentRecord { agent: agent.clone(), generation, module, at_ms, source }
    }

    fn deployed(&self, module: Arc<Module>, record: DeploymentRecord) -> Deployed {
        let agent = record.agent.clone();
        let AgentConfig { limits, .. } = self.config.agent(&agent);
        let granted = self.granted(&agent).clone();
        let same = self.current(&agent).filter(|old| old.module.digest() == module.digest());
        let version = match same {
            Some(same) => same.version,
            None => self.versions.fetch_add(1, Ordering::Relaxed) + 1,
        };
        Deployed { agent, module, record, granted, limits, version }
    }

    /// Makes a deployment durable and has it serve.
    async fn put(
        &self,
        agent: AgentName,
        module: Arc<Module>,
        source: &str,
    ) -> Result<Deployment, DeployError> {
        let before = self.current(&agent);
        let previous = self.known().module(&agent);
        let record = self.record(&agent, Some(module.digest()), source.to_owned());
        self.put_on_record(&record).await?;
        let current = Arc::new(self.deployed(module, record.clone()));
        self.serve(current.clone());
        self.tell(record, previous);
        let (mut gained, mut lost) = (Vec::new(), Vec::new());
        if let Some(before) = before {
            let [had, has] = [&before, &current].map(|of| &of.module.shape().exports);
            gained.extend(has.difference(had).cloned());
            lost.extend(had.difference(has).cloned());
        }
        Ok(Deployment { current, previous, changed: true, gained, lost })
    }

    fn serve(&self, deployed: Arc<Deployed>) {
        self.known_mut().failed.remove(&deployed.agent);
        let replaced = self.agents_mut().insert(deployed.agent.clone(), deployed);
        // Behind the lock, as it may be the last to hold a module.
        drop(replaced);
    }

    fn tell(&self, record: DeploymentRecord, previous: Option<Digest>) {
        if self.feed.is_watched() {
            self.feed.tell(None, Happening::Deployed { record, previous });
        }
    }

    /// Makes a deployment durable. After an error it is not known whether it is, and the next start may find it.
    async fn put_on_record(&self, record: &DeploymentRecord) -> Result<(), DeployError> {
        let forget = self.known().superfluous(&record.agent, self.config.deployments.kept);
        let (journal, row, generations) = (self.journal.clone(), record.clone(), forget.clone());
        tokio::task::spawn_blocking(move || journal.deploy(&row, &generations)).await??;
        {
            let mut known = self.known_mut();
            let deployments = known.deployments.entry(record.agent.clone()).or_default();
            deployments.retain(|record| !forget.contains(&record.generation));
            deployments.push(record.clone());
        }
        if !forget.is_empty()
            && let Err(error) = self.clean().await
        {
            tracing::warn!(%error, "modules that no deployment has any more are still there");
        }
        Ok(())
    }

    /// Deletes the modules that no deployment has, and their compiled code.
    async fn clean(&self) -> io::Result<()> {
        let kept: HashSet<_> = {
            let known = self.known();
            known.deployments.values().flatten().filter_map(|record| record.module).collect()
        };
        let (engine, modules) = (self.engine.clone(), self.modules.clone());
        let cleaned = tokio::task::spawn_blocking(move || {
            let gone = modules.keep_only(&kept)?;
            gone.into_iter().try_for_each(|digest| engine.forget(digest))
        });
        cleaned.await.map_err(io::Error::other)?
    }
}

impl Deployment {
    fn unchanged(current: Arc<Deployed>) -> Self {
        let previous = Some(current.module.digest());
        Self { current, previous, changed: false, gained: Vec::new(), lost: Vec::new() }
    }
}

impl Known {
    /// The deployments of an agent, oldest first.
    fn of(&self, agent: &AgentName) -> &[DeploymentRecord] {
        self.deployments.get(agent).map_or(&[], Vec::as_slice)
    }

    fn newest(&self, agent: &AgentName) -> Option<&DeploymentRecord> {
        self.of(agent).last()
    }

    /// The module that an agent is deployed with, if it is.
    fn module(&self, agent: &AgentName) -> Option<Digest> {
        self.newest(agent)?.module
    }

    /// The generations of an agent that need not be kept when one more comes: all but the newest, and the newest of each source, by which
    /// a file is told from what it was.
    fn superfluous(&self, agent: &AgentName, kept: usize) -> Vec<u64> {
        let mut sources = HashSet::new();
        let old = self.of(agent).iter().rev().enumerate().filter(|(age, record)| {
            let newest_of_source = sources.insert(&record.source);
            age + 1 >= kept && !newest_of_source
        });
        old.map(|(_, record)| record.generation).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_deployments_are_kept_and_the_newest_of_each_source() {
        let agent: AgentName = "chat".parse().unwrap();
        let sources = ["/chat.wasm", "api", "/chat.wasm", "api", "rollback", "api", "api"];
        let records = (1..).zip(sources).map(|(generation, source)| DeploymentRecord {
            agent: agent.clone(),
            generation,
            module: None,
            at_ms: 0,
            source: source.into(),
        });
        let mut known = Known::default();
        known.deployments.insert(agent.clone(), records.collect());
        assert_eq!(known.superfluous(&agent, 3), [4, 2, 1]);
        assert_eq!(known.superfluous(&agent, 1), [6, 4, 2, 1]);
        assert_eq!(known.superfluous(&agent, 8), [0; 0]);
    }
}
