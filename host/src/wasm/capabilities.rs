//! What a module wants of the world outside its instance, told by what it imports.
//!
//! **Problem.** An operator wants to know before a module serves what it would reach for, and an agent that cannot work
//! without something that it is not given had better be refused at once than fail at its first request.
//!
//! **Mechanism.** Each interface that a component imports belongs to a capability. Some are everyone's; some are there
//! and empty, since toolchains import them whether or not a program uses them; and some are not there.
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
    /// What the operator configured for the agent.
    Configuration,
    Clocks,
    Random,
    /// Standard output and error, which are the log; no arguments, no environment.
    Output,
    Files,
    Sockets,
    /// What requests and responses are made of.
    HttpTypes,
    /// Requests to others.
    Http,
}

/// Whether agents have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Provision {
    Given,
    /// The interfaces are there, and lead nowhere: no directory, no network.
    Empty,
    /// The interfaces are not there.
    Withheld,
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

    /// Whether agents have it.
    pub fn provision(self) -> Provision {
        match self {
            Self::Instance
            | Self::Configuration
            | Self::Clocks
            | Self::Random
            | Self::Output
            | Self::HttpTypes => Provision::Given,
            Self::Files | Self::Sockets => Provision::Empty,
            Self::Http => Provision::Withheld,
        }
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
