//! Other hosts, beside which the host is put under the same load: `wasmtime serve`, workerd with an agent of Cloudflare's
//! Agents SDK, and nginx with nchan, which has streams of events and no agents.
//!
//! None is built here. `wasmtime` and `nginx` are those of the `PATH`, and workerd and the SDK are what npm has put into `host/benches/peers`; what is
//! not there is not measured, and how to get it is said instead. Each is told what its makers' documentation tells it, and keeps
//! what it writes in a temporary directory of the benchmark's file system.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::process::Command;

use crate::host::{Programs, Ready, Server};
use crate::measure::Side;

/// Where workerd's configuration is, and what npm installs.
const WORKERD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers");

/// Where distributions put nchan.
const NCHAN: [&str; 2] =
    ["/usr/lib/nginx/modules/ngx_nchan_module.so", "/usr/lib64/nginx/modules/ngx_nchan_module.so"];

/// All that are installed.
pub async fn start(programs: &Programs) -> anyhow::Result<Vec<Server>> {
    let reusing = wasmtime(programs, Side::Wasmtime, &[]).await?;
    let fresh = ["--max-instance-reuse-count", "1"];
    let fresh = match &reusing {
        Some(_) => wasmtime(programs, Side::WasmtimeFresh, &fresh).await?,
        None => None,
    };
    let others = workerd(programs).await?.into_iter().chain(nchan(programs).await?);
    Ok(reusing.into_iter().chain(fresh).chain(others).collect())
}

/// `wasmtime serve` with the agent for `wasi:http`. By itself it gives an instance 128 requests, 16 of them at a time.
async fn wasmtime(
    programs: &Programs,
    side: Side,
    options: &[&str],
) -> anyhow::Result<Option<Server>> {
    let Some(program) = of_path("wasmtime") else {
        eprintln!("load: no wasmtime is on the PATH; cargo install --locked wasmtime-cli");
        return Ok(None);
    };
    let address = free_address()?;
    let mut command = Command::new(program);
    command.args(["serve", "-S", "cli,p3", "-W", "component-model-async"]);
    command.arg("--addr").arg(address.to_string());
    command.args(options).arg(&programs.peer);
    let directory = programs.temporary()?;
    Server::start(side, command, directory, Ready::Accepts(address)).await.map(Some)
}

/// workerd with its agent.
async fn workerd(programs: &Programs) -> anyhow::Result<Option<Server>> {
    let Some(program) = workerd_program()? else {
        eprintln!("load: no workerd is in {WORKERD}; npm ci --prefix host/benches/peers");
        return Ok(None);
    };
    let address = free_address()?;
    let data = programs.temporary()?;
    let mut command = Command::new(program);
    command.arg("serve").arg(Path::new(WORKERD).join("workerd.capnp"));
    command.arg("--socket-addr").arg(format!("http={address}"));
    command.arg("--directory-path").arg(format!("data={}", data.path().display()));
    Server::start(Side::Workerd, command, data, Ready::Accepts(address)).await.map(Some)
}

/// The program itself, which a package has for each kind of machine. What npm would start is a script around it.
fn workerd_program() -> anyhow::Result<Option<PathBuf>> {
    let Ok(packages) = fs::read_dir(Path::new(WORKERD).join("node_modules/@cloudflare")) else {
        return Ok(None);
    };
    for package in packages {
        let program = package?.path().join("bin/workerd");
        if program.is_file() {
            return Ok(Some(program));
        }
    }
    Ok(None)
}

/// nginx with its module.
async fn nchan(programs: &Programs) -> anyhow::Result<Option<Server>> {
    let module = NCHAN.iter().find(|module| Path::new(module).is_file());
    let (Some(program), Some(module)) = (of_path("nginx"), module) else {
        eprintln!("load: no nginx with nchan is there; apt-get install libnginx-mod-nchan nginx");
        return Ok(None);
    };
    let address = free_address()?;
    let directory = programs.temporary()?;
    let path = directory.path().join("nginx.conf");
    let configuration = include_str!("../peers/nginx.conf").replace("MODULE", module);
    fs::write(&path, configuration.replace("ADDRESS", &address.to_string()))?;
    let mut command = Command::new(program);
    command.arg("-p").arg(directory.path()).arg("-c").arg(path);
    Server::start(Side::Nchan, command, directory, Ready::Accepts(address)).await.map(Some)
}

/// The program of this name, if there is one.
fn of_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut programs = std::env::split_paths(&path).map(|directory| directory.join(name));
    programs.find(|program| program.is_file())
}

/// An address that nobody listens on, for a program that does not say which one it took.
fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen")?;
    Ok(listener.local_addr()?)
}
