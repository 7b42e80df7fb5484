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

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

use crate::agent::directory::{Directory, Refused};
use crate::agent::registry::{Deployed, Registry};
use crate::fault::Fault;
use crate::id::{AgentName, InstanceKey, RunId};
use crate::journal::{Journal, Unfinished};
use crate::wasm::{Call, Entry, Origin, Request, RequestHead, Resumed, Run, epitaph};

/// A run that is cut off this often without a new durable event in between is not tried again.
const MAX_INTERRUPTIONS: u32 = 3;

/// How long to wait when an instance cannot take a resumption now.
pub(super) const RETRY: Duration = Duration::from_millis(100);

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

    /// Takes up the waiting runs of an agent that is served now. Not on the tracker: what waits for its turn to resume must not hold up
    /// the host's end.
    pub fn take_up(self: Arc<Self>, deployed: Arc<Deployed>) {
        let directory = self.directory.clone();
        directory.attend("the taking up of interrupted runs", async move {
            self.take_up_all(deployed).await;
        });
    }

    async fn take_up_all(&self, deployed: Arc<Deployed>) {
        let runs: Vec<_> = {
            let ours =
                |unfinished: &mut Unfinished| *unfinished.record.instance.agent() == deployed.agent;
            self.waiting().extract_if(.., ours).collect()
        };
        for unfinished in runs {
            if let Some(fault) = hopeless(&unfinished, &deployed) {
                self.bury(&unfinished, &fault);
            } else {
                self.wait(unfinished);
            }
        }
        loop {
            // The semaphore lives as long as `self` and is never closed.
            let Ok(permit) = self.at_once.clone().acquire_owned().await else { return };
            // Only now, so that a run that waits for its place can be cancelled; the module may have been swapped meanwhile,
            // and those of an agent that was removed wait for the next one.
            let Some(current) = self.registry.current(&deployed.agent) else { return };
            let Some(unfinished) = self.next(&deployed.agent) else { return };
            match hopeless(&unfinished, &current) {
                None => self.resume(unfinished, permit),
                Some(fault) => self.bury(&unfinished, &fault),
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Vec<Unfinished>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait(&self, unfinished: Unfinished) {
        self.waiting().push(unfinished);
    }

    /// The oldest run of an agent that waits.
    fn next(&self, agent: &AgentName) -> Option<Unfinished> {
        let mut waiting = self.waiting();
        let of = |unfinished: &Unfinished| unfinished.record.instance.agent() == agent;
        let at = waiting.iter().position(of)?;
        Some(waiting.remove(at))
    }

    /// Ends a run that waits to be taken up. Whether there was one.
    pub fn cancel(&self, run: RunId) -> bool {
        let mut waiting = self.waiting();
        let at = waiting.iter().position(|unfinished| unfinished.record.run == run);
        let unfinished = at.map(|at| waiting.remove(at));
        drop(waiting);
        unfinished.inspect(|unfinished| self.bury(unfinished, &Fault::Cancelled)).is_some()
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

    fn resume(&self, unfinished: Unfinished, permit: OwnedSemaphorePermit) {
        let Unfinished { record, request, tail } = unfinished;
        tracing::info!(instance = %record.instance, run = %record.run, after = %record.last, "resuming");
        let (held, gone) = oneshot::channel();
        let head = request.as_deref().and_then(restore).map(|(_, head)| head).unwrap_or_default();
        let origin = Origin {
            keeps_reply: keeps_reply(&head),
            head,
            request,
            resumed: Some(Box::new(Resumed { after: record.last, gone: Some(held) })),
            ..Origin::default()
        };
        let Some(call) = call_again(Run::again(tail, origin)) else { return };
        insist(self.directory.clone(), record.instance, call, Duration::ZERO);
        self.directory.attend("the place of a resumption", async move {
            // Either way its place is free.
            drop(tokio::time::timeout(PLACE, gone).await);
            drop(permit);
        });
    }
}

/// Why a run cannot be gone on with on this module, if it cannot.
fn hopeless(unfinished: &Unfinished, deployed: &Deployed) -> Option<Fault> {
    if unfinished.record.interruptions >= MAX_INTERRUPTIONS {
        return Some(Fault::GaveUp);
    }
    let request = unfinished.request.as_deref().and_then(restore);
    let resumes = deployed.module.resumes() && request.is_some();
    (!resumes).then_some(Fault::Interrupted)
}

/// The call that goes on with a run, which has the request that began it.
pub(super) fn call_again(run: Run) -> Option<Call> {
    let (request, _) = restore(run.origin().request.as_deref()?)?;
    let last = run.origin().resumed_after()?;
    Some(Call { run, request, upload: None, entry: Entry::Resume(last) })
}

/// Hands a resumption to its instance after a pause, on the module that serves it then, again and again until it is taken or the host ends.
/// While the agent is not served it waits.
pub(super) fn insist(directory: Directory, instance: InstanceKey, call: Call, pause: Duration) {
    let insisting = insist_until_taken(directory.clone(), instance, call, pause);
    directory.attend("a resumption", insisting);
}

async fn insist_until_taken(
    directory: Directory,
    instance: InstanceKey,
    mut call: Call,
    pause: Duration,
) {
    tokio::time::sleep(pause).await;
    loop {
        if let Some(current) = directory.current(&instance) {
            match directory.send(&instance, &current, |_| call) {
                Ok(_) | Err(Refused { fault: Fault::Draining, .. }) => return,
                Err(Refused { call: refused, fault }) => {
                    tracing::debug!(%instance, code = fault.code(), "a resumption waits");
                    call = *refused;
                }
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Whether what a request is answered is kept: it has a key by which it can be repeated, or nobody waits for the answer.
pub fn keeps_reply(head: &RequestHead) -> bool {
    let keeps = |(name, value): (&str, &str)| match name {
        "idempotency-key" => true,
        "prefer" => prefers_async(value),
        _ => false,
    };
    head.fields().any(keeps)
}

/// Whether this value of `Prefer` (RFC 7240) asks for an answer at once.
pub fn prefers_async(prefer: &str) -> bool {
    let mut preferences = prefer.split(',');
    preferences.any(|one| {
        one.split(';').next().is_some_and(|name| name.trim().eq_ignore_ascii_case("respond-async"))
    })
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
