//! What a module wants of the world outside its instance, told by what it imports.
//!
//! **Problem.** An operator wants to know before a module serves what it would reach for, and an agent that cannot work
//! without something that it is not given had better be refused at once than fail at its first request.
//!
//! **Mechanism.** Each interface that a component imports belongs to a capability. Some are everyone's; some are there
//! and empty unless they are [granted](crate::wasm::Granted), since toolchains import them whether or not a program uses them; and some are not there
//! unless they are granted. The types of `wasi:http` are everyone's: who answers requests imports them too.
//!
//! **Limits.** It tells what a module may ask for, not what it will. **Cost.** A pass over the names.

use std::fmt;

use serde::Serialize;

/// What a group of interfaces is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Capability {
    /// Runs, state, storage and identity of its own instance.
    Instance,
    /// What the operator configured for the agent, secrets included.
    Configuration,
    Clocks,
    Random,
    /// Standard output and error, which are the log; no arguments, no environment.
    Output,
    /// A directory, to read.
    Files,
    Sockets,
    /// What requests and responses are made of.
    HttpTypes,
    /// Requests to others.
    Http,
}

/// Whether an agent has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provision {
    Given,
    /// The interfaces are there, and lead nowhere: no directory, no network.
    Empty,
    /// The interfaces are not there.
    Withheld,
}

/// A capability that a module asks for, and what its agent has of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Asked {
    pub name: Capability,
    pub provision: Provision,
    /// What exactly, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub of: Vec<String>,
}

/// The packages or interfaces of each, by how their interfaces' names begin.
const PACKAGES: [(&str, Capability); 11] = [
    ("bureau:agent/", Capability::Instance),
    ("wasi:config/", Capability::Configuration),
    ("wasi:clocks/", Capability::Clocks),
    ("wasi:random/", Capability::Random),
    ("wasi:cli/", Capability::Output),
    ("wasi:io/", Capability::Output),
    ("wasi:filesystem/", Capability::Files),
    ("wasi:sockets/", Capability::Sockets),
    ("wasi:http/types@", Capability::HttpTypes),
    ("wasi:http/client@", Capability::Http),
    ("wasi:http/outgoing-handler@", Capability::Http),
];

impl Capability {
    /// The one to which an imported interface belongs, if it belongs to any.
    pub fn of(import: &str) -> Option<Self> {
        let of = PACKAGES.iter().find(|(package, _)| import.starts_with(package));
        of.map(|(_, capability)| *capability)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Instance => "instance",
            Self::Configuration => "configuration",
            Self::Clocks => "clocks",
            Self::Random => "random",
            Self::Output => "output",
            Self::Files => "files",
            Self::Sockets => "sockets",
            Self::HttpTypes => "http-types",
            Self::Http => "http",
        })
    }
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, provision, of } = self;
        match provision {
            Provision::Given if of.is_empty() => write!(f, "{name}"),
            Provision::Given => write!(f, "{name} ({})", of.join(", ")),
            Provision::Empty => write!(f, "{name} (there, and empty)"),
            Provision::Withheld => write!(f, "{name} (not given)"),
        }
    }
}
