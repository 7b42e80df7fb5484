//! Replies beside guests that compute.
//!
//! Each of many live instances gets a request each 20 ms, first with nothing beside them, and then while so many other instances compute
//! without a pause: more than there are processors. Half of the replies may not be later for it, and the 99th percentile may be what a guest computes before it
//! gives way.

use std::time::Duration;

use super::{Bench, Scenario};
use crate::client::{Connection, all, get};
use crate::host::Pair;
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, Target, Unit};

/// How much longer guests compute than requests are sent.
const LONGER: Duration = Duration::from_millis(200);

pub const SCENARIO: Scenario = Scenario {
    name: "computing",
    about: "replies of live instances, one each 20 ms, beside guests that compute",
    n: 8,
    of: "guests",
    grows_from: None,
    long: false,
    lines: &[
        Line::of("p50", Unit::Seconds).beside(Side::Control).reaches(Target::RatioAtMost(1.5)),
        Line::of("p99", Unit::Seconds).beside(Side::Control).reaches(Target::AtMost(0.010)),
        Line::of("slowest", Unit::Seconds).beside(Side::Control),
    ],
    deadline: Duration::from_secs(120),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    for round in bench.rounds() {
        let alone = bench.paced(&pair.bureau, "asked").await?;
        measured.add(round, Side::Control, figures(alone));
        let mut connections = Connection::open_all(pair.bureau.address, bench.n).await?;
        let computing = (bench.duration + LONGER).as_millis();
        let mut streams = Vec::new();
        for (guest, connection) in connections.iter_mut().enumerate() {
            let path = format!("/agents/load/computing-{guest}/compute?for={computing}");
            connection.send(&get(path)).await?;
            streams.push(connection.stream().await?);
        }
        let beside = bench.paced(&pair.bureau, "asked").await?;
        measured.add(round, Side::Bureau, figures(beside));
        all(streams.into_iter().map(|stream| stream.count())).await?;
    }
    Ok(measured)
}

fn figures(mut replies: Latencies) -> [(&'static str, f64); 3] {
    [
        ("p50", replies.quantile(0.5)),
        ("p99", replies.quantile(0.99)),
        ("slowest", replies.quantile(1.0)),
    ]
}
