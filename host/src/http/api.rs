//! One function for each thing a client can ask for.
//!
//! **Problem.** A request is routed, refused, resumed, or run, and every way it can end is a response that a
//! client, a proxy and a browser's `EventSource` take rightly.
//!
//! **Mechanism.** The route decides the function. A request that says where it stopped reading is answered
//! from the journal, without the agent; any other becomes a call, and the first thing the run does decides the
//! answer: events, a response, or a problem. Nothing leaves before the ticket that came with the answer is durable.
//!
//! **Limits.** Those of [`HttpLimits`](crate::config::HttpLimits). **Cost.** Parsing the target, one lookup
//! of the module and one of the instance, and the copies into and out of the guest.

use std::borrow::Cow;
use std::future::ready;
use std::pin::pin;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::FutureExt as _;
use futures_util::future::Either::{self, Left, Right};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::accept::Accept;
use super::auth::{self, Verdict};
use super::connections::Connections;
use super::problem::Problem;
pub use super::repeat::Keys;
use super::repeat::{self, Registered, Terms};
use super::route::{self, Resource, Route};
use super::runs::LAST_EVENT_ID;
use super::sse::{self, EventsBody, Pace};
use super::upload::Upload;
use super::views::{self, ViewBody};
use super::{Body, BodyError, cors};
use crate::agent::{self, Deployed, Directory, Refused, Registry, Resumptions};
use crate::config::{Config, Hook};
use crate::fault::Fault;
use crate::format::Format;
use crate::id::{Digest, InstanceKey, RunId};
use crate::journal::{Journal, Located, NotResumable, Reader};
use crate::shutdown::Shutdown;
use crate::wasm::{
    Answer, Answered, Call, Chunks, Entry, Head, Kind, Origin, Request as AgentRequest,
    RequestHead, Response as AgentResponse, Run, Upload as AgentUpload, check_status,
};

const RUN: HeaderName = HeaderName::from_static("bureau-run");
const MODULE: HeaderName = HeaderName::from_static("bureau-module");

/// How many characters of an id are repeated to the client that sent it.
const MAX_ECHO: usize = 128;

/// Header fields that belong to a connection and not to what is sent over it (RFC 9110, 7.6.1), or that the
/// host writes itself. An agent's are dropped.
const NOT_THE_AGENTS: [HeaderName; 9] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Everything that answers on the public address.
pub struct Api {
    pub config: Arc<Config>,
    pub registry: Arc<Registry>,
    pub directory: Directory,
    pub journal: Journal,
    pub resumptions: Arc<Resumptions>,
    pub keys: Keys,
    /// Those to the public address.
    pub connections: Arc<Connections>,
    /// Room for the bytes of bodies that are being read.
    pub bodies: Semaphore,
    pub shutdown: Shutdown,
}

/// A request that cannot be resumed: the id it came with, and why.
pub(super) type Reset = (String, NotResumable);

impl Api {
    /// Answers a request. What is needed of its head is copied before this returns and the head let go of: hyper reads on
    /// before it asks the future for anything, and takes a second buffer to read into if the first is in use.
    pub fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + use<> {
        let cors = &self.config.cors;
        if let Some(allowed) = cors::preflight(cors, &request) {
            return Right(Left(ready(allowed)));
        }
        let accept = Accept::of(request.headers());
        let origin = cors::origin(cors, request.headers());
        let url = request.uri().path_and_query().map_or("/", |target| target.as_str());
        let asked = match route::parse(request.method(), url) {
            Ok(Route::Agent { instance, path }) => {
                match Asked::of(request, instance, path, &self.config) {
                    Ok(asked) => asked,
                    Err(problem) => {
                        return Right(Left(ready(self.respond(Err(problem), accept, origin))));
                    }
                }
            }
            Ok(Route::Resource(resource)) => {
                let answered = Box::pin(async move {
                    let answered = self.resource(resource, &request).await;
                    self.respond(answered, accept, origin)
                });
                return Right(Right(answered));
            }
            Err(problem) => return Right(Left(ready(self.respond(Err(problem), accept, origin)))),
        };
        // One after the other in the same place, which many requests have at once while they wait.
        Left(self.clone().begin(asked, accept).then(move |begun| match begun {
            Ok(Begun::Run(run)) => Left(self.follow(run, accept, origin)),
            Ok(Begun::Answered(response)) => {
                Right(ready(self.respond(Ok(*response), accept, origin)))
            }
            Err(problem) => Right(ready(self.respond(Err(problem), accept, origin))),
        }))
    }

    /// A request for what the host knows itself.
    async fn resource(
        &self,
        resource: Resource,
        request: &Request<Incoming>,
    ) -> Result<Response<Body>, Problem> {
        let instance = match &resource {
            Resource::Run(run) | Resource::RunStatus(run) | Resource::CancelRun(run) => {
                &self.instance_of(*run).await?
            }
            Resource::Runs(instance, _)
            | Resource::Events(instance)
            | Resource::Latest(instance) => instance,
        };
        if let Some(denied) = self.authorize(instance, request).await? {
            return Ok(*denied);
        }
        match resource {
            Resource::Run(run) => self.run_events(run, request).await,
            Resource::RunStatus(run) => self.run(run).await,
            Resource::CancelRun(run) => self.cancel(run).await,
            Resource::Runs(instance, page) => self.runs_of(&instance, page).await,
            Resource::Events(instance) => Ok(self.instance_events(&instance)),
            Resource::Latest(instance) => Ok(self.latest(&instance, request)),
        }
    }

    /// Whether who asks for what the host knows of an instance may call it; the response if not.
    async fn authorize(
        &self,
        instance: &InstanceKey,
        request: &Request<Incoming>,
    ) -> Result<Option<Box<Response<Body>>>, Problem> {
        let auth = self.config.auth(instance.agent());
        let headers = request.headers();
        let Some(hook) = auth::check(auth, headers)? else { return Ok(None) };
        let passed = |(name, _): &(&HeaderName, &HeaderValue)| auth::passes(auth, name);
        let fields = || {
            let fields = headers.iter().filter(passed);
            fields.map(|(name, value)| (name.as_str(), text_of(value)))
        };
        let mut head = RequestHead::new("", fields);
        match auth::ask(self, &hook, instance, request.method(), "", &mut head).await? {
            Verdict::Allowed => Ok(None),
            Verdict::Denied(response) => Ok(Some(response)),
        }
    }

    /// The response of an answer or a problem, for a request of this origin.
    fn respond(
        &self,
        answered: Result<Response<Body>, Problem>,
        accept: Accept,
        origin: Option<HeaderValue>,
    ) -> Response<Body> {
        let problem = |problem: Problem| problem.response(accept, self.config.http.retry);
        let mut response = answered.unwrap_or_else(problem);
        cors::allow(&self.config.cors, origin, response.headers_mut());
        response
    }

    /// A request to an instance: resumes a stream or begins a run. What few requests need is in a box, as the
    /// place for it would be taken by all.
    async fn begin(self: Arc<Self>, mut asked: Asked, accept: Accept) -> Result<Begun, Problem> {
        let speaks_http = |deployed: &Arc<Deployed>| deployed.module.kind() != Kind::Agent;
        if let Some(hook) = asked.hook.take() {
            let Asked { instance, method, path, head, .. } = &mut asked;
            let asking = Box::pin(auth::ask(&self, &hook, instance, method, path, head));
            if let Verdict::Denied(response) = asking.await? {
                return Ok(Begun::Answered(response));
            }
        }
        if !accept.is_satisfiable()
            && !self.registry.current(asked.instance.agent()).is_some_and(|of| speaks_http(&of))
        {
            return Err(Problem::NotAcceptable);
        }
        if self.shutdown.drain.has_begun() {
            return Err(Fault::Draining.into());
        }
        let reset = match &asked.last_event_id {
            None => None,
            Some(sent) => match Box::pin(self.resume(&asked, sent, accept)).await? {
                Resumed::Answer(response) => return Ok(Begun::Answered(Box::new(response))),
                Resumed::Nothing(reset) => Some(reset),
            },
        };
        // Only now: what an agent's runs have emitted can be read whether or not the agent is served.
        let current = || self.registry.current(asked.instance.agent()).ok_or(Fault::UnknownAgent);
        let mut deployed = current()?;
        if asked.method == Method::HEAD && !speaks_http(&deployed) {
            // What a stream would say of itself; only a run could tell whether there would be one.
            let mut response = Response::new(Body::empty());
            views::insert_headers(accept.format(None), response.headers_mut());
            response.headers_mut().insert(MODULE, value(deployed.module.digest()));
            return Ok(Begun::Answered(Box::new(response)));
        }
        if !self.journal.is_good() {
            return Err(Fault::JournalUnavailable.into());
        }
        let mut body = Bytes::new();
        if !asked.body.is_end_stream() && !speaks_http(&deployed) {
            let limit = deployed.limits.request_body_bytes;
            body = Box::pin(self.read(&mut asked.body, limit)).await?;
            // Reading a body takes as long as the client does, and the module may have been swapped meanwhile.
            deployed = current().unwrap_or(deployed);
        }
        // What speaks HTTP itself has keys of its own, if it has any.
        match asked.terms.take().filter(|_| !speaks_http(&deployed)) {
            None => Ok(Begun::Run(self.call(asked, body, deployed, reset)?)),
            Some(terms) => {
                Box::pin(self.begin_on_terms(asked, terms, body, deployed, reset, accept)).await
            }
        }
    }

    /// A request whose run is on record before it begins. Once it is, it begins, whether or not its client is still there.
    async fn begin_on_terms(
        self: Arc<Self>,
        asked: Asked,
        terms: Box<Terms>,
        body: Bytes,
        deployed: Arc<Deployed>,
        reset: Option<Reset>,
        accept: Accept,
    ) -> Result<Begun, Problem> {
        let module = deployed.module.digest();
        let respond_async = terms.respond_async;
        let api = self.clone();
        let registering =
            async move { api.register_and_call(asked, &terms, body, &deployed, reset).await };
        let registered = tokio::spawn(registering).await.map_err(|_| Fault::Internal)??;
        let run = match &registered {
            Either::Left(known) => *known,
            Either::Right(begun) => begun.id,
        };
        if respond_async {
            return Ok(Begun::Answered(Box::new(repeat::accepted(run, module))));
        }
        match registered {
            Left(known) => {
                let attached = self.attach(known, accept, None).await?;
                Ok(Begun::Answered(Box::new(attached)))
            }
            Right(begun) => Ok(Begun::Run(begun)),
        }
    }

    /// The run that an earlier request with the same key began, or one that is called now.
    async fn register_and_call(
        &self,
        asked: Asked,
        terms: &Terms,
        body: Bytes,
        deployed: &Arc<Deployed>,
        reset: Option<Reset>,
    ) -> Result<Either<RunId, BegunRun>, Problem> {
        let Asked { instance, method, path, head, .. } = asked;
        let fingerprint =
            Digest::of_all(&[method.as_str().as_bytes(), b" ", path.as_bytes(), b"\n", &body]);
        let request = AgentRequest { method: method.as_str().to_owned(), path, body };
        let kept = deployed.module.resumes().then(|| agent::keep(&request, &head));
        let module = deployed.module.digest();
        let registered = self.register(&instance, module, terms, fingerprint, kept.clone()).await?;
        let tail = match registered {
            Registered::Known(run) => return Ok(Left(run)),
            Registered::Begun(tail) => tail,
        };
        let (sender, answered) = oneshot::channel();
        let origin = Origin {
            last_event_id: reset.as_ref().map(|(id, _)| id.as_str().into()),
            request: kept,
            keeps_reply: true,
            head,
            ..Origin::default()
        };
        let run = Run::on_record(tail.clone(), origin, sender);
        let call = |_: &_| Call { run, request, upload: None, entry: Entry::Request };
        match self.directory.send(&instance, deployed, call) {
            Ok(sent) => sent.serve(),
            Err(Refused { fault, .. }) => {
                self.never_begun(&tail, &fault);
                return Err(fault.into());
            }
        }
        Ok(Right(BegunRun { id: tail.run(), instance, reset, answered, refused: None }))
    }

    /// Answers a client that says where it stopped reading, if that can be told.
    async fn resume(
        &self,
        asked: &Asked,
        sent: &HeaderValue,
        accept: Accept,
    ) -> Result<Resumed, Problem> {
        let instance = &asked.instance;
        let located = match sent.to_str() {
            Ok(id) => self.journal.locate(instance, id).await.map_err(|cause| {
                tracing::error!(%instance, %cause, "cannot look up an event id");
                Fault::JournalUnavailable
            })?,
            // No id of ours or of an agent has other characters.
            Err(_) => Located::Not(NotResumable::Unknown),
        };
        // Browsers send an id as UTF-8.
        let shown = || String::from_utf8_lossy(sent.as_bytes()).into_owned();
        let (run, mut response) = match located {
            Located::At(reader) => {
                let run = reader.tail().run();
                let format = accept.format(None);
                let reader = if format.resumes() { reader } else { reader.from_start() };
                let mut response = self.stream(reader, format, None);
                if asked.method == Method::HEAD {
                    *response.body_mut() = Body::empty();
                }
                (run, response)
            }
            Located::CaughtUp(run) => (run, no_content()),
            Located::Not(why) => return Ok(Resumed::Nothing((shown(), why))),
        };
        let Some(module) = self.module_of(run).await? else {
            return Ok(Resumed::Nothing((shown(), NotResumable::Expired)));
        };
        identify(&mut response, run, module);
        Ok(Resumed::Answer(response))
    }

    /// The module that a run on record began on, or was resumed on. Retention may delete a run between two reads.
    async fn module_of(&self, run: RunId) -> Result<Option<Digest>, Problem> {
        let journal = self.journal.clone();
        let record = tokio::task::spawn_blocking(move || journal.run(run)).await;
        let record = record.map_err(|_| Fault::Internal)?.map_err(|_| Fault::JournalUnavailable)?;
        Ok(record.map(|record| record.module))
    }

    /// Reads the whole body of a request, in the time that it may take.
    async fn read(&self, body: &mut Incoming, limit: usize) -> Result<Bytes, Problem> {
        let gathered = gather(body, limit, &self.bodies);
        let gathered = tokio::time::timeout(self.config.http.body_timeout, gathered).await;
        gathered.map_err(|_| Problem::BodyTimeout)?
    }

    /// Calls the agent, and lets go of all of the request that a wait has no use for.
    fn call(
        &self,
        asked: Asked,
        body: Bytes,
        deployed: Arc<Deployed>,
        reset: Option<Reset>,
    ) -> Result<BegunRun, Problem> {
        let Asked { instance, method, path, head, body: rest, .. } = asked;
        let (mut upload, mut refused) = (None, None);
        if deployed.module.kind() != Kind::Agent && !rest.is_end_stream() {
            let (limit, timeout) =
                (deployed.limits.request_body_bytes, self.config.http.body_timeout);
            let (body, refusal) = Upload::new(rest, limit, timeout)?;
            let body = body.boxed_unsync();
            (upload, refused) = (Some(Box::new(AgentUpload { body })), Some(refusal));
        }
        let request = AgentRequest { method: method.as_str().to_owned(), path, body };
        let origin = Origin {
            secure: self.config.tls.is_some(),
            last_event_id: reset.as_ref().map(|(id, _)| id.as_str().into()),
            request: deployed.module.resumes().then(|| agent::keep(&request, &head)),
            head,
            ..Origin::default()
        };
        let (id, answered) = self.start(&instance, &deployed, request, upload, origin)?;
        Ok(BegunRun { id, instance, reset, answered, refused })
    }

    /// Begins a run of an instance, and serves it as far as it goes without waiting.
    pub(super) fn start(
        &self,
        instance: &InstanceKey,
        deployed: &Arc<Deployed>,
        request: AgentRequest,
        upload: Option<Box<AgentUpload>>,
        origin: Origin,
    ) -> Result<(RunId, oneshot::Receiver<Answered>), Fault> {
        let id = RunId::generate();
        let (sender, answered) = oneshot::channel();
        let sent = self
            .directory
            .send(instance, deployed, |ledger| {
                let run = Run::new(ledger.clone(), id, origin, sender);
                Call { run, request, upload, entry: Entry::Request }
            })
            .map_err(|Refused { fault, .. }| fault)?;
        self.journal.attend(|| sent.serve());
        Ok((id, answered))
    }

    /// Answers with the first thing that a run does.
    #[expect(clippy::manual_async_fn, reason = "an async function would keep its arguments twice")]
    fn follow(
        self: Arc<Self>,
        run: BegunRun,
        accept: Accept,
        origin: Option<HeaderValue>,
    ) -> impl Future<Output = Response<Body>> + use<> {
        async move {
            let answered = match run.refused {
                None => first_act(run.answered).await.map_err(Problem::from),
                Some(refused) => Box::pin(unless_refused(refused, run.answered)).await,
            };
            let respond = |(answer, module)| {
                let mut response =
                    self.response(answer, accept, run.reset).unwrap_or_else(|fault| {
                        if let Fault::BadResponse(why) = &fault {
                            tracing::warn!(
                                instance = %run.instance, run = %run.id,
                                "the agent's response cannot be sent: {why}"
                            );
                        }
                        Problem::from(fault).response(accept, self.config.http.retry)
                    });
                identify(&mut response, run.id, module);
                response
            };
            self.respond(answered.map(respond), accept, origin)
        }
    }

    /// The response of what a run did.
    fn response(
        &self,
        answer: Answer,
        accept: Accept,
        reset: Option<Reset>,
    ) -> Result<Response<Body>, Fault> {
        match answer {
            Answer::Response(head, body) => respond(head, Body::full(body)),
            Answer::Chunks(head, chunks) => respond(head, chunked(chunks)),
            Answer::Exchange(response) => Ok(exchanged(*response)),
            Answer::Events(reader, wish) => Ok(self.stream(reader, accept.format(wish), reset)),
            Answer::NoContent => Ok(no_content()),
            Answer::Failed(fault) => Err(fault),
        }
    }

    /// A run's events in a format.
    pub(super) fn stream(
        &self,
        reader: Reader,
        format: Format,
        reset: Option<Reset>,
    ) -> Response<Body> {
        let (heartbeat, drain) = (self.config.http.heartbeat, self.shutdown.drain.begun());
        let body = match ViewBody::new(reader, format, heartbeat, drain) {
            Ok(view) => Body::View(Box::pin(view)),
            Err(reader) => self.events(reader, reset),
        };
        let mut response = Response::new(body);
        views::insert_headers(format, response.headers_mut());
        response
    }

    /// A run's events as a body of Server-Sent Events.
    pub(super) fn events(&self, reader: Reader, reset: Option<Reset>) -> Body {
        let run = reader.tail().run();
        let reset = reset.map(|(id, why)| {
            let shown: String = id.chars().take(MAX_ECHO).collect();
            sse::reset(run, &shown, why)
        });
        let http = &self.config.http;
        let pace = Pace { heartbeat: http.heartbeat, retry: http.retry };
        let drain = self.shutdown.drain.begun();
        Body::Events(Box::pin(EventsBody::new(reader, reset, pace, drain)))
    }
}

/// Gathers a body while there is room for its bytes among those of all. One that is announced to be too large is refused before
/// its client is asked for it.
async fn gather(body: &mut Incoming, limit: usize, room: &Semaphore) -> Result<Bytes, Problem> {
    let mut whole = BytesMut::new();
    let mut taken: Option<SemaphorePermit<'_>> = None;
    if body.size_hint().lower() > limit as u64 {
        return Err(Problem::PayloadTooLarge { limit });
    }
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Problem::BadBody)?.into_data() else { continue };
        if data.len() > limit - whole.len() {
            return Err(Problem::PayloadTooLarge { limit });
        }
        let more = u32::try_from(data.len()).ok().and_then(|more| room.try_acquire_many(more).ok());
        let more = more.ok_or(Problem::BodiesBusy)?;
        match &mut taken {
            Some(taken) => taken.merge(more),
            None => taken = Some(more),
        }
        whole.extend_from_slice(&data);
    }
    Ok(whole.freeze())
}

/// What became of a request.
enum Begun {
    /// It needed no run. In a box, as few do not.
    Answered(Box<Response<Body>>),
    Run(BegunRun),
}

/// A run that a client waits for.
struct BegunRun {
    id: RunId,
    instance: InstanceKey,
    reset: Option<Reset>,
    answered: oneshot::Receiver<Answered>,
    /// Hears of a request whose body, streamed, is not taken.
    refused: Option<oneshot::Receiver<Problem>>,
}

/// The first thing that a run does, once it is durable.
pub(super) async fn first_act(
    answered: oneshot::Receiver<Answered>,
) -> Result<(Answer, Digest), Fault> {
    // The sender goes without an answer only when the host is forced to end.
    let Answered { answer, module, after } = answered.await.map_err(|_| Fault::Draining)?;
    after.durable().await.map_err(|_| Fault::JournalUnavailable)?;
    Ok((answer, module))
}

/// The first thing that a run does, unless the body of its request is refused before.
async fn unless_refused(
    refused: oneshot::Receiver<Problem>,
    answered: oneshot::Receiver<Answered>,
) -> Result<(Answer, Digest), Problem> {
    let mut acted = pin!(first_act(answered));
    tokio::select! {
        biased;
        Ok(problem) = refused => Err(problem),
        acted = &mut acted => Ok(acted?),
    }
}

/// What became of a client's `Last-Event-ID`.
enum Resumed {
    Answer(Response<Body>),
    /// It cannot be resumed.
    Nothing(Reset),
}

/// What a request asks an instance for, without a hold on the buffer that it came in.
pub(super) struct Asked {
    pub(super) instance: InstanceKey,
    pub(super) method: Method,
    /// What follows the instance's name, with the query.
    pub(super) path: String,
    pub(super) head: RequestHead,
    /// Who is to be asked first, if anyone is.
    hook: Option<Arc<Hook>>,
    /// Not empty. In a box, as few have one.
    last_event_id: Option<Box<HeaderValue>>,
    terms: Option<Box<Terms>>,
    body: Incoming,
}

impl Asked {
    fn of(
        request: Request<Incoming>,
        instance: InstanceKey,
        path: String,
        config: &Config,
    ) -> Result<Self, Problem> {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        // HTTP/2 and proxies' clients send the host in the target as well; what follows it is the same for all.
        let url = uri.path_and_query().map_or("/", |target| target.as_str());
        // HTTP/2 has it in the target.
        let host = uri.authority().filter(|_| !headers.contains_key(header::HOST));
        let host = host.map(|host| (header::HOST.as_str(), host.as_str().into()));
        let auth = config.auth(instance.agent());
        let hook = auth::check(auth, &headers)?;
        let passed = |(name, _): &(&HeaderName, &HeaderValue)| auth::passes(auth, name);
        let fields = || {
            let fields = headers.iter().filter(passed);
            let fields = fields.map(|(name, value)| (name.as_str(), text_of(value)));
            host.clone().into_iter().chain(fields)
        };
        let head = RequestHead::new(url, fields);
        let last_event_id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()).map(copy_of);
        let last_event_id = last_event_id.map(Box::new);
        let terms = Terms::of(&headers)?;
        Ok(Self { instance, method, path, head, hook, last_event_id, terms, body })
    }
}

/// A header's value in memory of its own.
pub(super) fn copy_of(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("the bytes of a header's value make one")
}

/// A header's value as agents get it: one character per byte.
pub(super) fn text_of(value: &HeaderValue) -> Cow<'_, str> {
    match value.to_str() {
        Ok(text) => text.into(),
        Err(_) => value.as_bytes().iter().copied().map(char::from).collect(),
    }
}

pub(super) fn no_content() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}

/// Says which run on which module answered.
pub(super) fn identify(response: &mut Response<Body>, run: RunId, module: Digest) {
    let headers = response.headers_mut();
    headers.insert(RUN, value(run));
    headers.insert(MODULE, value(module));
}

fn value(id: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(id.to_string()).expect("ids and digests are ASCII letters and digits")
}

/// The response of an agent that speaks HTTP itself, which may say how long its body is and which trailers follow.
pub(super) fn exchanged(response: AgentResponse) -> Response<Body> {
    let mut response = response.map(Body::Chunks);
    for field in NOT_THE_AGENTS {
        if field != header::CONTENT_LENGTH && field != header::TRAILER {
            response.headers_mut().remove(field);
        }
    }
    response
}

/// An agent's response, as far as HTTP can carry it.
pub(super) fn respond(head: Head, body: Body) -> Result<Response<Body>, Fault> {
    let bad = |why: String| Fault::BadResponse(why);
    check_status(head.status)?;
    let status = StatusCode::from_u16(head.status).map_err(|why| bad(why.to_string()))?;
    let mut headers = HeaderMap::with_capacity(head.headers.len() + 2);
    for (name, value) in head.headers {
        let field = HeaderName::try_from(&name).map_err(|_| {
            bad(format!(
                "{:?} is not a header field's name",
                name.chars().take(80).collect::<String>()
            ))
        })?;
        let value = header_value(value).ok_or_else(|| {
            bad(format!("the value of {field} has a character that no header may have"))
        })?;
        if !NOT_THE_AGENTS.contains(&field) {
            headers.append(field, value);
        }
    }
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Ok(response)
}

/// A header's value that an agent gave: one byte per character.
fn header_value(text: String) -> Option<HeaderValue> {
    if text.is_ascii() {
        return HeaderValue::try_from(text).ok();
    }
    let bytes: Option<Vec<u8>> = text.chars().map(|char| u8::try_from(char).ok()).collect();
    HeaderValue::try_from(bytes?).ok()
}

/// A body that goes out as the guest writes it.
pub(super) fn chunked(chunks: Chunks) -> Body {
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async {
        let sent: Result<Bytes, BodyError> = match chunks.next().await? {
            Ok((bytes, after)) => after.durable().await.map(|()| bytes).map_err(Into::into),
            Err(truncated) => Err(truncated.into()),
        };
        Some((sent.map(http_body::Frame::data), chunks))
    });
    Body::Chunks(StreamBody::new(stream).boxed_unsync())
}
