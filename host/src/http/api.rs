//! One function for each thing a client can ask for.
//!
//! **Problem.** A request is routed, refused, resumed, or run, and every way it can end is a response that a
//! client, a proxy and a browser's `EventSource` take rightly.
//!
//! **Mechanism.** The route decides the function. A request that says where it stopped reading is answered
//! from the journal, without the agent; any other becomes a call, and the first thing the run does decides the
//! [answer](super::answer): events, a response, or a problem.
//!
//! **Limits.** Those of [`HttpLimits`](crate::config::HttpLimits). **Cost.** Parsing the target, one lookup
//! of the module and one of the instance, and the copies into and out of the guest.

use std::future::ready;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::Either::{self, Left, Right};
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, oneshot};

use super::accept::Accept;
use super::answer::{first_act, for_method, identify, identify_module, no_content, unless_refused};
use super::asked::{Asked, gather, text_of};
use super::auth::{self, Verdict};
use super::connections::Connections;
use super::problem::Problem;
pub use super::repeat::Keys;
use super::repeat::{self, Registered, Terms};
use super::route::{self, Resource, Route};
use super::upload::Upload;
use super::{Body, cors, views};
use crate::agent::{self, Deployed, Directory, Refused, Registry, Resumptions};
use crate::config::Config;
use crate::fault::Fault;
use crate::id::{Digest, InstanceKey, RunId};
use crate::journal::{Journal, Located, NotResumable};
use crate::shutdown::Shutdown;
use crate::wasm::{
    Answered, Call, Entry, Kind, Origin, Request as AgentRequest, RequestHead, Run,
    Upload as AgentUpload,
};

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
            identify_module(&mut response, deployed.module.digest());
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
                let record = self.record(known).await?.ok_or(Problem::NoSuchRun)?;
                let attached = self.attach(record, accept, None).await?;
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
                self.never_begun(&tail, &fault).await?;
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
                (run, for_method(&asked.method, self.stream(reader, format, None)))
            }
            Located::CaughtUp(run) => (run, no_content()),
            Located::Not(why) => return Ok(Resumed::Nothing((shown(), why))),
        };
        // Retention may delete a run between two reads.
        let Some(record) = self.record(run).await? else {
            return Ok(Resumed::Nothing((shown(), NotResumable::Expired)));
        };
        identify(&mut response, run, record.module);
        Ok(Resumed::Answer(response))
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

/// What became of a client's `Last-Event-ID`.
enum Resumed {
    Answer(Response<Body>),
    /// It cannot be resumed.
    Nothing(Reset),
}
