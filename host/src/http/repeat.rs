//! Requests that can be repeated, and requests that do not wait.
//!
//! **Problem.** A client whose answer was lost sends its request again, and must not begin a second run, not even when the host
//! was killed in between. Another client wants no answer but a place to find it later.
//!
//! **Mechanism.** `Idempotency-Key` names what a request began: run and key are durable before the agent is called, and
//! whoever comes with the same key attaches to that run, once it is known to be the same request. While one looks up a key, or begins what it names, others
//! with the same one wait. `Prefer: respond-async` (RFC 7240) makes the run durable too, and is answered with its place at once. Either kind of run keeps
//! [what it answers](KeptReply), so that who attaches gets what the first client got.
//!
//! **Limits.** A key has up to 255 visible characters and counts for one instance, as long as the run is kept. What a run answers is
//! kept up to the size of a stored value. A request that was refused before its run began may be repeated as a new one.
//!
//! **Cost.** A read and a commit before the run begins; nothing for all other requests.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use tokio::sync::watch;

use super::accept::Accept;
use super::answer::{identify, no_content, respond};
use super::api::{Api, Reset};
use super::problem::Problem;
use super::runs::read;
use super::{Body, documents};
use crate::agent;
use crate::fault::Fault;
use crate::id::{Digest, InstanceKey, RunId, Seq};
use crate::journal::{Keyed, Located, RunRecord, Step, Tail, Turn, Write};
use crate::wasm::{KeptReply, epitaph};

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const PREFER: &str = "prefer";

/// The longest key.
const MAX_KEY: usize = 255;

/// The codes of runs that were refused before they began.
const NEVER_BEGUN: [&str; 4] = ["agent-busy", "instance-busy", "host-busy", "draining"];

/// How a request is to be treated, if not as most are.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Terms {
    /// The key by which it can be repeated.
    key: Option<Box<str>>,
    /// Whether it is answered before its run has.
    pub(super) respond_async: bool,
}

impl Terms {
    /// The terms of these headers, if there are any.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Box<Self>>, Problem> {
        // Once through them all is less than to look for either, of which most have none.
        let (mut key, mut respond_async) = (None, false);
        for (name, value) in headers {
            match name.as_str() {
                IDEMPOTENCY_KEY if key.is_none() => key = Some(key_of(value)?),
                PREFER => respond_async |= value.to_str().is_ok_and(agent::prefers_async),
                _ => {}
            }
        }
        let any = key.is_some() || respond_async;
        Ok(any.then(|| Box::new(Self { key, respond_async })))
    }
}

/// A key, which may be written as a string of structured fields (RFC 9651).
fn key_of(value: &HeaderValue) -> Result<Box<str>, Problem> {
    let text = value.to_str().unwrap_or_default().trim();
    let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).unwrap_or(text);
    match text.len() {
        1..=MAX_KEY if text.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(text.into()),
        _ => Err(Problem::BadRequest(format!(
            "an Idempotency-Key has 1 to {MAX_KEY} visible ASCII characters"
        ))),
    }
}

/// The keys that someone looks up, or begins a run with.
#[derive(Default)]
pub struct Keys(Mutex<HashMap<Place, watch::Receiver<()>>>);

type Place = (InstanceKey, Box<str>);

/// The right to look up a key and to begin a run with it. When it goes, others look.
pub(super) struct Turnstile<'a> {
    keys: &'a Keys,
    place: Place,
    /// Who waits hears of it when this goes.
    _gone: watch::Sender<()>,
}

impl Keys {
    fn map(&self) -> MutexGuard<'_, HashMap<Place, watch::Receiver<()>>> {
        // Nothing below panics while it holds the lock, so a poisoned one is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for the right to a key.
    async fn enter(&self, instance: &InstanceKey, key: &str) -> Turnstile<'_> {
        let place = (instance.clone(), Box::from(key));
        loop {
            let mut before = {
                let mut map = self.map();
                match map.get(&place) {
                    Some(before) => before.clone(),
                    None => {
                        let (gone, held) = watch::channel(());
                        map.insert(place.clone(), held);
                        return Turnstile { keys: self, place, _gone: gone };
                    }
                }
            };
            // An error is the end of who had it.
            while before.changed().await.is_ok() {}
        }
    }
}

impl Drop for Turnstile<'_> {
    fn drop(&mut self) {
        self.keys.map().remove(&self.place);
    }
}

/// What a request that can be repeated comes to.
pub(super) enum Registered {
    /// A run of its own, that is on record.
    Begun(Arc<Tail>),
    /// The run that an earlier one began.
    Known(RunId),
}

impl Api {
    /// Puts a run on record for a request with terms, unless an earlier one with its key began one.
    pub(super) async fn register(
        &self,
        instance: &InstanceKey,
        module: Digest,
        terms: &Terms,
        fingerprint: Digest,
        request: Option<bytes::Bytes>,
    ) -> Result<Registered, Problem> {
        let _turnstile = match &terms.key {
            Some(key) => {
                let turnstile = self.keys.enter(instance, key).await;
                if let Some(keyed) = self.keyed(instance, key).await? {
                    return match keyed.fingerprint == fingerprint {
                        true => Ok(Registered::Known(keyed.run)),
                        false => Err(Problem::KeyReused),
                    };
                }
                Some(turnstile)
            }
            None => None,
        };
        let tail = self.journal.tail(instance, RunId::generate());
        let mut writes = vec![Write::Start { tail: tail.clone(), module, request }];
        if let Some(key) = &terms.key {
            writes.push(Write::Key { tail: tail.clone(), key: key.clone(), fingerprint });
        }
        let ticket = self.journal.lane(instance.clone()).submit(Turn(writes));
        // Whatever becomes of this client, and of commits, the key is not looked up before it is known whether it is taken.
        ticket.settled().await.map_err(|_| Fault::JournalUnavailable)?;
        Ok(Registered::Begun(tail))
    }

    /// The run that a key stands for, if there is one that began.
    async fn keyed(&self, instance: &InstanceKey, key: &str) -> Result<Option<Keyed>, Problem> {
        let (journal, instance, key) = (self.journal.clone(), instance.clone(), key.to_owned());
        read(move || {
            let Some(keyed) = journal.keyed(&instance, &key)? else { return Ok(None) };
            let began = |record: &RunRecord| {
                !record.code.as_deref().is_some_and(|code| NEVER_BEGUN.contains(&code))
            };
            Ok(journal.run(keyed.run)?.filter(began).map(|_| keyed))
        })
        .await
    }

    /// Ends a run on record that could not begin. Once that is durable a client may be told: its key is free, also after a crash.
    pub(super) async fn never_begun(&self, tail: &Arc<Tail>, fault: &Fault) -> Result<(), Fault> {
        let lane = self.journal.lane(tail.instance().clone());
        let ended = lane.submit(epitaph(tail, Seq::ZERO, fault));
        ended.durable().await.map_err(|_| Fault::JournalUnavailable)
    }

    /// What a run on record answers, from its beginning: what it answered, or will, or the events that it emits.
    pub(super) async fn attach(
        &self,
        record: RunRecord,
        accept: Accept,
        reset: Option<Reset>,
    ) -> Result<Response<Body>, Problem> {
        let run = record.run;
        let mut response = match self.beginning(&record).await? {
            Located::At(mut reader) => match reader.next().await {
                Step::Events(page) => match page.first() {
                    Some(event) if event.name.as_deref() == Some("failed") => {
                        Problem::again(&event.data).response(accept, self.config.http.retry)
                    }
                    _ => self.stream(reader.from_start(), accept.format(None), reset),
                },
                Step::End(_) => self.kept_reply(run, accept).await?,
                Step::Broken(_) => return Err(Fault::JournalUnavailable.into()),
            },
            Located::CaughtUp(_) => self.kept_reply(run, accept).await?,
            // Retention may delete a run between two reads.
            Located::Not(_) => return Err(Problem::NoSuchRun),
        };
        identify(&mut response, run, record.module);
        Ok(response)
    }

    /// What a run that emitted nothing answered.
    async fn kept_reply(&self, run: RunId, accept: Accept) -> Result<Response<Body>, Problem> {
        let journal = self.journal.clone();
        let kept = read(move || journal.reply(run)).await?;
        let Some(kept) = kept.as_deref().and_then(KeptReply::decode) else {
            return Ok(no_content());
        };
        Ok(match kept {
            KeptReply::Nothing => no_content(),
            KeptReply::Failure(document) => {
                Problem::again(&document).response(accept, self.config.http.retry)
            }
            KeptReply::Lost => return Err(Problem::ReplyNotKept),
            kept @ KeptReply::Response { .. } => {
                let (head, body) = kept.into_response().ok_or(Fault::Internal)?;
                respond(head, Body::full(body))?
            }
        })
    }
}

/// The answer to a client that does not wait: where its run is.
pub(super) fn accepted(run: RunId, module: Digest) -> Response<Body> {
    #[derive(serde::Serialize)]
    struct Accepted {
        run: String,
        url: String,
        status: String,
    }
    let url = format!("/runs/{run}");
    let place = HeaderValue::try_from(&url).expect("a run's id is letters and digits");
    let status = format!("{url}/status");
    let accepted = Accepted { run: run.to_string(), url, status };
    let mut response = documents::respond(StatusCode::ACCEPTED, &accepted);
    let headers = response.headers_mut();
    headers.insert(header::LOCATION, place);
    let applied = HeaderName::from_static("preference-applied");
    headers.insert(applied, HeaderValue::from_static("respond-async"));
    identify(&mut response, run, module);
    response
}
