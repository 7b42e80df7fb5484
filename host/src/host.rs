//! The host as a whole: its parts put together, from start to end.
//!
//! **Problem.** The parts depend on each other in one order and must end in the opposite one, and no
//! part may die without the host noticing.
//!
//! **Mechanism.** [`Host::open`] opens the journal and makes the engine; [`Host::load`] has serve what was deployed before;
//! [`Host::deploy`] lets a module serve and takes up what its agent left unfinished; [`Host::serve`] answers until it is told to end or the
//! journal gives up, then drains, forces, and closes the journal last.
//!
//! **Limits** are those of the [`Config`]. **Cost.** Opening reads the journal's unfinished runs.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::agent::{API, DeployError, Deployment, Deployments, Directory, Registry, Resumptions};
use crate::config::Config;
use crate::http::admin::{Admin, Readiness};
use crate::http::api::{Api, Keys};
use crate::http::connections::Connections;
use crate::http::server;
use crate::http::tls::Tls;
use crate::id::AgentName;
use crate::journal::{self, Backend, Health, Journal, Unfinished};
use crate::shutdown::Shutdown;
use crate::wasm::{Engine, Feed};

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
        let modules = config.data.join("modules");
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
        tokio::spawn(async move {
            server::serve(listener, service, &limits, connections, None, shutdown).await
        });
    }

    /// Answers on the public address until `stop` comes, then ends: runs and replies under way may take the
    /// configured grace, event streams end at once and say when to come back, and the journal is closed last.
    pub async fn serve(
        &self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        let Api { config, journal, connections, shutdown, directory, .. } = &*self.api;
        let api = self.api.clone();
        let service = move |request| api.clone().answer(request);
        let public = server::serve(
            listener,
            service,
            &config.http,
            connections.clone(),
            self.tls.clone(),
            shutdown.clone(),
        );
        let renewed = async {
            match &self.tls {
                Some(tls) => tls.follow().await,
                None => std::future::pending().await,
            }
        };
        let sweeper = tokio::spawn(directory.clone().sweep());
        let mut health = journal.health();
        let died = async {
            let dead = health.wait_for(|health| matches!(health, Health::Dead(_))).await;
            // The journal of this host outlives the wait.
            dead.ok().map(|health| health.clone())
        };
        let served = tokio::select! {
            () = public => Ok(()),
            never = renewed => match never {},
            () = stop => Ok(()),
            Some(Health::Dead(why)) = died => Err(anyhow::anyhow!("the journal gave up: {why}")),
            ended = sweeper => ended.context("the instance sweeper ended"),
        };
        directory.drain();
        // What can no longer be made durable has nothing to wait for.
        let grace = if served.is_ok() { config.grace } else { Duration::ZERO };
        shutdown.run_down(grace).await;
        journal.close().await;
        served
    }
}

fn journal_options(config: &Config) -> journal::Options {
    journal::Options { file: config.data.join("journal.redb"), limits: config.journal.clone() }
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
