//! Other hosts of agents under the same load, each with what it is good for.
//!
//! The loads are those of `live`, `new`, `state`, `events`, `tokens`, `fan-out` and `replay`; and as many streams are opened as are eight times the
//! connections and stay silent. The native server and each other host have them by turns with the host, which must be ahead of
//! all others. Only the host's events are durable, and only its replies and workerd's keep what was written. `wasmtime serve` knows no
//! instances by name: it gives each request to any of those it has, and to a new one when it is told to. nchan runs nothing, so what its streams
//! have is published from here; it alone has readers of one and the same stream, as the host has of a run.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;

use super::{Bench, Scenario, events, fan_out, idle, replay, tokens};
use crate::client::{Connection, all, get, publish, resume, subscribe};
use crate::host::{After, Pair, Server};
use crate::measure::{Measured, Round, Side};
use crate::peers;
use crate::report::{Line, Target, Unit};

/// Events of a run, and the bytes of each.
const EVENTS: u64 = 10_000;
const SIZE: usize = 64;

/// Connections of requests for new instances, as of `new`.
const NEW: usize = 16;

/// Streams that are open for each connection of the other loads. `wasmtime serve` has a thousand at most.
const STREAMS: usize = 8;

/// Runs that emit an event each 20 ms, for each connection: as many as slow processors carry.
const PACED: usize = 4;

/// Events that readers who come back get.
const REPLAYED: u64 = 20_000;

const AHEAD: Target = Target::RatioAtLeast(1.0);
const LESS: Target = Target::RatioAtMost(1.0);

pub const SCENARIO: Scenario = Scenario {
    name: "peers",
    about: "other hosts, those of them that are installed, under the same load",
    n: 64,
    of: "connections, instances and runs",
    grows_from: None,
    long: true,
    lines: &[
        Line::of("plain replies", Unit::PerSecond).beside(Side::Native),
        Line::of("plain replies", Unit::PerSecond).beside(Side::Wasmtime).reaches(AHEAD),
        Line::of("plain replies", Unit::PerSecond).beside(Side::Workerd).reaches(AHEAD),
        Line::of("plain replies: p99", Unit::Seconds).beside(Side::Native),
        Line::of("plain replies: p99", Unit::Seconds).beside(Side::Wasmtime).reaches(LESS),
        Line::of("plain replies: p99", Unit::Seconds).beside(Side::Workerd).reaches(LESS),
        Line::of("new instances", Unit::PerSecond).beside(Side::Native),
        Line::of("new instances", Unit::PerSecond).beside(Side::WasmtimeFresh).reaches(AHEAD),
        Line::of("new instances", Unit::PerSecond).beside(Side::Workerd).reaches(AHEAD),
        Line::of("new instances: p99", Unit::Seconds).beside(Side::Native),
        Line::of("new instances: p99", Unit::Seconds).beside(Side::WasmtimeFresh).reaches(LESS),
        Line::of("new instances: p99", Unit::Seconds).beside(Side::Workerd).reaches(LESS),
        Line::of("states written", Unit::PerSecond).beside(Side::Native),
        Line::of("states written", Unit::PerSecond).beside(Side::Workerd).reaches(AHEAD),
        Line::of("events", Unit::PerSecond).beside(Side::Native),
        Line::of("events", Unit::PerSecond).beside(Side::Wasmtime).reaches(AHEAD),
        Line::of("events", Unit::PerSecond).beside(Side::Workerd).reaches(AHEAD),
        Line::of("paced events: p99", Unit::Seconds).beside(Side::Native),
        Line::of("paced events: p99", Unit::Seconds).beside(Side::Wasmtime).reaches(LESS),
        Line::of("paced events: p99", Unit::Seconds).beside(Side::Workerd).reaches(LESS),
        Line::of("cpu of a paced event", Unit::Seconds).beside(Side::Native),
        Line::of("cpu of a paced event", Unit::Seconds).beside(Side::Wasmtime).reaches(LESS),
        Line::of("cpu of a paced event", Unit::Seconds).beside(Side::Workerd).reaches(LESS),
        Line::of("memory of a stream", Unit::Bytes).beside(Side::Native),
        Line::of("memory of a stream", Unit::Bytes).beside(Side::Wasmtime).reaches(LESS),
        Line::of("memory of a stream", Unit::Bytes).beside(Side::Workerd).reaches(LESS),
        Line::of("memory of a stream", Unit::Bytes).beside(Side::Nchan).reaches(LESS),
        Line::of("cpu of a delivery", Unit::Seconds).beside(Side::Native),
        Line::of("cpu of a delivery", Unit::Seconds).beside(Side::Nchan).reaches(LESS),
        Line::of("deliveries: p99", Unit::Seconds).beside(Side::Native),
        Line::of("deliveries: p99", Unit::Seconds).beside(Side::Nchan).reaches(LESS),
        Line::of("events replayed", Unit::PerSecond).beside(Side::Native),
        Line::of("events replayed", Unit::PerSecond).beside(Side::Nchan).reaches(AHEAD),
    ],
    deadline: Duration::from_secs(900),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    pair.peers = peers::start(bench.programs).await?;

    let mut measured = Measured::default();
    let names = Cell::new(0);
    for round in bench.rounds() {
        let Pair { bureau, native, peers, .. } = &mut *pair;
        let mut servers: Vec<_> = [bureau, native].into_iter().chain(peers).collect();
        if round.is_reversed() {
            servers.reverse();
        }
        for server in servers {
            server.restart(After::Kill).await?;
            load(bench, server, round, &names, &mut measured).await?;
        }
    }
    Ok(measured)
}

/// Puts one of them under all loads that it is there for.
async fn load(
    bench: &Bench<'_>,
    server: &Server,
    round: Round,
    names: &Cell<u32>,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let side = server.side;
    if side != Side::WasmtimeFresh {
        let [memory, ..] = idle::pass(bench, server, STREAMS * bench.n).await?;
        measured.add(round, side, [memory]);
    }
    if matches!(side, Side::Bureau | Side::Native | Side::Nchan) {
        let mut delivered = deliveries(bench, server, STREAMS * bench.n).await?;
        let p99 = delivered.lags.quantile(0.99);
        measured.add(round, side, [("cpu of a delivery", delivered.cpu), ("deliveries: p99", p99)]);
        measured.add(round, side, [("events replayed", replayed(server).await?)]);
    }
    if !matches!(side, Side::WasmtimeFresh | Side::Nchan) {
        let plain = get("/agents/load/live/plain");
        let [(_, rate), _, (_, p99), ..] = bench.replies(server, bench.n, |_| &plain).await?;
        measured.add(round, side, [("plain replies", rate), ("plain replies: p99", p99)]);

        let elapsed = events::pass(server, bench.n, EVENTS, SIZE).await?;
        let rate = (EVENTS * bench.n as u64) as f64 / elapsed.as_secs_f64();
        measured.add(round, side, [("events", rate)]);

        let [_, (_, p99), (_, cpu), _] =
            tokens::figures(server, PACED * bench.n, tokens::length(bench.duration)).await?;
        measured.add(round, side, [("paced events: p99", p99), ("cpu of a paced event", cpu)]);
    }
    if !matches!(side, Side::Wasmtime | Side::Nchan) {
        let new = |_| {
            names.update(|names| names + 1);
            get(format_args!("/agents/load/new-{}/plain", names.get()))
        };
        let [(_, rate), _, (_, p99), ..] = bench.replies(server, NEW, new).await?;
        measured.add(round, side, [("new instances", rate), ("new instances: p99", p99)]);
    }
    if matches!(side, Side::Bureau | Side::Native | Side::Workerd) {
        let state = |index| get(format_args!("/agents/load/state-{index}/state"));
        let [(_, rate), ..] = bench.replies(server, bench.n, state).await?;
        measured.add(round, side, [("states written", rate)]);
    }
    Ok(())
}

/// What so many readers of one run get, or of one channel.
async fn deliveries(
    bench: &Bench<'_>,
    server: &Server,
    readers: usize,
) -> anyhow::Result<fan_out::Delivered> {
    if server.side != Side::Nchan {
        return fan_out::pass(bench, server, readers, 0).await;
    }
    let mut connections = Connection::open_all(server.address, readers).await?;
    let request = subscribe("/agents/load/fan-out/events");
    let streams = connections.iter_mut().map(async |connection| {
        connection.send(&request).await?;
        connection.stream().await
    });
    let streams = all(streams).await?;
    let publishing = async {
        let mut connection = Connection::open(server.address).await?;
        loop {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos();
            connection.send(&publish("/agents/load/fan-out/publish", &now.to_string())).await?;
            connection.reply().await?;
            tokio::time::sleep(Duration::from_millis(fan_out::DELAY)).await;
        }
    };
    tokio::select! {
        delivered = fan_out::read(bench, server, streams) => delivered,
        ended = publishing => {
            let ended: anyhow::Result<()> = ended;
            bail!("publishing ended: {:?}", ended.err())
        }
    }
}

/// How many events a second readers get who come back to the first one.
async fn replayed(server: &Server) -> anyhow::Result<f64> {
    let path = format!("/agents/load/replay/events?n={REPLAYED}&size={SIZE}");
    let (request, events) = if server.side == Side::Nchan {
        let event = publish("/agents/load/replay/publish", &"x".repeat(SIZE));
        let mut connections = Connection::open_all(server.address, replay::READERS).await?;
        let published = connections.iter_mut().map(async |connection| {
            for _ in 0..REPLAYED / replay::READERS as u64 {
                connection.send(&event).await?;
                connection.reply().await?;
            }
            Ok(())
        });
        all(published).await?;
        // A comment comes before all of them.
        (subscribe(&path), REPLAYED + 1)
    } else {
        let cursor = replay::begin(server, &path, REPLAYED).await?;
        (resume(&path, cursor), REPLAYED - 1)
    };
    let start = Instant::now();
    replay::read(server, &request, replay::READERS, events).await?;
    Ok(replay::READERS as f64 * REPLAYED as f64 / start.elapsed().as_secs_f64())
}
