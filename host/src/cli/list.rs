//! Showing what a host has: `agents`, `deployments`, `instances`, `runs`.
//!
//! Each asks once, `runs` page after page until it has as many as were asked for, and shows a table in which
//! digests are short and times are ages; `--json` has all of both. An agent that does not serve says why, below its row.

use std::time::{Duration, SystemTime};

use bureau::id::{AgentName, InstanceKey};
use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, read};
use super::output::{Output, Table, age, short, span};

/// As many runs as the host puts on a page.
const PAGE: u32 = 1000;

#[derive(Deserialize)]
struct Agent {
    agent: String,
    digest: String,
    generation: u64,
    since: String,
    source: String,
    instances: u64,
    runs: u64,
    error: Option<String>,
}

#[derive(Deserialize)]
struct Past {
    digest: Option<String>,
    generation: u64,
    since: String,
    source: String,
    current: bool,
}

#[derive(Deserialize)]
struct Instance {
    agent: String,
    instance: String,
    digest: String,
    current: bool,
    runs: u64,
    since: String,
    idle_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Run {
    run: String,
    agent: String,
    instance: String,
    digest: String,
    state: String,
    code: Option<String>,
    started: String,
    ended: Option<String>,
    last_seq: u64,
}

/// Lists the agents.
pub async fn agents(client: &Client, output: &Output) -> anyhow::Result<()> {
    let answer = client.get(&["v1", "agents"], &[]).await?;
    output.say(&answer, || Ok(agents_table(&rows(&answer, "agents")?, SystemTime::now())))
}

/// Lists the deployments of an agent.
pub async fn deployments(client: &Client, name: &AgentName, output: &Output) -> anyhow::Result<()> {
    let answer = client.get(&["v1", "agents", name.as_str(), "deployments"], &[]).await?;
    output.say(&answer, || Ok(deployments_table(&rows(&answer, "deployments")?, SystemTime::now())))
}

/// Lists the live instances, of one agent or of all.
pub async fn instances(
    client: &Client,
    agent: Option<&AgentName>,
    output: &Output,
) -> anyhow::Result<()> {
    let query: Vec<_> = agent.iter().map(|agent| ("agent", agent.as_str())).collect();
    let answer = client.get(&["v1", "instances"], &query).await?;
    output.say(&answer, || Ok(instances_table(&rows(&answer, "instances")?, SystemTime::now())))
}

/// Lists the newest runs, of one agent, of one instance, or of all.
pub async fn runs(
    client: &Client,
    agent: Option<&AgentName>,
    instance: Option<&str>,
    limit: u32,
    output: &Output,
) -> anyhow::Result<()> {
    if let (Some(agent), Some(instance)) = (agent, instance) {
        InstanceKey::new(agent.clone(), instance)?;
    }
    let mut runs: Vec<Value> = Vec::new();
    let mut before: Option<String> = None;
    loop {
        let missing = (limit as usize).saturating_sub(runs.len());
        let page = missing.min(PAGE as usize).to_string();
        let mut query = vec![("limit", page.as_str())];
        query.extend(agent.map(|agent| ("agent", agent.as_str())));
        query.extend(instance.map(|instance| ("instance", instance)));
        query.extend(before.as_deref().map(|before| ("before", before)));
        let page: Page = read(&client.get(&["v1", "runs"], &query).await?)?;
        runs.extend(page.runs);
        before = page.next;
        // A page may be empty and yet not the last.
        if before.is_none() || runs.len() >= limit as usize {
            break;
        }
    }
    let answer = json!({ "runs": runs, "next": before });
    output.say(&answer, || Ok(runs_table(&rows(&answer, "runs")?, SystemTime::now())))
}

/// A page of runs, each as the host sent it.
#[derive(Deserialize)]
struct Page {
    runs: Vec<Value>,
    next: Option<String>,
}

fn rows<T: serde::de::DeserializeOwned>(answer: &Value, key: &str) -> anyhow::Result<Vec<T>> {
    read(answer.get(key).unwrap_or(&Value::Null))
}

fn agents_table(agents: &[Agent], now: SystemTime) -> String {
    let columns = ["NAME", "DIGEST", "GENERATION", "INSTANCES", "RUNS", "SINCE", "SOURCE"];
    let mut table = Table::new(&columns);
    for agent in agents {
        table.row([
            agent.agent.clone(),
            short(&agent.digest).into(),
            agent.generation.to_string(),
            agent.instances.to_string(),
            agent.runs.to_string(),
            age(&agent.since, now),
            agent.source.clone(),
        ]);
        if let Some(error) = &agent.error {
            table.note(&format!("does not serve: {error}"));
        }
    }
    table.text()
}

fn deployments_table(deployments: &[Past], now: SystemTime) -> String {
    let mut table = Table::new(&["GENERATION", "DIGEST", "SINCE", "SOURCE", ""]);
    for past in deployments {
        table.row([
            past.generation.to_string(),
            past.digest.as_deref().map_or("removed", short).into(),
            age(&past.since, now),
            past.source.clone(),
            if past.current { "current" } else { "" }.into(),
        ]);
    }
    table.text()
}

fn instances_table(instances: &[Instance], now: SystemTime) -> String {
    let mut table = Table::new(&["AGENT", "INSTANCE", "DIGEST", "RUNS", "SINCE", "IDLE", ""]);
    for instance in instances {
        table.row([
            instance.agent.clone(),
            instance.instance.clone(),
            short(&instance.digest).into(),
            instance.runs.to_string(),
            age(&instance.since, now),
            instance.idle_ms.map_or("-".into(), |idle| span(Duration::from_millis(idle))),
            if instance.current { "" } else { "on an older module" }.into(),
        ]);
    }
    table.text()
}

fn runs_table(runs: &[Run], now: SystemTime) -> String {
    let columns = ["RUN", "AGENT", "INSTANCE", "DIGEST", "EVENTS", "STARTED", "TOOK", "STATE"];
    let mut table = Table::new(&columns);
    for run in runs {
        table.row([
            run.run.clone(),
            run.agent.clone(),
            run.instance.clone(),
            short(&run.digest).into(),
            run.last_seq.to_string(),
            age(&run.started, now),
            run.ended.as_deref().and_then(|ended| took(&run.started, ended)).unwrap_or("-".into()),
            match &run.code {
                Some(code) => format!("{} ({code})", run.state),
                None => run.state.clone(),
            },
        ]);
    }
    table.text()
}

fn took(started: &str, ended: &str) -> Option<String> {
    let time = |text| humantime::parse_rfc3339(text).ok();
    Some(span(time(ended)?.duration_since(time(started)?).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> SystemTime {
        humantime::parse_rfc3339("2026-11-25T03:00:00.000Z").unwrap()
    }

    fn digest() -> String {
        "1a2b3c4d5e6f".repeat(6)[..64].to_owned()
    }

    #[test]
    fn an_agent_that_does_not_serve_says_why_below_its_row() {
        let agent = |name: &str, error: Option<&str>| {
            json!({
                "agent": name, "digest": digest(), "generation": 3, "since": "2026-11-25T02:57:00.000Z",
                "source": "api", "resumes": true, "migrates": false, "instances": 2, "runs": 10,
                "error": error,
            })
        };
        let answer =
            json!({ "agents": [agent("chat", None), agent("broken", Some("it has\nno code"))] });
        let shown = "\
NAME    DIGEST        GENERATION  INSTANCES  RUNS  SINCE  SOURCE
chat    1a2b3c4d5e6f  3           2          10    3m     api
broken  1a2b3c4d5e6f  3           2          10    3m     api
  does not serve: it has
  no code
";
        assert_eq!(agents_table(&rows(&answer, "agents").unwrap(), now()), shown);
    }

    #[test]
    fn a_removal_is_a_deployment_of_nothing() {
        let past = |digest: Option<String>, generation: u64, current: bool| {
            json!({
                "digest": digest, "generation": generation, "since": "2026-11-24T03:00:00.000Z",
                "source": "/srv/agents/chat.wasm", "current": current,
            })
        };
        let answer =
            json!({ "deployments": [past(Some(digest()), 3, true), past(None, 2, false)] });
        let shown = "\
GENERATION  DIGEST        SINCE  SOURCE
3           1a2b3c4d5e6f  1d     /srv/agents/chat.wasm  current
2           removed       1d     /srv/agents/chat.wasm
";
        assert_eq!(deployments_table(&rows(&answer, "deployments").unwrap(), now()), shown);
    }

    #[test]
    fn an_instance_on_an_older_module_is_marked() {
        let instance = |current: bool, idle: Option<u64>| {
            json!({
                "agent": "chat", "instance": "user 7", "digest": digest(), "current": current,
                "runs": 1, "since": "2026-11-25T02:59:18.000Z", "idle_ms": idle,
            })
        };
        let answer = json!({ "instances": [instance(true, Some(1500)), instance(false, None)] });
        let shown = "\
AGENT  INSTANCE  DIGEST        RUNS  SINCE  IDLE
chat   user 7    1a2b3c4d5e6f  1     42s    1s
chat   user 7    1a2b3c4d5e6f  1     42s    -     on an older module
";
        assert_eq!(instances_table(&rows(&answer, "instances").unwrap(), now()), shown);
    }

    #[test]
    fn a_run_that_failed_says_with_which_code() {
        let run = |state: &str, code: Option<&str>, ended: Option<&str>| {
            json!({
                "run": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "agent": "chat", "instance": "demo",
                "digest": digest(), "state": state, "code": code, "interruptions": 0,
                "started": "2026-11-25T02:00:00.000Z", "ended": ended, "last_seq": 17,
            })
        };
        let ended = Some("2026-11-25T02:00:07.500Z");
        let answer = json!({
            "runs": [run("running", None, None), run("failed", Some("agent-trapped"), ended)],
            "next": null,
        });
        let shown = "\
RUN                         AGENT  INSTANCE  DIGEST        EVENTS  STARTED  TOOK  STATE
01ARZ3NDEKTSV4RRFFQ69G5FAV  chat   demo      1a2b3c4d5e6f  17      1h       -     running
01ARZ3NDEKTSV4RRFFQ69G5FAV  chat   demo      1a2b3c4d5e6f  17      1h       7s    failed (agent-trapped)
";
        assert_eq!(runs_table(&rows(&answer, "runs").unwrap(), now()), shown);
    }
}
