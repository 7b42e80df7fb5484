//! The scenarios, in the order in which they run. Each is a file of its own, with a [`Scenario`] that says what it must
//! reach, and a place in [`ALL`].

use std::cell::RefCell;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context as _;

use crate::caches::Caches;
use crate::client::{Connection, all, get, requests};
use crate::host::{Pair, Programs, Server};
use crate::measure::{Latencies, Measured, Process, Round};
use crate::report::Line;

mod live;
mod new;
mod state;
mod events;
mod tokens;
mod first_event;
mod fan_out;
mod replay;
mod idle;
mod instances;
mod known;
mod journal;
mod bytes_written;
mod swap;
mod computing;
mod peers;

/// All scenarios.
pub const ALL: &[Scenario] = &[
    live::SCENARIO,
    new::SCENARIO,
    state::SCENARIO,
    events::SCENARIO,
    tokens::SCENARIO,
    first_event::SCENARIO,
    fan_out::SCENARIO,
    replay::SCENARIO,
    idle::SCENARIO,
    instances::SCENARIO,
    known::SCENARIO,
    journal::SCENARIO,
    bytes_written::SCENARIO,
    swap::SCENARIO,
    computing::SCENARIO,
    peers::SCENARIO,
];

/// A kind of load, and what the host must reach under it.
pub struct Scenario {
    pub name: &'static str,
    /// What it does, in a line.
    pub about: &'static str,
    /// Its size, and of what.
    pub n: usize,
    pub of: &'static str,
    /// The smallest of the sizes in which its growth is told, if that is of interest.
    pub grows_from: Option<usize>,
    /// Whether it takes minutes.
    pub long: bool,
    pub lines: &'static [Line],
    /// When it is given up.
    pub deadline: Duration,
    /// What the host's own defaults are changed in, as TOML.
    pub config: &'static str,
    pub run: for<'a> fn(&'a Bench<'a>, &'a mut Pair) -> Running<'a>,
}

/// The figures, in the end.
pub type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<Measured>> + 'a>>;

/// What a scenario runs with.
pub struct Bench<'a> {
    /// Where the servers keep their files, and others may.
    pub directory: &'a Path,
    /// For those that start more servers than the two.
    pub programs: &'a Programs,
    pub caches: &'a Caches,
    /// What a line of the caches took before each round so far, with the one to warm up, and after the last one.
    pub looks: RefCell<Vec<f64>>,
    /// Until when rounds are done again.
    pub again_until: Instant,
    /// How many are to count.
    pub rounds: usize,
    /// How long a side is under load in a round, where time and not work is what is set.
    pub duration: Duration,
    /// The size.
    pub n: usize,
}

impl Bench<'_> {
    /// One round to warm up, and others until enough were quiet or too many were not.
    pub fn rounds(&self) -> impl Iterator<Item = Round> {
        std::iter::from_fn(|| {
            self.looks.borrow_mut().push(self.caches.look());
            let disturbances = self.disturbances();
            let quiet = disturbances.iter().filter(|&&line| line <= self.caches.quiet()).count();
            let may_repeat = self.rounds >= FEWEST
                && disturbances.len() < self.rounds * AGAIN
                && Instant::now() < self.again_until;
            let enough = if may_repeat { quiet } else { disturbances.len() } >= self.rounds;
            (!enough).then(|| Round { number: self.looks.borrow().len() - 1 })
        })
    }

    /// For each round after the one to warm up, the longest that a line of the caches took before and after it.
    pub fn disturbances(&self) -> Vec<f64> {
        let looks = self.looks.borrow();
        looks.windows(2).skip(1).map(|look| look[0].max(look[1])).collect()
    }
}

/// Whoever asks for fewer rounds is in a hurry.
const FEWEST: usize = 3;

/// How many times as many rounds there are at most as are to count.
const AGAIN: usize = 3;

/// What requests for replies show of a server.
type Figures = [(&'static str, f64); 5];

impl Bench<'_> {
    /// Sends a server requests on so many connections, each as soon as the one before it was answered. `request` makes the next
    /// one of a connection.
    async fn replies<R: AsRef<[u8]>>(
        &self,
        server: &Server,
        connections: usize,
        request: impl Fn(usize) -> R,
    ) -> anyhow::Result<Figures> {
        let mut connections = Connection::open_all(server.address, connections).await?;
        let (cpu, own) = (server.process.cpu()?, Process::own().cpu()?);
        let mut replies = requests(&mut connections, self.duration, request).await?;
        let (cpu, own) = (server.process.cpu()? - cpu, Process::own().cpu()? - own);
        Ok([
            ("replies", replies.rate()),
            ("p50", replies.latencies.quantile(0.5)),
            ("p99", replies.latencies.quantile(0.99)),
            ("client", own.as_secs_f64() / replies.elapsed.as_secs_f64()),
            ("cpu of a reply", cpu.as_secs_f64() / replies.latencies.count() as f64),
        ])
    }
}

/// Time between two paced requests to an instance.
const DELAY: Duration = Duration::from_millis(20);

/// Instances that get paced requests.
const ASKED: usize = 64;

impl Bench<'_> {
    /// Sends each of many instances, whose names begin so, a request each 20 ms, and returns how long each answer took.
    async fn paced(&self, host: &Server, names: &str) -> anyhow::Result<Latencies> {
        let mut connections = Connection::open_all(host.address, ASKED).await?;
        let start = Instant::now();
        let end = start + self.duration;
        let each = all((0..).zip(&mut connections).map(async |(instance, connection)| {
            let request = get(format_args!("/agents/load/{names}-{instance}/plain"));
            let mut latencies = Latencies::default();
            let mut next = start + DELAY * instance / ASKED as u32;
            while next < end {
                tokio::time::sleep_until(next.into()).await;
                let sent = Instant::now();
                connection.send(&request).await?;
                connection.reply().await?;
                latencies.add(sent.elapsed());
                next = (next + DELAY).max(Instant::now());
            }
            Ok(latencies)
        }))
        .await?;
        let mut latencies = Latencies::default();
        each.into_iter().for_each(|mut one| latencies.append(&mut one));
        Ok(latencies)
    }
}

/// How long ago an event was emitted, by its data.
fn lag(event: &[u8]) -> anyhow::Result<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let emitted = field(event, "data: ")?.trim_end_matches('.').parse()?;
    Ok(now.saturating_sub(Duration::from_nanos(emitted)))
}

/// Where a client stands that has seen this event last.
fn cursor(event: &[u8]) -> anyhow::Result<String> {
    Ok(field(event, "id: ")?.to_owned())
}

fn field<'a>(event: &'a [u8], name: &str) -> anyhow::Result<&'a str> {
    let mut lines = str::from_utf8(event)?.lines();
    let value = lines.find_map(|line| line.strip_prefix(name));
    value.with_context(|| format!("an event without {name:?}"))
}
