//! What answers on the admin address.
//!
//! **Problem.** An operator loads agents into a running host, swaps them, sees what they do and ends it; nobody else may.
//!
//! **Mechanism.** The route decides the function, once it is known [who asks](guard). What is answered is in [`views`]; `openapi.json`,
//! which is served too, describes all of it. What happens is told as a stream, and so are a run's events,
//! whatever its clients were answered.
//!
//! **Limits.** [`UPLOADS`] modules at once are on their way, each in memory as a whole; a list of runs looks at a bounded number of them.
//!
//! **Cost.** A list of what is live takes the directory's lock for as long as it is long.

mod guard;
mod readiness;
mod views;
mod watch;

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::time::timeout;

pub use self::readiness::Readiness;
use self::views::{AgentView, DeploymentView, InstanceView, PastView};
use super::accept::Accept;
use super::answer::no_content;
use super::api::Api;
use super::documents::of_type;
use super::problem::Problem;
use super::route::{self, AdminRoute};
use super::{Body, documents, sse};
use crate::agent::{API, DeployError, Deployment, Deployments};
use crate::fault::Fault;
use crate::id::{AgentName, Digest};
use crate::journal::Health;
use crate::wasm::Feed;

/// Modules that are uploaded at the same time.
const UPLOADS: usize = 4;

/// The largest document that comes with a request, in bytes; modules aside.
const DOCUMENT: usize = 4 << 10;

const OPENAPI: &str = include_str!("../openapi.json");

/// Everything that answers on the admin address.
pub struct Admin {
    api: Arc<Api>,
    pub readiness: Readiness,
    pub deployments: Deployments,
    feed: Arc<Feed>,
    uploads: Semaphore,
}

impl Admin {
    /// What operates this host.
    pub fn new(api: Arc<Api>, deployments: Deployments, feed: Arc<Feed>) -> Self {
        let uploads = Semaphore::new(UPLOADS);
        Self { api, readiness: Readiness::default(), deployments, feed, uploads }
    }

    /// Answers a request.
    pub async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let answered = self.route(request).await;
        let retry = self.api.config.http.retry;
        answered.unwrap_or_else(|problem| problem.response(Accept::ANY, retry))
    }

    async fn route(&self, request: Request<Incoming>) -> Result<Response<Body>, Problem> {
        let uri = request.uri();
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        let route = route::parse_admin(request.method(), target);
        if !route.as_ref().is_ok_and(AdminRoute::is_open) {
            let token = self.api.config.admin_token.as_ref();
            guard::check(token, request.headers(), uri.authority())?;
        }
        match route? {
            AdminRoute::Health => Ok(text(StatusCode::OK, "ok\n".into())),
            AdminRoute::Ready => Ok(self.ready()),
            AdminRoute::Metrics => Ok(text(StatusCode::OK, self.metrics())),
            AdminRoute::OpenApi => Ok(json(StatusCode::OK, OPENAPI)),
            AdminRoute::Agents => Ok(self.agents()),
            AdminRoute::Deploy(agent) => self.deploy(agent, request).await,
            AdminRoute::Remove(agent) => self.remove(agent, request.headers()).await,
            AdminRoute::RollBack(agent) => self.roll_back(agent, request).await,
            AdminRoute::Deployments(agent) => self.past(&agent),
            AdminRoute::Instances(agent) => Ok(self.instances(agent.as_ref())),
            AdminRoute::Runs(query) => self.api.runs(query).await,
            AdminRoute::Run(run) => self.api.run(run).await,
            AdminRoute::RunEvents(run) => self.api.follow_run(run, &request).await,
            AdminRoute::Cancel(run) => self.api.cancel(run).await,
            AdminRoute::Happenings => Ok(self.happenings()),
        }
    }

    fn agents(&self) -> Response<Body> {
        #[derive(Serialize)]
        struct Agents {
            agents: Vec<AgentView>,
        }
        let (registry, live) = (&self.api.registry, self.api.directory.instances(None));
        let serving = registry.all().into_iter().map(|of| AgentView::serving(&of, &live));
        let mut agents: Vec<_> = serving.collect();
        agents.extend(registry.failed().into_iter().map(|of| AgentView::failed(of, &live)));
        agents.sort_by(|one, other| one.name().cmp(other.name()));
        documents::respond(StatusCode::OK, &Agents { agents })
    }

    async fn deploy(
        &self,
        agent: AgentName,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        let instead_of = if_match(request.headers())?;
        let limit = self.api.config.deployments.module_bytes;
        // Never closed.
        let _place = self.uploads.acquire().await.map_err(|_| Fault::Internal)?;
        let bytes = self.read(request.into_body(), limit).await?;
        let deployed = self.deployments.deploy(agent, bytes.into(), API.into(), instead_of).await;
        Ok(deployment(deployed?))
    }

    async fn roll_back(
        &self,
        agent: AgentName,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        #[derive(Default, Deserialize)]
        #[serde(default, deny_unknown_fields)]
        struct Target {
            to: Option<String>,
        }
        let instead_of = if_match(request.headers())?;
        let body = self.read(request.into_body(), DOCUMENT).await?;
        let target: Target = match body.is_empty() {
            true => Target::default(),
            false => serde_json::from_slice(&body).map_err(|error| {
                Problem::BadRequest(format!("the body is not {{\"to\": \"DIGEST\"}}: {error}"))
            })?,
        };
        let to = target.to.map(|to| digest(&to)).transpose()?;
        Ok(deployment(self.deployments.roll_back(agent, to, instead_of).await?))
    }

    async fn remove(
        &self,
        agent: AgentName,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, Problem> {
        match self.deployments.remove(agent, None, if_match(headers)?).await? {
            true => Ok(no_content()),
            false => Err(Fault::UnknownAgent.into()),
        }
    }

    fn past(&self, agent: &AgentName) -> Result<Response<Body>, Problem> {
        #[derive(Serialize)]
        struct Past {
            deployments: Vec<PastView>,
        }
        let records = self.api.registry.deployments(agent).ok_or(Fault::UnknownAgent)?;
        let newest_first = records.into_iter().rev().enumerate();
        let deployments = newest_first.map(|(age, record)| PastView::of(record, age == 0));
        Ok(documents::respond(StatusCode::OK, &Past { deployments: deployments.collect() }))
    }

    fn instances(&self, agent: Option<&AgentName>) -> Response<Body> {
        #[derive(Serialize)]
        struct Instances {
            instances: Vec<InstanceView>,
        }
        let mut live = self.api.directory.instances(agent);
        live.sort_by(|one, other| one.instance.cmp(&other.instance));
        let instances = live.into_iter().map(|of| {
            let current = self.api.registry.current(of.instance.agent());
            let current = current.is_some_and(|current| current.module.digest() == of.module);
            InstanceView::of(of, current)
        });
        documents::respond(StatusCode::OK, &Instances { instances: instances.collect() })
    }

    fn happenings(&self) -> Response<Body> {
        let (heartbeat, drain) = (self.api.config.http.heartbeat, self.api.shutdown.drain.begun());
        let mut response = Response::new(watch::happenings(&self.feed, heartbeat, drain));
        sse::insert_headers(response.headers_mut());
        response
    }

    /// Reads a body, which may take as long as it moves. As much again as it may have is read and thrown away, since
    /// most clients look for an answer only when they have sent all.
    async fn read(&self, mut body: Incoming, limit: usize) -> Result<Bytes, Problem> {
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        let mut bytes = BytesMut::with_capacity(announced.min(limit));
        let mut read = 0_usize;
        let patience = self.api.config.http.body_timeout;
        while read <= limit.saturating_mul(2) {
            let frame = timeout(patience, body.frame()).await.map_err(|_| Problem::BodyTimeout)?;
            let Some(frame) = frame else { break };
            let Ok(data) = frame.map_err(|_| Problem::BadBody)?.into_data() else { continue };
            read += data.len();
            if read <= limit && announced <= limit {
                bytes.extend_from_slice(&data);
            } else {
                bytes = BytesMut::new();
            }
        }
        if read > limit { Err(Problem::PayloadTooLarge { limit }) } else { Ok(bytes.freeze()) }
    }

    fn ready(&self) -> Response<Body> {
        let journal = match &*self.api.journal.health().borrow() {
            Health::Good => None,
            Health::Failing(why) | Health::Dead(why) => Some(format!("journal: {why}")),
        };
        let failed = self.api.registry.failed().into_iter().next();
        let failed = failed.map(|of| format!("agent {}: {}", of.record.agent, of.why));
        match self.readiness.missing().or(failed).or(journal) {
            None => text(StatusCode::OK, "ready\n".into()),
            Some(missing) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{missing}\n")),
        }
    }

    /// The host's figures in Prometheus' text format.
    fn metrics(&self) -> String {
        let stats = self.api.journal.stats();
        let modules = self.api.registry.engine().modules();
        let counts = &self.feed.counts;
        let figure = |of: &AtomicU64| of.load(Ordering::Relaxed);
        let figures = [
            (
                "modules",
                "gauge",
                "Modules in memory: those that serve, and those that runs still need.",
                figure(&modules.count),
            ),
            ("module_bytes", "gauge", "Bytes of their compiled code.", figure(&modules.bytes)),
            (
                "compilations_total",
                "counter",
                "Modules compiled, as the cache had none.",
                figure(&modules.compilations),
            ),
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
            (
                "calls",
                "gauge",
                "Calls of instances, in flight or on their way.",
                self.api.directory.calls() as u64,
            ),
            (
                "stopped_instances_total",
                "counter",
                "Component instances that were stopped, as a run in them did not end when it was to.",
                figure(&counts.stopped),
            ),
            (
                "host_panics_total",
                "counter",
                "Panics of functions of the host that an agent has called.",
                figure(&counts.panics),
            ),
            (
                "dropped_log_lines_total",
                "counter",
                "Lines of agents that were not logged, as there were too many.",
                figure(&counts.dropped_lines),
            ),
        ];
        let connections = &self.api.connections;
        let figures = figures.into_iter().chain([
            ("connections", "gauge", "Open connections to the public address.", connections.open()),
            (
                "connections_refused_total",
                "counter",
                "Connections to it that were closed at once, as there were too many of their address.",
                connections.refused(),
            ),
        ]);
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
}

impl From<DeployError> for Problem {
    fn from(error: DeployError) -> Self {
        let why = error.to_string();
        match error {
            DeployError::Refused(refused) => Self::ModuleRefused(refused.gate(), why),
            DeployError::UnknownAgent => Fault::UnknownAgent.into(),
            DeployError::UnknownModule(_) => Self::UnknownModule(why),
            DeployError::NothingBefore => Self::NothingToRollBackTo,
            DeployError::Mismatch(_) => Self::DigestMismatch(why),
            DeployError::NotKept(_) | DeployError::NotLoaded(_) => {
                tracing::error!("{why}");
                Self::ModuleNotStored(why)
            }
            DeployError::NotRecorded(_) => {
                tracing::error!("{why}");
                Fault::JournalUnavailable.into()
            }
            DeployError::Broken(_) => {
                tracing::error!("{why}");
                Fault::Internal.into()
            }
        }
    }
}

/// The digest that the request expects to be the current one, if it says so.
fn if_match(headers: &HeaderMap) -> Result<Option<Digest>, Problem> {
    let Some(tag) = headers.get(header::IF_MATCH) else { return Ok(None) };
    let tag = tag.to_str().unwrap_or_default();
    let quoted = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
    digest(quoted.unwrap_or(tag)).map(Some)
}

fn digest(text: &str) -> Result<Digest, Problem> {
    text.parse().map_err(|error| Problem::BadRequest(format!("{text:?}: {error}")))
}

fn deployment(deployment: Deployment) -> Response<Body> {
    let status = if deployment.previous.is_some() { StatusCode::OK } else { StatusCode::CREATED };
    let tag = format!("\"{}\"", deployment.current.module.digest());
    let mut response = documents::respond(status, &DeploymentView::from(deployment));
    let tag = HeaderValue::from_str(&tag).expect("a digest in quotes is visible ASCII");
    response.headers_mut().insert(header::ETAG, tag);
    response
}

fn json(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    of_type(status, text, "application/json")
}

fn text(status: StatusCode, text: String) -> Response<Body> {
    of_type(status, text, "text/plain; charset=utf-8")
}
