//! What is measured: figures by side and round, and what the kernel says of a process.
//!
//! Each round measures all sides once, so what disturbs the machine for longer than a round disturbs them all. A figure
//! is the median of its rounds with the lowest and the highest; a ratio is taken within each round first.
//! Figures are in seconds, bytes and plain numbers.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The host.
    Bureau,
    /// The server on bare hyper.
    Native,
    /// A loop on the same disk, without any server.
    Bare,
    /// The host without what the scenario puts it to.
    Control,
    /// `wasmtime serve`, which gives an instance many requests.
    Wasmtime,
    /// `wasmtime serve` with a new instance for each request.
    WasmtimeFresh,
    /// workerd with an agent of Cloudflare's Agents SDK.
    Workerd,
    /// nginx with nchan, which keeps streams of events and runs nothing.
    Nchan,
}

/// One of the rounds, in which each side has a turn.
#[derive(Debug, Clone, Copy)]
pub struct Round {
    /// That to warm up, which never counts, is number 0.
    pub number: usize,
}

impl Round {
    /// Whether the order of the sides is turned around.
    pub fn is_reversed(self) -> bool {
        self.number % 2 == 1
    }
}

/// The figures of a scenario: one for each side, metric and round after the one to warm up.
#[derive(Debug, Clone, Default)]
pub struct Measured(BTreeMap<(Side, &'static str), BTreeMap<usize, f64>>);

impl Measured {
    /// Adds what one side showed in a round.
    pub fn add<const N: usize>(
        &mut self,
        round: Round,
        side: Side,
        figures: [(&'static str, f64); N],
    ) {
        for (metric, figure) in figures.into_iter().filter(|_| round.number > 0) {
            self.0.entry((side, metric)).or_default().insert(round.number, figure);
        }
    }

    /// What was measured in the rounds for which this holds.
    pub fn of_rounds(&self, mut holds: impl FnMut(Round) -> bool) -> Self {
        let mut chosen = self.clone();
        for figures in chosen.0.values_mut() {
            figures.retain(|&number, _| holds(Round { number }));
        }
        chosen
    }

    /// All that is known of one metric of a side, in the order of the rounds.
    pub fn figures(&self, side: Side, metric: &'static str) -> Option<Vec<f64>> {
        Some(self.0.get(&(side, metric))?.values().copied().collect())
    }

    /// All there is.
    pub fn all(&self) -> impl Iterator<Item = (Side, &'static str, Vec<f64>)> {
        self.0.iter().map(|(&(side, metric), of)| (side, metric, of.values().copied().collect()))
    }
}

/// The median of some figures, and how far they reach.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// The spread of at least one figure.
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self { median, min, max })
    }

    /// The spread of the ratios within each round.
    pub fn of_ratios(figures: &[f64], beside: &[f64]) -> Option<Self> {
        let ratios: Vec<_> = figures.iter().zip(beside).map(|(one, other)| one / other).collect();
        Self::of(&ratios)
    }
}

/// Durations of which quantiles are asked for.
#[derive(Debug, Default)]
pub struct Latencies(Vec<Duration>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(latency);
    }

    pub fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }

    pub fn count(&self) -> u64 {
        self.0.len() as u64
    }

    /// The duration, in seconds, that this share of all stay within.
    pub fn quantile(&mut self, share: f64) -> f64 {
        let last = self.0.len().saturating_sub(1);
        let rank = (last as f64 * share).round() as usize;
        match self.0.len() {
            0 => f64::NAN,
            _ => self.0.select_nth_unstable(rank).1.as_secs_f64(),
        }
    }
}

/// The slope of the line that fits the points best.
pub fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (x, y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0, y + point.1));
    let (x, y) = (x / count, y / count);
    let along = points.iter().map(|point| (point.0 - x).powi(2)).sum::<f64>();
    points.iter().map(|point| (point.0 - x) * (point.1 - y)).sum::<f64>() / along
}

/// The processor time that all processes of the machine have had so far.
pub fn machine_cpu() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let fields = stat.lines().next().context("/proc/stat has lines")?.split_ascii_whitespace();
    // user, nice and system, then idle and waiting for disks, then interrupts and what they left to be done.
    let times: Vec<u64> = fields.skip(1).map(str::parse).collect::<Result<_, _>>()?;
    let busy = times.iter().take(3).chain(times.iter().skip(5).take(2)).sum();
    Ok(ticks(busy))
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs(count) / rustix::param::clock_ticks_per_second() as u32
}

/// The disk under a directory. What the kernel tells of a process is no measure of what reaches it: a page that is written
/// to counts there with all pages that the cache keeps together with it.
pub struct Disk(String);

impl Disk {
    pub fn under(directory: &Path) -> anyhow::Result<Self> {
        let device = fs::metadata(directory)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Self(format!("/sys/dev/block/{major}:{minor}/stat")))
    }

    /// The bytes that were written to it so far, by whomever.
    pub fn written(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(&self.0)
            .with_context(|| format!("cannot read {}: is the directory on a disk?", self.0))?;
        let sectors: f64 = stat.split_whitespace().nth(6).context("sectors written")?.parse()?;
        Ok(sectors * 512.0)
    }
}

/// A process as the kernel sees it.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

impl Process {
    /// This process, which is the client.
    pub fn own() -> Self {
        Self(std::process::id())
    }

    /// The processor time of all its threads so far, also of those that have ended, and of the processes that it started
    /// and that have ended. The kernel tells it in hundredths of a second.
    pub fn cpu(self) -> anyhow::Result<Duration> {
        let stat = self.read("stat")?;
        // What stands before the closing bracket is the program's name, which may hold anything.
        let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a name")?;
        let times: u64 = fields
            .split_ascii_whitespace()
            .skip(11) // Up to `utime`, which `stime` follows, and both again for children.
            .take(4)
            .map(str::parse::<u64>)
            .sum::<Result<_, _>>()?;
        Ok(ticks(times))
    }

    /// The bytes of memory that are its own, with its share of what others have too.
    pub fn memory(self) -> anyhow::Result<f64> {
        Ok(self.figure("smaps_rollup", "Pss:")? * 1024.0)
    }

    /// The number behind this key.
    fn figure(self, file: &str, key: &str) -> anyhow::Result<f64> {
        let text = self.read(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
        Ok(value.with_context(|| format!("/proc/PID/{file} has no {key}"))?.parse()?)
    }

    fn read(self, what: &str) -> anyhow::Result<String> {
        let file = format!("/proc/{}/{what}", self.0);
        fs::read_to_string(&file).with_context(|| format!("cannot read {file}"))
    }
}
