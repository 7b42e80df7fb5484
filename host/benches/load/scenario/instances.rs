//! Memory of instances that are live, and of those that were.
//!
//! Each of many instances of an agent in Rust gets one request and stays live: it may take at most 80 KiB. Then nothing
//! is asked of them until all have retired: what is left must not grow with how many there were. Then all of
//! them are asked once more, and must not take more than at first. In every round the host starts with nothing.

use std::cell::Cell;
use std::time::{Duration, Instant};

use anyhow::ensure;

use super::{Bench, Scenario};
use crate::client::{Connection, all, get};
use crate::host::{After, Pair, Server};
use crate::measure::{Measured, Side};
use crate::report::{Line, Target, Unit};

/// Connections that the requests come on.
const CONNECTIONS: usize = 16;

/// How long it may take until all instances have retired; the host looks for idle ones each second.
const RETIRED: Duration = Duration::from_secs(30);

pub const SCENARIO: Scenario = Scenario {
    name: "instances",
    about: "instances that are live, and then are not",
    n: 10_000,
    of: "instances",
    grows_from: Some(1250),
    long: false,
    lines: &[
        Line::of("memory of a live one", Unit::Bytes).reaches(Target::AtMost(80.0 * 1024.0)),
        Line::of("memory of one that retired", Unit::Bytes).reaches(Target::AtMost(1024.0)),
        Line::of("memory of a live one, again", Unit::Bytes)
            .beside(Side::Control)
            .reaches(Target::RatioAtMost(1.1)),
        Line::of("starts", Unit::PerSecond),
        Line::of("starts, again", Unit::PerSecond),
    ],
    deadline: Duration::from_secs(180),
    config: "[instances]\nlive = 10_000\nidle = \"4s\"",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let host = &mut pair.bureau;
    for round in bench.rounds() {
        host.restart(After::Nothing).await?;
        // The first of all makes what is there once.
        touch(host, 1).await?;
        let before = host.process.memory()?;
        let memory = |host: &Server| anyhow::Ok((host.process.memory()? - before) / bench.n as f64);
        let starts = touch(host, bench.n).await?;
        let live = memory(host)?;
        retired(host).await?;
        let left = memory(host)?;
        let starts_again = touch(host, bench.n).await?;
        let again = memory(host)?;
        let figures = [
            ("memory of a live one", live),
            ("memory of one that retired", left),
            ("memory of a live one, again", again),
            ("starts", starts),
            ("starts, again", starts_again),
        ];
        measured.add(round, Side::Bureau, figures);
        measured.add(round, Side::Control, [("memory of a live one, again", live)]);
    }
    Ok(measured)
}

/// Asks each of so many instances once; returns how many a second answered. All of them are live then.
async fn touch(host: &Server, instances: usize) -> anyhow::Result<f64> {
    let mut connections = Connection::open_all(host.address, CONNECTIONS).await?;
    let asked = Cell::new(0);
    let start = Instant::now();
    let one = async |connection: &mut Connection| {
        while asked.get() < instances {
            asked.update(|asked| asked + 1);
            let path = format_args!("/agents/load/touched-{}/plain", asked.get());
            connection.send(&get(path)).await?;
            connection.reply().await?;
        }
        Ok(())
    };
    all(connections.iter_mut().map(one)).await?;
    let elapsed = start.elapsed();
    let live = live(host).await?;
    ensure!(live >= instances as f64, "{live} instances are live instead of {instances}");
    Ok(instances as f64 / elapsed.as_secs_f64())
}

/// How long the allocator keeps what was freed before it gives it back.
const GIVEN_BACK: Duration = Duration::from_secs(3);

/// Waits until no instance is live, and what it had was given back.
async fn retired(host: &Server) -> anyhow::Result<()> {
    let start = Instant::now();
    while live(host).await? > 0.0 {
        ensure!(start.elapsed() < RETIRED, "the instances do not retire");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(GIVEN_BACK).await;
    Ok(())
}

async fn live(host: &Server) -> anyhow::Result<f64> {
    host.metrics().await?.figure("live_instances")
}
