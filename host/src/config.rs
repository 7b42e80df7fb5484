//! The configuration: a TOML file and the command line, checked as a whole before anything starts.
//!
//! Every limit of the host is a field here, with its default and the danger that it averts. A key that is not
//! known is refused with its place in the file, since a limit that is misspelt is a limit that is not there.
//! Durations are written `"500ms"`, `"15s"` or `"7days"`; sizes are whole bytes, `65536`, or `"64 KiB"` with
//! one of `B`, `KiB`, `MiB`, `GiB`. The command line goes over the file, the file over the defaults.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

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
    pub http: HttpLimits,
    pub cors: Cors,
    pub deployments: DeploymentLimits,
    pub instances: InstanceLimits,
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

/// Limits of deployments.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeploymentLimits {
    /// The largest module: compiling takes some hundred times its bytes of memory, one module at a time.
    #[serde(deserialize_with = "de::size")]
    pub module_bytes: usize,
    /// How many deployments of an agent are kept, with their modules, to go back to.
    pub kept: usize,
    /// How long an agent may take to answer for its health before it serves.
    #[serde(deserialize_with = "de::duration")]
    pub health_timeout: Duration,
}

impl Default for DeploymentLimits {
    fn default() -> Self {
        Self { module_bytes: 128 * MIB, kept: 16, health_timeout: Duration::from_secs(5) }
    }
}

/// Limits of the HTTP side.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HttpLimits {
    /// The largest request body; all of it is held in memory and copied into the guest.
    #[serde(deserialize_with = "de::size")]
    pub request_body_bytes: usize,
    /// How long a request's body may take: a client that sends a byte a minute would hold its buffer for ever.
    #[serde(deserialize_with = "de::duration")]
    pub body_timeout: Duration,
    /// The largest head of a request, and what an HTTP/1 connection buffers. HTTP/1 takes at most 100 fields.
    #[serde(deserialize_with = "de::size")]
    pub header_bytes: usize,
    /// How long a request's head may take, the wait for it on a kept connection included.
    #[serde(deserialize_with = "de::duration")]
    pub header_timeout: Duration,
    /// Connections at once: past this, clients wait in the kernel's queue. Each one costs a file descriptor.
    pub connections: usize,
    /// Requests at once on one HTTP/2 connection: one client must not multiply itself without end.
    pub streams_per_connection: u32,
    /// How long a write to a connection may be stuck: a client that stops reading holds buffers for as long. One stream
    /// of an HTTP/2 connection whose others move is not cut off; it holds a page and 64 KiB.
    #[serde(deserialize_with = "de::duration")]
    pub write_stall: Duration,
    /// How often an idle stream and an HTTP/2 connection are written to. Proxies cut connections that are idle for long,
    /// and some clients that have gone are noticed by nothing else.
    #[serde(deserialize_with = "de::duration")]
    pub heartbeat: Duration,
    /// When a client that lost its stream should come back: too soon, and a restart is met by all at once.
    #[serde(deserialize_with = "de::duration")]
    pub retry: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            request_body_bytes: 2 * MIB,
            body_timeout: Duration::from_secs(30),
            header_bytes: 64 * KIB,
            header_timeout: Duration::from_secs(10),
            connections: 20_000,
            streams_per_connection: 256,
            write_stall: Duration::from_secs(60),
            heartbeat: Duration::from_secs(15),
            retry: Duration::from_secs(2),
        }
    }
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

/// Limits of agents' instances.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InstanceLimits {
    /// Instances live at once; past this the least recently used idle one is retired. Each keeps its guest's memory.
    pub live: usize,
    /// How long an instance without runs stays live: a name that was used once must not keep memory for ever.
    #[serde(deserialize_with = "de::duration")]
    pub idle: Duration,
    /// Requests that wait for one instance: past this they are refused, so that none waits without bound.
    pub mailbox: usize,
    /// Runs at once in one instance: past this they are refused.
    pub runs: usize,
    /// A guest's linear memory: one agent must not take the host's.
    #[serde(deserialize_with = "de::size")]
    pub memory_bytes: usize,
    /// How long a guest may compute without return to the host: one that spins holds a worker's share.
    #[serde(deserialize_with = "de::duration")]
    pub cpu: Duration,
    /// How long a module may take to take over what an instance keeps: the instance's requests wait for it.
    #[serde(deserialize_with = "de::duration")]
    pub migration: Duration,
    /// How long a run that was cancelled may take to end. Then its instance's store is stopped, and runs that share it are
    /// interrupted.
    #[serde(deserialize_with = "de::duration")]
    pub cancel_grace: Duration,
    /// What a guest may write between two suspensions: it is held in memory until the turn is over.
    #[serde(deserialize_with = "de::size")]
    pub turn_bytes: usize,
    /// The largest event: readers hold a whole one at least.
    #[serde(deserialize_with = "de::size")]
    pub event_bytes: usize,
    /// The largest state document: it is written whole each time, and a live instance keeps it in memory.
    #[serde(deserialize_with = "de::size")]
    pub state_bytes: usize,
    /// The largest stored value.
    #[serde(deserialize_with = "de::size")]
    pub value_bytes: usize,
}

impl Default for InstanceLimits {
    fn default() -> Self {
        Self {
            live: 4096,
            idle: Duration::from_secs(60),
            mailbox: 256,
            runs: 1024,
            memory_bytes: 128 * MIB,
            cpu: Duration::from_secs(5),
            migration: Duration::from_secs(30),
            cancel_grace: Duration::from_secs(10),
            turn_bytes: 8 * MIB,
            event_bytes: MIB,
            state_bytes: 2 * MIB,
            value_bytes: 2 * MIB,
        }
    }
}

/// A log that holds less goes round with every few commits.
const MIN_LOG_BYTES: usize = 64 * KIB;

/// Limits of the journal.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct JournalLimits {
    /// Memory for the store's pages.
    #[serde(deserialize_with = "de::size")]
    pub cache_bytes: usize,
    /// What the log in front of the data file takes before it goes round. So much is read when the host starts after a crash,
    /// and kept in memory, twice or three times over; a larger batch goes to the data file at once.
    #[serde(deserialize_with = "de::size")]
    pub log_bytes: usize,
    /// What a live run keeps of its latest events in memory, for its readers to share, and about as much again of their
    /// frames. There may be thousands of runs.
    #[serde(deserialize_with = "de::size")]
    pub tail_bytes: usize,
    /// What a reader who is behind fetches at a time: each such reader holds as much.
    #[serde(deserialize_with = "de::size")]
    pub page_bytes: usize,
    /// What a run may have emitted that is not durable yet: a guest is faster than a disk.
    #[serde(deserialize_with = "de::size")]
    pub backlog_bytes: usize,
    /// How long ended runs are kept, and how many bytes of their events: a disk is finite.
    #[serde(deserialize_with = "de::duration")]
    pub retain_for: Duration,
    #[serde(deserialize_with = "de::size")]
    pub retain_bytes: u64,
    /// How long failing commits are tried again before the host gives up: it must not pretend to serve for ever.
    #[serde(deserialize_with = "de::duration")]
    pub patience: Duration,
}

impl Default for JournalLimits {
    fn default() -> Self {
        Self {
            cache_bytes: 256 * MIB,
            log_bytes: 16 * MIB,
            tail_bytes: 64 * KIB,
            page_bytes: 256 * KIB,
            backlog_bytes: 4 * MIB,
            retain_for: Duration::from_secs(7 * 24 * 60 * 60),
            retain_bytes: 4 * GIB,
            patience: Duration::from_secs(30),
        }
    }
}

/// What one agent is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// What the agent reads through `wasi:config/store`.
    pub config: BTreeMap<String, String>,
    /// What a module of the agent must answer with a 2xx before it serves: a path after the name of an instance.
    pub health: Option<String>,
}

/// What the command line sets; it goes over the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub listen: Option<SocketAddr>,
    pub admin: Option<SocketAddr>,
    pub data: Option<PathBuf>,
    pub agents_dir: Option<PathBuf>,
    /// What the environment says.
    pub admin_token: Option<Secret>,
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
    /// Reads the file, if there is one, puts the command line over it and checks the whole.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        let text = match file {
            Some(file) => std::fs::read_to_string(file)
                .map_err(|error| ConfigError::Read { file: file.into(), error })?,
            None => String::new(),
        };
        let raw = toml::from_str(&text).map_err(|error| {
            let file = file.unwrap_or(Path::new("")).into();
            ConfigError::Parse { file, error }
        })?;
        let config = Self::merge(raw, overrides)?;
        config.check()?;
        Ok(config)
    }

    fn merge(raw: RawConfig, overrides: Overrides) -> Result<Self, ConfigError> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let agents = raw.agents.into_iter().map(|(name, agent)| match name.parse() {
            Ok(name) => Ok((name, agent)),
            Err(error) => Err(invalid(format!("agents.{name}"), error)),
        });
        Ok(Self {
            listen: overrides.listen.or(raw.listen).unwrap_or(local(8787)),
            admin: overrides.admin.or(raw.admin).unwrap_or(local(8788)),
            admin_token: overrides.admin_token.or(raw.admin_token),
            data: overrides.data.or(raw.data).unwrap_or_else(|| ".bureau".into()),
            agents_dir: overrides.agents_dir.or(raw.agents_dir),
            http: raw.http,
            cors: raw.cors,
            deployments: raw.deployments,
            instances: raw.instances,
            journal: raw.journal,
            resumptions_at_once: raw.resumptions_at_once.unwrap_or(16),
            grace: raw.grace.unwrap_or(Duration::from_secs(10)),
            agents: agents.collect::<Result<_, _>>()?,
        })
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Self { http, deployments, instances, journal, .. } = self;
        let numbers = [
            ("http.request_body_bytes", http.request_body_bytes),
            ("http.connections", http.connections),
            ("http.streams_per_connection", http.streams_per_connection as usize),
            ("deployments.module_bytes", deployments.module_bytes),
            ("deployments.kept", deployments.kept),
            ("instances.live", instances.live),
            ("instances.mailbox", instances.mailbox),
            ("instances.runs", instances.runs),
            ("instances.memory_bytes", instances.memory_bytes),
            ("instances.turn_bytes", instances.turn_bytes),
            ("instances.event_bytes", instances.event_bytes),
            ("instances.state_bytes", instances.state_bytes),
            ("instances.value_bytes", instances.value_bytes),
            ("journal.cache_bytes", journal.cache_bytes),
            ("journal.tail_bytes", journal.tail_bytes),
            ("journal.page_bytes", journal.page_bytes),
            ("journal.backlog_bytes", journal.backlog_bytes),
            ("resumptions_at_once", self.resumptions_at_once),
        ];
        if let Some((key, _)) = numbers.into_iter().find(|&(_, value)| value == 0) {
            return Err(invalid(key, "must be more than 0"));
        }
        if journal.log_bytes < MIN_LOG_BYTES {
            return Err(invalid("journal.log_bytes", "must be at least 64 KiB"));
        }
        let durations = [
            ("http.body_timeout", http.body_timeout),
            ("http.header_timeout", http.header_timeout),
            ("http.write_stall", http.write_stall),
            ("http.heartbeat", http.heartbeat),
            ("http.retry", http.retry),
            ("deployments.health_timeout", deployments.health_timeout),
            ("instances.cpu", instances.cpu),
            ("instances.migration", instances.migration),
            ("journal.patience", journal.patience),
        ];
        // The unit of `retry:` and of the limits' timers is the millisecond.
        if let Some((key, _)) = durations.into_iter().find(|&(_, value)| value.as_millis() == 0) {
            return Err(invalid(key, "must be at least 1ms"));
        }
        // What is written at once has to fit what bounds it, or it could never be written.
        let bounded = [
            (
                "instances.event_bytes",
                instances.event_bytes,
                "instances.turn_bytes",
                instances.turn_bytes,
            ),
            (
                "instances.event_bytes",
                instances.event_bytes,
                "journal.backlog_bytes",
                journal.backlog_bytes,
            ),
            (
                "instances.state_bytes",
                instances.state_bytes,
                "instances.turn_bytes",
                instances.turn_bytes,
            ),
            (
                "instances.value_bytes",
                instances.value_bytes,
                "instances.turn_bytes",
                instances.turn_bytes,
            ),
        ];
        if let Some((key, _, bound, value)) =
            bounded.into_iter().find(|&(_, value, _, bound)| value > bound)
        {
            return Err(invalid(
                key,
                format!("must not be more than {bound}, which is {value} bytes"),
            ));
        }
        if !(8 * KIB..=GIB as usize).contains(&http.header_bytes) {
            return Err(invalid("http.header_bytes", "must be at least 8 KiB and at most 1 GiB"));
        }
        if http.connections > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(invalid("http.connections", "is out of range"));
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
        for (agent, AgentConfig { health, .. }) in &self.agents {
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
    http: HttpLimits,
    cors: Cors,
    deployments: DeploymentLimits,
    instances: InstanceLimits,
    journal: JournalLimits,
    resumptions_at_once: Option<usize>,
    #[serde(deserialize_with = "de::some_duration")]
    grace: Option<Duration>,
    agents: BTreeMap<String, AgentConfig>,
}

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: u64 = 1 << 30;

/// How durations and sizes are read.
mod de {
    use std::time::Duration;

    use serde::de::{Deserialize, Deserializer, Error};

    pub(super) fn duration<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(from)?;
        humantime::parse_duration(&text).map_err(|error| {
            D::Error::custom(format!("{text:?} is not a duration such as \"15s\": {error}"))
        })
    }

    pub(super) fn some_duration<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        duration(from).map(Some)
    }

    pub(super) fn size<'de, D: Deserializer<'de>, N: TryFrom<u64>>(from: D) -> Result<N, D::Error> {
        #[derive(serde::Deserialize)]
        #[serde(untagged, expecting = "expected a size: whole bytes, or text such as \"64 KiB\"")]
        enum Size {
            Bytes(u64),
            Text(String),
        }
        let bytes = match Size::deserialize(from)? {
            Size::Bytes(bytes) => Some(bytes),
            Size::Text(text) => parse_size(&text),
        };
        bytes.and_then(|bytes| N::try_from(bytes).ok()).ok_or_else(|| {
            D::Error::custom("expected a size: whole bytes, or text such as \"64 KiB\"")
        })
    }

    pub(super) fn parse_size(text: &str) -> Option<u64> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(1 << shift)
    }
}

#[cfg(test)]
mod tests;
