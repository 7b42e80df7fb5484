//! A hook: it says who may call the other agents.
//!
//! Who shows a cookie is let through under that name, and others are sent to log in. `?hook=` has it misbehave instead:
//! `deny`, `trap`, `hang`, `events`, `nothing`, `error`, `bad-request`, `chunks`.

use bureau_sdk::{http, prelude::*};
use serde::Deserialize;

#[derive(Default)]
struct Gate;

#[derive(Deserialize)]
struct Options {
    #[serde(default)]
    hook: String,
}

impl Agent for Gate {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        let Options { hook } = request.query()?;
        match hook.as_str() {
            "deny" => {
                let asked = json!({
                    "instance": run.instance(),
                    "method": request.method().as_str(),
                    "path": request.path(),
                    "uri": request.uri().to_string(),
                    "body": request.body().len(),
                    "headers": request.headers().keys().map(|name| name.as_str()).collect::<Vec<_>>(),
                });
                let response = http::Response::builder().status(403).header("x-why", "denied");
                return Ok(response.body(asked.to_string())?.into());
            }
            "trap" => panic!("as asked"),
            "hang" => {
                eprintln!("the hook hangs");
                run.cancelled().await;
                eprintln!("the hook was cancelled");
                return Err(Error::Cancelled);
            }
            "events" => {
                run.emit("an event").await?;
                return Ok(Reply::events());
            }
            "nothing" => return Ok(Reply::events()),
            "error" => return Err(Error::other("as asked")),
            "bad-request" => return Err(Error::bad_request("as asked")),
            "chunks" => return Ok(Reply::chunks(async |mut body| Ok(body.write("chunk").await?))),
            _ => {}
        }
        let cookie = request.headers().get("cookie").and_then(|cookie| cookie.to_str().ok());
        let reply = match cookie.and_then(|cookie| cookie.strip_prefix("user=")) {
            Some(user) => http::Response::builder()
                .status(204)
                .header("bureau-identity-user", user)
                .header("x-other", "dropped"),
            None => http::Response::builder().status(302).header("location", "/login"),
        };
        Ok(reply.body(())?.into())
    }
}

bureau_sdk::export!(Gate);
