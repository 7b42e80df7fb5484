//! A stream that survives the death of the client and of the host: each `n` arrives exactly once.
//!
//!     curl -N 'http://127.0.0.1:8787/agents/resume/demo?total=100&delay=200'
//!     curl -N http://127.0.0.1:8787/agents/resume/demo -H 'Last-Event-ID: <the last id seen>'

use std::collections::BTreeMap;

use bureau_sdk::prelude::*;
use serde::Deserialize;

#[derive(Default)]
struct ResumeAgent;

#[derive(Deserialize)]
struct Options {
    total: Option<u64>,
    delay: Option<u64>,
}

/// How far each unfinished run has come, by its id.
type Progress = BTreeMap<String, u64>;

async fn count(run: &Run, request: Request, done: u64) -> Result<Reply> {
    let Options { total, delay } = request.query()?;
    let (total, delay) = (total.unwrap_or(10), Duration::from_millis(delay.unwrap_or(500)));
    for n in done + 1..=total {
        sleep(delay).await;
        run.emit(Event::json(&json!({ "n": n }))?.name("progress")).await?;
        // Nothing waits between the event and this, so no crash comes between them.
        let mut progress: Progress = run.state()?;
        if n < total {
            progress.insert(run.id(), n);
        } else {
            progress.remove(&run.id());
        }
        run.set_state(&progress)?;
    }
    Ok(Reply::events())
}

impl Agent for ResumeAgent {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        count(run, request, 0).await
    }
}

impl Resume for ResumeAgent {
    async fn on_resume(&self, run: &Run, request: Request, last_seq: u64) -> Result<Reply> {
        let progress: Progress = run.state()?;
        // A run that is not in there has emitted nothing, or everything.
        let done = progress.get(&run.id()).copied().unwrap_or(last_seq);
        count(run, request, done).await
    }
}

bureau_sdk::export!(ResumeAgent: Resume);
