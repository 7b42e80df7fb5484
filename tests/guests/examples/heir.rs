//! An agent that takes over what another build of it has left.
//!
//! The configuration says how, by `how`, or the state, by its member `how`: `fail` returns an error, `trap` traps, both after they have stored;
//! `wait` stores and waits until the configuration has `go`; `forget` leaves no state; anything else becomes
//! `{"from": DIGEST, "was": STATE}`, and the value of the key `note` goes to `taken/note`.
//!
//! `GET` answers with the state, `PUT` sets it, and `/storage?KEY` answers with the value of a key.

use bureau_sdk::prelude::*;

#[derive(Default)]
struct Heir;

impl Agent for Heir {
    async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
        if request.path() == "/storage" {
            let key = request.uri().query().unwrap_or_default();
            let value = run.storage().get(key).await?;
            let value = value.map(|value| String::from_utf8_lossy(&value).into_owned());
            return Reply::json(&json!({ "value": value }));
        }
        if request.method() == Method::PUT {
            run.set_state(&request.json::<Value>()?)?;
        }
        Reply::json(&run.state::<Value>()?)
    }
}

impl Migrate for Heir {
    async fn migrate(&self, from: &str, state: Option<Value>) -> Result<Option<Value>> {
        let storage = Storage::of_instance();
        let note = storage.get("note").await?;
        if let Some(note) = &note {
            storage.set("taken/note", note)?;
        }
        let how = config("how")?;
        let how = how.as_deref().or_else(|| state.as_ref()?["how"].as_str()).unwrap_or_default();
        match how {
            "fail" => return Err(Error::other("it was asked to fail")),
            "trap" => std::process::abort(),
            "forget" => return Ok(None),
            "wait" => {
                println!("waiting to take over");
                while config("go")?.is_none() {
                    sleep(Duration::from_millis(5)).await;
                }
            }
            _ => {}
        }
        Ok(Some(json!({ "from": from, "was": state })))
    }
}

impl Resume for Heir {
    async fn on_resume(&self, run: &Run, _: Request, _: u64) -> Result<Reply> {
        run.emit("resumed by the heir").await?;
        Ok(Reply::events())
    }
}

bureau_sdk::export!(Heir: Resume + Migrate);
