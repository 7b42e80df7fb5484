//! The configuration: a TOML file and the command line, checked as a whole before anything starts.
//!
//! [`limits`] has every limit of the host, with its default and the danger that it averts, and [`print`](Config::print) says what
//! is in force. A key that is not
//! known is refused with its place in the file, since a limit that is misspelt is a limit that is not there.
//! Durations are written `"500ms"`, `"15s"` or `"7days"`; sizes are whole bytes, `65536`, or `"64 KiB"` with
//! one of `B`, `KiB`, `MiB`, `GiB`. The command line goes over the file, the file over the defaults.

mod auth;
mod grants;
mod limits;
mod print;
mod unit;

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use self::auth::WrittenAuth;
pub use self::auth::{Auth, Hook};
pub use self::limits::{
    DeploymentLimits, HttpLimits, InstanceLimits, JournalLimits, MOST_CORE_INSTANCES,
    MOST_MEMORIES, MOST_TABLES, OutboundLimits,
};
use self::limits::{
    GIB, KIB, MIB, WrittenDeployments, WrittenHttp, WrittenInstances, WrittenJournal,
    WrittenOutbound,
};
use self::unit::{Count, SpanOrZero, Written};
use crate::fetch::{NoHost, Pattern};
use crate::id::AgentName;

/// Everything that can be set, valid.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Where agents are served.
    pub listen: SocketAddr,
    /// Where the operator's routes are served.
    pub admin: SocketAddr,
    /// What the operator's requests carry, as `Authorization: Bearer`. Whoever reaches the admin address deploys code, so there
    /// must be one where that is not the machine itself.
    pub admin_token: Option<Secret>,
    /// The directory of the journal and of compiled modules.
    pub data: PathBuf,
    /// The directory whose `*.wasm` are served.
    pub agents_dir: Option<PathBuf>,
    /// What the public address shows that it is who it says; without it that speaks no TLS. The admin address never does: it is
    /// for the machine itself, or behind a tunnel or a proxy.
    pub tls: Option<TlsFiles>,
    pub http: HttpLimits,
    pub cors: Cors,
    /// What is asked of who calls an agent that has no rule of its own.
    pub auth: Auth,
    pub deployments: DeploymentLimits,
    /// Of agents that have none of their own.
    pub instances: Arc<InstanceLimits>,
    pub outbound: OutboundLimits,
    pub journal: JournalLimits,
    /// Interrupted runs that are resumed at the same time after a start: more would make the start a stampede. One that
    /// goes on for longer than half a minute makes place for the next.
    pub resumptions_at_once: usize,
    /// How long a shutdown waits for replies under way: a run that never ends must not keep the host from ending.
    pub grace: Duration,
    /// What each agent is given, by its name.
    pub agents: BTreeMap<AgentName, AgentConfig>,
}

/// Text that is not shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
pub struct Secret(String);

impl Secret {
    /// The text.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("\"...\"")
    }
}

/// Where a certificate and its key are, in PEM. They are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and after it those that lead to one that clients know.
    pub cert: PathBuf,
    /// Its private key, not encrypted.
    pub key: PathBuf,
}

/// Which web pages of other origins may call the agents.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Cors {
    /// Origins as browsers send them, `https://example.org`, or `*` for any. Empty: none.
    pub origins: Vec<String>,
}

impl Cors {
    /// Whether pages of this origin may call.
    pub fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|allowed| allowed == "*" || allowed == origin)
    }
}

/// A log that holds less goes round with every few commits.
const MIN_LOG_BYTES: usize = 64 * KIB;

/// Half of what a table of fields can hold.
const MAX_FIELDS: usize = 16_384;

/// What may be written at once, in bytes. The journal has 32 bits for the length of a part of it, and a body that is kept as JSON can take six
/// times its bytes.
const MOST_WRITTEN: usize = 256 * MIB;

/// What one agent is given.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct AgentConfig {
    /// What the agent reads through `wasi:config/store`.
    pub config: BTreeMap<String, String>,
    /// What a module of the agent must answer with a 2xx before it serves: a path after the name of an instance.
    pub health: Option<String>,
    /// Where the agent's requests may go. None: it has no client; none of them: it has one that leads nowhere.
    pub allow_hosts: Option<Vec<Pattern>>,
    /// What the agent reads beside `config`, and nobody sees.
    pub secrets: BTreeMap<String, Secret>,
    /// A directory that the agent reads, and does not change.
    pub files: Option<PathBuf>,
    /// What is asked of who calls it, in place of what is asked of all.
    pub auth: Option<Auth>,
    /// The limits of its instances.
    pub limits: Arc<InstanceLimits>,
}

/// What the command line sets; it goes over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub data: Option<PathBuf>,
    pub agents_dir: Option<PathBuf>,
    pub tls_cert: Option<PathBuf>,
    pub tls_key: Option<PathBuf>,
    /// What the environment says.
    pub admin_token: Option<Secret>,
}

impl Overrides {
    /// What the environment says, where others on the machine cannot see it as they can arguments.
    pub fn of_environment() -> Self {
        let admin_token = std::env::var("BUREAU_ADMIN_TOKEN").ok().map(Secret::from);
        Self { admin_token, ..Self::default() }
    }
}

/// Why there is no valid configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read the configuration file {}: {error}", file.display())]
    Read { file: PathBuf, error: std::io::Error },
    /// The parser's message names line, column and key.
    #[error("{}: {error}", file.display())]
    Parse { file: PathBuf, error: toml::de::Error },
    #[error("{key}: {reason}")]
    Invalid { key: String, reason: String },
}

impl Config {
    /// What an agent is given, whether or not the file names it.
    pub fn agent(&self, name: &AgentName) -> AgentConfig {
        self.agents.get(name).cloned().unwrap_or_else(|| AgentConfig {
            limits: self.instances.clone(),
            ..AgentConfig::default()
        })
    }

    /// What is asked of who calls an agent, whether or not there is one of that name.
    pub fn auth(&self, name: &AgentName) -> &Auth {
        let own = self.agents.get(name).and_then(|agent| agent.auth.as_ref());
        own.unwrap_or(&self.auth)
    }

    /// The most memory that an instance of any agent may have.
    pub fn largest_memory(&self) -> usize {
        let agents = self.agents.values().map(|agent| agent.limits.memory_bytes);
        agents.fold(self.instances.memory_bytes, usize::max)
    }

    /// Reads the file, if there is one, puts the command line over it and checks the whole.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| ConfigError::Read { file: file.into(), error })?,
            None => String::new(),
        };
        Self::parse(&text, file.unwrap_or(Path::new("")), overrides)
    }

    /// What is to be in this file.
    pub(crate) fn parse(
        text: &str,
        file: &Path,
        overrides: Overrides,
    ) -> Result<Self, ConfigError> {
        let raw = toml::from_str(text)
            .map_err(|error| ConfigError::Parse { file: file.into(), error })?;
        let config = Self::merge(raw, overrides)?;
        config.check()?;
        Ok(config)
    }

    fn merge(raw: RawConfig, overrides: Overrides) -> Result<Self, ConfigError> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let instances = InstanceLimits::default().but(raw.instances);
        let agents = raw.agents.into_iter().map(|(name, agent)| match name.parse() {
            Ok(parsed) => {
                let WrittenAgent { config, health, allow_hosts, secrets, files, auth, limits } =
                    agent;
                let allow_hosts = allow_hosts.map(|hosts| hosts.into_iter().map(|host| host.0));
                let allow_hosts = allow_hosts.map(Iterator::collect);
                let secrets = grants::secrets(&name, secrets, |name| std::env::var_os(name))?;
                let auth =
                    auth.map(|auth| auth.read(&format!("agents.{name}.auth"))).transpose()?;
                let limits = Arc::new(instances.clone().but(limits));
                let agent =
                    AgentConfig { config, health, allow_hosts, secrets, files, auth, limits };
                Ok((parsed, agent))
            }
            Err(error) => Err(invalid(format!("agents.{name}"), error)),
        });
        let agents = agents.collect::<Result<_, _>>()?;
        let auth = raw.auth.map(|auth| auth.read("auth")).transpose()?.unwrap_or_default();
        let mut config = Self {
            listen: overrides.listen.or(raw.listen).unwrap_or(local(8787)),
            admin: overrides.admin.or(raw.admin).unwrap_or(local(8788)),
            admin_token: overrides.admin_token.or(raw.admin_token),
            data: overrides.data.or(raw.data).unwrap_or_else(|| ".bureau".into()),
            agents_dir: overrides.agents_dir.or(raw.agents_dir),
            tls: tls(overrides.tls_cert.or(raw.tls.cert), overrides.tls_key.or(raw.tls.key))?,
            http: HttpLimits::default().but(raw.http),
            cors: raw.cors,
            auth,
            deployments: DeploymentLimits::default().but(raw.deployments),
            instances: Arc::new(instances),
            outbound: OutboundLimits::default().but(raw.outbound),
            journal: JournalLimits::default().but(raw.journal),
            resumptions_at_once: raw.resumptions_at_once.map_or(16, |count| count.0),
            grace: raw.grace.map_or(Duration::from_secs(10), |grace| grace.0),
            agents,
        };
        config.close_hooks()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Self { http, instances, outbound, journal, .. } = self;
        if journal.log_bytes < MIN_LOG_BYTES {
            return Err(invalid("journal.log_bytes", "must be at least 64 KiB"));
        }
        check_instances("instances", instances, journal)?;
        if !(8 * KIB..=GIB as usize).contains(&http.header_bytes) {
            return Err(invalid("http.header_bytes", "must be at least 8 KiB and at most 1 GiB"));
        }
        if http.header_count > MAX_FIELDS {
            return Err(invalid("http.header_count", format!("must be at most {MAX_FIELDS}")));
        }
        let counted = [
            ("http.connections", http.connections),
            ("http.bodies_bytes", http.bodies_bytes),
            ("outbound.requests", outbound.requests),
            ("outbound.connections", outbound.connections),
        ];
        let most = tokio::sync::Semaphore::MAX_PERMITS;
        if let Some((key, _)) = counted.into_iter().find(|&(_, count)| count > most) {
            return Err(invalid(key, "is out of range"));
        }
        if self.admin_token.as_ref().is_some_and(|token| !is_token(token.reveal())) {
            let reason = "must have 16 or more visible ASCII characters, such as `openssl rand -hex 32` prints";
            return Err(invalid("admin_token", reason));
        }
        if self.admin_token.is_none() && !self.admin.ip().is_loopback() {
            let reason = format!(
                "is needed where the admin address is not a loopback one, and {} is not: set it in the file, or BUREAU_ADMIN_TOKEN in the environment",
                self.admin
            );
            return Err(invalid("admin_token", reason));
        }
        for (agent, granted) in &self.agents {
            let AgentConfig { health, limits, .. } = granted;
            grants::check(agent.as_str(), granted)?;
            check_instances(&format!("agents.{agent}.limits"), limits, journal)?;
            if let Some(path) = health.as_ref().filter(|path| !path.starts_with('/')) {
                let key = format!("agents.{agent}.health");
                return Err(invalid(key, format!("{path:?} does not begin with /")));
            }
        }
        if let Some(origin) = self.cors.origins.iter().find(|origin| !is_origin(origin)) {
            let reason =
                format!("{origin:?} is not an origin such as \"https://example.org\", nor \"*\"");
            return Err(invalid("cors.origins", reason));
        }
        Ok(())
    }
}

/// A certificate without its key is a slip, and so is a key without its certificate.
fn tls(cert: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<TlsFiles>, ConfigError> {
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key })),
        (None, None) => Ok(None),
        (Some(_), None) => Err(invalid("tls.key", "is needed where there is tls.cert (--tls-key)")),
        (None, Some(_)) => {
            Err(invalid("tls.cert", "is needed where there is tls.key (--tls-cert)"))
        }
    }
}

/// What is written at once has to fit what bounds it, or it could never be written.
fn check_instances(
    table: &str,
    limits: &InstanceLimits,
    journal: &JournalLimits,
) -> Result<(), ConfigError> {
    let within = |key| format!("{table}.{key}");
    let turn = (within("turn_bytes"), limits.turn_bytes as u64);
    let run = (within("run_bytes"), limits.run_bytes);
    let storage = (within("storage_bytes"), limits.storage_bytes);
    let backlog = ("journal.backlog_bytes".to_owned(), journal.backlog_bytes as u64);
    let bounded = [
        ("event_bytes", limits.event_bytes, &turn),
        ("event_bytes", limits.event_bytes, &backlog),
        ("event_bytes", limits.event_bytes, &run),
        ("state_bytes", limits.state_bytes, &turn),
        ("value_bytes", limits.value_bytes, &turn),
        ("value_bytes", limits.value_bytes, &storage),
    ];
    let larger = bounded.into_iter().find(|(_, value, (_, bound))| *value as u64 > *bound);
    if let Some((key, _, (bound, value))) = larger {
        let reason = format!("must not be more than {bound}, which is {value} bytes");
        return Err(invalid(within(key), reason));
    }
    let written =
        [("turn_bytes", limits.turn_bytes), ("request_body_bytes", limits.request_body_bytes)];
    if let Some((key, _)) = written.into_iter().find(|(_, value)| *value > MOST_WRITTEN) {
        let reason = format!("must not be more than {} MiB", MOST_WRITTEN / MIB);
        return Err(invalid(within(key), reason));
    }
    let pooled = [
        ("core_instances", limits.core_instances, MOST_CORE_INSTANCES),
        ("memories", limits.memories, MOST_MEMORIES),
        ("tables", limits.tables, MOST_TABLES),
    ];
    match pooled.into_iter().find(|(_, value, most)| value > most) {
        None => Ok(()),
        Some((key, _, most)) => Err(invalid(within(key), format!("must not be more than {most}"))),
    }
}

/// Whether this can be sent as a token, and not be guessed.
fn is_token(text: &str) -> bool {
    text.len() >= 16 && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// Whether a browser could send this as `Origin`: one with a path or in capitals would never match.
fn is_origin(text: &str) -> bool {
    let is_host = |host: &str| {
        !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_graphic() && !byte.is_ascii_uppercase() && byte != b'/')
    };
    text == "*"
        || text.split_once("://").is_some_and(|(scheme, host)| is_host(scheme) && is_host(host))
}

fn invalid(key: impl Into<String>, reason: impl ToString) -> ConfigError {
    ConfigError::Invalid { key: key.into(), reason: reason.to_string() }
}

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawConfig {
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    admin_token: Option<Secret>,
    data: Option<PathBuf>,
    agents_dir: Option<PathBuf>,
    tls: WrittenTls,
    http: WrittenHttp,
    cors: Cors,
    auth: Option<WrittenAuth>,
    deployments: WrittenDeployments,
    instances: WrittenInstances,
    outbound: WrittenOutbound,
    journal: WrittenJournal,
    resumptions_at_once: Option<Written<Count, usize>>,
    grace: Option<Written<SpanOrZero, Duration>>,
    agents: BTreeMap<String, WrittenAgent>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenTls {
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct WrittenAgent {
    config: BTreeMap<String, String>,
    health: Option<String>,
    #[serde(alias = "allow-hosts")]
    allow_hosts: Option<Vec<WrittenHost>>,
    secrets: Vec<String>,
    files: Option<PathBuf>,
    auth: Option<WrittenAuth>,
    limits: WrittenInstances,
}

#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct WrittenHost(Pattern);

impl TryFrom<String> for WrittenHost {
    type Error = NoHost;

    fn try_from(text: String) -> Result<Self, NoHost> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests;
