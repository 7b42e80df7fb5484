//! What the benchmarks drive: one path for each kind of load, each with as little of its own as can be.
//!
//! - `/plain` replies with a small JSON document.
//! - `/state` writes a state of about 40 bytes, then replies in the same way.
//! - `/visits` replies with that state, and writes nothing.
//! - `/events?n=N&size=S&delay=MS` emits N events of S bytes, one each MS milliseconds from the first on, or as fast as they are
//!   taken if there is no delay. Events with a delay begin with the wall clock, in nanoseconds, at the time they were emitted; they end when
//!   the run is cancelled, and with `&history=H` as many others go before them without delay.
//! - `/compute?for=MS` computes for as long, then replies like `/plain`.
//! - `/compute-on?for=MS` opens a stream first, which has no events.
//! - `/hold` opens a stream and waits until it is cancelled.

use std::hint::black_box;
use std::time::SystemTime;

use bureau_sdk::bindings::wasi::clocks::monotonic_clock;
use bureau_sdk::prelude::*;
use serde::{Deserialize, Serialize};

const NANOS_PER_MILLI: u64 = 1_000_000;

#[derive(Default)]
struct Load;

#[derive(Deserialize)]
struct Options {
    n: u64,
    size: usize,
    #[serde(default)]
    delay: u64,
    #[serde(default)]
    history: u64,
}

#[derive(Deserialize)]
struct Computing {
    r#for: u64,
}

#[derive(Serialize)]
struct Greeting {
    status: &'static str,
    message: &'static str,
}

#[derive(Default, Serialize, Deserialize)]
struct Visits {
    visits: u64,
    note: String,
}

impl Agent for Load {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        match request.path() {
            "/plain" => greet(),
            "/state" => {
                let Visits { visits, .. } = run.state()?;
                run.set_state(&Visits { visits: visits + 1, note: "a small document".into() })?;
                greet()
            }
            "/visits" => Reply::json(&run.state::<Visits>()?),
            "/events" => emit(run, request.query()?).await,
            "/compute" => {
                compute(request.query()?);
                greet()
            }
            "/compute-on" => {
                run.open();
                run.flush().await?;
                compute(request.query()?);
                Ok(Reply::events())
            }
            "/hold" => {
                run.open();
                run.cancelled().await;
                Err(Error::Cancelled)
            }
            _ => Ok(Reply::status(StatusCode::NOT_FOUND)),
        }
    }
}

fn greet() -> Result<Reply> {
    Reply::json(&Greeting { status: "ok", message: "a small reply of some bytes" })
}

async fn emit(run: &Run, Options { n, size, delay, history }: Options) -> Result<Reply> {
    if delay == 0 {
        return flood(run, n, size).await;
    }
    flood(run, history, size).await?;
    let (delay, mut due) = (delay * NANOS_PER_MILLI, monotonic_clock::now());
    for _ in 0..n {
        monotonic_clock::wait_until(due).await;
        if run.is_cancelled() {
            return Err(Error::Cancelled);
        }
        run.emit(format!("{:.<size$}", now())).await?;
        due += delay;
    }
    Ok(Reply::events())
}

fn compute(Computing { r#for: millis }: Computing) {
    let end = monotonic_clock::now() + millis * NANOS_PER_MILLI;
    while monotonic_clock::now() < end {
        for n in 0..10_000 {
            black_box(n);
        }
    }
}

async fn flood(run: &Run, n: u64, size: usize) -> Result<Reply> {
    for _ in 0..n {
        run.emit(".".repeat(size)).await?;
    }
    Ok(Reply::events())
}

/// The wall clock, which client and guest share.
fn now() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default().as_nanos().to_string()
}

bureau_sdk::export!(Load);
