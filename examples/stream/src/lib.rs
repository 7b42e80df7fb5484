//! A live stream: as events, which a client can resume, and under `/raw` as bytes written by hand, which it cannot.
//!
//!     curl -N 'http://127.0.0.1:8787/agents/stream/demo?steps=5&delay=500'
//!     curl -N http://127.0.0.1:8787/agents/stream/demo/raw

use bureau_sdk::prelude::*;
use serde::Deserialize;

#[derive(Default)]
struct StreamAgent;

#[derive(Deserialize)]
struct Options {
    steps: Option<u32>,
    delay: Option<u64>,
}

impl Agent for StreamAgent {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        let Options { steps, delay } = request.query()?;
        let (steps, delay) = (steps.unwrap_or(5), Duration::from_millis(delay.unwrap_or(500)));
        if request.path() == "/raw" {
            return Ok(raw(steps, delay));
        }
        run.emit("Starting...").await?;
        for step in 1..=steps {
            sleep(delay).await;
            run.emit(format!("Step {step} complete")).await?;
        }
        run.emit("Done!").await?;
        Ok(Reply::events())
    }
}

fn raw(steps: u32, delay: Duration) -> Reply {
    Reply::chunks(async move |mut body| {
        body.write("data: Starting...\n\n").await?;
        for step in 1..=steps {
            sleep(delay).await;
            body.write(format!("data: Step {step} complete\n\n")).await?;
        }
        body.write("data: Done!\n\n").await?;
        Ok(())
    })
    .with_header(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"))
    .with_header(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"))
    .with_header(header::CONNECTION, HeaderValue::from_static("keep-alive"))
}

bureau_sdk::export!(StreamAgent);
