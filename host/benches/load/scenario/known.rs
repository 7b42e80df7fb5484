//! A journal that knows very many instances.
//!
//! Each has a state and a run that is over. A host starts on that journal, and another on one that knows 1,000: the start, the
//! memory afterwards and the answer of an instance chosen at random, which has to get its state from disk and start, must
//! not depend on how many there are. Each instance is asked once in the life of a host, and several are at a time: a host that
//! is asked one by one rests between any two, and how long it takes to wake is the machine's affair. A start after a kill is
//! shown beside it.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Scenario};
use crate::client::{Connection, all, get};
use crate::fill::Filling;
use crate::host::{After, Pair, Server};
use crate::measure::{Latencies, Measured, Round, Side};
use crate::report::{Line, Target, Unit};

/// How many instances the other journal knows, and how many are asked in either.
const FEW: usize = 1000;

/// How many are asked at a time.
const AT_ONCE: usize = 8;

pub const SCENARIO: Scenario = Scenario {
    name: "known",
    about: "instances that the journal knows, beside 1,000 of them",
    n: 1_000_000,
    of: "instances",
    grows_from: Some(125_000),
    long: true,
    lines: &[
        Line::of("start", Unit::Seconds).beside(Side::Control).reaches(Target::RatioAtMost(1.1)),
        Line::of("memory", Unit::Bytes).beside(Side::Control).reaches(Target::RatioAtMost(1.1)),
        Line::of("answer, p50", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::RatioAtMost(1.1)),
        Line::of("answer, p99", Unit::Seconds).beside(Side::Control),
        Line::of("memory after answers", Unit::Bytes).beside(Side::Control),
        Line::of("start after a kill", Unit::Seconds).beside(Side::Control),
    ],
    deadline: Duration::from_secs(600),
    config: CONFIG,
    run: |bench, pair| Box::pin(run(bench, pair)),
};

const CONFIG: &str = "";

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let many = bench.n.max(FEW);
    let control = pair.control.insert(bench.programs.bureau(CONFIG).await?);
    fill(&mut pair.bureau, many).await?;
    fill(control, FEW).await?;
    let mut random = fastrand::Rng::with_seed(1);
    for round in bench.rounds() {
        let mut hosts = [(Side::Bureau, &mut pair.bureau, many), (Side::Control, control, FEW)];
        if round.is_reversed() {
            hosts.reverse();
        }
        for (side, host, known) in hosts {
            let asked = random.choose_multiple(0..known, FEW);
            pass(round, &mut measured, side, host, &asked).await?;
        }
    }
    Ok(measured)
}

async fn pass(
    round: Round,
    measured: &mut Measured,
    side: Side,
    host: &mut Server,
    asked: &[usize],
) -> anyhow::Result<()> {
    let after_kill = host.restart(After::Kill).await?;
    let start = host.restart(After::End).await?;
    let memory = host.process.memory()?;
    let connections = Connection::open_all(host.address, AT_ONCE).await?;
    let asking = connections.into_iter().zip(asked.chunks(asked.len().div_ceil(AT_ONCE)));
    let mut answers = Latencies::default();
    for mut some in all(asking.map(|(connection, asked)| ask(connection, asked))).await? {
        answers.append(&mut some);
    }
    let figures = [
        ("start", start.as_secs_f64()),
        ("memory", memory),
        ("answer, p50", answers.quantile(0.5)),
        ("answer, p99", answers.quantile(0.99)),
        ("memory after answers", host.process.memory()?),
        ("start after a kill", after_kill.as_secs_f64()),
    ];
    measured.add(round, side, figures);
    Ok(())
}

/// Asks these instances, one after another, and says how long each took.
async fn ask(mut connection: Connection, instances: &[usize]) -> anyhow::Result<Latencies> {
    let mut answers = Latencies::default();
    for &instance in instances {
        let start = Instant::now();
        connection.send(&get(format_args!("/agents/load/{}/visits", name(instance)))).await?;
        let text = connection.text().await?;
        answers.add(start.elapsed());
        let known = text.contains(&format!(r#""visits":{instance},"#));
        ensure!(known, "{} answered {text}", name(instance));
    }
    Ok(answers)
}

/// Lets a host's journal know so many instances.
async fn fill(host: &mut Server, instances: usize) -> anyhow::Result<()> {
    host.end(After::End).await?;
    let mut journal = Filling::open(&host.journal())?;
    for n in 0..instances {
        let state = format!(r#"{{"visits":{n},"note":"a small document"}}"#);
        journal.instance(&name(n), &state, 1, &["an event"]).await?;
    }
    journal.close().await;
    host.restart(After::End).await?;
    Ok(())
}

fn name(instance: usize) -> String {
    format!("known-{instance}")
}
