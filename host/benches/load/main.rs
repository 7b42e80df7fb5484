//! The host under load, beside a native server on the same machine in the same minutes.
//!
//!     cargo bench -p bureau --bench load -- live events
//!
//! **Problem.** A figure of a server says little without one of another server, as machines differ and one machine differs
//! from hour to hour.
//!
//! **Mechanism.** Each scenario starts the host as its users run it, and a server on bare hyper that answers the same requests
//! with the same bytes. Both stay up, and one client drives them by turns, round after round, each round in the opposite
//! order of the one before. What is reported is the median of the rounds and how far they reach, for each side
//! and for the ratio within a round, and whether that is what the scenario must reach. The rounds that count are those in which
//! others on the machine were least at the caches.
//!
//! **Limits.** The client is one thread and shares the processors with the servers: on few cores it takes its part of what
//! there is, the same from both. Every scenario ends by itself.
//!
//! | file | |
//! | --- | --- |
//! | `scenario/` | one file for each scenario: what it does and must reach |
//! | `host.rs` | the programs under load |
//! | `peers.rs` | other hosts, if they are installed |
//! | `native.rs` | the native server |
//! | `fill.rs` | journals with years of use |
//! | `bare.rs` | loops on the same disk without a server |
//! | `caches.rs` | whether others leave the caches alone |
//! | `client.rs` | the client |
//! | `measure.rs` | figures, and what the kernel says of a process |
//! | `report.rs` | the tables, and the file with everything |

#![expect(unreachable_pub, reason = "a program has no outside")]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

use self::caches::Caches;
use self::host::{After, Programs, WORKSPACE};
use self::report::{Growth, Outcome, Report};
use self::scenario::{Bench, Scenario};

mod bare;
mod caches;
mod client;
mod fill;
mod host;
mod measure;
mod native;
mod peers;
mod report;
mod scenario;

/// The word by which this program becomes the native server.
const NATIVE: &str = "native";

/// How often `--growth` doubles.
const DOUBLINGS: u32 = 3;

/// Puts the host under load, beside a native server, and says how they compare.
#[derive(Parser)]
struct Arguments {
    /// What to run; `all` is everything that does not take long.
    #[arg(value_name = "SCENARIO")]
    scenarios: Vec<String>,
    /// Lists the scenarios and what each must reach.
    #[arg(long)]
    list: bool,
    /// Rounds that count: of up to three times as many, while others are at the caches, the least disturbed ones
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// How long a side is under load in a round, where time and not work is what is set.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Multiplies the size of each scenario; less than 1 is for trying things out.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Runs the scenarios that are about growth in four sizes, each twice the one before, and says how their figures grow.
    #[arg(long)]
    growth: bool,
    /// Counts those that take long among `all`.
    #[arg(long)]
    long: bool,
    /// The host to put under load, from the root of the repository [default: target/dist/bureau, which is built]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// Where everything is written to, as JSON, from the root of the repository [default: target/bench/load.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What cargo adds.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let done = match (arguments.next(), arguments.next()) {
        (Some(word), Some(directory)) if word == NATIVE => native::serve(Path::new(&directory)),
        _ => drive(Arguments::parse()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn drive(arguments: Arguments) -> anyhow::Result<()> {
    let scenarios = chosen(&arguments.scenarios, arguments.long)?;
    if arguments.list || scenarios.is_empty() {
        print!("{}", report::list());
        return Ok(());
    }
    raise_file_limit()?;
    let programs = Programs::build(arguments.program.clone())?;
    let caches = Caches::new();
    let json = match &arguments.json {
        Some(given) => Path::new(WORKSPACE).join(given),
        None => programs.directory.join("load.json"),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        // Whatever ends this, the servers end with what holds them.
        tokio::select! {
            ran = run(&arguments, &scenarios, &programs, &caches, &json) => ran,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

/// The scenarios of these names, in the order in which they are listed.
fn chosen(names: &[String], long: bool) -> anyhow::Result<Vec<&'static Scenario>> {
    let known: Vec<_> = scenario::ALL.iter().map(|scenario| scenario.name).collect();
    if let Some(name) = names.iter().find(|name| *name != "all" && !known.contains(&name.as_str()))
    {
        bail!("there is no scenario {name}; there are {}, and all", known.join(", "));
    }
    let is_chosen = |scenario: &&Scenario| {
        names.iter().any(|name| match name.as_str() {
            "all" => long || !scenario.long,
            name => name == scenario.name,
        })
    };
    Ok(scenario::ALL.iter().filter(is_chosen).collect())
}

/// Lets this process and those it starts have as many connections as the machine allows.
fn raise_file_limit() -> anyhow::Result<()> {
    let maximum = getrlimit(Resource::Nofile).maximum;
    let limit = Rlimit { current: maximum, maximum };
    setrlimit(Resource::Nofile, limit).context("cannot raise the limit of open files")
}

async fn run(
    arguments: &Arguments,
    scenarios: &[&'static Scenario],
    programs: &Programs,
    caches: &Caches,
    json: &Path,
) -> anyhow::Result<()> {
    let mut report = Report::new(arguments.rounds, arguments.seconds)?;
    let mut failed = Vec::new();
    for scenario in scenarios {
        let mut outcomes = Vec::new();
        let (from, doublings) = match scenario.grows_from.filter(|_| arguments.growth) {
            Some(from) => (from, DOUBLINGS),
            None => (scenario.n, 0),
        };
        for doubling in 0..=doublings {
            let n = from as f64 * arguments.scale * f64::from(1 << doubling);
            let bench = Bench {
                directory: &programs.directory,
                programs,
                caches,
                looks: RefCell::default(),
                again_until: Instant::now() + scenario.deadline / 2,
                rounds: arguments.rounds,
                duration: Duration::try_from_secs_f64(arguments.seconds)?,
                n: n.round().max(1.0) as usize,
            };
            match outcome(scenario, &bench, programs).await {
                Ok(outcome) => {
                    print!("{outcome}");
                    outcomes.push(outcome);
                }
                Err(error) => {
                    eprintln!("load: {} at {}: {error:#}", scenario.name, bench.n);
                    failed.push(scenario.name);
                    break;
                }
            }
        }
        if let Some(growth) = Growth::of(&outcomes) {
            print!("{growth}");
        }
        report.add(outcomes);
        // After each, so that what was measured outlives whatever comes.
        report.write(json)?;
    }
    println!("\neverything: {}", json.display());
    match failed.as_slice() {
        [] => Ok(()),
        names => bail!("failed: {}", names.join(", ")),
    }
}

/// Runs a scenario between the start and the end of its servers.
async fn outcome(
    scenario: &Scenario,
    bench: &Bench<'_>,
    programs: &Programs,
) -> anyhow::Result<Outcome> {
    let mut pair = programs.start(scenario.config).await?;
    let (start, others) = (Instant::now(), pair.cpu_of_others()?);
    let running = (scenario.run)(bench, &mut pair);
    let ran = tokio::time::timeout(scenario.deadline, running).await;
    let ran = ran.unwrap_or_else(|_| bail!("it has not ended after {:?}", scenario.deadline));
    let mut warnings = pair.warnings();
    let measured = ran.with_context(|| format!("the servers logged {warnings:?}"))?;
    let others = pair.cpu_of_others()?.saturating_sub(others);
    let disturbed = others.as_secs_f64() / start.elapsed().as_secs_f64();
    // A host that is built to learn where it spends its time says so at its end.
    if let Err(error) = pair.bureau.end(After::End).await {
        warnings.push(format!("{error:#}"));
    }
    Outcome::new(scenario, bench, &measured, disturbed, warnings)
}
