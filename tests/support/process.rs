//! A host in the test's own process, with its journal on a disk of the test's own.

use std::ops::Deref;

use bureau::Host;
use bureau::config::{Config, Overrides};
use bureau::http::server;
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::client::Client;
use super::disk::Disk;
use super::guests::guest;
use super::host::share_compiled_code;

/// A host that serves.
pub struct InProcess {
    client: Client,
    host: Host,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<anyhow::Result<()>>,
    _directory: TempDir,
}

impl InProcess {
    /// Serves these guests, with what `adjust` makes of the default configuration.
    pub async fn serving(agents: &[&str], disk: &Disk, adjust: impl FnOnce(&mut Config)) -> Self {
        let directory = tempfile::tempdir().expect("there is room for a temporary directory");
        share_compiled_code(directory.path());
        let overrides = Overrides { data: Some(directory.path().into()), ..Overrides::default() };
        let mut config = Config::load(None, overrides).unwrap();
        // The room that is reserved for instances is that of a process, which here has many hosts.
        std::sync::Arc::make_mut(&mut config.instances).live = 64;
        adjust(&mut config);
        let host = Host::open_on(config, disk.backend()).unwrap();
        for agent in agents {
            let bytes = std::fs::read(guest(agent)).unwrap();
            host.deploy(agent.parse().unwrap(), bytes).await.unwrap();
        }
        host.readiness().loaded();
        let [public, admin] = [(); 2].map(|()| server::bind(([127, 0, 0, 1], 0).into()).unwrap());
        let [url, operator] = [&public, &admin]
            .map(|listener| format!("http://{}", listener.local_addr().expect("it is bound")));
        host.serve_admin(admin);
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn({
            let host = host.clone();
            // A test that fails drops the sender, which stops the host too.
            async move { host.serve(public, async { drop(stopped.await) }).await }
        });
        let client = Client::new(url, operator);
        Self { client, host, stop, serving, _directory: directory }
    }

    /// Lets a guest serve under another's name from the next request on, and returns its module's digest.
    pub async fn deploy(&self, name: &str, component: &str) -> String {
        let bytes = std::fs::read(guest(component)).unwrap();
        let deployment = self.host.deploy(name.parse().unwrap(), bytes).await.unwrap();
        deployment.current.module.digest().to_string()
    }

    /// Ends the host in order.
    pub async fn stop(self) {
        self.stop.send(()).expect("the host serves");
        self.serving.await.unwrap().unwrap();
    }

    /// Waits until the host ends of itself, and returns how it did.
    pub async fn ended(self) -> anyhow::Result<()> {
        let Self { stop, serving, .. } = self;
        let ended = serving.await.unwrap();
        drop(stop);
        ended
    }
}

impl Deref for InProcess {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}
