//! Events as fast as runs emit them, durable before they are visible, one reader each.
//!
//! Each run, in an instance of its own, emits 10,000 events of 64 bytes. A round is over when all readers have all of theirs.
//! At least 200,000 events a second must arrive where a bare redb loop in batches of 4,096 rows makes 400,000
//! durable, so the ratio to it is to be at least 0.5; the host may take 3 us of processor time for an event. The native
//! server sends the same events from memory, where nothing makes or keeps them.

use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Scenario};
use crate::bare;
use crate::client::{Connection, all, get};
use crate::host::{Pair, Server};
use crate::measure::{Measured, Side};
use crate::report::{Line, Target, Unit};

/// Events of a run.
const EVENTS: u64 = 10_000;

/// Bytes of an event's data.
const SIZE: usize = 64;

pub const SCENARIO: Scenario = Scenario {
    name: "events",
    about: "runs that emit 10,000 events each, durable before visible, one reader each",
    n: 64,
    of: "runs",
    grows_from: Some(16),
    long: false,
    lines: &[
        Line::of("events", Unit::PerSecond)
            .beside(Side::Native)
            .reaches(Target::AtLeast(200_000.0)),
        Line::of("events", Unit::PerSecond).beside(Side::Bare).reaches(Target::RatioAtLeast(0.5)),
        Line::of("cpu of an event", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::AtMost(3e-6)),
        Line::of("events of a commit", Unit::Number),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let total = EVENTS * bench.n as u64;
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let before = server.committed().await?;
            let cpu = server.process.cpu()?;
            let elapsed = pass(server, bench.n, EVENTS, SIZE).await?;
            let cpu = server.process.cpu()? - cpu;
            let figures = [
                ("events", total as f64 / elapsed.as_secs_f64()),
                ("cpu of an event", cpu.as_secs_f64() / total as f64),
            ];
            measured.add(round, server.side, figures);
            if server.side == Side::Bureau {
                let done = server.committed().await?.since(before);
                let batch = done.events / done.commits;
                measured.add(round, server.side, [("events of a commit", batch)]);
            }
        }
        let rate = bare::redb(bench.directory, total, SIZE)?;
        measured.add(round, Side::Bare, [("events", rate)]);
    }
    Ok(measured)
}

/// How long it takes until all readers have all events.
pub(super) async fn pass(
    server: &Server,
    runs: usize,
    events: u64,
    size: usize,
) -> anyhow::Result<Duration> {
    let mut connections = Connection::open_all(server.address, runs).await?;
    let one = async |(run, connection): (usize, &mut Connection)| {
        let path = format_args!("/agents/load/events-{run}/events?n={events}&size={size}");
        connection.send(&get(path)).await?;
        let count = connection.stream().await?.count().await?;
        ensure!(count == events, "{count} events came instead of {events}");
        Ok(())
    };
    let start = Instant::now();
    all(connections.iter_mut().enumerate().map(one)).await?;
    Ok(start.elapsed())
}
