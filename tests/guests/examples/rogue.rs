//! An agent on the bare interface: it says to the host what the SDK would not let it say.
//!
//! - `/reply` answers with the status and the headers of its body, `{"status": 42, "headers": [["x", "y"]]}`.
//! - `/state` sets its body as the instance's state, JSON or not, and answers with what the host says to it.

#![expect(unsafe_code, reason = "what wit-bindgen generates")]

use serde::Deserialize;

use self::bureau::agent::state;
use self::bureau::agent::types::{Body, Header, Response};
use self::exports::bureau::agent::handler::{AgentError, Guest, Reply, Request, Run};

wit_bindgen::generate!({
    path: "../../wit",
    world: "agent",
    generate_all,
});

struct Rogue;

#[derive(Deserialize)]
struct Head {
    status: u16,
    headers: Vec<(String, String)>,
}

impl Guest for Rogue {
    async fn on_request(_: Run, request: Request) -> Result<Reply, AgentError> {
        let bad_request = |fault: &dyn std::error::Error| AgentError::BadRequest(fault.to_string());
        match request.path.as_str() {
            "/reply" => {
                let head = serde_json::from_slice(&request.body);
                Ok(respond(head.map_err(|fault| bad_request(&fault))?, ""))
            }
            "/state" => {
                let document = String::from_utf8(request.body);
                let set = state::set(&document.map_err(|fault| bad_request(&fault))?);
                Ok(respond(Head::ok(), &format!("{set:?}")))
            }
            _ => Ok(Reply::Events),
        }
    }
}

impl Head {
    fn ok() -> Self {
        Self { status: 200, headers: Vec::new() }
    }
}

fn respond(head: Head, body: &str) -> Reply {
    let headers = head.headers.into_iter();
    Reply::Response(Response {
        status: head.status,
        headers: headers.map(|(name, value)| Header { name, value }).collect(),
        body: Body::Bytes(body.into()),
    })
}

export!(Rogue);
