//! An agent that goes on after a crash of the host, and tells of it.
//!
//! - `/steps?total=N&delay=MS` emits `{"n":1}` to `{"n":N}` as `step`, each exactly once. A resumption begins with an
//!   event `resumed`, whose data is what the agent was given to resume with.
//! - `/trap-in-turn` is on record by a state that it set before it waited; then it emits and traps in one turn.
//! - `/stubborn` emits one event and never ends, whoever cancels it.
//! - `/answer` is on record by a state that it set before it waited; then it waits for an hour, and answers when it is resumed.
//! - `/crash-loop` emits one event, then neither its call nor any resumption of it emits or ends, unless it is cancelled.

use std::collections::BTreeMap;

use bureau_sdk::prelude::*;
use serde::Deserialize;

#[derive(Default)]
struct Phoenix;

#[derive(Deserialize)]
struct Options {
    total: Option<u64>,
    delay: Option<u64>,
}

/// How far each run has come, by its id.
type Progress = BTreeMap<String, u64>;

impl Agent for Phoenix {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        match request.path() {
            "/steps" => steps(run, &request).await,
            "/trap-in-turn" => {
                run.set_state(&Progress::default())?;
                sleep(Duration::from_millis(1)).await;
                run.emit("never seen").await?;
                std::process::abort()
            }
            "/crash-loop" => {
                run.emit("begun").await?;
                hang(run).await
            }
            "/stubborn" => {
                run.emit("begun").await?;
                std::future::pending().await
            }
            "/answer" => {
                run.set_state(&Progress::default())?;
                sleep(Duration::from_secs(3600)).await;
                Ok(Reply::text("too late"))
            }
            _ => Ok(Reply::status(StatusCode::NOT_FOUND)),
        }
    }
}

impl Resume for Phoenix {
    async fn on_resume(&self, run: &Run, request: Request, last_seq: u64) -> Result<Reply> {
        if request.path() == "/crash-loop" {
            return hang(run).await;
        }
        if request.path() == "/answer" {
            return Ok(Reply::text("answered by a resumption"));
        }
        let headers: Vec<_> = request.headers().keys().map(|name| name.as_str()).collect();
        let given = json!({
            "lastSeq": last_seq,
            "method": request.method().as_str(),
            "url": request.uri().to_string(),
            "headers": headers,
            "body": String::from_utf8_lossy(request.body()),
        });
        run.emit(Event::json(&given)?.name("resumed")).await?;
        steps(run, &request).await
    }
}

async fn steps(run: &Run, request: &Request) -> Result<Reply> {
    let Options { total, delay } = request.query()?;
    let (total, delay) = (total.unwrap_or(10), Duration::from_millis(delay.unwrap_or(0)));
    let done = run.state::<Progress>()?.get(&run.id()).copied();
    for n in done.unwrap_or(0) + 1..=total {
        sleep(delay).await;
        run.emit(Event::json(&json!({ "n": n }))?.name("step")).await?;
        let mut progress: Progress = run.state()?;
        progress.insert(run.id(), n);
        run.set_state(&progress)?;
    }
    Ok(Reply::events())
}

async fn hang(run: &Run) -> Result<Reply> {
    run.cancelled().await;
    Err(Error::Cancelled)
}

bureau_sdk::export!(Phoenix: Resume);
