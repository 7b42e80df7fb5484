//! The pace of tokens: many runs that emit an event each 20 ms, and how late it arrives.
//!
//! The data of an event is the wall clock when it was emitted, which the client compares with its own when the event arrives.
//! The runs are spread over the 20 ms. The 99th percentile must be within 3 disk syncs of hyper's, and an event
//! may cost twice the processor time. The native server makes its events with a timer per stream.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{Bench, Scenario, lag};
use crate::bare;
use crate::client::{Connection, all, get};
use crate::host::{Pair, Server};
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, SYNC, Target, Unit};

/// Time between two events of a run.
const DELAY: Duration = Duration::from_millis(20);

pub const SCENARIO: Scenario = Scenario {
    name: "tokens",
    about: "runs that emit an event each 20 ms, from its emission to the client",
    n: 500,
    of: "runs",
    grows_from: Some(125),
    long: false,
    lines: &[
        Line::of("p50", Unit::Seconds).beside(Side::Native),
        Line::of("p99", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::Within { times: 1.0, syncs: 3.0 }),
        Line::of("cpu of an event", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::RatioAtMost(2.0)),
        Line::of("events", Unit::PerSecond).beside(Side::Native),
        Line::of(SYNC, Unit::Seconds).beside(Side::Bare),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let events = length(bench.duration);
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let figures = figures(server, bench.n, events).await?;
            measured.add(round, server.side, figures);
        }
        measured.add(round, Side::Bare, [(SYNC, bare::sync(bench.directory)?)]);
    }
    Ok(measured)
}

/// The events of a run that takes as long.
pub(super) fn length(duration: Duration) -> u64 {
    (duration.as_millis() / DELAY.as_millis()).max(1) as u64
}

/// What so many runs of so many events each show.
pub(super) async fn figures(
    server: &Server,
    runs: usize,
    events: u64,
) -> anyhow::Result<[(&'static str, f64); 4]> {
    let mut connections = Connection::open_all(server.address, runs).await?;
    let (cpu, start) = (server.process.cpu()?, Instant::now());
    let mut lags = pass(server, &mut connections, events).await?;
    let (cpu, elapsed) = (server.process.cpu()? - cpu, start.elapsed());
    let count = lags.count() as f64;
    Ok([
        ("p50", lags.quantile(0.5)),
        ("p99", lags.quantile(0.99)),
        ("cpu of an event", cpu.as_secs_f64() / count),
        ("events", count / elapsed.as_secs_f64()),
    ])
}

/// How late each event of all runs was.
async fn pass(
    server: &Server,
    connections: &mut [Connection],
    events: u64,
) -> anyhow::Result<Latencies> {
    let count = connections.len() as u32;
    let one = async |(run, connection): (u32, &mut Connection)| {
        tokio::time::sleep(DELAY * run / count).await;
        let delay = DELAY.as_millis();
        let path =
            format_args!("/agents/load/tokens-{run}/events?n={events}&size=20&delay={delay}");
        connection.send(&get(path)).await?;
        let mut lags = Latencies::default();
        let mut stream = connection.stream().await?;
        let mut wrong = None;
        while stream
            .next(|event| match lag(event) {
                Ok(lag) => lags.add(lag),
                Err(error) => wrong = Some(error),
            })
            .await?
        {}
        wrong.map_or(Ok(()), Err).with_context(|| format!("in run {run} of {:?}", server.side))?;
        ensure!(lags.count() == events, "{} events came instead of {events}", lags.count());
        Ok(lags)
    };
    let mut lags = Latencies::default();
    for mut one in all((0..).zip(connections).map(one)).await? {
        lags.append(&mut one);
    }
    Ok(lags)
}
