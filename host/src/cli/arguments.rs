//! What the command line takes: each command with its arguments, its help and its examples.
//!
//! A name, an id, a digest or an address is parsed here, by the type that checks it everywhere else. So what is no such
//! thing is wrong usage, told before anything is read, built or sent.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use bureau::id::{AgentName, Digest, RunId};
use clap::{Args, Parser, Subcommand, ValueEnum};
use reqwest::Url;

/// A host for agents written as WebAssembly components.
///
/// An agent is a .wasm component; each of its instances lives at /agents/{agent}/{instance}, keeps its state,
/// and streams Server-Sent Events that clients resume after a disconnect, also after the host was killed.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
    /// How log lines look on standard error.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Auto)]
    pub log_format: LogFormat,
}

#[derive(Subcommand)]
pub enum Command {
    /// Serve what was deployed, and the agents in a directory: each *.wasm under its file name.
    #[command(after_help = AFTER_SERVE)]
    Serve {
        /// Where the agents' components are.
        #[arg(long, value_name = "DIR")]
        agents: Option<PathBuf>,
        /// Print the configuration that would be in force, defaults included, and do not serve.
        #[arg(long)]
        print_config: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Build the agent crates under the paths, serve them, and swap them when their sources change.
    #[command(after_help = AFTER_DEV)]
    Dev {
        /// Crates, directories of crates, or .wasm components.
        #[arg(value_name = "PATH", required = true)]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        common: Common,
    },
    #[command(flatten)]
    Action(Action),
}

/// The commands that do not serve.
#[derive(Subcommand)]
pub enum Action {
    /// Make a crate with a small agent in it, which builds and serves at once.
    #[command(after_help = AFTER_NEW)]
    New {
        /// The agent's name, which is also the crate's.
        name: AgentName,
        /// Where the crate comes to be [default: ./NAME]
        #[arg(long, value_name = "DIR")]
        path: Option<PathBuf>,
        /// Where the SDK's crate is [default: beside the sources of this program]
        #[arg(long, value_name = "DIR")]
        sdk: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Build the agent crates under the paths, and say where their components are.
    #[command(after_help = AFTER_BUILD)]
    Build {
        /// Crates, or directories of crates.
        #[arg(value_name = "PATH", default_value = ".")]
        paths: Vec<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Say what a component imports, exports and would need, and whether it fits.
    #[command(after_help = AFTER_INSPECT)]
    Inspect {
        /// The component.
        file: PathBuf,
        /// Hold it against what this agent is granted by the configuration.
        #[arg(long, value_name = "NAME", requires = "config")]
        agent: Option<AgentName>,
        /// The configuration of the host that it is for.
        #[arg(long, value_name = "FILE", requires = "agent")]
        config: Option<PathBuf>,
        #[command(flatten)]
        form: Form,
    },
    /// Say what is in a data directory and whether it is consistent.
    #[command(after_help = AFTER_CHECK)]
    Check {
        /// The data directory of a host that is down, or a copy of one.
        #[arg(long, value_name = "DIR", default_value = ".bureau")]
        data: PathBuf,
        #[command(flatten)]
        form: Form,
    },
    /// Deploy a component to a running host: requests that come from now on run on it.
    #[command(after_help = AFTER_DEPLOY)]
    Deploy {
        /// The agent's name.
        name: AgentName,
        /// The component.
        file: PathBuf,
        /// Only if the agent's current module has this digest, or one that begins so
        #[arg(long, value_name = "DIGEST")]
        if_current: Option<DigestPrefix>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// Deploy a module again that an agent had before.
    #[command(after_help = AFTER_ROLLBACK)]
    Rollback {
        /// The agent's name.
        name: AgentName,
        /// The module's digest, or at least 8 characters that it begins with [default: the module before the current one]
        #[arg(long, value_name = "DIGEST")]
        to: Option<DigestPrefix>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// Serve an agent no more: new requests get 404, and runs that have begun finish.
    #[command(after_help = AFTER_REMOVE)]
    Remove {
        /// The agent's name.
        name: AgentName,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// List the agents of a running host.
    #[command(after_help = AFTER_AGENTS)]
    Agents {
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// List the deployments of an agent that the host has kept, the newest first.
    #[command(after_help = AFTER_DEPLOYMENTS)]
    Deployments {
        /// The agent's name.
        name: AgentName,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// List the instances that are live.
    #[command(after_help = AFTER_INSTANCES)]
    Instances {
        /// Only those of this agent.
        agent: Option<AgentName>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// List runs, the newest first.
    #[command(after_help = AFTER_RUNS)]
    Runs {
        /// Only those of this agent.
        agent: Option<AgentName>,
        /// Only those of this instance of it.
        instance: Option<String>,
        /// How many at most.
        #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// Print the events of an instance as they come: those of its runs under way and of every later one.
    #[command(after_help = AFTER_TAIL)]
    Tail {
        /// The agent's name.
        agent: AgentName,
        /// The instance's name.
        instance: String,
        /// Only this run, from its beginning to its end.
        run: Option<RunId>,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// Ask a run to end.
    #[command(after_help = AFTER_CANCEL)]
    Cancel {
        /// The run's id.
        run: RunId,
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
    /// Print what happens in a host from now on: deployments, instances that start and end, runs that end.
    #[command(after_help = AFTER_EVENTS)]
    Events {
        #[command(flatten)]
        form: Form,
        #[command(flatten)]
        remote: Remote,
    },
}

/// What `serve` and `dev` have in common.
#[derive(Args)]
pub struct Common {
    /// Where agents are served; port 0 picks one [default: 127.0.0.1:8787]
    #[arg(long, value_name = "ADDR")]
    pub listen: Option<SocketAddr>,
    /// Where the operator's routes are, /readyz and others; keep it off public networks [default: 127.0.0.1:8788]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Speak TLS where agents are served, with this certificate and those that lead from it to a known one, in PEM; read again when
    /// it changes. The admin address stays without TLS
    #[arg(long, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,
    /// The certificate's private key, in PEM and not encrypted; read again when it changes
    #[arg(long, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,
    /// The directory of the journal and of compiled agents [default: .bureau]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// A TOML file with limits, CORS origins and the agents' configuration
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// How a command says what it has to say.
#[derive(Args, Clone, Copy)]
pub struct Form {
    /// Print JSON: one document, or one a line for what goes on.
    #[arg(long)]
    pub json: bool,
}

/// Which host a command is for.
#[derive(Args)]
pub struct Remote {
    /// The host's admin address; its token, if it has one, is read from BUREAU_ADMIN_TOKEN.
    #[arg(long, value_name = "URL", env = "BUREAU_ADMIN", default_value = "http://127.0.0.1:8788")]
    pub admin: AdminUrl,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Human on a terminal, JSON otherwise.
    Auto,
    Human,
    Json,
}

/// Where a host's admin API is: `http://127.0.0.1:8788`, or with a path that a proxy puts before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdminUrl(Url);

/// The text is not the URL of an admin address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidAdminUrl {
    #[error("it takes a URL such as http://127.0.0.1:8788")]
    NotUrl,
    #[error("it takes http://; reach a host behind TLS through a tunnel, such as `ssh -L`")]
    NotHttp,
    #[error("it takes no user, query or fragment; a token goes into BUREAU_ADMIN_TOKEN")]
    TooMuch,
}

impl AdminUrl {
    /// The URL.
    pub fn url(&self) -> &Url {
        &self.0
    }
}

impl FromStr for AdminUrl {
    type Err = InvalidAdminUrl;

    fn from_str(text: &str) -> Result<Self, InvalidAdminUrl> {
        // `serve --admin` takes an address, so this does as well.
        let whole = if text.contains("://") { text.into() } else { format!("http://{text}") };
        let url: Url = whole.parse().map_err(|_| InvalidAdminUrl::NotUrl)?;
        if url.scheme() != "http" {
            return Err(InvalidAdminUrl::NotHttp);
        }
        let more = !url.username().is_empty()
            || url.password().is_some()
            || url.query().is_some()
            || url.fragment().is_some();
        if more {
            return Err(InvalidAdminUrl::TooMuch);
        }
        Ok(Self(url))
    }
}

/// A digest, or how one begins, with enough of it that a person can tell it from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DigestPrefix(String);

/// The text is not how a digest begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 characters of lower-case hexadecimal, of which the first 8 or more do")]
pub struct InvalidDigestPrefix;

impl DigestPrefix {
    const MIN_LEN: usize = 8;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The digest, if this is all of it.
    pub fn whole(&self) -> Option<Digest> {
        self.0.parse().ok()
    }
}

impl FromStr for DigestPrefix {
    type Err = InvalidDigestPrefix;

    fn from_str(text: &str) -> Result<Self, InvalidDigestPrefix> {
        let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !digits || !(Self::MIN_LEN..=64).contains(&text.len()) {
            return Err(InvalidDigestPrefix);
        }
        Ok(Self(text.into()))
    }
}

const AFTER_SERVE: &str = "\
Examples:
  bureau serve --agents ./agents
  bureau serve --agents ./agents --listen 0.0.0.0:80 --data /var/lib/bureau --config bureau.toml
  bureau serve --agents ./agents --listen 0.0.0.0:443 --tls-cert fullchain.pem --tls-key privkey.pem

Files are watched: one that changes is deployed again. Agents also come by `bureau deploy`, and what was deployed serves
again after a restart, so --agents may be left out.
It prints one line when it is ready. SIGTERM and ctrl-c end it: replies under way are finished,
streams end and tell their clients to come back, and runs still going are taken up at the next start.
RUST_LOG sets what is logged, for example RUST_LOG=bureau=debug.";

const AFTER_DEV: &str = "\
Examples:
  bureau dev examples
  bureau dev ./my-agent --listen 127.0.0.1:0

It builds for wasm32-wasip2 with cargo, and installs that target with rustup if it is missing.";

const AFTER_NEW: &str = "\
Examples:
  bureau new chat
  bureau new chat --path ~/agents/chat --sdk ~/bureau/guest-sdk

It writes into no directory that has something in it.";

const AFTER_BUILD: &str = "\
Examples:
  bureau build
  bureau build ./agents --json

It builds for wasm32-wasip2 with cargo, in release, and installs that target with rustup if it is missing.";

const AFTER_INSPECT: &str = "\
Examples:
  bureau inspect target/wasm32-wasip2/release/chat.wasm
  bureau inspect chat.wasm --json
  bureau inspect chat.wasm --config bureau.toml --agent chat

It needs no host. Without a configuration, nothing is granted. The exit status is 1 when a host would refuse the component.";

const AFTER_CHECK: &str = "\
Examples:
  bureau check
  bureau check --data /var/lib/bureau --json

It needs no host and changes nothing; it is refused while a host has the directory open. A copy is checked with journal.redb,
journal.log and modules/ in one directory. The exit status is 1 when something is wrong, and each thing that is has a line.";

const AFTER_DEPLOY: &str = "\
Examples:
  bureau deploy chat target/wasm32-wasip2/release/chat.wasm
  bureau deploy chat chat.wasm --if-current 1a2b3c4d5e6f
  BUREAU_ADMIN_TOKEN=... bureau deploy chat chat.wasm --admin http://10.0.0.5:8788

It ends when the module serves and will after a restart too, or when the host has refused it; then the old
one goes on. Runs that have begun finish on the module that they began on.";

const AFTER_ROLLBACK: &str = "\
Examples:
  bureau rollback chat
  bureau rollback chat --to 1a2b3c4d5e6f

A rollback is a deployment: the module goes through the same checks. `bureau deployments NAME` lists what there is.";

const AFTER_REMOVE: &str = "\
Examples:
  bureau remove chat

The state of its instances stays; `bureau rollback` or `bureau deploy` brings the agent back.";

const AFTER_AGENTS: &str = "\
Examples:
  bureau agents
  bureau agents --json --admin http://10.0.0.5:8788";

const AFTER_DEPLOYMENTS: &str = "\
Examples:
  bureau deployments chat
  bureau deployments chat --json";

const AFTER_INSTANCES: &str = "\
Examples:
  bureau instances
  bureau instances chat";

const AFTER_RUNS: &str = "\
Examples:
  bureau runs
  bureau runs chat demo --limit 100
  bureau runs chat --json";

const AFTER_TAIL: &str = "\
Examples:
  bureau tail chat demo
  bureau tail chat demo 01ARZ3NDEKTSV4RRFFQ69G5FAV
  bureau tail chat demo --json

It comes back by itself when the connection breaks, also over a restart of the host, and then goes on after the last
event that it printed. With RUN it ends with the run, with status 0 if the run finished and 1 if not; without, on ctrl-c.";

const AFTER_CANCEL: &str = "\
Examples:
  bureau cancel 01ARZ3NDEKTSV4RRFFQ69G5FAV

A run that does not heed it is stopped after the host's grace.";

const AFTER_EVENTS: &str = "\
Examples:
  bureau events
  bureau events --json

It comes back by itself when the connection breaks; what happens meanwhile is not shown.";

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        let words = line.split_whitespace();
        Arguments::try_parse_from(words).map(|arguments| arguments.command)
    }

    #[test]
    fn the_commands_are_consistent_and_each_has_examples() {
        let mut whole = Arguments::command();
        whole.build();
        whole.clone().debug_assert();
        for command in whole.get_subcommands().filter(|command| command.get_name() != "help") {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let example = format!("\n  bureau {}", command.get_name());
            assert!(after.contains(&example), "{}", command.get_name());
            let has_json = command.get_arguments().any(|argument| argument.get_id() == "json");
            let serves = ["serve", "dev"].contains(&command.get_name());
            assert_eq!(has_json, !serves, "{} has --json", command.get_name());
        }
    }

    #[test]
    fn what_names_nothing_is_wrong_usage() {
        let digest = "a".repeat(64);
        let run = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        for (right, wrong) in [
            ("bureau deploy chat a.wasm".into(), "bureau deploy Chat a.wasm".to_owned()),
            ("bureau new chat".into(), "bureau new chat_one".into()),
            (format!("bureau cancel {run}"), "bureau cancel 7".into()),
            (format!("bureau tail chat demo {run}"), "bureau tail chat demo 7".into()),
            ("bureau runs chat demo --limit 1".into(), "bureau runs chat demo --limit 0".into()),
            (
                format!("bureau rollback chat --to {digest}"),
                format!("bureau rollback chat --to {digest}a"),
            ),
            (
                "bureau rollback chat --to aaaaaaaa".into(),
                "bureau rollback chat --to aaaaaaa".into(),
            ),
            (
                "bureau deploy chat a --if-current abcdef01".into(),
                "bureau deploy chat a --if-current ABCDEF01".into(),
            ),
            (
                "bureau agents --admin 127.0.0.1:1".into(),
                "bureau agents --admin ftp://127.0.0.1:1".into(),
            ),
        ] {
            assert!(parse(&right).is_ok(), "{right}");
            let error = parse(&wrong).err().unwrap_or_else(|| panic!("{wrong}"));
            assert_eq!(
                (error.kind(), error.exit_code()),
                (ErrorKind::ValueValidation, 2),
                "{wrong}"
            );
        }
    }

    #[test]
    fn an_admin_address_is_a_url_or_what_serve_takes() {
        for (text, url) in [
            ("http://127.0.0.1:8788", "http://127.0.0.1:8788/"),
            ("127.0.0.1:8788", "http://127.0.0.1:8788/"),
            ("localhost:1", "http://localhost:1/"),
            ("[::1]:8788", "http://[::1]:8788/"),
            ("http://ops.example/bureau/", "http://ops.example/bureau/"),
        ] {
            assert_eq!(text.parse::<AdminUrl>().unwrap().url().as_str(), url);
        }
        for (text, why) in [
            ("", InvalidAdminUrl::NotUrl),
            ("http://", InvalidAdminUrl::NotUrl),
            ("https://127.0.0.1:8788", InvalidAdminUrl::NotHttp),
            ("http://me:secret@127.0.0.1:8788", InvalidAdminUrl::TooMuch),
            ("http://127.0.0.1:8788?token=secret", InvalidAdminUrl::TooMuch),
        ] {
            assert_eq!(text.parse::<AdminUrl>(), Err(why), "{text:?}");
        }
    }

    #[test]
    fn a_whole_digest_is_told_from_how_one_begins() {
        let digest = Digest::of(b"a module");
        let whole: DigestPrefix = digest.to_string().parse().unwrap();
        assert_eq!(whole.whole(), Some(digest));
        let part: DigestPrefix = digest.to_string()[..12].parse().unwrap();
        assert_eq!((part.whole(), part.as_str()), (None, &digest.to_string()[..12]));
    }
}
