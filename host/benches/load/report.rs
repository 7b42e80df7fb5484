//! What is reported: a table for each outcome, one for its growth, and a file with everything.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::path::Path;

use anyhow::Context as _;
use serde::Serialize;

use crate::measure::{Measured, Round, Side, Spread, slope};
use crate::scenario::{self, Bench, Scenario};

/// The metric of [`Side::Bare`] that targets in disk syncs count in.
pub const SYNC: &str = "disk sync";

/// Share of a processor from which on others are reported: a machine is never quite still.
const DISTURBED: f64 = 0.05;

/// A line of a scenario's table: a metric of the host, beside that of another side, and what it must reach.
#[derive(Debug, Clone, Copy)]
pub struct Line {
    metric: &'static str,
    unit: Unit,
    beside: Option<Side>,
    target: Option<Target>,
}

/// What a figure counts.
#[derive(Debug, Clone, Copy)]
pub enum Unit {
    Number,
    PerSecond,
    Seconds,
    Bytes,
}

/// What a metric must reach.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    AtLeast(f64),
    AtMost(f64),
    RatioAtLeast(f64),
    RatioAtMost(f64),
    /// At most this many times the other side's, and so many disk syncs.
    Within {
        times: f64,
        syncs: f64,
    },
}

impl Line {
    /// A line for this metric.
    pub const fn of(metric: &'static str, unit: Unit) -> Self {
        Self { metric, unit, beside: None, target: None }
    }

    /// With the same metric of another side, and their ratio.
    pub const fn beside(self, side: Side) -> Self {
        Self { beside: Some(side), ..self }
    }

    /// With what it must reach.
    pub const fn reaches(self, target: Target) -> Self {
        Self { target: Some(target), ..self }
    }
}

impl Unit {
    /// A figure with three digits that count.
    fn show(self, figure: f64) -> String {
        let steps: &[(f64, &str)] = match self {
            _ if figure == 0.0 => &[(1.0, "")],
            Self::Number => &[(1.0, "")],
            Self::PerSecond => &[(1e6, " M/s"), (1e3, " k/s"), (1.0, "/s")],
            Self::Bytes => &[
                ((1 << 30) as f64, " GiB"),
                ((1 << 20) as f64, " MiB"),
                ((1 << 10) as f64, " KiB"),
                (1.0, " B"),
            ],
            Self::Seconds => &[(1.0, " s"), (1e-3, " ms"), (1e-6, " us"), (1e-9, " ns")],
        };
        let fits = steps.iter().find(|(step, _)| figure.abs() >= *step);
        let &(step, name) = fits.or(steps.last()).expect("each unit has a name");
        let figure = figure / step;
        match figure.abs() {
            0.0..10.0 => format!("{figure:.2}{name}"),
            10.0..100.0 => format!("{figure:.1}{name}"),
            _ => format!("{figure:.0}{name}"),
        }
    }
}

impl Target {
    fn show(self, unit: Unit) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {}", unit.show(bound)),
            Self::AtMost(bound) => format!("<= {}", unit.show(bound)),
            Self::RatioAtLeast(bound) => format!("ratio >= {bound}"),
            Self::RatioAtMost(bound) => format!("ratio <= {bound}"),
            Self::Within { times, syncs } => format!("<= {times} x + {syncs} sync"),
        }
    }

    /// Whether it is reached; `None` if what it compares with was not measured.
    fn is_met(
        self,
        own: f64,
        other: Option<f64>,
        ratio: Option<f64>,
        sync: Option<f64>,
    ) -> Option<bool> {
        Some(match self {
            Self::AtLeast(bound) => own >= bound,
            Self::AtMost(bound) => own <= bound,
            Self::RatioAtLeast(bound) => ratio? >= bound,
            Self::RatioAtMost(bound) => ratio? <= bound,
            Self::Within { times, syncs } => own <= times * other? + syncs * sync?,
        })
    }
}

/// What came of a scenario in one size.
#[derive(Serialize)]
pub struct Outcome {
    scenario: &'static str,
    about: &'static str,
    n: usize,
    of: &'static str,
    rows: Vec<Row>,
    /// All that was measured, in the order of the rounds, whether they count or not.
    figures: Vec<Figures>,
    caches: Quiet,
    /// How many processors others on the machine kept busy meanwhile.
    disturbed: f64,
    /// What the servers logged beyond the usual.
    warnings: Vec<String>,
}

/// How much others were at the caches.
#[derive(Serialize)]
struct Quiet {
    /// The longest that a line took before and after each round, in seconds.
    rounds: Vec<f64>,
    /// The numbers of the rounds that count, the quietest first.
    counting: Vec<usize>,
    /// The most that a line takes where nobody disturbs.
    quiet: f64,
}

#[derive(Serialize)]
struct Row {
    metric: &'static str,
    #[serde(skip)]
    unit: Unit,
    bureau: Option<Spread>,
    beside: Option<(Side, Spread)>,
    ratio: Option<Spread>,
    target: Option<String>,
    met: Option<bool>,
}

#[derive(Serialize)]
struct Figures {
    side: Side,
    metric: &'static str,
    rounds: Vec<f64>,
}

impl Outcome {
    pub fn new(
        scenario: &Scenario,
        bench: &Bench<'_>,
        measured: &Measured,
        disturbed: f64,
        warnings: Vec<String>,
    ) -> anyhow::Result<Self> {
        let caches = Quiet::of(bench);
        let counting = measured.of_rounds(|round| caches.counts(round));
        let rows = scenario.lines.iter().map(|line| Row::new(line, &counting));
        let figures = measured.all().map(|(side, metric, rounds)| Figures { side, metric, rounds });
        Ok(Self {
            scenario: scenario.name,
            about: scenario.about,
            n: bench.n,
            of: scenario.of,
            rows: rows.collect::<Result<_, _>>()?,
            figures: figures.collect(),
            caches,
            disturbed,
            warnings,
        })
    }
}

impl Quiet {
    fn of(bench: &Bench<'_>) -> Self {
        let (rounds, quiet) = (bench.disturbances(), bench.caches.quiet());
        let mut counting: Vec<_> = (1..=rounds.len()).collect();
        counting.sort_by(|one, other| rounds[one - 1].total_cmp(&rounds[other - 1]));
        counting.truncate(bench.rounds);
        Self { rounds, counting, quiet }
    }

    fn counts(&self, round: Round) -> bool {
        self.counting.contains(&round.number)
    }
}

impl Display for Quiet {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { rounds, counting, quiet } = self;
        let most = Spread::of(rounds).filter(|of| of.max > *quiet);
        let (Some(Spread { max: all, .. }), Some(last)) = (most, counting.last()) else {
            return Ok(());
        };
        let best = rounds[last - 1];
        let disturbed = if best <= *quiet { "" } else { "disturbed: " };
        let [best, all, quiet] = [best, all, *quiet].map(|line| Unit::Seconds.show(line));
        let (count, of) = (counting.len(), rounds.len());
        writeln!(
            f,
            "  {disturbed}{count} of {of} rounds count, with the quietest caches: a line took up to {best} in them and {all} in \
             all, where {quiet} is quiet"
        )
    }
}

impl Row {
    fn new(line: &Line, measured: &Measured) -> anyhow::Result<Self> {
        let Line { metric, unit, beside, target } = *line;
        let of = |side| measured.figures(side, metric);
        let (own, other) = (of(Side::Bureau), beside.and_then(of));
        let [bureau, spread] = [&own, &other].map(|figures| Spread::of(figures.as_deref()?));
        bureau.or(spread).with_context(|| format!("no one measured {metric}"))?;
        let ratio = own.zip(other).and_then(|(own, other)| Spread::of_ratios(&own, &other));
        let sync = measured.figures(Side::Bare, SYNC).and_then(|figures| Spread::of(&figures));
        let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
        let met = target.zip(bureau).and_then(|(target, bureau)| {
            target.is_met(bureau.median, median(spread), median(ratio), median(sync))
        });
        let target = target.map(|target| target.show(unit));
        Ok(Self { metric, unit, bureau, beside: beside.zip(spread), ratio, target, met })
    }
}

impl Display for Outcome {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { scenario, about, n, of, rows, caches, disturbed, warnings, .. } = self;
        writeln!(f, "\n{scenario}: {about} ({n} {of})")?;
        let head = ["", "bureau", "beside", "ratio", "must be", ""].map(str::to_owned);
        let rows = rows.iter().map(Row::cells);
        table(f, &[head].into_iter().chain(rows).collect::<Vec<_>>())?;
        write!(f, "{caches}")?;
        if *disturbed >= DISTURBED {
            writeln!(f, "  disturbed: others kept {disturbed:.2} processors busy meanwhile")?;
        }
        warnings.iter().take(5).try_for_each(|warning| writeln!(f, "  logged: {warning}"))?;
        match warnings.len() {
            0..=5 => Ok(()),
            count => writeln!(f, "  and {} lines more", count - 5),
        }
    }
}

impl Row {
    fn cells(&self) -> [String; 6] {
        let show = |spread: Spread| {
            let Spread { median, min, max } = spread;
            let [median, min, max] = [median, min, max].map(|figure| self.unit.show(figure));
            format!("{median} [{min}..{max}]")
        };
        let name = |side| match side {
            Side::Bureau => "bureau",
            Side::Native => "hyper",
            Side::Bare => "bare",
            Side::Control => "control",
            Side::Wasmtime => "wasmtime serve",
            Side::WasmtimeFresh => "wasmtime serve, no reuse",
            Side::Workerd => "workerd",
            Side::Nchan => "nchan",
        };
        [
            self.metric.to_owned(),
            self.bureau.map(show).unwrap_or_default(),
            self.beside
                .map(|(side, spread)| format!("{} {}", name(side), show(spread)))
                .unwrap_or_default(),
            self.ratio
                .map(|Spread { median, min, max }| format!("{median:.2} [{min:.2}..{max:.2}]"))
                .unwrap_or_default(),
            self.target.clone().unwrap_or_default(),
            self.met.map_or("", |met| if met { "met" } else { "NOT MET" }).to_owned(),
        ]
    }
}

/// How the figures of the host grow with the size of a scenario.
pub struct Growth<'a>(&'a [Outcome]);

impl<'a> Growth<'a> {
    /// The growth over these sizes, if they are more than one.
    pub fn of(outcomes: &'a [Outcome]) -> Option<Self> {
        (outcomes.len() > 1).then_some(Self(outcomes))
    }
}

impl Display for Growth<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Some(first) = self.0.first() else { return Ok(()) };
        writeln!(f, "\n{}: growth", first.scenario)?;
        let sizes = self.0.iter().map(|outcome| format!("{} {}", outcome.n, outcome.of));
        let head = [String::new()].into_iter().chain(sizes);
        let head = head.chain(["as n to the".to_owned(), format!("for each of the {}", first.of)]);
        let mut rows = vec![head.collect::<Vec<_>>()];
        for (index, row) in first.rows.iter().enumerate() {
            // A metric beside two sides has two rows.
            if first.rows[..index].iter().any(|before| before.metric == row.metric) {
                continue;
            }
            let medians =
                self.0.iter().map(|outcome| outcome.rows[index].bureau.map(|spread| spread.median));
            let Some(medians) = medians.collect::<Option<Vec<_>>>() else { continue };
            let points = self.0.iter().map(|outcome| outcome.n as f64).zip(medians.iter().copied());
            let points: Vec<_> = points.collect();
            let logarithms: Vec<_> = points.iter().map(|(x, y)| (x.ln(), y.ln())).collect();
            let mut cells = vec![row.metric.to_owned()];
            cells.extend(medians.iter().map(|&median| row.unit.show(median)));
            cells.push(format!("{:.2}", slope(&logarithms)));
            cells.push(row.unit.show(slope(&points)));
            rows.push(cells);
        }
        table(f, &rows)
    }
}

/// Prints cells in columns.
fn table(f: &mut Formatter<'_>, rows: &[impl AsRef<[String]>]) -> fmt::Result {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    for row in rows {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        writeln!(f, "  {}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

/// The scenarios and what each must reach.
pub fn list() -> String {
    let mut text = String::new();
    for Scenario { name, about, lines, .. } in scenario::ALL {
        text.push_str(&format!("{name}: {about}\n"));
        for line in lines.iter() {
            if let Some(target) = line.target {
                text.push_str(&format!("    {} {}\n", line.metric, target.show(line.unit)));
            }
        }
    }
    text
}

/// Everything, for the file.
#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    rounds: usize,
    seconds: f64,
    outcomes: Vec<Outcome>,
}

#[derive(Serialize)]
struct Machine {
    cores: usize,
    processor: String,
    kernel: String,
    memory: String,
}

impl Report {
    pub fn new(rounds: usize, seconds: f64) -> anyhow::Result<Self> {
        let value = |file: &str, key: &str| -> anyhow::Result<String> {
            let text = fs::read_to_string(file)?;
            let line = text.lines().find_map(|line| line.strip_prefix(key));
            Ok(line.unwrap_or_default().trim_start_matches([':', ' ', '\t']).to_owned())
        };
        let machine = Machine {
            cores: std::thread::available_parallelism()?.get(),
            processor: value("/proc/cpuinfo", "model name")?,
            kernel: value("/proc/sys/kernel/osrelease", "")?,
            memory: value("/proc/meminfo", "MemTotal")?,
        };
        Ok(Self { machine, rounds, seconds, outcomes: Vec::new() })
    }

    pub fn add(&mut self, outcomes: Vec<Outcome>) {
        self.outcomes.extend(outcomes);
    }

    /// Writes all there is so far.
    pub fn write(&self, file: &Path) -> anyhow::Result<()> {
        let json = serde_json::to_vec_pretty(self)?;
        fs::write(file, json).with_context(|| format!("cannot write {}", file.display()))
    }
}
