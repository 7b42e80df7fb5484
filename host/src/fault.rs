//! Why a run could not begin or did not end well, as a client is told.
//!
//! A fault reaches a client in one of two ways: as an HTTP problem, when nothing has been sent yet, or as the
//! data of the run's last event, `event: failed`. Both carry the same RFC 9457 document with the same stable
//! `code`, so a client handles both with one piece of code. What only the log should say is not in here.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;

/// Why a run could not begin, or did not end well.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// No module is served under that name.
    UnknownAgent,
    /// The instance has as many requests as it may have at once.
    InstanceBusy { limit: usize },
    /// The agent has as many runs as it may have at once.
    AgentBusy { limit: usize },
    /// The agent has as many live instances as it may have, and none of them is idle.
    AgentFull { limit: usize },
    /// The host has as many live instances as it may have, and none of them is idle.
    HostBusy { limit: usize },
    /// The host is shutting down.
    Draining,
    /// The journal cannot commit or be read now.
    JournalUnavailable,
    /// The agent's module could not be started.
    AgentUnavailable,
    /// The agent's module could not take over what the instance keeps from another one.
    MigrationFailed,
    /// The host failed in a way that it should not.
    Internal,
    /// The agent says that the request is at fault, and how.
    BadRequest(String),
    /// The agent returned an error.
    AgentFailed,
    /// The agent trapped: it panicked, or broke a rule of WebAssembly.
    AgentTrapped,
    /// The agent went over one of its limits.
    Limit(Limit),
    /// The agent returned a response that HTTP cannot carry; the text says what is wrong with it.
    BadResponse(String),
    /// The run was cancelled.
    Cancelled,
    /// The instance was stopped in the middle of the run, with the host or for another run's sake, and the agent does not resume.
    Interrupted,
    /// The run was interrupted again and again without getting any further.
    GaveUp,
}

/// A limit of an agent, with its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Time without return to the host.
    Cpu(Duration),
    /// Bytes of memory.
    Memory(usize),
    /// Bytes that one turn writes.
    Turn(usize),
    /// Core instances.
    CoreInstances(usize),
    /// Memories.
    Memories(usize),
    /// Tables.
    Tables(usize),
    /// What is held of the host's at once.
    Handles(usize),
    /// How long a run goes on.
    RunTime(Duration),
    /// What is computed for a run.
    RunCpu(Duration),
    /// Events of a run.
    RunEvents(u64),
    /// Bytes of a run's events.
    RunBytes(u64),
}

/// Who has to mend it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The host, its operator, or the request.
    Host,
    /// The agent.
    Agent,
}

/// What a client is told: an RFC 9457 document, but for the HTTP status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// A stable word for programs, kebab-case.
    pub code: &'static str,
    /// The kind of problem, for people.
    pub title: &'static str,
    /// This occurrence of it, for people.
    pub detail: Cow<'static, str>,
    /// Who has to mend it.
    pub source: Source,
}

impl Fault {
    /// The stable word for this kind of fault; it is also what the journal keeps of a failed run.
    pub fn code(&self) -> &'static str {
        self.facts().code
    }

    /// The data of a run's last event, `event: failed`.
    pub fn json(&self) -> String {
        self.facts().json(None)
    }

    /// What a client is told.
    pub fn facts(&self) -> Facts {
        let host = |code, title, detail: Cow<'static, str>| Facts {
            code,
            title,
            detail,
            source: Source::Host,
        };
        let agent = |code, title, detail: Cow<'static, str>| Facts {
            code,
            title,
            detail,
            source: Source::Agent,
        };
        match self {
            Self::UnknownAgent => host(
                "unknown-agent",
                "Unknown agent",
                "no agent of this name is served here".into(),
            ),
            Self::InstanceBusy { limit } => host(
                "instance-busy",
                "Instance busy",
                format!("the instance takes no more than {limit} requests at once").into(),
            ),
            Self::AgentBusy { limit } => host(
                "agent-busy",
                "Agent busy",
                format!("the agent takes no more than {limit} requests at once").into(),
            ),
            Self::AgentFull { limit } => host(
                "agent-full",
                "Agent full",
                format!("the agent keeps no more than {limit} instances live, and all are in use")
                    .into(),
            ),
            Self::HostBusy { limit } => host(
                "host-busy",
                "Host busy",
                format!("the host keeps no more than {limit} instances live, and all are in use")
                    .into(),
            ),
            Self::Draining => host("draining", "Shutting down", "the host is shutting down".into()),
            Self::JournalUnavailable => host(
                "journal-unavailable",
                "Journal unavailable",
                "the host cannot use its journal at the moment".into(),
            ),
            Self::AgentUnavailable => host(
                "agent-unavailable",
                "Agent unavailable",
                "the agent could not be started".into(),
            ),
            Self::MigrationFailed => agent(
                "migration-failed",
                "Migration failed",
                "this build of the agent could not take over what the instance keeps from another one; it is as it was".into(),
            ),
            Self::Internal => host("internal", "Internal error", "the host failed".into()),
            Self::BadRequest(message) => {
                agent("bad-request", "Bad request", message.clone().into())
            }
            Self::AgentFailed => {
                agent("agent-failed", "Agent failed", "the agent returned an error".into())
            }
            Self::AgentTrapped => {
                agent("agent-trapped", "Agent trapped", "the agent crashed".into())
            }
            Self::Limit(limit) => limit.facts(),
            Self::BadResponse(message) => {
                agent("bad-response", "Bad response", message.clone().into())
            }
            Self::Cancelled => host("cancelled", "Cancelled", "the run was cancelled".into()),
            Self::Interrupted => host(
                "interrupted",
                "Interrupted",
                "the instance was stopped in the middle of the run, and the agent does not resume".into(),
            ),
            Self::GaveUp => host(
                "gave-up",
                "Gave up",
                "the run was interrupted again and again without a new event".into(),
            ),
        }
    }
}

impl Limit {
    fn facts(self) -> Facts {
        let (code, title, detail) = match self {
            Self::Cpu(limit) => (
                "cpu-limit",
                "CPU limit",
                format!("the agent ran for {} ms without returning to the host", limit.as_millis()),
            ),
            Self::Memory(limit) => (
                "memory-limit",
                "Memory limit",
                format!("the agent needs more than {limit} bytes of memory"),
            ),
            Self::Turn(limit) => (
                "turn-limit",
                "Turn limit",
                format!("the agent wrote more than {limit} bytes without waiting for anything"),
            ),
            Self::CoreInstances(limit) => (
                "core-instance-limit",
                "Core instance limit",
                format!("the agent is made of more than {limit} core instances"),
            ),
            Self::Memories(limit) => (
                "memories-limit",
                "Memories limit",
                format!("the agent has more than {limit} memories"),
            ),
            Self::Tables(limit) => {
                ("table-limit", "Table limit", format!("the agent has more than {limit} tables"))
            }
            Self::Handles(limit) => (
                "handle-limit",
                "Handle limit",
                format!("the agent holds more than {limit} calls, streams and runs at once"),
            ),
            Self::RunTime(limit) => (
                "run-time-limit",
                "Run time limit",
                format!("the run went on for more than {} ms", limit.as_millis()),
            ),
            Self::RunCpu(limit) => (
                "run-cpu-limit",
                "Run CPU limit",
                format!("the run computed for more than {} ms", limit.as_millis()),
            ),
            Self::RunEvents(limit) => (
                "run-events-limit",
                "Run events limit",
                format!("the run emitted more than {limit} events"),
            ),
            Self::RunBytes(limit) => (
                "run-bytes-limit",
                "Run bytes limit",
                format!("the run emitted more than {limit} bytes of events"),
            ),
        };
        Facts { code, title, detail: detail.into(), source: Source::Agent }
    }
}

impl Facts {
    /// The document, with the status of the response that carries it if one does.
    pub fn json(&self, status: Option<u16>) -> String {
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: &'a str,
            title: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<u16>,
            detail: &'a str,
            code: &'a str,
            source: Source,
        }
        let Self { code, title, detail, source } = self;
        let document =
            Document { r#type: "about:blank", title, status, detail, code, source: *source };
        serde_json::to_string(&document).expect("strings and a number always serialize")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_event_carries_the_problem_without_a_status() {
        assert_eq!(
            Fault::Interrupted.json(),
            r#"{"type":"about:blank","title":"Interrupted","detail":"the instance was stopped in the middle of the run, and the agent does not resume","code":"interrupted","source":"host"}"#,
        );
    }

    #[test]
    fn a_limit_says_which_and_how_much() {
        let facts = Fault::Limit(Limit::Cpu(Duration::from_secs(5))).facts();
        assert_eq!(
            (facts.code, &*facts.detail, facts.source),
            ("cpu-limit", "the agent ran for 5000 ms without returning to the host", Source::Agent),
        );
    }

    #[test]
    fn a_message_of_the_agent_cannot_break_out_of_the_document() {
        let json = Fault::BadRequest("no \"name\"\r\n}".into()).json();
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["detail"], "no \"name\"\r\n}");
        assert!(!json.contains(['\r', '\n']));
    }
}
