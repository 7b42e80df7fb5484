//! Plain replies of one live instance, and of many.
//!
//! Connections that are kept each send a request as soon as the one before it was answered, all to the same instance. So this
//! is the way from the socket through the instance's mailbox into the guest and back, with nothing to be made
//! durable. The rate must be at least 0.75 of hyper's. The client takes as much of the processors as a server does, and
//! the slower side leaves more of them to it, so processor time per request says more of the cost. Then each connection has an
//! instance of its own, as users have: calls share no poll, and what each touches is no longer in the nearest caches.

use std::time::Duration;

use super::{Bench, Scenario};
use crate::client::get;
use crate::host::Pair;
use crate::measure::{Measured, Side};
use crate::report::{Line, Target, Unit};

pub const SCENARIO: Scenario = Scenario {
    name: "live",
    about: "plain replies from one live instance, on kept connections",
    n: 64,
    of: "connections",
    grows_from: Some(16),
    long: false,
    lines: &[
        Line::of("replies", Unit::PerSecond)
            .beside(Side::Native)
            .reaches(Target::RatioAtLeast(0.75)),
        Line::of("p50", Unit::Seconds).beside(Side::Native),
        Line::of("p99", Unit::Seconds).beside(Side::Native),
        Line::of("cpu of a reply", Unit::Seconds).beside(Side::Native),
        Line::of("client", Unit::Number).beside(Side::Native),
        Line::of("an instance each: replies", Unit::PerSecond).beside(Side::Native),
        Line::of("an instance each: p99", Unit::Seconds).beside(Side::Native),
        Line::of("an instance each: cpu of a reply", Unit::Seconds).beside(Side::Native),
    ],
    deadline: Duration::from_secs(300),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    let shared = get("/agents/load/live/plain");
    let own: Vec<_> =
        (0..bench.n).map(|n| get(format_args!("/agents/load/live-{n}/plain"))).collect();
    for round in bench.rounds() {
        for server in pair.in_turn(round) {
            let figures = bench.replies(server, bench.n, |_| &shared).await?;
            measured.add(round, server.side, figures);

            let [(_, rate), _, (_, p99), _, (_, cpu)] =
                bench.replies(server, bench.n, |index| &own[index]).await?;
            let figures = [
                ("an instance each: replies", rate),
                ("an instance each: p99", p99),
                ("an instance each: cpu of a reply", cpu),
            ];
            measured.add(round, server.side, figures);
        }
    }
    Ok(measured)
}
