//! What an operator sees: the documents of the admin API, as `openapi.json` describes them.

use std::time::{Duration, SystemTime};

use serde::Serialize;

use crate::agent::{Deployed, Deployment, Failed, LiveInstance};
use crate::http::documents::{Text, Time, json};
use crate::id::{AgentName, Digest, InstanceKey, RunId};
use crate::journal::{DeploymentRecord, RunState};
use crate::wasm::{Asked, Happening, Kind};

#[derive(Serialize)]
pub(super) struct AgentView {
    agent: Text<AgentName>,
    digest: Option<Text<Digest>>,
    generation: u64,
    since: Time,
    source: String,
    kind: Option<Kind>,
    resumes: bool,
    migrates: bool,
    instances: usize,
    runs: usize,
    /// Known of a module that is loaded.
    capabilities: Option<Vec<Asked>>,
    error: Option<String>,
}

impl AgentView {
    fn of(record: DeploymentRecord, live: &[LiveInstance]) -> Self {
        let ours = || live.iter().filter(|of| *of.instance.agent() == record.agent);
        Self {
            instances: ours().count(),
            runs: ours().map(|of| of.runs).sum(),
            agent: Text(record.agent.clone()),
            digest: record.module.map(Text),
            generation: record.generation,
            since: Time::of_ms(record.at_ms),
            source: record.source,
            kind: None,
            resumes: false,
            migrates: false,
            capabilities: None,
            error: None,
        }
    }

    pub(super) fn serving(deployed: &Deployed, live: &[LiveInstance]) -> Self {
        let (resumes, migrates) = (deployed.module.resumes(), deployed.module.migrates());
        let capabilities = Some(deployed.module.shape().asks(&deployed.granted));
        let kind = Some(deployed.module.kind());
        Self { kind, resumes, migrates, capabilities, ..Self::of(deployed.record.clone(), live) }
    }

    pub(super) fn failed(Failed { record, why }: Failed, live: &[LiveInstance]) -> Self {
        Self { error: Some(why), ..Self::of(record, live) }
    }

    pub(super) fn name(&self) -> &AgentName {
        &self.agent.0
    }
}

#[derive(Serialize)]
pub(super) struct DeploymentView {
    agent: Text<AgentName>,
    digest: Text<Digest>,
    previous: Option<Text<Digest>>,
    generation: u64,
    since: Time,
    source: String,
    changed: bool,
    exports: ExportsView,
}

#[derive(Serialize)]
struct ExportsView {
    gained: Vec<String>,
    lost: Vec<String>,
}

impl From<Deployment> for DeploymentView {
    fn from(Deployment { current, previous, changed, gained, lost }: Deployment) -> Self {
        let record = &current.record;
        Self {
            agent: Text(current.agent.clone()),
            digest: Text(current.module.digest()),
            previous: previous.map(Text),
            generation: record.generation,
            since: Time::of_ms(record.at_ms),
            source: record.source.clone(),
            changed,
            exports: ExportsView { gained, lost },
        }
    }
}

#[derive(Serialize)]
pub(super) struct PastView {
    digest: Option<Text<Digest>>,
    generation: u64,
    since: Time,
    source: String,
    current: bool,
}

impl PastView {
    pub(super) fn of(record: DeploymentRecord, current: bool) -> Self {
        Self {
            digest: record.module.map(Text),
            generation: record.generation,
            since: Time::of_ms(record.at_ms),
            source: record.source,
            current,
        }
    }
}

#[derive(Serialize)]
pub(super) struct InstanceView {
    agent: Text<AgentName>,
    instance: String,
    digest: Text<Digest>,
    current: bool,
    runs: usize,
    since: Time,
    idle_ms: Option<u64>,
}

impl InstanceView {
    pub(super) fn of(live: LiveInstance, current: bool) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Self {
            agent: Text(live.instance.agent().clone()),
            instance: live.instance.name().to_owned(),
            digest: Text(live.module),
            current,
            runs: live.runs,
            since: Time::of(
                SystemTime::now().checked_sub(live.age).unwrap_or(SystemTime::UNIX_EPOCH),
            ),
            idle_ms: live.idle.map(ms),
        }
    }
}

/// A happening as the name and the data of an event.
pub(super) fn event(happening: &Happening) -> (&'static str, String) {
    #[derive(Serialize)]
    struct Deployed<'a> {
        agent: Text<&'a AgentName>,
        digest: Option<Text<Digest>>,
        previous: Option<Text<Digest>>,
        generation: u64,
        source: &'a str,
        at: Time,
    }
    #[derive(Serialize)]
    struct Instance<'a> {
        agent: Text<&'a AgentName>,
        instance: &'a str,
        digest: Text<Digest>,
        at: Time,
    }
    #[derive(Serialize)]
    struct Run<'a> {
        run: Text<RunId>,
        agent: Text<&'a AgentName>,
        instance: &'a str,
        digest: Text<Digest>,
        state: RunState,
        code: Option<&'a str>,
        at: Time,
    }
    let of_instance = |instance: &InstanceKey, digest: &Digest| {
        let (agent, name) = (Text(instance.agent()), instance.name());
        json(&Instance { agent, instance: name, digest: Text(*digest), at: Time::now() })
    };
    match happening {
        Happening::Deployed { record, previous } => {
            let deployed = Deployed {
                agent: Text(&record.agent),
                digest: record.module.map(Text),
                previous: previous.map(Text),
                generation: record.generation,
                source: &record.source,
                at: Time::of_ms(record.at_ms),
            };
            ("deployed", json(&deployed))
        }
        Happening::InstanceStarted { instance, module } => {
            ("instance-started", of_instance(instance, module))
        }
        Happening::InstanceEnded { instance, module } => {
            ("instance-ended", of_instance(instance, module))
        }
        Happening::RunEnded { run, instance, module, outcome } => {
            let ended = Run {
                run: Text(*run),
                agent: Text(instance.agent()),
                instance: instance.name(),
                digest: Text(*module),
                state: outcome.state,
                code: outcome.code.as_deref(),
                at: Time::now(),
            };
            ("run-ended", json(&ended))
        }
    }
}
