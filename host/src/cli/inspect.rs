//! `bureau inspect`: what a component is made of, and whether it is an agent, without a host.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use bureau::config::{Config, InstanceLimits, Overrides};
use bureau::fetch::Network;
use bureau::id::AgentName;
use bureau::wasm::{Asked, Engine, Granted, Inspection, Kind, inspect as look};
use serde_json::json;

use super::output::{Output, size};

/// Compiles a component with the limits that hosts have by default, and says what it finds. One that would be refused is an error.
/// With a configuration and an agent of it, the component is held against what that agent is granted.
pub fn inspect(
    file: &Path,
    agent: Option<(&Path, &AgentName)>,
    output: &Output,
) -> anyhow::Result<()> {
    let granted = granted(agent)?;
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    // Nothing is cached, so no directory is needed.
    let InstanceLimits { live, memory_bytes, .. } = InstanceLimits::default();
    let engine = Engine::new(live, memory_bytes, "cache".into())?;
    let found = look(&engine, &bytes, &granted).with_context(|| file.display().to_string())?;
    let Inspection { digest, shape, code_bytes, refused } = &found;
    let capabilities = shape.asks(&granted);
    let why = refused.as_ref().map(ToString::to_string);
    let document = json!({
        "digest": digest.to_string(),
        "size": bytes.len(),
        "code_size": code_bytes,
        "kind": shape.kind(),
        "exports": shape.exports,
        "imports": shape.imports,
        "capabilities": capabilities,
        "fits": refused.is_none(),
        "refused": why,
    });
    output.say(&document, || Ok(text(bytes.len(), &found, &capabilities)))?;
    match why {
        None => Ok(()),
        Some(why) => anyhow::bail!("{} cannot serve: {why}", file.display()),
    }
}

/// What this agent is granted by this configuration, nothing without one.
fn granted(of: Option<(&Path, &AgentName)>) -> anyhow::Result<Granted> {
    let Some((file, agent)) = of else { return Ok(Granted::default()) };
    let config = Config::load(Some(file), Overrides::of_environment())?;
    let network = Arc::new(Network::of_system());
    Ok(Granted::new(config.agent(agent), &network, &config.outbound))
}

fn text(bytes: usize, found: &Inspection, capabilities: &[Asked]) -> String {
    let shape = &found.shape;
    let sizes = format!("{}, {} compiled", size(bytes as u64), size(found.code_bytes as u64));
    let mut lines = vec![format!("digest   {}", found.digest), format!("size     {sizes}")];
    for (what, names) in [("exports", &shape.exports), ("imports", &shape.imports)] {
        lines.push(what.to_owned());
        lines.extend(names.iter().map(|name| format!("  {name}")));
    }
    let kind = match shape.kind() {
        Some(Kind::Agent) => "agent",
        Some(Kind::WasiHttp03) => "wasi:http 0.3",
        Some(Kind::WasiHttp02) => "wasi:http 0.2",
        None => "no agent",
    };
    lines.push(format!("kind     {kind}"));
    let needs: Vec<_> = capabilities.iter().map(Asked::to_string).collect();
    lines.push(format!("needs    {}", needs.join(", ")));
    let fits = if found.refused.is_none() { "yes" } else { "no" };
    lines.push(format!("fits     {fits}"));
    lines.join("\n")
}
