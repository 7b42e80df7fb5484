//! Trying a module out before it serves.
//!
//! **Problem.** A module can fit the interface and still not start, or start and not work; that had better be known while the old one
//! serves.
//!
//! **Mechanism.** An instance that nobody can name is started within the limits that all have, and, if the agent's
//! configuration says so, asked for its health. Its session is held, so that nothing that it does is ever written.
//!
//! **Limits.** Those of an instance, and a time for the answer. **Cost.** A start and a call.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::agent::registry::Deployed;
use crate::id::{InstanceKey, RunId};
use crate::journal::Journal;
use crate::wasm::{
    Answer, Call, Engine, Entry, Feed, Ledger, LiveStore, Load, LoadError, Origin, Request,
    RequestHead, Run, Session,
};

/// What a module is tried out with.
pub(super) struct Trial<'a> {
    pub(super) engine: &'a Engine,
    pub(super) journal: &'a Journal,
    pub(super) feed: &'a Arc<Feed>,
    /// What to ask for, if anything, and how long the answer may take.
    pub(super) health: Option<&'a str>,
    pub(super) health_timeout: Duration,
}

impl Trial<'_> {
    /// Whether the module may serve.
    pub(super) async fn pass(&self, deployed: &Deployed) -> Result<(), LoadError> {
        let name = format!("trial-{}", RunId::generate());
        let key = InstanceKey::new(deployed.agent.clone(), &name)
            .map_err(|error| LoadError::NotInstantiated(error.to_string()))?;
        let ledger = Arc::new(Ledger::new(self.journal.clone(), self.feed.clone(), key));
        let load = Arc::new(Load::new(Instant::now(), Arc::default()));
        let session =
            Session::new(ledger.clone(), deployed.running(), deployed.limits.clone(), load);
        let session = Arc::new(session);
        session.hold();
        let granted = deployed.granted.clone();
        let start = LiveStore::start(self.engine, &deployed.module, session, granted);
        let store = start.await.map_err(|cause| LoadError::NotInstantiated(cause.to_string()))?;
        let Some(path) = self.health else { return Ok(()) };
        let unhealthy = |what: String| LoadError::Unhealthy(format!("GET {path} {what}"));
        let answer = timeout(self.health_timeout, store.try_out(ask(ledger, path))).await;
        let answer = answer.map_err(|_| {
            unhealthy(format!("was not answered within {} ms", self.health_timeout.as_millis()))
        })?;
        let status = match answer {
            Ok(Answer::Response(head, _) | Answer::Chunks(head, _)) => head.status,
            Ok(Answer::Exchange(response)) => response.status().as_u16(),
            Ok(Answer::Events(..)) => 200,
            Ok(Answer::NoContent) => 204,
            Ok(Answer::Failed(fault)) | Err(fault) => {
                return Err(unhealthy(format!("failed: {}", fault.facts().detail)));
            }
        };
        match status {
            200..=299 => Ok(()),
            status => Err(unhealthy(format!("was answered with {status}, and a 2xx was expected"))),
        }
    }
}

/// The request for an instance's health.
fn ask(ledger: Arc<Ledger>, path: &str) -> Call {
    let key = ledger.key();
    let url = format!("/agents/{}/{}{path}", key.agent(), key.name());
    let head = RequestHead::new(&url, std::iter::empty);
    // The answer is taken from the session.
    let (sender, _) = oneshot::channel();
    let origin = Origin { head, ..Origin::default() };
    let run = Run::new(ledger, RunId::generate(), origin, sender);
    let request = Request { method: "GET".into(), path: path.into(), body: Bytes::new() };
    Call { run, request, upload: None, entry: Entry::Request }
}
