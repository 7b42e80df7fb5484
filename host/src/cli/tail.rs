//! Following what runs: `tail`, `cancel`, `events`.
//!
//! **Problem.** An instance has many runs, at once and one after the other, and whoever watches it wants to see them all.
//!
//! **Mechanism.** Each run is followed by a task of its own ([`Follow`]); the lines meet in a channel. Which runs there are is asked once
//! a second, as pages of the newest first. A run is met with its first event, as before it there may be nothing on record to follow,
//! and one that has been silent for long turns up below younger ones: therefore look number n reads as many pages as
//! the largest power of two that divides n. Half of the looks read one, and a run that was silent for an hour is still met a fraction of
//! an hour later. The first look reads all, since a run under way may be as old as the journal.
//!
//! **Limits.** [`AT_ONCE`] runs are followed at the same time, and others wait for one of them to end. Lines of different runs come in
//! the order in which they arrived.
//!
//! **Cost.** A connection for each run under way, the id of each run that was met, and log2(n)/2 pages a look on average.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bureau::id::{AgentName, InstanceKey, RunId};
use bureau::shutdown;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

use super::client::{Client, ClientError, read};
use super::follow::{Ended, Event, Follow, Pauses, Step};
use super::output::{Output, clean, indent};

/// How often it is asked which runs there are.
const LOOK: Duration = Duration::from_secs(1);

/// How many runs are followed at the same time: each takes a connection.
const AT_ONCE: usize = 256;

/// How many lines may wait to be printed; whoever has one more waits itself.
const WAITING: usize = 256;

/// Prints the events of a run, or of all runs of an instance.
pub async fn tail(
    client: Client,
    agent: &AgentName,
    instance: &str,
    run: Option<RunId>,
    output: &Output,
) -> anyhow::Result<()> {
    let instance = InstanceKey::new(agent.clone(), instance)?;
    match run {
        Some(run) => tail_run(client, &instance, run, output).await,
        None => {
            tokio::select! {
                ended = tail_instance(client, &instance, output) => ended,
                stopped = shutdown::signal() => Ok(stopped?),
            }
        }
    }
}

/// Asks a run to end.
pub async fn cancel(client: &Client, run: RunId, output: &Output) -> anyhow::Result<()> {
    let id = run.to_string();
    client.send(client.request(Method::POST, &["v1", "runs", &id, "cancel"])).await?;
    output.say(&json!({ "run": id, "cancelling": true }), || Ok(format!("{run}: asked to end")))
}

/// Prints what happens in the host from now on.
pub async fn events(client: &Client, output: &Output) -> anyhow::Result<()> {
    tokio::select! {
        ended = print_events(client, output) => ended,
        stopped = shutdown::signal() => Ok(stopped?),
    }
}

async fn print_events(client: &Client, output: &Output) -> anyhow::Result<()> {
    let mut pauses = Pauses::default();
    let mut was_there = false;
    loop {
        match client.events(&["v1", "events"], None).await {
            Ok(None) => pauses.pause().await,
            Ok(Some(mut events)) => {
                if was_there {
                    eprintln!("bureau: connected again; what happened meanwhile is not shown");
                }
                was_there = true;
                while let Some(event) = events.next().await {
                    pauses = Pauses::default();
                    let name = event.event.as_deref().unwrap_or("message");
                    let data = event.data.unwrap_or_default();
                    // What is not JSON is shown as it came.
                    let data = serde_json::from_str(&data).unwrap_or(Value::String(data));
                    output.say(&json!({ "event": name, "data": data }), || {
                        Ok(happening(name, &data))
                    })?;
                }
                pauses.pause().await;
            }
            Err(error) if was_there && error.is_passing() => {
                if pauses.is_first() {
                    say_away(&error);
                }
                pauses.pause().await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Something that happened, on a line: when, what, and with what.
fn happening(name: &str, data: &Value) -> String {
    let Value::Object(fields) = data else { return format!("{name} {data}") };
    let at = fields.get("at").and_then(Value::as_str).map(|at| format!("{at} "));
    let mut line = format!("{}{name}", at.unwrap_or_default());
    for (key, value) in fields.iter().filter(|(key, value)| *key != "at" && !value.is_null()) {
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        line.push_str(&format!(" {key}={value}"));
    }
    clean(&line).replace('\n', "\\n")
}

async fn tail_run(
    client: Client,
    instance: &InstanceKey,
    run: RunId,
    output: &Output,
) -> anyhow::Result<()> {
    let mut is_missed = false;
    loop {
        let known = match client.get(&["v1", "runs", &run.to_string()], &[]).await {
            Ok(known) => read::<Run>(&known)?,
            // One that ends may leave those in flight a moment before it is seen on record.
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) if !is_missed => {
                is_missed = true;
                tokio::time::sleep(LOOK).await;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        anyhow::ensure!(
            (known.agent.as_str(), known.instance.as_str())
                == (instance.agent().as_str(), instance.name()),
            "the run {run} is one of {}/{}, not of {instance}",
            known.agent,
            known.instance
        );
        if known.is_to_be_met() {
            break;
        }
        is_missed = false;
        tokio::time::sleep(LOOK).await;
    }
    let mut follow = Follow::new(client, run);
    loop {
        match follow.next(say_away).await? {
            Step::Event(event) => print(&event, output)?,
            Step::Ended(ended) if ended.state == "finished" => return Ok(()),
            Step::Ended(ended) if ended.state == "cancelled" => {
                anyhow::bail!("the run was cancelled")
            }
            Step::Ended(ended) => anyhow::bail!("the run {}", how(&ended)),
        }
    }
}

/// A run, among those of its instance.
#[derive(Deserialize)]
struct Run {
    run: String,
    agent: String,
    instance: String,
    last_seq: u64,
    #[serde(flatten)]
    ended: Ended,
}

impl Run {
    /// Whether there is something to follow. A run that has emitted nothing yet may be on no record, and may never be.
    fn is_to_be_met(&self) -> bool {
        self.last_seq > 0 || self.ended.is_over()
    }
}

#[derive(Deserialize)]
struct Page {
    runs: Vec<Run>,
    next: Option<String>,
}

/// What there is to print of an instance's runs.
enum Line {
    Event(Event),
    Ended(RunId, Ended),
    /// A run could not be followed to its end.
    Lost(RunId, anyhow::Error),
}

async fn tail_instance(
    client: Client,
    instance: &InstanceKey,
    output: &Output,
) -> anyhow::Result<()> {
    let (lines, mut coming) = mpsc::channel(WAITING);
    let printing = async {
        while let Some(line) = coming.recv().await {
            match line {
                Line::Event(event) => print(&event, output)?,
                Line::Ended(run, ended) if !output.is_json() => eprintln!("{run} {}", how(&ended)),
                Line::Ended(..) => {}
                Line::Lost(run, error) => eprintln!("bureau: {run}: {error:#}"),
            }
        }
        Ok(())
    };
    tokio::select! {
        ended = look(client, instance, lines) => ended,
        printed = printing => printed,
    }
}

/// Finds the runs of an instance and has each followed.
async fn look(
    client: Client,
    instance: &InstanceKey,
    lines: mpsc::Sender<Line>,
) -> anyhow::Result<()> {
    let mut met = Met::default();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    let mut pauses = Pauses::default();
    loop {
        let looked = look_once(&client, instance, &mut met, |run| {
            tokio::spawn(follow(client.clone(), run, places.clone(), lines.clone()));
        });
        match looked.await {
            Ok(()) => {
                pauses = Pauses::default();
                met.look += 1;
                tokio::time::sleep(LOOK).await;
            }
            Err(error) => match error.downcast_ref::<ClientError>() {
                Some(passing) if passing.is_passing() && met.look > 0 => {
                    if pauses.is_first() {
                        say_away(passing);
                    }
                    pauses.pause().await;
                }
                _ => return Err(error),
            },
        }
    }
}

async fn look_once(
    client: &Client,
    instance: &InstanceKey,
    met: &mut Met,
    mut follow: impl FnMut(RunId),
) -> anyhow::Result<()> {
    let mut before: Option<String> = None;
    for page in 1.. {
        let mut query = vec![("agent", instance.agent().as_str()), ("instance", instance.name())];
        query.push(("limit", if met.look == 0 { "1000" } else { "100" }));
        query.extend(before.as_deref().map(|before| ("before", before)));
        let Page { runs, next } = read(&client.get(&["v1", "runs"], &query).await?)?;
        let mut any_new = false;
        for Run { run, ended, .. } in runs.into_iter().filter(Run::is_to_be_met) {
            let run = run.parse().with_context(|| format!("the host sent the run {run:?}"))?;
            let is_new = met.runs.insert(run);
            any_new |= is_new;
            if is_new && met.is_to_follow(&ended) {
                follow(run);
            }
        }
        before = next;
        if before.is_none() || !met.goes_on(page, any_new) {
            break;
        }
    }
    Ok(())
}

/// Which runs were met, and how far back to look for others.
#[derive(Default)]
struct Met {
    runs: HashSet<RunId>,
    /// How many looks there were.
    look: u64,
}

impl Met {
    /// Whether a run that is met now is followed: what was over when all began is not of interest.
    fn is_to_follow(&self, run: &Ended) -> bool {
        self.look > 0 || !run.is_over()
    }

    /// Whether a look goes on after this page of it.
    fn goes_on(&self, page: u64, any_new: bool) -> bool {
        match self.look {
            0 => true,
            look => any_new || page < 1 << look.trailing_zeros(),
        }
    }
}

async fn follow(client: Client, run: RunId, places: Arc<Semaphore>, lines: mpsc::Sender<Line>) {
    let Ok(_place) = places.acquire().await else { return };
    let mut follow = Follow::new(client, run);
    loop {
        // Whoever looks for runs says that the host is away.
        let line = match follow.next(|_| ()).await {
            Ok(Step::Event(event)) => Line::Event(event),
            Ok(Step::Ended(ended)) => Line::Ended(run, ended),
            Err(error) => Line::Lost(run, error),
        };
        let is_last = !matches!(line, Line::Event(_));
        if lines.send(line).await.is_err() || is_last {
            return;
        }
    }
}

fn print(event: &Event, output: &Output) -> anyhow::Result<()> {
    let Event { id, name, data, .. } = event;
    output.say(&json!({ "id": id, "event": name, "data": data }), || Ok(line(event)))
}

/// An event on a line, or, if its data has more than one, with these below.
fn line(event: &Event) -> String {
    let Event { cursor, name, data, .. } = event;
    let (name, data) = (clean(name), indent(data, "    "));
    match data.contains('\n') {
        true => format!("{cursor} {name}\n    {data}"),
        false => format!("{cursor} {name} {data}"),
    }
}

fn how(Ended { state, code }: &Ended) -> String {
    match code {
        Some(code) => clean(&format!("{state} ({code})")).into_owned(),
        None => clean(state).into_owned(),
    }
}

fn say_away(error: &ClientError) {
    eprintln!("bureau: {error}; trying again");
}

#[cfg(test)]
mod tests {
    use bureau::id::{Cursor, Seq};

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        let cursor = Cursor { run: "01ARZ3NDEKTSV4RRFFQ69G5FAV".parse().unwrap(), seq: Seq(7) };
        Event { cursor, id: cursor.to_string(), name: name.into(), data: data.into() }
    }

    #[test]
    fn an_event_is_a_line_and_its_data_cannot_pass_for_another() {
        assert_eq!(line(&event("message", "Hello")), "01ARZ3NDEKTSV4RRFFQ69G5FAV-7 message Hello");
        assert_eq!(
            line(&event("b\u{1b}[2J", "one\n01ARZ3NDEKTSV4RRFFQ69G5FAV-8 message no\u{7}")),
            "01ARZ3NDEKTSV4RRFFQ69G5FAV-7 b\\u{1b}[2J\n    one\n    01ARZ3NDEKTSV4RRFFQ69G5FAV-8 message no\\u{7}",
        );
    }

    #[test]
    fn what_happened_is_a_line() {
        let data = json!({ "agent": "chat", "digest": null, "generation": 4, "at": "2026-11-25T02:51:21.123Z", "source": "a\nb" });
        assert_eq!(
            happening("deployed", &data),
            "2026-11-25T02:51:21.123Z deployed agent=chat generation=4 source=a\\nb",
        );
        assert_eq!(happening("lagged", &json!({ "missed": 3 })), "lagged missed=3");
    }

    fn ended(state: &str) -> Ended {
        Ended { state: state.into(), code: None }
    }

    #[test]
    fn the_first_look_reads_all_and_leaves_what_is_over() {
        let met = Met::default();
        assert!(met.goes_on(1000, false));
        assert!(met.is_to_follow(&ended("running")) && met.is_to_follow(&ended("interrupted")));
        assert!(!met.is_to_follow(&ended("finished")));
    }

    #[test]
    fn a_run_that_comes_upon_the_record_late_is_met_however_deep_it_lies() {
        // On page `depth` of pages on which all other runs are known.
        for depth in [1, 2, 5, 100, 3000] {
            let reaches = |look| {
                let met = Met { look, ..Met::default() };
                (1..depth).all(|page| met.goes_on(page, false))
            };
            let after = (1..).find(|&look| reaches(look)).unwrap();
            assert!(after < 2 * depth, "on page {depth} at look {after}");
        }
        // All of a burst of new ones is met at once.
        let met = Met { look: 1, ..Met::default() };
        assert!(met.goes_on(50, true) && !met.goes_on(50, false));
        // And what begins and ends between two looks is shown, too.
        assert!(met.is_to_follow(&ended("finished")));
    }
}
