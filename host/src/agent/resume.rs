//! Going on with runs that the host's end cut off.
//!
//! **Problem.** After a start there may be thousands of unfinished runs, of agents that resume, of agents that do
//! not, and of agents that are not served; some may be what brought the host down.
//!
//! **Mechanism.** The journal hands them over once. When an agent is served, each of its runs is either called
//! back through `on-resume`, ended as `interrupted` when the module does not resume, or ended as `gave-up` when it was
//! interrupted [`MAX_INTERRUPTIONS`] times without getting any further. Runs of agents that are not served wait.
//!
//! **Limits.** A number of resumptions under way at once; the others wait their turn, and their readers with them. A
//! resumed run has its place until it ends, but no longer than [`PLACE`]: runs without end must not keep out others.
//!
//! **Cost.** A record and a tail per waiting run.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::agent::directory::{Directory, Refused};
use crate::agent::registry::{Deployed, Registry};
use crate::fault::Fault;
use crate::id::InstanceKey;
use crate::journal::{Journal, Unfinished};
use crate::wasm::{Call, Entry, Origin, Request, RequestHead, Run, epitaph};

/// A run that is cut off this often without a new durable event in between is not tried again.
const MAX_INTERRUPTIONS: u32 = 3;

/// How long to wait when an instance cannot take a resumption now.
const RETRY: Duration = Duration::from_millis(100);

/// How long a resumed run counts as one of those under way.
const PLACE: Duration = Duration::from_secs(30);

/// Header fields that are not kept for a resumption: they are the client's to show, not the host's to store.
const SECRET: [&str; 3] = ["authorization", "proxy-authorization", "cookie"];

/// The unfinished runs of the last start.
pub struct Resumptions {
    journal: Journal,
    registry: Arc<Registry>,
    directory: Directory,
    waiting: Mutex<Vec<Unfinished>>,
    at_once: Arc<Semaphore>,
}

impl Resumptions {
    /// Takes over what the journal found unfinished.
    pub fn new(
        journal: Journal,
        registry: Arc<Registry>,
        directory: Directory,
        waiting: Vec<Unfinished>,
        at_once: usize,
    ) -> Self {
        let at_once = Arc::new(Semaphore::new(at_once));
        Self { journal, registry, directory, waiting: Mutex::new(waiting), at_once }
    }

    /// Takes up the waiting runs of an agent that is served now.
    pub async fn take_up(&self, deployed: Arc<Deployed>) {
        let runs: Vec<_> = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            let ours =
                |unfinished: &mut Unfinished| *unfinished.record.instance.agent() == deployed.agent;
            waiting.extract_if(.., ours).collect()
        };
        let mut resumable = Vec::new();
        for unfinished in runs {
            let request = unfinished.request.as_deref().and_then(restore);
            match request.filter(|_| deployed.module.resumes()) {
                _ if unfinished.record.interruptions >= MAX_INTERRUPTIONS => {
                    self.bury(&unfinished, &Fault::GaveUp);
                }
                None => self.bury(&unfinished, &Fault::Interrupted),
                Some(request) => resumable.push((unfinished, request)),
            }
        }
        for (unfinished, request) in resumable {
            // The semaphore lives as long as `self` and is never closed.
            let Ok(permit) = self.at_once.clone().acquire_owned().await else { return };
            // The module may have been swapped while the run waited for its place.
            let current =
                self.registry.current(&deployed.agent).unwrap_or_else(|| deployed.clone());
            match current.module.resumes() {
                true => self.resume(unfinished, current, request, permit),
                false => self.bury(&unfinished, &Fault::Interrupted),
            }
        }
    }

    fn bury(&self, unfinished: &Unfinished, fault: &Fault) {
        let Unfinished { record, tail, .. } = unfinished;
        tracing::warn!(
            instance = %record.instance, run = %record.run, code = fault.code(),
            interruptions = record.interruptions, "an interrupted run ends"
        );
        let turn = epitaph(tail, record.last, fault);
        self.journal.lane(record.instance.clone()).submit(turn);
    }

    fn resume(
        &self,
        unfinished: Unfinished,
        deployed: Arc<Deployed>,
        request: (Request, RequestHead),
        permit: OwnedSemaphorePermit,
    ) {
        let Unfinished { record, tail, .. } = unfinished;
        tracing::info!(instance = %record.instance, run = %record.run, after = %record.last, "resuming");
        let (held, gone) = oneshot::channel();
        let (request, head) = request;
        let origin = Origin {
            head,
            resumed_after: Some(record.last),
            gone: Some(held),
            ..Origin::default()
        };
        let run = Run::again(tail, origin);
        let call = Call { run, request, entry: Entry::Resume(record.last) };
        tokio::spawn(insist(self.directory.clone(), record.instance, deployed, call));
        tokio::spawn(async move {
            // Either way its place is free.
            drop(tokio::time::timeout(PLACE, gone).await);
            drop(permit);
        });
    }
}

/// Hands a resumption to its instance, again and again until it is taken or the host ends.
pub(super) async fn insist(
    directory: Directory,
    instance: InstanceKey,
    deployed: Arc<Deployed>,
    mut call: Call,
) {
    while let Err(Refused { call: refused, fault }) = directory.send(&instance, &deployed, |_| call)
    {
        if fault == Fault::Draining {
            return;
        }
        tracing::debug!(%instance, code = fault.code(), "a resumption waits");
        tokio::time::sleep(RETRY).await;
        call = *refused;
    }
}

/// A request as it is kept. The field names are the format; do not rename them.
#[derive(Serialize, Deserialize)]
struct Kept {
    method: String,
    url: String,
    path: String,
    headers: Vec<(String, String)>,
    /// The body, one character per byte, since most bodies are text.
    body: String,
}

/// A request as bytes to keep for a resumption.
pub fn keep(request: &Request, head: &RequestHead) -> Bytes {
    let public =
        |(name, _): &(&str, &str)| !SECRET.iter().any(|secret| name.eq_ignore_ascii_case(secret));
    let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
    let kept = Kept {
        method: request.method.clone(),
        url: head.url().to_owned(),
        path: request.path.clone(),
        headers: head.fields().filter(public).map(owned).collect(),
        body: request.body.iter().copied().map(char::from).collect(),
    };
    serde_json::to_vec(&kept).expect("strings always serialize").into()
}

fn restore(kept: &[u8]) -> Option<(Request, RequestHead)> {
    let Kept { method, url, path, headers, body } = serde_json::from_slice(kept).ok()?;
    let body = body.chars().map(|char| u8::try_from(char).ok()).collect::<Option<Vec<u8>>>()?;
    let fields = || headers.iter().map(|(name, value)| (name.as_str(), value.into()));
    let head = RequestHead::new(&url, fields);
    Some((Request { method, path, body: body.into() }, head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kept_request_comes_back_without_its_secrets() {
        let names = ["Cookie", "AUTHORIZATION", "proxy-authorization", "x-kept"];
        let url = "/agents/a/b/c?d";
        let head =
            RequestHead::new(url, || names.map(|name| (name, "\u{e9}: value".into())).into_iter());
        let (method, path) = ("POST".into(), "/c?d".into());
        let request = Request { method, path, body: Bytes::from_iter(0..=255) };
        let (restored, head) = restore(&keep(&request, &head)).unwrap();
        assert_eq!(restored, request);
        assert_eq!(head.url(), url);
        assert_eq!(head.fields().collect::<Vec<_>>(), [("x-kept", "\u{e9}: value")]);
    }
}
