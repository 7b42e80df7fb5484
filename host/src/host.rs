//! The host as a whole: its parts put together, from start to end.
//!
//! **Problem.** The parts depend on each other in one order and must end in the opposite one, and no
//! part may die without the host noticing.
//!
//! **Mechanism.** [`Host::open`] opens the journal and makes the engine; [`Host::load`] has serve what was deployed before;
//! [`Host::deploy`] lets a module serve and takes up what its agent left unfinished; [`Host::serve`] answers until it is told to end, the
//! journal gives up or a part is [lost](Shutdown::lost), then drains, forces, and closes the journal last.
//!
//! **Limits** are those of the [`Config`]. **Cost.** Opening reads the journal's unfinished runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::agent::{
    self, API, DeployError, Deployment, Deployments, Directory, Registry, Resumptions,
};
use crate::config::Config;
use crate::http::admin::{Admin, Readiness};
use crate::http::api::{Api, Keys};
use crate::http::connections::Connections;
use crate::http::server;
use crate::http::tls::Tls;
use crate::id::AgentName;
use crate::journal::{self, Backend, Health, Journal, Report, StoreError, Unfinished};
use crate::shutdown::Shutdown;
use crate::wasm::{Engine, Feed};

/// In the data directory: the journal, and what was deployed.
const JOURNAL: &str = "journal.redb";
const MODULES: &str = "modules";

/// A host that is open and may be serving. Clones are the same host.
#[derive(Clone)]
pub struct Host {
    api: Arc<Api>,
    admin: Arc<Admin>,
    tls: Option<Arc<Tls>>,
}

impl Host {
    /// Opens the journal in the data directory and makes ready to load agents.
    pub fn open(config: Config) -> anyhow::Result<Self> {
        make_private(&config.data)?;
        let opened = Journal::open(journal_options(&config))?;
        Self::with_journal(config, opened)
    }

    /// Keeps the journal on this backend instead of in a file.
    pub fn open_on(config: Config, backend: Backend) -> anyhow::Result<Self> {
        let opened = Journal::open_on(backend, journal_options(&config))?;
        Self::with_journal(config, opened)
    }

    fn with_journal(
        config: Config,
        (journal, unfinished): (Journal, Vec<Unfinished>),
    ) -> anyhow::Result<Self> {
        let tls = config.tls.as_ref().map(Tls::open).transpose()?.map(Arc::new);
        let cache = config.data.join("cache");
        make_private(&cache)?;
        let modules = config.data.join(MODULES);
        make_private(&modules)?;
        let config = Arc::new(config);
        let engine = Arc::new(Engine::new(config.instances.live, config.largest_memory(), cache)?);
        let (shutdown, feed) = (Shutdown::default(), Arc::new(Feed::default()));
        let registry =
            Registry::new(engine, journal.clone(), feed.clone(), config.clone(), modules)?;
        let registry = Arc::new(registry);
        let directory = Directory::new(
            registry.clone(),
            journal.clone(),
            feed.clone(),
            config.instances.clone(),
            shutdown.clone(),
        );
        let resumptions = Resumptions::new(
            journal.clone(),
            registry.clone(),
            directory.clone(),
            unfinished,
            config.resumptions_at_once,
        );
        let connections = Connections::new(&config.http);
        let bodies = Semaphore::new(config.http.bodies_bytes);
        let resumptions = Arc::new(resumptions);
        let api = Api {
            config,
            registry,
            directory,
            journal,
            resumptions,
            keys: Keys::default(),
            connections,
            bodies,
            shutdown,
        };
        let api = Arc::new(api);
        let (registry, resumptions) = (api.registry.clone(), api.resumptions.clone());
        let admin = Admin::new(api.clone(), Deployments { registry, resumptions }, feed);
        Ok(Self { api, admin: Arc::new(admin), tls })
    }

    /// What is served, and whether it is all there.
    pub fn registry(&self) -> &Registry {
        &self.api.registry
    }

    /// What the host has not loaded yet or could not.
    pub fn readiness(&self) -> &Readiness {
        &self.admin.readiness
    }

    /// Deploys, and what goes with it.
    pub fn deployments(&self) -> &Deployments {
        &self.admin.deployments
    }

    /// Has all serve that was deployed before. What cannot keeps the host from being ready.
    pub async fn load(&self) {
        self.deployments().load().await;
    }

    /// Compiles and checks a module, and lets it serve its agent's next request.
    pub async fn deploy(
        &self,
        agent: AgentName,
        bytes: Vec<u8>,
    ) -> Result<Deployment, DeployError> {
        self.deployments().deploy(agent, bytes, API.into(), None).await
    }

    /// Answers on the admin address, without TLS, from now until the host ends.
    pub fn serve_admin(&self, listener: TcpListener) {
        let admin = self.admin.clone();
        let service = move |request| admin.clone().answer(request);
        let (limits, shutdown) = (self.api.config.http.clone(), self.api.shutdown.clone());
        let connections = Connections::new(&limits);
        self.api.shutdown.supervise("the server of the admin address", async move {
            server::serve(listener, service, &limits, connections, None, shutdown).await;
        });
    }

    /// Answers on the public address until `stop` comes, the journal gives up or a part of the host is lost, then ends: runs and
    /// replies under way may take the configured grace, event streams end at once and say when to come back, and the journal
    /// is closed last.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Api { config, journal, connections, shutdown, directory, .. } = &*self.api;
        let api = self.api.clone();
        let service = move |request| api.clone().answer(request);
        let serving = {
            let (limits, shutdown) = (config.http.clone(), shutdown.clone());
            let (connections, tls) = (connections.clone(), self.tls.clone());
            async move {
                server::serve(listener, service, &limits, connections, tls, shutdown).await;
            }
        };
        shutdown.supervise("the server of the public address", serving);
        if let Some(tls) = self.tls.clone() {
            shutdown.supervise("the watcher of certificates", async move {
                match tls.follow().await {}
            });
        }
        shutdown.supervise("the sweeper of instances", directory.clone().sweep());
        shutdown.supervise("the clock of guests", self.registry().engine().clock());
        let mut health = journal.health();
        let died = async {
            let dead = health.wait_for(|health| matches!(health, Health::Dead(_))).await;
            // The journal of this host outlives the wait.
            dead.ok().map(|health| health.clone())
        };
        let served = tokio::select! {
            () = stop => Ok(()),
            Some(Health::Dead(why)) = died => Err(anyhow::anyhow!("the journal gave up: {why}")),
            loss = shutdown.lost() => Err(loss.into()),
        };
        directory.drain();
        // What can no longer be made durable has nothing to wait for.
        let grace = if served.is_ok() { config.grace } else { Duration::ZERO };
        shutdown.run_down(grace).await;
        journal.close().await;
        served
    }
}

/// Says what is in a data directory that no host has open, and what is wrong with it. Nothing changes.
pub fn check(data: &Path) -> Result<Report, StoreError> {
    let mut report = journal::check(&data.join(JOURNAL))?;
    agent::check_modules(&data.join(MODULES), &mut report);
    Ok(report)
}

fn journal_options(config: &Config) -> journal::Options {
    journal::Options { file: config.data.join(JOURNAL), limits: config.journal.clone() }
}

/// Makes a directory that only its owner can enter: it holds everyone's data, and code that is trusted.
fn make_private(directory: &Path) -> anyhow::Result<()> {
    let made = || {
        std::fs::create_dir_all(directory)?;
        #[cfg(unix)]
        std::fs::set_permissions(directory, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
        std::io::Result::Ok(())
    };
    made().with_context(|| format!("cannot make {} a directory of our own", directory.display()))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::config::Overrides;

    #[tokio::test]
    async fn a_host_that_loses_a_part_ends_and_says_which() {
        let directory = tempfile::tempdir().unwrap();
        let overrides = Overrides { data: Some(directory.path().into()), ..Overrides::default() };
        let mut config = Config::load(None, overrides).unwrap();
        Arc::make_mut(&mut config.instances).live = 8;
        let host = Host::open(config).unwrap();
        let listener = server::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let serving = host.serve(listener, std::future::pending());
        host.api.shutdown.supervise("a part", async { panic!("a mistake") });
        let error = serving.await.unwrap_err().to_string();
        assert_eq!(error, "a part panicked, without which the host is not whole");
        let report = check(directory.path()).unwrap();
        assert!(report.is_consistent(), "the journal was closed: {report:?}");
    }
}
