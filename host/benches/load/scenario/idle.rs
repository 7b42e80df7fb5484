//! Streams on which nothing happens.
//!
//! Each is a connection and a run that has opened its stream and waits, in one of 64 instances; both servers send a comment
//! each two seconds. In every round both start with nothing. A stream may take 1.5 times the memory that it
//! takes hyper. What remains when all clients have gone and all runs were asked to end is not bounded here, but shown.

use std::time::Duration;

use super::{Bench, Scenario};
use crate::client::{Connection, all, get, subscribe};
use crate::host::{After, Pair, Server};
use crate::measure::{Measured, Side};
use crate::report::{Line, Target, Unit};

/// Instances that have the streams.
const INSTANCES: usize = 64;

/// How long what is released may take to be.
const SETTLED: Duration = Duration::from_millis(500);

pub const SCENARIO: Scenario = Scenario {
    name: "idle",
    about: "streams that are open in 64 instances, and silent",
    n: 10_000,
    of: "streams",
    grows_from: Some(1250),
    long: false,
    lines: &[
        Line::of("memory of a stream", Unit::Bytes)
            .beside(Side::Native)
            .reaches(Target::RatioAtMost(1.5)),
        Line::of("cpu of a stream and second", Unit::Seconds).beside(Side::Native),
        Line::of("left of a stream", Unit::Bytes).beside(Side::Native),
    ],
    deadline: Duration::from_secs(180),
    config: "[http]\nheartbeat = \"2s\"\n[instances]\nidle = \"100ms\"",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for round in bench.rounds() {
        for server in pair.in_turn_mut(round) {
            server.restart(After::Nothing).await?;
            let figures = pass(bench, server, bench.n).await?;
            measured.add(round, server.side, figures);
        }
    }
    Ok(measured)
}

/// What so many streams take of a server that has just started.
pub(super) async fn pass(
    bench: &Bench<'_>,
    server: &Server,
    count: usize,
) -> anyhow::Result<[(&'static str, f64); 3]> {
    // The first of all makes what is there once.
    let mut first = Connection::open(server.address).await?;
    first.send(&get("/agents/load/idle-0/plain")).await?;
    first.reply().await?;
    let before = server.process.memory()?;

    let mut connections = Connection::open_all(server.address, count).await?;
    let streams = connections.iter_mut().enumerate().map(async |(n, connection)| {
        let instance = n % INSTANCES;
        let path = format_args!("/agents/load/idle-{instance}/hold?heartbeat=2000");
        connection.send(&subscribe(path)).await?;
        Ok(connection.stream().await?.run)
    });
    let runs = all(streams).await?;
    let cpu = server.process.cpu()?;
    tokio::time::sleep(bench.duration).await;
    let cpu = server.process.cpu()? - cpu;
    let open = server.process.memory()?;

    drop(connections);
    server.cancel(runs).await?;
    tokio::time::sleep(SETTLED).await;
    let left = server.process.memory()?;
    let (n, seconds) = (count as f64, bench.duration.as_secs_f64());
    Ok([
        ("memory of a stream", (open - before) / n),
        ("cpu of a stream and second", cpu.as_secs_f64() / n / seconds),
        ("left of a stream", (left - before) / n),
    ])
}
