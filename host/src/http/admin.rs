//! What answers on the admin address.
//!
//! Health, readiness and figures for whoever operates the host, and cancelling a run. The address is loopback
//! unless configured otherwise and has no authentication of its own. Nothing here waits or computes beyond
//! one read of the journal.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;

use super::Body;
use super::accept::Accept;
use super::api::Api;
use super::problem::Problem;
use super::route::{self, AdminRoute};
use crate::fault::Fault;
use crate::id::RunId;
use crate::journal::Health;

/// What the host still has to do before it serves all it was asked to.
#[derive(Default)]
pub struct Readiness(Mutex<State>);

#[derive(Default)]
struct State {
    loaded: bool,
    /// Why files could not be loaded.
    failed: BTreeMap<PathBuf, String>,
}

impl Readiness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent's file could not be loaded. Only at the start does that keep the host from being ready: later there is
    /// nothing missing that it was ready with.
    pub fn failed(&self, file: &Path, why: String) {
        let mut state = self.state();
        if !state.loaded || state.failed.contains_key(file) {
            state.failed.insert(file.to_owned(), why);
        }
    }

    /// An agent's file was loaded, or is gone.
    pub fn mended(&self, file: &Path) {
        self.state().failed.remove(file);
    }

    /// Every agent was loaded, or has failed.
    pub fn loaded(&self) {
        self.state().loaded = true;
    }

    /// What is missing, in a line, if anything is.
    fn missing(&self) -> Option<String> {
        let state = self.state();
        if !state.loaded {
            return Some("agents are being compiled".into());
        }
        let failed: Vec<_> = state.failed.values().map(String::as_str).collect();
        (!failed.is_empty()).then(|| format!("not loaded: {}", failed.join("; ")))
    }
}

/// Everything that answers on the admin address.
pub struct Admin {
    pub api: Arc<Api>,
    pub readiness: Arc<Readiness>,
}

impl Admin {
    /// Answers a request.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let answered = match route::parse_admin(request.method(), target) {
            Ok(AdminRoute::Health) => Ok(text(StatusCode::OK, "ok\n".into())),
            Ok(AdminRoute::Ready) => Ok(self.ready()),
            Ok(AdminRoute::Metrics) => Ok(text(StatusCode::OK, self.metrics())),
            Ok(AdminRoute::Cancel(run)) => self.cancel(run).await,
            Err(problem) => Err(problem),
        };
        let retry = self.api.config.http.retry;
        answered.unwrap_or_else(|problem| problem.response(Accept::ANY, retry))
    }

    fn ready(&self) -> Response<Body> {
        let journal = match &*self.api.journal.health().borrow() {
            Health::Good => None,
            Health::Failing(why) | Health::Dead(why) => Some(format!("journal: {why}")),
        };
        match self.readiness.missing().or(journal) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        }
    }

    /// The host's figures in Prometheus' text format.
    fn metrics(&self) -> String {
        let stats = self.api.journal.stats();
        let figures = [
            ("commits_total", "counter", "Journal commits.", stats.commits),
            ("turns_total", "counter", "Turns made durable.", stats.turns),
            ("events_total", "counter", "Events made durable.", stats.events),
            ("trimmed_runs_total", "counter", "Runs deleted by retention.", stats.trimmed_runs),
            ("live_runs", "gauge", "Runs that have not ended.", stats.live_runs),
            (
                "buffered_bytes",
                "gauge",
                "Bytes of events held in memory for readers.",
                stats.buffered_bytes,
            ),
            (
                "buffered_bytes_peak",
                "gauge",
                "The most bytes of events ever held in memory for readers.",
                stats.buffered_bytes_peak,
            ),
            (
                "sending_bytes",
                "gauge",
                "Bytes of framed events that no socket has taken yet.",
                stats.sending_bytes,
            ),
            (
                "sending_bytes_peak",
                "gauge",
                "The most bytes of framed events that no socket had taken yet.",
                stats.sending_bytes_peak,
            ),
            (
                "live_instances",
                "gauge",
                "Component instances, with those on their way out.",
                self.api.directory.stores() as u64,
            ),
        ];
        let mut text = String::new();
        for (name, kind, help, value) in figures {
            // Writing to a string cannot fail.
            let _ = write!(
                text,
                "# HELP bureau_{name} {help}\n# TYPE bureau_{name} {kind}\nbureau_{name} {value}\n"
            );
        }
        text
    }

    /// Asks a run to end. It may take its time, and may decline.
    async fn cancel(&self, run: RunId) -> Result<Response<Body>, Problem> {
        if self.api.directory.cancel(run) {
            return Ok(text(StatusCode::ACCEPTED, "cancelling\n".into()));
        }
        let journal = self.api.journal.clone();
        let record = tokio::task::spawn_blocking(move || journal.run(run)).await;
        let record = record.map_err(|_| Fault::Internal)?.map_err(|_| Fault::JournalUnavailable)?;
        Err(record.map_or(Problem::NotFound, |_| Problem::RunEnded))
    }
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::full(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
