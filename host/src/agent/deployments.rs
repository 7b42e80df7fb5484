//! Deploying, to its end, whatever becomes of who asked for it.
//!
//! **Problem.** A deployment is a row and a pointer, and what asks for one, a request or a watcher, may go away between the two. And an agent that
//! is served has runs of the last start to go on with.
//!
//! **Mechanism.** Each deployment is a task of its own, which the caller awaits; when it has changed what serves, the agent's unfinished runs are
//! taken up.
//!
//! **Limits** and **cost** are those of the [`Registry`], and a task.

use std::path::Path;
use std::sync::Arc;

use crate::agent::registry::{DeployError, Deployed, Deployment, Registry};
use crate::agent::resume::Resumptions;
use crate::id::{AgentName, Digest};

/// The way in to the registry. Clones lead to the same one.
#[derive(Clone)]
pub struct Deployments {
    pub registry: Arc<Registry>,
    pub resumptions: Arc<Resumptions>,
}

impl Deployments {
    /// Has all serve that was deployed before.
    pub async fn load(&self) {
        for deployed in self.registry.load().await {
            self.take_up(deployed);
        }
    }

    /// Has a module serve: see [`Registry::deploy`].
    pub async fn deploy(
        &self,
        agent: AgentName,
        bytes: Vec<u8>,
        source: String,
        instead_of: Option<Digest>,
    ) -> Result<Deployment, DeployError> {
        let registry = self.registry.clone();
        let deploying = async move { registry.deploy(agent, bytes, &source, instead_of).await };
        self.see_through(deploying).await
    }

    /// Has a module serve that was deployed before: see [`Registry::roll_back`].
    pub async fn roll_back(
        &self,
        agent: AgentName,
        to: Option<Digest>,
        instead_of: Option<Digest>,
    ) -> Result<Deployment, DeployError> {
        let registry = self.registry.clone();
        let deploying = async move { registry.roll_back(agent, to, instead_of).await };
        self.see_through(deploying).await
    }

    /// Has an agent serve no longer: see [`Registry::remove`].
    pub async fn remove(
        &self,
        agent: AgentName,
        source: Option<String>,
        instead_of: Option<Digest>,
    ) -> Result<bool, DeployError> {
        let registry = self.registry.clone();
        let removing = async move { registry.remove(&agent, source.as_deref(), instead_of).await };
        tokio::spawn(removing).await?
    }

    /// Deploys a component under its file's name, with `-` for `_`, as cargo writes names the other way round. None if the file is
    /// as it was when it was last deployed: then whatever was deployed since serves on.
    pub async fn deploy_file(&self, file: &Path) -> Result<Option<Deployment>, FileError> {
        let wrong = |cause: DeployFileError| FileError { file: file.display().to_string(), cause };
        let agent = agent_of(file).map_err(wrong)?;
        let length = tokio::fs::metadata(file).await.map_err(|cause| wrong(cause.into()))?.len();
        let fits = self.registry.check_size(length).map_err(DeployError::from);
        fits.map_err(|cause| wrong(cause.into()))?;
        let bytes = tokio::fs::read(file).await.map_err(|cause| wrong(cause.into()))?;
        let source = source_of(file);
        let hashed = tokio::task::spawn_blocking(move || (Digest::of(&bytes), bytes)).await;
        let (digest, bytes) = hashed.map_err(|cause| wrong(DeployError::from(cause).into()))?;
        if self.registry.is_unchanged(&agent, &source, digest) {
            return Ok(None);
        }
        let deployed = self.deploy(agent.clone(), bytes, source, None).await;
        let deployment = deployed.map_err(|cause| wrong(cause.into()))?;
        let module = deployment.current.module.digest();
        let previous = deployment.previous.map(tracing::field::display);
        tracing::info!(%agent, %module, previous, "deployed");
        Ok(Some(deployment))
    }

    /// The file of an agent is gone: if the agent is deployed from it, it is served no longer, and runs that have begun finish.
    pub async fn remove_file(&self, file: &Path) -> Result<bool, FileError> {
        let wrong = |cause: DeployFileError| FileError { file: file.display().to_string(), cause };
        let agent = agent_of(file).map_err(wrong)?;
        let removed = self.remove(agent.clone(), Some(source_of(file)), None).await;
        let removed = removed.map_err(|cause| wrong(cause.into()))?;
        if removed {
            tracing::info!(
                %agent, file = %file.display(),
                "the agent's file is gone: it is served no longer, and runs that have begun finish"
            );
        }
        Ok(removed)
    }

    /// Removes what was deployed from files of this directory that are gone.
    pub async fn remove_missing(&self, directory: &Path) {
        for file in self.registry.without_file(Path::new(&source_of(directory))) {
            if let Err(error) = self.remove_file(Path::new(&file)).await {
                tracing::error!("{error}");
            }
        }
    }

    async fn see_through(
        &self,
        deploying: impl Future<Output = Result<Deployment, DeployError>> + Send + 'static,
    ) -> Result<Deployment, DeployError> {
        let this = self.clone();
        let deploying = tokio::spawn(async move {
            let deployment = deploying.await?;
            this.take_up(deployment.current.clone());
            Ok(deployment)
        });
        deploying.await?
    }

    fn take_up(&self, deployed: Arc<Deployed>) {
        self.resumptions.clone().take_up(deployed);
    }
}

/// A file cannot be served, or what it was cannot be removed.
#[derive(Debug, thiserror::Error)]
#[error("{file} cannot be served: {cause}")]
pub struct FileError {
    file: String,
    cause: DeployFileError,
}

#[derive(Debug, thiserror::Error)]
enum DeployFileError {
    #[error(transparent)]
    Name(#[from] crate::id::InvalidAgentName),
    #[error(transparent)]
    Read(#[from] std::io::Error),
    #[error(transparent)]
    Deploy(#[from] DeployError),
}

fn agent_of(file: &Path) -> Result<AgentName, DeployFileError> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
    Ok(stem.parse()?)
}

/// A file as a deployment's source: its path in full.
fn source_of(file: &Path) -> String {
    std::path::absolute(file).unwrap_or_else(|_| file.to_owned()).display().to_string()
}
