//! Building agents from source while they are being written.
//!
//! **Problem.** An author wants to save a file and see the change, in a host that keeps its state and streams.
//!
//! **Mechanism.** `cargo metadata` says which crates under the paths build a `cdylib`; `cargo build` makes
//! components of them and says, in JSON, where they are. A change of sources under the paths, once all are whole, see
//! [`watch`], builds again and deploys what came out different; when it is that of a `Cargo.toml`, or one
//! comes or goes, the crates are found anew before. An agent that cannot be built serves on as it was, and the others are deployed.
//!
//! **Limits.** Rust crates, and finished components of any language, which are watched as files.
//!
//! **Cost.** Cargo's, and a watch on the sources' directories.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};

use anyhow::Context as _;
use serde::Deserialize;
use tokio::process::Command;

use crate::Host;
use crate::watch::{self, Scope, Watch};

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
        let output = output(command.arg(manifest)).await;
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
            let built = build(root, packages).await?;
            built.is_all_of(root)?;
            components.extend(built.components);
        }
        Ok(components)
    }

    /// Builds everything and deploys what can be built.
    pub async fn build_and_deploy(&self, host: &Host) -> anyhow::Result<()> {
        let mut all = Ok(());
        for (root, packages) in &self.packages {
            let built = build(root, packages).await?;
            for component in &built.components {
                deploy_or_say(host, component).await;
            }
            all = all.and(built.is_all_of(root));
        }
        // One that is gone was told; it may come back.
        for component in self.components.iter().filter(|component| component.exists()) {
            deploy_or_say(host, component).await;
        }
        all
    }

    /// Begins to watch the sources.
    pub fn watched(&self) -> anyhow::Result<Watch> {
        Watch::of(&self.paths, Scope::Tree, &SOURCES)
    }

    /// Builds and deploys again whenever a source changes, for as long as it is polled.
    pub async fn follow(mut self, mut watch: Watch, host: &Host) -> Infallible {
        let mut is_found = true;
        loop {
            let changes = watch.next().await;
            // What was not found may be now, by whatever change: a crate's manifest can come before its sources.
            if !is_found || changes.all().any(|file| file.ends_with("Cargo.toml")) {
                let found = Self::find(&self.paths).await;
                is_found = found.is_ok();
                match found {
                    Ok(found) => self = found,
                    Err(error) => tracing::error!("the agents stay as they were: {error:#}"),
                }
            }
            for file in changes.removed.iter().filter(|file| self.components.contains(file)) {
                if let Err(error) = host.deployments().remove_file(file).await {
                    tracing::error!("{error}");
                }
            }
            if let Err(error) = self.build_and_deploy(host).await {
                tracing::error!("not all swapped: {error:#}");
            }
        }
    }
}

async fn deploy_or_say(host: &Host, file: &Path) {
    if let Err(error) = host.deployments().deploy_file(file).await {
        tracing::error!("{error}");
    }
}

fn manifests(directory: &Path, depth: usize) -> Vec<PathBuf> {
    let manifest = directory.join("Cargo.toml");
    let mut found = Vec::new();
    if manifest.is_file() {
        found.push(manifest);
    }
    let Ok(entries) = std::fs::read_dir(directory) else { return found };
    let mut folders: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    folders.retain(|path| path.is_dir() && depth > 0 && !watch::is_hidden_or_output(path));
    folders.sort();
    found.extend(folders.iter().flat_map(|folder| manifests(folder, depth - 1)));
    found
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

/// What a command prints, while what it says of itself goes where this program's does: tokio's own `output` would keep that from view.
async fn output(command: &mut Command) -> io::Result<Output> {
    command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?.wait_with_output().await
}

/// What cargo has made of a workspace's packages.
struct Built {
    components: Vec<PathBuf>,
    /// Cargo itself has said of which, and why not.
    is_all: bool,
}

impl Built {
    fn is_all_of(&self, root: &Path) -> anyhow::Result<()> {
        anyhow::ensure!(self.is_all, "cargo could not build all of {}", root.display());
        Ok(())
    }
}

/// Builds packages of one workspace, each of them that can be built.
async fn build(root: &Path, packages: &[String]) -> anyhow::Result<Built> {
    tokio::task::block_in_place(|| ensure_target(root))?;
    let mut command = Command::new("cargo");
    command.args(["build", "--release", "--keep-going", "--target", TARGET]);
    command.arg("--message-format=json-render-diagnostics");
    for package in packages {
        command.args(["--package", package]);
    }
    let output = output(command.current_dir(root)).await?;
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
    Ok(Built { components, is_all: output.status.success() })
}
