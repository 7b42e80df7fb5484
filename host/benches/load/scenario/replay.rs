//! Readers who come back to a long run that is over, all at once.
//!
//! A run has emitted its events of 64 bytes. Sixteen clients come back with its first event's id, each on a connection of its
//! own, and read the rest; the native server has it all in memory, rendered. The rate must be at least half of
//! hyper's, and the first event must come within 5 ms however long the run is, also to one who comes alone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::{Bench, Scenario, cursor};
use crate::client::{Connection, all, get, resume};
use crate::host::{Pair, Server};
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, Target, Unit};

/// Readers at once.
pub(super) const READERS: usize = 16;

/// How often one comes alone.
const ALONE: usize = 20;

pub const SCENARIO: Scenario = Scenario {
    name: "replay",
    about: "16 readers who come back to the first event of a run that is over",
    n: 100_000,
    of: "events",
    grows_from: Some(25_000),
    long: false,
    lines: &[
        Line::of("events", Unit::PerSecond).beside(Side::Native).reaches(Target::RatioAtLeast(0.5)),
        Line::of("cpu of an event", Unit::Seconds).beside(Side::Native),
        Line::of("first event, p50", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::AtMost(0.005)),
        Line::of("first event, slowest", Unit::Seconds).beside(Side::Native),
        Line::of("alone: first event, slowest", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::AtMost(0.005)),
    ],
    deadline: Duration::from_secs(180),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let events = bench.n.max(2) as u64;
    let path = format!("/agents/load/replay/events?n={events}&size=64");
    let begin = async |server| begin(server, &path, events).await;
    let [bureau, native] = [begin(&pair.bureau).await?, begin(&pair.native).await?];
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let cursor = if server.side == Side::Bureau { &bureau } else { &native };
            let request = resume(&path, cursor);
            let (start, cpu) = (Instant::now(), server.process.cpu()?);
            let mut first = read(server, &request, READERS, events - 1).await?;
            let (elapsed, cpu) = (start.elapsed(), server.process.cpu()? - cpu);
            let total = (READERS as u64 * (events - 1)) as f64;
            let mut alone = Latencies::default();
            for _ in 0..ALONE {
                alone.append(&mut read(server, &request, 1, 1).await?);
            }
            let figures = [
                ("events", total / elapsed.as_secs_f64()),
                ("cpu of an event", cpu.as_secs_f64() / total),
                ("first event, p50", first.quantile(0.5)),
                ("first event, slowest", first.quantile(1.0)),
                ("alone: first event, slowest", alone.quantile(1.0)),
            ];
            measured.add(round, server.side, figures);
        }
    }
    Ok(measured)
}

/// Lets a run come and end, and returns the cursor of its first event.
pub(super) async fn begin(server: &Server, path: &str, events: u64) -> anyhow::Result<String> {
    let mut connection = Connection::open(server.address).await?;
    connection.send(&get(path)).await?;
    let mut stream = connection.stream().await?;
    let (mut first, mut count) = (None, 0);
    while stream
        .next(|event| {
            count += 1;
            first.get_or_insert_with(|| cursor(event));
        })
        .await?
    {}
    ensure!(count == events, "{count} events came instead of {events}");
    first.context("the run has no event")?
}

/// Sends the request on so many connections and reads at least so many events on each; returns how long each waited for its
/// first.
pub(super) async fn read(
    server: &Server,
    request: &[u8],
    readers: usize,
    events: u64,
) -> anyhow::Result<Latencies> {
    let mut connections = Connection::open_all(server.address, readers).await?;
    let one = async |connection: &mut Connection| {
        let start = Instant::now();
        connection.send(request).await?;
        let mut stream = connection.stream().await?;
        let (mut first, mut count) = (None, 0);
        while count < events {
            let each = |_: &[u8]| {
                first.get_or_insert_with(|| start.elapsed());
                count += 1;
            };
            let goes_on = stream.next(each).await?;
            ensure!(goes_on || count >= events, "{count} events came instead of {events}");
        }
        first.context("there is no event")
    };
    let mut latencies = Latencies::default();
    for first in all(connections.iter_mut().map(one)).await? {
        latencies.add(first);
    }
    Ok(latencies)
}
