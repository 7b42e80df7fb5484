//! Replies beside guests that compute.
//!
//! Each of many live instances gets a request each 20 ms: with nothing beside them, while several other instances compute without a pause, and
//! while others compute a millisecond for each of the requests that come in on as many connections as all of those have. The processors are busy then, and half of the
//! replies may not be later for it; the 99th percentile may be what a guest computes before it gives way.

use std::time::Duration;

use super::{ASKED, Bench, Scenario};
use crate::client::{Connection, all, get, requests};
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
        Line::of("without a pause: p50", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::RatioAtMost(1.5)),
        Line::of("without a pause: p99", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::AtMost(0.010)),
        Line::of("a millisecond each: p50", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::RatioAtMost(1.5)),
        Line::of("a millisecond each: p99", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::AtMost(0.010)),
        Line::of("a millisecond each: their replies", Unit::PerSecond),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let (host, paced) = (&pair.bureau, || bench.paced(&pair.bureau, "asked"));
    for round in bench.rounds() {
        let mut alone = paced().await?;
        let [p50, p99] = quantiles(&mut alone);
        let figures = [
            ("without a pause: p50", p50),
            ("without a pause: p99", p99),
            ("a millisecond each: p50", p50),
            ("a millisecond each: p99", p99),
        ];
        measured.add(round, Side::Control, figures);

        let mut connections = Connection::open_all(host.address, bench.n).await?;
        let computing = (bench.duration + LONGER).as_millis();
        let mut streams = Vec::new();
        for (guest, connection) in connections.iter_mut().enumerate() {
            let path = format!("/agents/load/computing-{guest}/compute-on?for={computing}");
            connection.send(&get(path)).await?;
            streams.push(connection.stream().await?);
        }
        let [p50, p99] = quantiles(&mut paced().await?);
        measured.add(
            round,
            Side::Bureau,
            [("without a pause: p50", p50), ("without a pause: p99", p99)],
        );
        all(streams.into_iter().map(|stream| stream.count())).await?;

        let mut connections = Connection::open_all(host.address, ASKED).await?;
        let request = |connection| {
            let guest = connection % bench.n;
            get(format_args!("/agents/load/computing-{guest}/compute?for=1"))
        };
        let short = requests(&mut connections, bench.duration, request);
        let (mut beside, short) = futures_util::try_join!(paced(), short)?;
        let [p50, p99] = quantiles(&mut beside);
        let figures = [
            ("a millisecond each: p50", p50),
            ("a millisecond each: p99", p99),
            ("a millisecond each: their replies", short.rate()),
        ];
        measured.add(round, Side::Bureau, figures);
    }
    Ok(measured)
}

fn quantiles(replies: &mut Latencies) -> [f64; 2] {
    [0.5, 0.99].map(|share| replies.quantile(share))
}
