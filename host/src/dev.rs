//! Building agents from source while they are being written.
//!
//! **Problem.** An author wants to save a file and see the change, in a host that keeps its state and streams.
//!
//! **Mechanism.** `cargo metadata` says which crates under the paths build a `cdylib`; `cargo build` makes
//! components of them and says, in JSON, where they are. A change of a source under the paths, once it has been quiet for
//! [`QUIET`], builds again and deploys what came out different. A build that fails changes nothing.
//!
//! **Limits.** Rust crates, and finished components of any language, which are watched as files.
//!
//! **Cost.** Cargo's, and a watch on the sources' directories.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use notify::{RecursiveMode, Watcher as _};
use serde::Deserialize;
use tokio::process::Command;
use tokio::sync::mpsc;

use crate::Host;
use crate::id::AgentName;

/// How long sources must be unchanged before they are built.
const QUIET: Duration = Duration::from_millis(150);

/// What agents are built for.
const TARGET: &str = "wasm32-wasip2";

/// The endings of files whose change builds again.
const SOURCES: [&str; 4] = ["rs", "toml", "wit", "wasm"];

/// Folders are searched for crates to this depth.
const DEPTH: usize = 4;

/// The agents under development.
pub struct Workspace {
    /// What the author named, in full.
    paths: Vec<PathBuf>,
    /// Packages to build, by the root of their workspace.
    packages: BTreeMap<PathBuf, Vec<String>>,
    components: Vec<PathBuf>,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    /// Which no other package has, where a name may also be that of a dependency.
    id: String,
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    crate_types: Vec<String>,
}

impl Target {
    fn is_component(&self) -> bool {
        self.crate_types.iter().any(|kind| kind == "cdylib")
    }
}

/// One line of what `cargo build` reports.
#[derive(Deserialize)]
struct Report {
    reason: String,
    target: Option<Target>,
    #[serde(default)]
    filenames: Vec<PathBuf>,
}

impl Workspace {
    /// Finds the agents under these paths.
    pub async fn find(paths: &[PathBuf]) -> anyhow::Result<Self> {
        let mut found =
            Self { paths: Vec::new(), packages: BTreeMap::new(), components: Vec::new() };
        for path in paths {
            let path = path
                .canonicalize()
                .with_context(|| format!("there is nothing at {}", path.display()))?;
            found.paths.push(path.clone());
            if path.is_file() {
                found.components.push(path);
                continue;
            }
            for manifest in manifests(&path, DEPTH) {
                found.add(&manifest).await?;
            }
        }
        if found.packages.is_empty() && found.components.is_empty() {
            let named: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            anyhow::bail!(
                "no agent under {}: an agent is a crate with `crate-type = [\"cdylib\"]`, or a .wasm component",
                named.join(", ")
            );
        }
        Ok(found)
    }

    async fn add(&mut self, manifest: &Path) -> anyhow::Result<()> {
        let mut command = Command::new("cargo");
        command.args(["metadata", "--no-deps", "--format-version", "1", "--manifest-path"]);
        let output = command.arg(manifest).stderr(Stdio::inherit()).output().await;
        let output =
            output.context("cannot run cargo, which builds the agents: is Rust installed?")?;
        anyhow::ensure!(output.status.success(), "cargo cannot read {}", manifest.display());
        let metadata: Metadata = serde_json::from_slice(&output.stdout)?;
        let ours = |package: &Package| {
            package.manifest_path == manifest && package.targets.iter().any(Target::is_component)
        };
        for package in metadata.packages.into_iter().filter(ours) {
            let packages = self.packages.entry(metadata.workspace_root.clone()).or_default();
            packages.push(package.id);
        }
        Ok(())
    }

    /// Builds all crates and returns their components.
    pub async fn build(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut components = Vec::new();
        for (root, packages) in &self.packages {
            tokio::task::block_in_place(|| ensure_target(root))?;
            components.extend(build(root, packages).await?);
        }
        Ok(components)
    }

    /// Builds everything and deploys it.
    pub async fn build_and_deploy(&self, host: &Host) -> anyhow::Result<()> {
        for (root, packages) in &self.packages {
            tokio::task::block_in_place(|| ensure_target(root))?;
            for component in build(root, packages).await? {
                deploy_or_say(host, &component).await;
            }
        }
        for component in &self.components {
            deploy_or_say(host, component).await;
        }
        Ok(())
    }

    /// Builds and deploys again whenever a source changes.
    pub async fn watch(&self, host: &Host) -> anyhow::Result<()> {
        let (changed, mut changes) = mpsc::channel(1);
        let roots = self.paths.clone();
        let mut watcher =
            notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                let relevant = event.is_ok_and(|event| {
                    !event.kind.is_access()
                        && event.paths.iter().any(|path| is_source(&roots, path))
                });
                if relevant {
                    // One change waiting is as good as many.
                    let _ = changed.try_send(());
                }
            })?;
        for path in &self.paths {
            watcher
                .watch(path, RecursiveMode::Recursive)
                .with_context(|| format!("cannot watch {}", path.display()))?;
        }
        while changes.recv().await.is_some() {
            while tokio::time::timeout(QUIET, changes.recv()).await.is_ok() {}
            if let Err(error) = self.build_and_deploy(host).await {
                tracing::error!("not swapped: {error:#}");
            }
        }
        Ok(())
    }
}

async fn deploy_or_say(host: &Host, file: &Path) {
    if let Err(error) = deploy_file(host, file).await {
        tracing::error!("{error:#}");
    }
}

/// Deploys a component under its file's name, with `-` for `_`, as cargo writes names the other way round.
pub async fn deploy_file(host: &Host, file: &Path) -> anyhow::Result<()> {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
    let named = || format!("{} cannot be served", file.display());
    let agent: AgentName = stem.parse().with_context(named)?;
    let bytes = tokio::fs::read(file).await.with_context(named)?;
    let deployment = host.deploy(agent.clone(), bytes).await.with_context(named)?;
    let module = deployment.current.module.digest();
    if deployment.previous != Some(module) {
        let previous = deployment.previous.map(tracing::field::display);
        tracing::info!(%agent, %module, previous, "deployed");
    }
    Ok(())
}

fn manifests(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let manifest = directory.join("Cargo.toml");
    let mut found = Vec::new();
    if manifest.is_file() {
        found.push(manifest);
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return found };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.retain(|path| path.is_dir() && depth > 0 && !is_hidden_or_output(path));
    folders.sort();
    found.extend(folders.iter().flat_map(|folder| manifests(folder, depth - 1)));
    found
}

fn is_hidden_or_output(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name == "target"
}

/// Whether a change of this path, which is below one of the roots, can change an agent.
fn is_source(roots: &[PathBuf], path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy();
    let within = roots.iter().find_map(|root| path.strip_prefix(root).ok());
    SOURCES.contains(&&*extension)
        && within.is_some_and(|path| !path.ancestors().any(is_hidden_or_output))
}

/// Installs the target that agents are built for, if the toolchain of this directory has not got it.
pub fn ensure_target(root: &Path) -> anyhow::Result<()> {
    let output = std::process::Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(root)
        .output()
        .context("cannot run rustc, which builds the agents: is Rust installed?")?;
    let libraries = String::from_utf8_lossy(&output.stdout);
    if output.status.success() && Path::new(libraries.trim()).is_dir() {
        return Ok(());
    }
    eprintln!("bureau: installing the target {TARGET} with rustup");
    let mut rustup = std::process::Command::new("rustup");
    let installed = rustup.args(["target", "add", TARGET]).current_dir(root).status();
    match installed {
        Ok(status) if status.success() => Ok(()),
        _ => anyhow::bail!(
            "the target {TARGET} is missing and rustup could not install it; \
             install it with `rustup target add {TARGET}` or with your system's packages"
        ),
    }
}

/// Builds packages of one workspace; returns their components.
async fn build(root: &Path, packages: &[String]) -> anyhow::Result<Vec<PathBuf>> {
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--target", TARGET]);
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["--package", package]);
    }
    let output = command.current_dir(root).stderr(Stdio::inherit()).output().await?;
    anyhow::ensure!(output.status.success(), "cargo could not build {}", packages.join(", "));
    let reports = output.stdout.split(|byte| *byte == b'\n');
    let mut components = Vec::new();
    for report in reports.filter_map(|line| serde_json::from_slice::<Report>(line).ok()) {
        let built = report.reason == "compiler-artifact"
            && report.target.as_ref().is_some_and(Target::is_component);
        if built {
            let is_component = |file: &PathBuf| file.extension().is_some_and(|kind| kind == "wasm");
            components.extend(report.filenames.into_iter().filter(is_component));
        }
    }
    Ok(components)
}
