//! Replies that write state, which is durable before they leave.
//!
//! Each connection has an instance of its own, and each request writes its document of about 40 bytes. The native server
//! appends a record of that size to a log that shares a sync among all who wait, as the fastest durable thing that
//! one would write by hand; the rate must be at least 0.8 of its. Then one connection alone: it must pay one disk sync
//! and not two, so the difference to the log, which pays one, is to be less than half of one.

use std::time::Duration;

use super::{Bench, Scenario};
use crate::bare;
use crate::client::get;
use crate::host::Pair;
use crate::measure::{Measured, Side};
use crate::report::{Line, SYNC, Target, Unit};

pub const SCENARIO: Scenario = Scenario {
    name: "state",
    about: "replies that write state, durable before they leave",
    n: 64,
    of: "instances",
    grows_from: None,
    long: false,
    lines: &[
        Line::of("replies", Unit::PerSecond)
            .beside(Side::Native)
            .reaches(Target::RatioAtLeast(0.8)),
        Line::of("p50", Unit::Seconds).beside(Side::Native),
        Line::of("p99", Unit::Seconds).beside(Side::Native),
        Line::of("cpu of a reply", Unit::Seconds).beside(Side::Native),
        Line::of("client", Unit::Number).beside(Side::Native),
        Line::of("turns of a commit", Unit::Number),
        Line::of("alone: p50", Unit::Seconds)
            .beside(Side::Native)
            .reaches(Target::Within { times: 1.0, syncs: 0.5 }),
        Line::of("alone: turns of a commit", Unit::Number),
        Line::of(SYNC, Unit::Seconds).beside(Side::Bare),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let requests: Vec<_> =
        (0..bench.n).map(|n| get(format_args!("/agents/load/state-{n}/state"))).collect();
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let before = server.committed().await?;
            let figures = bench.replies(server, bench.n, |index| &requests[index]).await?;
            let together = server.committed().await?.since(before);
            measured.add(round, server.side, figures);

            let before = server.committed().await?;
            let [_, (_, p50), ..] = bench.replies(server, 1, |index| &requests[index]).await?;
            let alone = server.committed().await?.since(before);
            measured.add(round, server.side, [("alone: p50", p50)]);

            if server.side == Side::Bureau {
                let figures = [
                    ("turns of a commit", together.turns / together.commits),
                    ("alone: turns of a commit", alone.turns / alone.commits),
                ];
                measured.add(round, server.side, figures);
            }
        }
        measured.add(round, Side::Bare, [(SYNC, bare::sync(bench.directory)?)]);
    }
    Ok(measured)
}
