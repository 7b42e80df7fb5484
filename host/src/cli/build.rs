//! `bureau build`: from crates to components, with what `bureau dev` finds and builds them by.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use bureau::dev::Workspace;
use bureau::id::Digest;
use serde::Serialize;
use serde_json::json;

use super::output::{Output, Table, short, size};

#[derive(Serialize)]
struct Component {
    path: PathBuf,
    size: u64,
    digest: String,
}

/// Builds the agent crates under the paths.
pub async fn build(paths: &[PathBuf], output: &Output) -> anyhow::Result<()> {
    let built = Workspace::find(paths).await?.build().await?;
    anyhow::ensure!(!built.is_empty(), "these are components already; name the crates to build");
    let components = built.iter().map(|file| component(file)).collect::<Result<Vec<_>, _>>()?;
    output.say(&json!({ "components": components }), || Ok(table(&components)))
}

fn component(file: &Path) -> anyhow::Result<Component> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest = Digest::of(&bytes).to_string();
    Ok(Component { path: file.into(), size: bytes.len() as u64, digest })
}

fn table(components: &[Component]) -> String {
    let mut table = Table::new(&["DIGEST", "SIZE", "COMPONENT"]);
    for Component { path, size: bytes, digest } in components {
        table.row([short(digest).into(), size(*bytes), path.display().to_string()]);
    }
    table.text()
}
