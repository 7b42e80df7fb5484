//! The programs under load: the host as its users run it, and the native server, each a process of its own.
//!
//! What is measured is a program that is given, or `target/dist/bureau`, built by a cargo of its own: built along with a benchmark, it
//! would have the features that only tests ask for. A process ends when its handle is dropped, whatever becomes of the scenario, and its
//! directory with it. Until then a scenario may start it anew, on what it left or on nothing.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::client::{Connection, get, post};
use crate::measure::{Process, Round, Side, machine_cpu};

/// The agent under load: `tests/guests/examples/load.rs`.
const GUEST: &str = "load";

/// The same in plain `wasi:http`, for other hosts: `tests/guests/examples/peer.rs`.
const PEER: &str = "peer";

/// What agents are built for.
const TARGET: &str = "wasm32-wasip2";

/// How the README has hosts and agents built that go into service. The native server is as fast without.
const PROFILE: &str = "dist";

/// The root of the repository. Cargo has benchmarks run in the directory of their package.
pub const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Where a host keeps what it is told and what it must not lose, in its directory.
const CONFIG: &str = "bureau.toml";
const DATA: &str = "data";

/// What a program says meanwhile, in its directory.
const LOG: &str = "log";

/// How long a program may take to get ready; the host compiles its agent first.
const START: Duration = Duration::from_secs(60);

/// How long a program may take to end when it is told to.
const END: Duration = Duration::from_secs(30);

/// A section of a component that says nothing, up to its last byte, which may be any.
const CUSTOM_SECTION: [u8; 4] = [0, 3, 1, b'n'];

/// All that has to be built, built.
pub struct Programs {
    bureau: PathBuf,
    guest: PathBuf,
    /// The agent for hosts of `wasi:http`.
    pub peer: PathBuf,
    /// Where benchmarks keep what they write, on the file system of the build.
    pub directory: PathBuf,
}

impl Programs {
    /// Builds all of them, but for a host that is given.
    pub fn build(bureau: Option<PathBuf>) -> anyhow::Result<Self> {
        // This program is `target/release/deps/load-HASH`.
        let own = std::env::current_exe()?;
        let target = own.ancestors().nth(3).context("this program is in no target directory")?;
        let bureau = match bureau {
            Some(given) => fs::canonicalize(Path::new(WORKSPACE).join(&given))
                .with_context(|| format!("there is no program {}", given.display()))?,
            None => {
                cargo(target, &["-p", "bureau"])?;
                target.join(PROFILE).join("bureau")
            }
        };
        cargo(
            target,
            &["-p", "guests", "--example", GUEST, "--example", PEER, "--target", TARGET],
        )?;
        let directory = target.join("bench");
        fs::create_dir_all(&directory)?;
        let guests = target.join(TARGET).join(PROFILE).join("examples");
        Ok(Self {
            bureau,
            guest: guests.join(GUEST).with_extension("wasm"),
            peer: guests.join(PEER).with_extension("wasm"),
            directory,
        })
    }

    /// Starts both servers. The configuration is what the host's own defaults are to be changed in, as TOML.
    pub async fn start(&self, config: &str) -> anyhow::Result<Pair> {
        let (bureau, native) = (self.bureau(config).await?, self.native().await?);
        Ok(Pair { bureau, native, control: None, peers: Vec::new() })
    }

    /// The host, which serves what it finds when it starts.
    pub async fn bureau(&self, config: &str) -> anyhow::Result<Server> {
        self.host(config, |command, guest| {
            let directory = guest.parent().unwrap_or(guest);
            command.arg("serve").arg("--agents").arg(directory);
        })
        .await
    }

    /// The host, which swaps its agent for whatever takes the agent's place.
    pub async fn swapping_bureau(&self, config: &str) -> anyhow::Result<Server> {
        self.host(config, |command, guest| {
            command.arg("dev").arg(guest);
        })
        .await
    }

    async fn host(
        &self,
        config: &str,
        serve: impl FnOnce(&mut Command, &Path),
    ) -> anyhow::Result<Server> {
        let directory = self.temporary()?;
        let guest = directory.path().join("agents").join(GUEST).with_extension("wasm");
        fs::create_dir(directory.path().join("agents"))?;
        fs::copy(&self.guest, &guest)?;
        let mut command = Command::new(&self.bureau);
        serve(&mut command, &guest);
        command.args(["--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--config").arg(directory.path().join(CONFIG));
        command.arg("--data").arg(directory.path().join(DATA));
        // What is logged is part of what is measured.
        command.env_remove("RUST_LOG");
        fs::write(directory.path().join(CONFIG), config)?;
        Server::start(Side::Bureau, command, directory, Ready::Says).await
    }

    /// Another build of the agent, which does the same.
    pub fn other_module(&self, build: u8) -> anyhow::Result<Vec<u8>> {
        let mut module = fs::read(&self.guest)?;
        module.extend(CUSTOM_SECTION);
        module.push(build);
        Ok(module)
    }

    async fn native(&self) -> anyhow::Result<Server> {
        let directory = self.temporary()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg(crate::NATIVE).arg(directory.path());
        Server::start(Side::Native, command, directory, Ready::Says).await
    }

    pub fn temporary(&self) -> anyhow::Result<TempDir> {
        Ok(tempfile::tempdir_in(&self.directory)?)
    }
}

fn cargo(target: &Path, what: &[&str]) -> anyhow::Result<()> {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let status = std::process::Command::new(cargo)
        // Told of this package by the cargo that started the benchmark, crates would be built anew that look whether that changes.
        .env_remove("CARGO_MANIFEST_DIR")
        .current_dir(WORKSPACE)
        .args(["build", "--quiet", "--profile", PROFILE])
        .args(what)
        .arg("--target-dir")
        .arg(target)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "cargo build {what:?} failed");
    Ok(())
}

/// The host and the native server, which run both and are under load by turns.
pub struct Pair {
    pub bureau: Server,
    pub native: Server,
    /// The host once more, if the scenario compares it with itself.
    pub control: Option<Server>,
    /// Other hosts, if the scenario is about them.
    pub peers: Vec<Server>,
}

impl Pair {
    /// Both, in the order of this round.
    pub fn in_turn(&self, round: Round) -> [&Server; 2] {
        match round.is_reversed() {
            true => [&self.native, &self.bureau],
            false => [&self.bureau, &self.native],
        }
    }

    /// Both, in the order of this round, to be started again.
    pub fn in_turn_mut(&mut self, round: Round) -> [&mut Server; 2] {
        match round.is_reversed() {
            true => [&mut self.native, &mut self.bureau],
            false => [&mut self.bureau, &mut self.native],
        }
    }

    /// The processor time that all the machine's processes had so far but the servers and this one.
    pub fn cpu_of_others(&self) -> anyhow::Result<Duration> {
        let servers = self.own().chain(&self.peers).map(|server| server.process);
        let known = servers.chain([Process::own()]).map(Process::cpu);
        Ok(machine_cpu()?.saturating_sub(known.sum::<anyhow::Result<Duration>>()?))
    }

    /// What the host and the native server logged beyond the usual.
    pub fn warnings(&self) -> Vec<String> {
        self.own().flat_map(Server::warnings).collect()
    }

    fn own(&self) -> impl Iterator<Item = &Server> {
        [&self.bureau, &self.native].into_iter().chain(&self.control)
    }
}

/// A program that serves, until it is dropped.
pub struct Server {
    pub side: Side,
    pub address: SocketAddr,
    pub process: Process,
    admin: Option<SocketAddr>,
    command: Command,
    ready: Ready,
    // Before the directory, which goes once nobody writes to it.
    child: Child,
    directory: TempDir,
}

/// How it is known that a program serves.
#[derive(Debug, Clone, Copy)]
pub enum Ready {
    /// It says where.
    Says,
    /// It accepts connections here, as it was told to.
    Accepts(SocketAddr),
}

/// What a program finds when it is started again.
#[derive(Debug, Clone, Copy)]
pub enum After {
    /// What it left when it was told to end.
    End,
    /// What it had made durable when it was killed.
    Kill,
    /// Nothing but its agent, compiled.
    Nothing,
}

impl Server {
    pub async fn start(
        side: Side,
        mut command: Command,
        directory: TempDir,
        ready: Ready,
    ) -> anyhow::Result<Self> {
        let log = File::options().append(true).create(true).open(directory.path().join(LOG))?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).kill_on_drop(true);
        let (child, addresses) = ready.start(&mut command, directory.path()).await?;
        let process = Process(child.id().context("the process has ended")?);
        let (&address, admin) = addresses.split_first().context("the server has no address")?;
        let admin = admin.first().copied();
        Ok(Self { side, address, process, admin, command, ready, child, directory })
    }

    /// Ends the program and starts it again. Returns how long the start took.
    pub async fn restart(&mut self, after: After) -> anyhow::Result<Duration> {
        self.end(after).await?;
        if matches!(after, After::Nothing) {
            remove_if_there(&self.journal())?;
        }
        let start = Instant::now();
        let (child, addresses) = self.ready.start(&mut self.command, self.directory.path()).await?;
        let took = start.elapsed();
        self.process = Process(child.id().context("the process has ended")?);
        self.address = *addresses.first().context("the server has no address")?;
        self.admin = addresses.get(1).copied();
        self.child = child;
        Ok(took)
    }

    /// Ends the program, and returns when it is gone.
    pub async fn end(&mut self, after: After) -> anyhow::Result<()> {
        let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(id.cast_signed())) else {
            return Ok(());
        };
        match after {
            After::Kill | After::Nothing => self.child.kill().await?,
            After::End => {
                kill_process(pid, Signal::TERM)?;
                let ended = tokio::time::timeout(END, self.child.wait()).await;
                let status = ended.context("the server does not end")??;
                ensure!(status.success(), "the server ended with {status}");
            }
        }
        Ok(())
    }

    /// The host's journal.
    pub fn journal(&self) -> PathBuf {
        self.directory.path().join(DATA).join("journal.redb")
    }

    /// What the host is told from its next start on, instead of what it was.
    pub fn configure(&self, config: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.directory.path().join(CONFIG), config)?)
    }

    /// Puts a module in the place of the agent's. Returns when it serves.
    pub async fn swap(&self, module: &[u8]) -> anyhow::Result<()> {
        let deployments = self.deployments();
        fs::write(self.directory.path().join("agents").join(GUEST).with_extension("wasm"), module)?;
        let start = Instant::now();
        while self.deployments() == deployments {
            ensure!(start.elapsed() < START, "the module is not deployed");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    fn deployments(&self) -> usize {
        self.log().matches(r#""message":"deployed""#).count()
    }

    /// What the host has made durable so far, by its own figures. The native server has none.
    pub async fn committed(&self) -> anyhow::Result<Committed> {
        if self.admin.is_none() {
            return Ok(Committed::default());
        }
        let metrics = self.metrics().await?;
        Ok(Committed {
            commits: metrics.figure("commits_total")?,
            turns: metrics.figure("turns_total")?,
            events: metrics.figure("events_total")?,
        })
    }

    /// The host's own figures.
    pub async fn metrics(&self) -> anyhow::Result<Metrics> {
        let mut connection = Connection::open(self.admin()?).await?;
        connection.send(&get("/metrics")).await?;
        Ok(Metrics(connection.text().await?))
    }

    /// Asks runs of the host to end. Those of others end with their clients.
    pub async fn cancel(&self, runs: impl IntoIterator<Item = Box<str>>) -> anyhow::Result<()> {
        if self.admin.is_none() {
            return Ok(());
        }
        let mut connection = Connection::open(self.admin()?).await?;
        for run in runs {
            connection.send(&post(format_args!("/v1/runs/{run}/cancel"))).await?;
            connection.reply().await?;
        }
        Ok(())
    }

    fn admin(&self) -> anyhow::Result<SocketAddr> {
        self.admin.context("only the host has an admin address")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    fn warnings(&self) -> Vec<String> {
        let log = self.log();
        log.lines().filter(|line| !line.contains(r#""level":"INFO""#)).map(str::to_owned).collect()
    }
}

impl Ready {
    /// Starts a program, and waits until it serves.
    async fn start(
        self,
        command: &mut Command,
        directory: &Path,
    ) -> anyhow::Result<(Child, Vec<SocketAddr>)> {
        let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
        let serves = async {
            match self {
                Self::Says => said(&mut child).await,
                Self::Accepts(address) => accepts(&mut child, address).await,
            }
        };
        let addresses = tokio::time::timeout(START, serves).await;
        let addresses = addresses.context("it takes too long").flatten().with_context(|| {
            let log = fs::read_to_string(directory.join(LOG)).unwrap_or_default();
            format!("the server did not get ready:\n{log}")
        })?;
        Ok((child, addresses))
    }
}

/// The addresses in the first line of what a program says, of which there is at least one.
async fn said(child: &mut Child) -> anyhow::Result<Vec<SocketAddr>> {
    let mut ready = String::new();
    let stdout = child.stdout.as_mut().context("the process has no output")?;
    BufReader::new(stdout).read_line(&mut ready).await?;
    // bureau: ready on http://127.0.0.1:1 (admin http://127.0.0.1:2), 1 agent
    let addresses: Vec<SocketAddr> = ready
        .split([' ', ')', ',', '\n'])
        .filter_map(|word| word.trim_start_matches('(').strip_prefix("http://")?.parse().ok())
        .collect();
    ensure!(!addresses.is_empty(), "it names no address");
    Ok(addresses)
}

/// The address, once a program listens there.
async fn accepts(child: &mut Child, address: SocketAddr) -> anyhow::Result<Vec<SocketAddr>> {
    while let Err(error) = TcpStream::connect(address).await {
        if let Some(status) = child.try_wait()? {
            bail!("it ended with {status}");
        }
        ensure!(error.kind() == ErrorKind::ConnectionRefused, error);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(vec![address])
}

fn remove_if_there(file: &Path) -> std::io::Result<()> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The host's own figures, as text.
pub struct Metrics(String);

impl Metrics {
    /// One of them, by its name behind `bureau_`.
    pub fn figure(&self, name: &str) -> anyhow::Result<f64> {
        let lines = self.0.lines().filter_map(|line| line.strip_prefix("bureau_"));
        let figure = lines.filter_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).next();
        Ok(figure.with_context(|| format!("there is no figure {name}"))?.parse()?)
    }
}

/// What a host has made durable.
#[derive(Debug, Clone, Copy, Default)]
pub struct Committed {
    pub commits: f64,
    pub turns: f64,
    pub events: f64,
}

impl Committed {
    /// What was added since.
    pub fn since(self, before: Self) -> Self {
        Self {
            commits: self.commits - before.commits,
            turns: self.turns - before.turns,
            events: self.events - before.events,
        }
    }
}
