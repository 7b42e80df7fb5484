//! JSON in, JSON out, and state that outlives the host.
//!
//!     curl http://127.0.0.1:8787/agents/api/demo/status
//!     curl http://127.0.0.1:8787/agents/api/demo/action -d '{"action": "greet"}'

use bureau_sdk::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Default)]
struct ApiAgent;

#[derive(Default, Serialize, Deserialize)]
struct State {
    count: u64,
    last_action: Option<String>,
}

#[derive(Deserialize)]
struct Action {
    action: String,
}

impl Agent for ApiAgent {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        match (request.method(), request.path()) {
            (&Method::GET, "/status") => {
                let state: State = run.state()?;
                Reply::json(&json!({ "status": "ok", "state": state }))
            }
            (&Method::POST, "/action") => {
                let Action { action } = request.json()?;
                let State { count, .. } = run.state()?;
                run.set_state(&State { count: count + 1, last_action: Some(action) })?;
                Reply::json(&json!({ "success": true }))
            }
            (_, "/action") => Ok(Reply::text("Method not allowed")
                .with_status(StatusCode::METHOD_NOT_ALLOWED)
                .with_header(header::ALLOW, HeaderValue::from_static("POST"))),
            _ => Ok(Reply::text("Not found").with_status(StatusCode::NOT_FOUND)),
        }
    }
}

bureau_sdk::export!(ApiAgent);
