//! What reaches the disk for each byte of events.
//!
//! Many runs, in an instance each, emit events of 64 bytes: first as fast as they can, then one each 5 ms, when every commit
//! has few events of many runs. What is written to the disk until the host rests, by whomever, may
//! be 3 times the events' bytes. The bare redb loop writes the same events in batches of 4,096 rows, in this process.

use std::time::Duration;

use anyhow::ensure;

use super::{Bench, Scenario, events};
use crate::bare;
use crate::client::{Connection, all, get};
use crate::host::{Committed, Pair, Server};
use crate::measure::{Disk, Measured, Side};
use crate::report::{Line, Target, Unit};

/// Events of a run that is not paced.
const EVENTS: u64 = 2000;

/// Bytes of an event's data.
const SIZE: usize = 64;

/// Time between two events of a run that is paced.
const DELAY: Duration = Duration::from_millis(5);

/// When a host that has nothing to do has put its log where it is to stay.
const REST: Duration = Duration::from_millis(2500);

pub const SCENARIO: Scenario = Scenario {
    name: "bytes-written",
    about: "bytes that reach the disk for each byte of events",
    n: 64,
    of: "runs",
    grows_from: Some(16),
    long: false,
    lines: &[
        Line::of("bytes of an event byte", Unit::Number)
            .beside(Side::Bare)
            .reaches(Target::AtMost(3.0)),
        Line::of("events of a commit", Unit::Number),
        Line::of("bytes of a commit", Unit::Bytes),
        Line::of("paced: bytes of an event byte", Unit::Number).reaches(Target::AtMost(3.0)),
        Line::of("paced: events of a commit", Unit::Number),
        Line::of("paced: bytes of a commit", Unit::Bytes),
    ],
    deadline: Duration::from_secs(180),
    config: "",
    run: |bench, pair| Box::pin(run(bench, pair)),
};

async fn run(bench: &Bench<'_>, pair: &Pair) -> anyhow::Result<Measured> {
    let (mut measured, host) = (Measured::default(), &pair.bureau);
    let disk = Disk::under(bench.directory)?;
    let events = EVENTS * bench.n as u64;
    for round in bench.rounds() {
        let before = (host.committed().await?, disk.written()?);
        events::pass(host, bench.n, EVENTS, SIZE).await?;
        let [bytes, batch, commit] = written(host, &disk, before).await?;
        let figures = [
            ("bytes of an event byte", bytes),
            ("events of a commit", batch),
            ("bytes of a commit", commit),
        ];
        measured.add(round, Side::Bureau, figures);

        let before = (host.committed().await?, disk.written()?);
        paced(bench, host).await?;
        let [bytes, batch, commit] = written(host, &disk, before).await?;
        let figures = [
            ("paced: bytes of an event byte", bytes),
            ("paced: events of a commit", batch),
            ("paced: bytes of a commit", commit),
        ];
        measured.add(round, Side::Bureau, figures);

        let before = disk.written()?;
        bare::redb(bench.directory, events, SIZE)?;
        let bytes = (disk.written()? - before) / (events as usize * SIZE) as f64;
        measured.add(round, Side::Bare, [("bytes of an event byte", bytes)]);
    }
    Ok(measured)
}

/// Bytes written for each byte of events, events and bytes of a commit, since then.
async fn written(host: &Server, disk: &Disk, before: (Committed, f64)) -> anyhow::Result<[f64; 3]> {
    tokio::time::sleep(REST).await;
    let bytes = disk.written()? - before.1;
    let done = host.committed().await?.since(before.0);
    Ok([bytes / done.events / SIZE as f64, done.events / done.commits, bytes / done.commits])
}

async fn paced(bench: &Bench<'_>, host: &Server) -> anyhow::Result<()> {
    let mut connections = Connection::open_all(host.address, bench.n).await?;
    let events = (bench.duration.as_millis() / DELAY.as_millis()).max(1) as u64;
    let count = bench.n as u32;
    let one = async |(run, connection): (u32, &mut Connection)| {
        tokio::time::sleep(DELAY * run / count).await;
        let delay = DELAY.as_millis();
        let path =
            format_args!("/agents/load/paced-{run}/events?n={events}&size={SIZE}&delay={delay}");
        connection.send(&get(path)).await?;
        let count = connection.stream().await?.count().await?;
        ensure!(count == events, "{count} events came instead of {events}");
        Ok(())
    };
    all((0..).zip(&mut connections).map(one)).await?;
    Ok(())
}
