//! Plain replies of instances that come into being for them.
//!
//! As `live`, but each request goes to a name that was never used before: the module is compiled and warm, the instance is
//! made, and once there are as many as may live, another retires for it. The host's defaults hold, and its journal
//! is on disk. The rate must be at least 0.30 of hyper's, and p99 under 3 ms; the connections are few, as with 64 of
//! them the mean alone would be more at that rate.

use std::cell::Cell;
use std::time::Duration;

use super::{Bench, Scenario};
use crate::client::get;
use crate::host::Pair;
use crate::measure::{Measured, Side};
use crate::report::{Line, Target, Unit};

pub const SCENARIO: Scenario = Scenario {
    name: "new",
    about: "plain replies, each from an instance that is new",
    n: 16,
    of: "connections",
    grows_from: None,
    long: false,
    lines: &[
        Line::of("replies", Unit::PerSecond)
            .beside(Side::Native)
            .reaches(Target::RatioAtLeast(0.3)),
        Line::of("p50", Unit::Seconds).beside(Side::Native),
        Line::of("p99", Unit::Seconds).beside(Side::Native).reaches(Target::AtMost(0.003)),
        Line::of("cpu of a reply", Unit::Seconds).beside(Side::Native),
        Line::of("client", Unit::Number).beside(Side::Native),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let used = Cell::new(0);
    let request = |_| {
        used.update(|used| used + 1);
        get(format_args!("/agents/load/new-{}/plain", used.get()))
    };
    let mut measured = Measured::default();
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            measured.add(round, server.side, bench.replies(server, bench.n, request).await?);
        }
    }
    Ok(measured)
}
