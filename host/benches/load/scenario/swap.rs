//! Swaps while requests come in.
//!
//! Each of many live instances gets a request each 20 ms. The host is then given a new build of their agent, which it compiles
//! and swaps in, and after that the first build again, which it has compiled before. Every instance starts anew. The 99th
//! percentile may be one commit, which is a disk sync, above what it is when nothing happens. A compilation takes
//! whatever processors there are: where they are few, that is what the figures show.

use std::time::{Duration, Instant};

use super::{Bench, Scenario};
use crate::bare;
use crate::host::{Pair, Server};
use crate::measure::{Latencies, Measured, Side};
use crate::report::{Line, SYNC, Target, Unit};

pub const SCENARIO: Scenario = Scenario {
    name: "swap",
    about: "replies of live instances, one each 20 ms, while their module is swapped",
    n: 64,
    of: "instances",
    grows_from: None,
    long: false,
    lines: &[
        Line::of("a known build: p99", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::Within { times: 1.0, syncs: 1.0 }),
        Line::of("a known build: slowest", Unit::Seconds).beside(Side::Control),
        Line::of("a known build: until it serves", Unit::Seconds),
        Line::of("a new build: p99", Unit::Seconds)
            .beside(Side::Control)
            .reaches(Target::Within { times: 1.0, syncs: 1.0 }),
        Line::of("a new build: slowest", Unit::Seconds).beside(Side::Control),
        Line::of("a new build: until it serves", Unit::Seconds),
        Line::of(SYNC, Unit::Seconds).beside(Side::Bare),
    ],
    deadline: Duration::from_secs(180),
    config: CONFIG,
    run: |bench, pair| Box::pin(run(bench, pair)),
};

const CONFIG: &str = "";

async fn run(bench: &Bench<'_>, pair: &mut Pair) -> anyhow::Result<Measured> {
    let mut measured = Measured::default();
    pair.bureau = bench.programs.swapping_bureau(CONFIG).await?;
    let host = &pair.bureau;
    let first = bench.programs.other_module(0)?;
    host.swap(&first).await?;
    for (build, round) in (1..).zip(bench.rounds()) {
        let (_, mut still) = pass(bench, host, None).await?;
        let new = bench.programs.other_module(build)?;
        let (new, mut while_new) = pass(bench, host, Some(&new)).await?;
        let (known, mut while_known) = pass(bench, host, Some(&first)).await?;
        let (p99, slowest) = (still.quantile(0.99), still.quantile(1.0));
        let figures = [
            ("a known build: p99", p99),
            ("a known build: slowest", slowest),
            ("a new build: p99", p99),
            ("a new build: slowest", slowest),
        ];
        measured.add(round, Side::Control, figures);
        let figures = [
            ("a known build: p99", while_known.quantile(0.99)),
            ("a known build: slowest", while_known.quantile(1.0)),
            ("a known build: until it serves", known.as_secs_f64()),
            ("a new build: p99", while_new.quantile(0.99)),
            ("a new build: slowest", while_new.quantile(1.0)),
            ("a new build: until it serves", new.as_secs_f64()),
        ];
        measured.add(round, Side::Bureau, figures);
        measured.add(round, Side::Bare, [(SYNC, bare::sync(bench.directory)?)]);
    }
    Ok(measured)
}

/// Asks all instances again and again while the host is given a module, if there is one. Returns how long it took until
/// the module served, and each answer.
async fn pass(
    bench: &Bench<'_>,
    host: &Server,
    module: Option<&[u8]>,
) -> anyhow::Result<(Duration, Latencies)> {
    let start = Instant::now();
    let asking = bench.paced(host, "swapped");
    let swapping = async {
        if let Some(module) = module {
            // In the middle, so that there is time before and after.
            tokio::time::sleep(bench.duration / 4).await;
            host.swap(module).await?;
        }
        Ok(start.elapsed().saturating_sub(bench.duration / 4))
    };
    let (latencies, took) = futures_util::try_join!(asking, swapping)?;
    Ok((took, latencies))
}
