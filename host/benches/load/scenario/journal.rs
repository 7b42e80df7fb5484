//! A journal that has grown.
//!
//! It holds as many MiB of events as asked for, in runs of one MiB that are over. What a host on it appends and what readers
//! who come back get must be within 10 % of what they are on a journal of 128 MiB, of which they read as much. At the end
//! the host is told to keep half of it: while more runs are written, retention must let go at least as much as comes in,
//! and a lone request must never wait for more than 50 ms. How long the disk makes it wait without any retention
//! stands beside it. So does a start after a kill, when the journal's file has to be walked through.

use std::time::{Duration, Instant};

use anyhow::ensure;
use bureau::id::RunId;

use super::{Bench, Scenario, events};
use crate::client::{Connection, all, get, requests, resume};
use crate::fill::Filling;
use crate::host::{After, Pair, Server};
use crate::measure::{Measured, Round, Side};
use crate::report::{Line, Target, Unit};

/// The other journal's size, in MiB.
const SMALL: usize = 128;

/// What a run of one MiB consists of: events of one KiB each, in turns.
const TURNS: usize = 16;
const EVENTS: usize = 64;
const SIZE: usize = 1024;

/// What is appended in a round: as many events in as many runs.
const APPENDED: u64 = 5000;
const RUNS: usize = 64;

/// Readers who come back at once, and how many runs each reads.
const READERS: usize = 16;
const READS: usize = 8;

/// The host's own figure of runs that retention has let go.
const TRIMMED: &str = "trimmed_runs_total";

pub const SCENARIO: Scenario = Scenario {
    name: "journal",
    about: "a journal with many events, beside one with 128 MiB",
    n: 1024,
    of: "MiB",
    grows_from: Some(128),
    long: true,
    lines: &[
        Line::of("appended events", Unit::PerSecond)
            .beside(Side::Control)
            .reaches(Target::RatioAtLeast(0.9)),
        Line::of("resumed events", Unit::PerSecond)
            .beside(Side::Control)
            .reaches(Target::RatioAtLeast(0.9)),
        Line::of("start", Unit::Seconds).beside(Side::Control),
        Line::of("start after a kill", Unit::Seconds).beside(Side::Control),
        Line::of("retention: slowest reply", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::AtMost(0.05)),
        Line::of("retention: written", Unit::Bytes).beside(Side::Control),
        Line::of("retention: runs let go for one written", Unit::Number)
            .reaches(Target::AtLeast(1.0)),
    ],
    deadline: Duration::from_secs(1800),
    config: KEEP_ALL,
    run: |bench, pair| Box::pin(run(bench, pair)),
};

const KEEP_ALL: &str = "[journal]\nretain_bytes = \"1024 GiB\"";

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let control = pair.control.insert(bench.programs.bureau(KEEP_ALL).await?);
    let large = fill(&mut pair.bureau, bench.n.max(SMALL)).await?;
    let small = fill(control, SMALL).await?;
    let mut last = None;
    for round in bench.rounds() {
        let mut hosts =
            [(Side::Bureau, &mut pair.bureau, &large), (Side::Control, &mut *control, &small)];
        if round.is_reversed() {
            hosts.reverse();
        }
        for (side, host, runs) in hosts {
            let after_kill = host.restart(After::Kill).await?;
            let start = host.restart(After::End).await?;
            let appended = events::pass(host, RUNS, APPENDED, 64).await?;
            let resumed = resumed(host, runs).await?;
            let figures = [
                ("start", start.as_secs_f64()),
                ("start after a kill", after_kill.as_secs_f64()),
                ("appended events", (APPENDED * RUNS as u64) as f64 / appended.as_secs_f64()),
                ("resumed events", resumed),
            ];
            measured.add(round, side, figures);
        }
        last = Some(round);
    }
    let keep_half = format!("[journal]\nretain_bytes = \"{} MiB\"", large.len() / 2);
    pair.bureau.configure(&keep_half)?;
    pair.bureau.restart(After::End).await?;
    if let Some(round) = last {
        // At once, before it has done its work while nothing is written.
        retention(bench, round, &mut measured, Side::Bureau, &pair.bureau).await?;
        retention(bench, round, &mut measured, Side::Control, control).await?;
    }
    Ok(measured)
}

/// Lets a host's journal have so many MiB of events, and returns its runs with their instances.
async fn fill(host: &mut Server, mib: usize) -> anyhow::Result<Vec<(String, RunId)>> {
    host.end(After::End).await?;
    let mut journal = Filling::open(&host.journal())?;
    let data = ".".repeat(SIZE);
    let mut runs = Vec::with_capacity(mib);
    for n in 0..mib {
        let name = format!("filled-{n}");
        let run = journal.instance(&name, "{}", TURNS, &[data.as_str(); EVENTS]).await?;
        runs.push((name, run));
    }
    journal.close().await;
    host.restart(After::End).await?;
    Ok(runs)
}

/// How many events a second readers get who come back to runs chosen at random.
async fn resumed(host: &Server, runs: &[(String, RunId)]) -> anyhow::Result<f64> {
    let mut connections = Connection::open_all(host.address, READERS).await?;
    let mut random = fastrand::Rng::with_seed(1);
    // Each only once, so that neither journal has them in memory.
    let mut chosen = random.choose_multiple(runs, READERS * READS);
    let (left, start) = ((TURNS * EVENTS - 1) as u64, Instant::now());
    let one = async |(connection, chosen): (&mut Connection, &mut [&(String, RunId)])| {
        for (name, run) in chosen {
            let path = format_args!("/agents/load/{name}/events");
            connection.send(&resume(path, format_args!("{run}-1"))).await?;
            let count = connection.stream().await?.count().await?;
            ensure!(count == left, "{count} events came instead of {left}");
        }
        Ok(())
    };
    all(connections.iter_mut().zip(chosen.chunks_mut(READS)).map(one)).await?;
    Ok((left as usize * READERS * READS) as f64 / start.elapsed().as_secs_f64())
}

/// Writes runs one after the other; beside them a lone request at a time waits for its state.
async fn retention(
    bench: &Bench<'_>,
    round: Round,
    measured: &mut Measured,
    side: Side,
    host: &Server,
) -> anyhow::Result<()> {
    let before = host.metrics().await?.figure(TRIMMED)?;
    let end = Instant::now() + bench.duration;
    let events = TURNS * EVENTS;
    let mut writer = Connection::open(host.address).await?;
    let writing = async {
        let request = get(format_args!("/agents/load/writer/events?n={events}&size={SIZE}"));
        let mut runs = 0.0;
        while Instant::now() < end {
            writer.send(&request).await?;
            writer.stream().await?.count().await?;
            runs += 1.0;
        }
        Ok(runs)
    };
    let mut alone = Connection::open_all(host.address, 1).await?;
    let request = get("/agents/load/alone/state");
    let replying = requests(&mut alone, bench.duration, |_| &request);
    let (written, mut replies) = futures_util::try_join!(writing, replying)?;
    let let_go = host.metrics().await?.figure(TRIMMED)? - before;
    let figures = [
        ("retention: slowest reply", replies.latencies.quantile(1.0)),
        ("retention: written", written * (events * SIZE) as f64),
        ("retention: runs let go for one written", let_go / written),
    ];
    measured.add(round, side, figures);
    Ok(())
}
