//! One run that many read.
//!
//! A run emits an event each 50 ms. Its readers come back with a cursor of it, each on a connection of its own, and all of
//! them get every event. A delivered event may cost 1.1 times the processor time that hyper takes, which gets it
//! through a channel from one task; and no more in a run that had 100,000 events before than in one that just began.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::{Bench, Scenario, cursor, lag};
use crate::client::{Connection, Stream, all, get, resume};
use crate::host::{Pair, Server};
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, Target, Unit};

/// Time between two events, in milliseconds.
pub(super) const DELAY: u64 = 50;

/// Events of a run with a past.
const HISTORY: u64 = 100_000;

/// How long a run goes on at most, in events: readers take their time to come.
const LENGTH: u64 = 60_000 / DELAY;

pub const SCENARIO: Scenario = Scenario {
    name: "fan-out",
    about: "one run that emits an event each 50 ms, to many readers",
    n: 1000,
    of: "readers",
    grows_from: Some(250),
    long: false,
    lines: &[
        Line::of("cpu of a delivery", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::RatioAtMost(1.1)),
        Line::of("deliveries", Unit::PerSecond).beside(Side::Native),
        Line::of("p50", Unit::Seconds).beside(Side::Native),
        Line::of("p99", Unit::Seconds).beside(Side::Native),
        Line::of("with a past: cpu of a delivery", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::RatioAtMost(1.1)),
    ],
    deadline: Duration::from_secs(180),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let mut new = pass(bench, server, bench.n, 0).await?;
            let figures = [
                ("cpu of a delivery", new.cpu),
                ("deliveries", new.lags.count() as f64 / bench.duration.as_secs_f64()),
                ("p50", new.lags.quantile(0.5)),
                ("p99", new.lags.quantile(0.99)),
            ];
            measured.add(round, server.side, figures);
            if server.side == Side::Bureau {
                let old = pass(bench, server, bench.n, HISTORY).await?;
                let metric = "with a past: cpu of a delivery";
                measured.add(round, Side::Bureau, [(metric, old.cpu)]);
                measured.add(round, Side::Control, [(metric, new.cpu)]);
            }
        }
    }
    Ok(measured)
}

/// What readers of a run got.
pub(super) struct Delivered {
    /// How late each event of each reader was.
    pub(super) lags: Latencies,
    /// The server's processor time for each of them, in seconds.
    pub(super) cpu: f64,
}

/// Lets so many readers read a run that had so many events before.
pub(super) async fn pass(
    bench: &Bench<'_>,
    server: &Server,
    readers: usize,
    history: u64,
) -> anyhow::Result<Delivered> {
    let path =
        format!("/agents/load/fan-out/events?n={LENGTH}&size=20&delay={DELAY}&history={history}");
    let mut first = Connection::open(server.address).await?;
    first.send(&get(&path)).await?;
    let mut first = first.stream().await?;
    // Native runs have no past.
    let past = if server.side == Side::Native { 0 } else { history };
    let (mut count, mut last) = (0, None);
    while count <= past {
        let more = first.next(|event| {
            count += 1;
            last = Some(cursor(event));
        });
        if !more.await? {
            bail!("the run ended");
        }
    }
    let cursor = last.context("the run has no event")??;

    let mut connections = Connection::open_all(server.address, readers).await?;
    let streams = connections.iter_mut().map(async |connection| {
        connection.send(&resume(&path, &cursor)).await?;
        connection.stream().await
    });
    let delivered = read(bench, server, all(streams).await?).await?;
    server.cancel([first.run.clone()]).await?;
    Ok(delivered)
}

/// Reads these streams of events, each of which says when it was emitted.
pub(super) async fn read(
    bench: &Bench<'_>,
    server: &Server,
    streams: Vec<Stream<'_>>,
) -> anyhow::Result<Delivered> {
    let (lags, wrong) = (RefCell::new(Latencies::default()), Cell::new(None));
    let reading = all(streams.into_iter().map(async |mut stream| {
        let each = |event: &[u8]| match lag(event) {
            Ok(lag) => lags.borrow_mut().add(lag),
            // A comment says nothing.
            Err(_) if event.starts_with(b":") => {}
            Err(error) => wrong.set(Some(error)),
        };
        while stream.next(each).await? {}
        Ok(())
    }));
    // What was emitted while they came is not what is measured.
    let mut reading = std::pin::pin!(reading);
    let mut cpu = Duration::ZERO;
    for counts in [false, true] {
        lags.take();
        let before = server.process.cpu()?;
        tokio::select! {
            ended = &mut reading => bail!("the readers' streams ended: {:?}", ended.err()),
            () = tokio::time::sleep(if counts { bench.duration } else { bench.duration / 4 }) => {}
        }
        cpu = server.process.cpu()? - before;
    }
    wrong.take().map_or(Ok(()), Err)?;
    let lags = lags.take();
    Ok(Delivered { cpu: cpu.as_secs_f64() / lags.count() as f64, lags })
}
