//! An agent that counts, and that streams.
//!
//!     curl http://127.0.0.1:8787/agents/NAME/demo
//!     curl http://127.0.0.1:8787/agents/NAME/demo -d '{"add": 2}'
//!     curl -N 'http://127.0.0.1:8787/agents/NAME/demo/stream?delay=200'

use bureau_sdk::prelude::*;
use serde::{Deserialize, Serialize};

/// One value of this lives for each instance while it is in use. What has to outlive that is state.
#[derive(Default)]
struct Counter;

/// What an instance keeps, also over restarts of the host and new versions of the agent: a version that adds a field
/// reads what an older one has written, and finds the default there.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct State {
    count: u64,
}

/// The body of a POST.
#[derive(Deserialize)]
struct Change {
    add: u64,
}

/// The query of a stream.
#[derive(Deserialize)]
struct Options {
    delay: Option<u64>,
}

impl Agent for Counter {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        match (request.method(), request.path()) {
            (&Method::GET, "/") => Reply::json(&run.state::<State>()?),
            (&Method::POST, "/") => {
                // A body that does not fit is answered with 400 and what is wrong with it.
                let Change { add } = request.json()?;
                let mut state: State = run.state()?;
                state.count = state.count.saturating_add(add);
                // The reply leaves once this is on disk.
                run.set_state(&state)?;
                Reply::json(&state)
            }
            (&Method::GET, "/stream") => stream(run, request).await,
            _ => Ok(Reply::text("Not found").with_status(StatusCode::NOT_FOUND)),
        }
    }
}

/// Counts down to 0. Whoever loses the connection comes back with the id of the last event, and misses none.
async fn stream(run: &Run, request: Request) -> Result<Reply> {
    let Options { delay } = request.query()?;
    let delay = Duration::from_millis(delay.unwrap_or(500));
    let State { count } = run.state()?;
    for n in (0..=count).rev() {
        run.emit(Event::json(&json!({ "n": n }))?.name("count")).await?;
        sleep(delay).await;
    }
    Ok(Reply::events())
}

bureau_sdk::export!(Counter);
