//! The agents' directory: its components, loaded at the start and when they change.
//!
//! **Problem.** An operator copies a component into the directory of a running host and means it to serve, and a slip with one
//! file must not touch the agents of the others.
//!
//! **Mechanism.** Each `.wasm` file is one agent's. At the start all are loaded in the order of their names; then each that has
//! changed and is whole again, see [`watch`](crate::watch), is a deployment. One that cannot be loaded is logged, and what
//! served before serves on. When the file goes that an agent is deployed from, the agent goes, and runs that have begun finish.
//!
//! **Limits.** Files are loaded one after another. A component that is being copied while the host starts may be found
//! half, which is refused and keeps the host from being ready until the copy is whole.
//!
//! **Cost.** That of the deployments, and of one watched directory.

use std::convert::Infallible;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::Host;
use crate::watch::{Scope, Watch};

/// A directory of components.
pub struct AgentsDir {
    directory: PathBuf,
    watch: Watch,
}

impl AgentsDir {
    /// Begins to watch a directory.
    pub fn open(directory: &Path) -> anyhow::Result<Self> {
        let unreadable = || format!("cannot read the agents' directory {}", directory.display());
        std::fs::read_dir(directory).with_context(unreadable)?;
        let watch = Watch::of(&[directory.to_owned()], Scope::Folder, &["wasm"])?;
        Ok(Self { directory: directory.to_owned(), watch })
    }

    /// Loads what is there. One that fails keeps the host from being ready, and the others serve.
    pub async fn load(&self, host: &Host) {
        let files = self.watch.known();
        if files.is_empty() {
            let directory = self.directory.display();
            tracing::warn!(%directory, "there is no .wasm component here");
        }
        for file in files {
            self.deploy(host, file).await;
        }
    }

    /// Removes what was deployed from files that went while no host looked.
    pub async fn remove_missing(&self, host: &Host) {
        host.deployments().remove_missing(&self.directory).await;
    }

    /// Deploys what changes, for as long as it is polled.
    pub async fn follow(&mut self, host: &Host) -> Infallible {
        loop {
            let changes = self.watch.next().await;
            for file in &changes.removed {
                host.readiness().mended(file);
                if let Err(error) = host.deployments().remove_file(file).await {
                    tracing::error!("{error}");
                }
            }
            for file in &changes.changed {
                // Others were loaded since it was whole; it will be told again.
                if !self.watch.is_changing(file) {
                    self.deploy(host, file).await;
                }
            }
        }
    }

    async fn deploy(&self, host: &Host, file: &Path) {
        match host.deployments().deploy_file(file).await {
            Ok(_) => host.readiness().mended(file),
            Err(error) => {
                tracing::error!("{error}");
                host.readiness().failed(file, error.to_string());
            }
        }
    }
}
