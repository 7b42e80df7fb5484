//! The time to the first event, with a new connection each.
//!
//! One client at a time connects, asks a live instance for a run, and waits for its first event, which is durable by then. This
//! must take at most one and a half times what hyper takes for an event from memory, and one disk sync.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::{Bench, Scenario};
use crate::bare;
use crate::client::{Connection, get};
use crate::host::{Pair, Server};
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, SYNC, Target, Unit};

pub const SCENARIO: Scenario = Scenario {
    name: "first-event",
    about: "from connecting to the first event of a run, one after the other",
    n: 64,
    of: "instances",
    grows_from: None,
    long: false,
    lines: &[
        Line::of("p50", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::Within { times: 1.5, syncs: 1.0 }),
        Line::of("p99", Unit::Seconds).beside(Side::Native),
        Line::of(SYNC, Unit::Seconds).beside(Side::Bare),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for round in bench.rounds() {
        let (mut blocks, mut syncs) = (bare::Blocks::new(bench.directory)?, Latencies::default());
        for server in pair.in_turn(round) {
            let start = Instant::now();
            let mut latencies = Latencies::default();
            for instance in (0..bench.n).cycle() {
                latencies.add(first_event(server, instance).await?);
                syncs.add(blocks.sync()?);
                if start.elapsed() >= bench.duration {
                    break;
                }
            }
            let figures = [("p50", latencies.quantile(0.5)), ("p99", latencies.quantile(0.99))];
            measured.add(round, server.side, figures);
        }
        measured.add(round, Side::Bare, [(SYNC, syncs.quantile(0.5))]);
    }
    Ok(measured)
}

async fn first_event(server: &Server, instance: usize) -> anyhow::Result<Duration> {
    let request = get(format_args!("/agents/load/first-{instance}/events?n=1&size=64"));
    let start = Instant::now();
    let mut connection = Connection::open(server.address).await?;
    connection.send(&request).await?;
    let mut stream = connection.stream().await?;
    let mut first = None;
    while stream.next(|_| first = first.or(Some(start.elapsed()))).await? {}
    first.context("the run has no event")
}
