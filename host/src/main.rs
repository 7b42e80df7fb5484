//! The command line: arguments to configuration, configuration to a host that serves; all other commands are in `cli`.
//! Wiring only.

#![expect(unreachable_pub, reason = "a program has no outside")]

mod allocator;
mod cli;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::pin::pin;
use std::process::ExitCode;

use anyhow::Context as _;
use bureau::Host;
use bureau::agents_dir::AgentsDir;
use bureau::config::{Config, Overrides};
use bureau::dev::Workspace;
use bureau::http::server;
use bureau::id::AgentName;
use bureau::shutdown;
use clap::Parser as _;
use tokio::net::TcpListener;
use tracing_subscriber::EnvFilter;

use self::cli::ReaderLeft;
use self::cli::arguments::{Arguments, Command, Common, LogFormat};

fn main() -> ExitCode {
    let Arguments { command, log_format } = Arguments::parse();
    log_to_stderr(log_format);
    let ran = tokio::runtime::Runtime::new()
        .context("cannot start the async runtime")
        .and_then(|runtime| runtime.block_on(run(command)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        // As `head` does, which has what it wanted.
        Err(error) if error.is::<ReaderLeft>() => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bureau: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(format: LogFormat) {
    let human = match format {
        LogFormat::Auto => std::io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if human {
        lines.with_ansi(std::io::stderr().is_terminal()).init();
    } else {
        lines.json().flatten_event(true).init();
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { agents, print_config: true, common } => {
            print!("{}", configure(agents, &common)?.print());
            Ok(())
        }
        Command::Serve { agents, print_config: false, common } => {
            serve(configure(agents, &common)?).await
        }
        Command::Dev { paths, common } => develop(paths, common).await,
        Command::Action(action) => cli::run(action).await,
    }
}

fn configure(agents: Option<PathBuf>, common: &Common) -> anyhow::Result<Config> {
    let Common { listen, admin, .. } = *common;
    let overrides = Overrides {
        listen,
        admin,
        data: common.data.clone(),
        agents_dir: agents,
        tls_cert: common.tls_cert.clone(),
        tls_key: common.tls_key.clone(),
        ..Overrides::of_environment()
    };
    Ok(Config::load(common.config.as_deref(), overrides)?)
}

/// Opens the host and its listeners; the configuration then names the ports.
async fn open(mut config: Config) -> anyhow::Result<(Host, TcpListener, Config)> {
    let bind = |what, address| {
        server::bind(address).with_context(|| format!("cannot listen on {address} ({what})"))
    };
    let public = bind("--listen", config.listen)?;
    let admin = bind("--admin", config.admin)?;
    (config.listen, config.admin) = (public.local_addr()?, admin.local_addr()?);
    let host = Host::open(config.clone())?;
    host.serve_admin(admin);
    tokio::spawn(allocator::give_back());
    Ok((host, public, config))
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut agents = config.agents_dir.as_deref().map(AgentsDir::open).transpose()?;
    let (host, listener, config) = open(config).await?;
    let mut stop = pin!(stop());
    let loading = async {
        if let Some(agents) = &agents {
            agents.remove_missing(&host).await;
        }
        host.load().await;
        if let Some(agents) = &agents {
            agents.load(&host).await;
        }
        host.readiness().loaded();
    };
    tokio::select! {
        () = loading => {}
        () = &mut stop => return Ok(()),
    }
    ready(&host, &config);
    let following = async {
        match &mut agents {
            Some(agents) => agents.follow(&host).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        never = following => match never {},
        served = host.serve(listener, stop) => served,
    }
}

async fn develop(paths: Vec<PathBuf>, common: Common) -> anyhow::Result<()> {
    let workspace = Workspace::find(&paths).await?;
    let (host, listener, config) = open(configure(None, &common)?).await?;
    let watch = workspace.watched()?;
    host.load().await;
    if let Err(error) = workspace.build_and_deploy(&host).await {
        if host.registry().all().is_empty() {
            return Err(error);
        }
        // What is missing may be mended while the others serve.
        tracing::error!("not all served: {error:#}");
    }
    host.readiness().loaded();
    ready(&host, &config);
    let agents: Vec<AgentName> =
        host.registry().all().iter().map(|deployed| deployed.agent.clone()).collect();
    let width = agents.iter().map(|agent| agent.as_str().len()).max().unwrap_or(0);
    for agent in agents {
        let name = agent.as_str();
        println!("  {name:width$}  {}/agents/{name}/demo", public_url(&config));
    }
    tokio::select! {
        never = workspace.follow(watch, &host) => match never {},
        served = host.serve(listener, stop()) => served,
    }
}

fn public_url(config: &Config) -> String {
    let scheme = if config.tls.is_some() { "https" } else { "http" };
    format!("{scheme}://{}", config.listen)
}

fn ready(host: &Host, config: &Config) {
    let count = host.registry().all().len();
    let plural = if count == 1 { "" } else { "s" };
    println!(
        "bureau: ready on {} (admin http://{}), {count} agent{plural}",
        public_url(config),
        config.admin
    );
}

async fn stop() {
    if let Err(error) = shutdown::signal().await {
        tracing::error!(%error, "cannot wait for signals; end the process by other means");
        std::future::pending().await
    }
}
