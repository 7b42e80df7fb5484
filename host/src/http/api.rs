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
use futures_util::future::Either::{Left, Right};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, Request, Response, StatusCode};
use http_body::Body as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use super::accept::Accept;
use super::connections::Connections;
use super::problem::Problem;
use super::route::{self, Route};
use super::sse::{self, EventsBody, Pace};
use super::upload::Upload;
use super::{Body, BodyError, cors};
use crate::agent::{self, Deployed, Directory, Refused, Registry};
use crate::config::Config;
use crate::fault::Fault;
use crate::id::{Digest, InstanceKey, RunId};
use crate::journal::{Journal, Located, NotResumable, Reader};
use crate::shutdown::Shutdown;
use crate::wasm::{
    Answer, Answered, Call, Chunks, Entry, Head, Kind, Origin, Request as AgentRequest,
    RequestHead, Response as AgentResponse, Run, Upload as AgentUpload, check_status,
};

const RUN: HeaderName = HeaderName::from_static("bureau-run");
const MODULE: HeaderName = HeaderName::from_static("bureau-module");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

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
    /// Those to the public address.
    pub connections: Arc<Connections>,
    /// Room for the bytes of bodies that are being read.
    pub bodies: Semaphore,
    pub shutdown: Shutdown,
}

/// A request that cannot be resumed: the id it came with, and why.
type Reset = (String, NotResumable);

impl Api {
    /// Answers a request. What is needed of its head is copied before this returns and the head let go of: hyper reads on
    /// before it asks the future for anything, and takes a second buffer to read into if the first is in use.
    pub fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Response<Body>> + use<> {
        let cors = &self.config.cors;
        if let Some(allowed) = cors::preflight(cors, &request) {
            return Right(ready(allowed));
        }
        let accept = Accept::of(request.headers());
        let origin = cors::origin(cors, request.headers());
        let asked = match Asked::of(request) {
            Ok(asked) => asked,
            Err(problem) => return Right(ready(self.respond(Err(problem), accept, origin))),
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
            Some(sent) => match Box::pin(self.resume(&asked, sent)).await? {
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
            sse::insert_headers(response.headers_mut());
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
        Ok(Begun::Run(self.call(asked, body, deployed, reset)?))
    }

    /// Answers a client that says where it stopped reading, if that can be told.
    async fn resume(&self, asked: &Asked, sent: &HeaderValue) -> Result<Resumed, Problem> {
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
                let mut response = match asked.method {
                    Method::HEAD => Response::new(Body::empty()),
                    _ => Response::new(self.events(reader, None)),
                };
                sse::insert_headers(response.headers_mut());
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
        let id = RunId::generate();
        let (sender, answered) = oneshot::channel();
        let Asked { instance, method, path, head, body: rest, .. } = asked;
        let (mut upload, mut refused) = (None, None);
        let is_tls = self.config.tls.is_some();
        // What is spoken is told with the body, be that empty.
        if deployed.module.kind() != Kind::Agent && (is_tls || !rest.is_end_stream()) {
            let (limit, timeout) =
                (deployed.limits.request_body_bytes, self.config.http.body_timeout);
            let (body, refusal) = Upload::new(rest, limit, timeout)?;
            let body = body.boxed_unsync();
            let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
            (upload, refused) = (Some(Box::new(AgentUpload { scheme, body })), Some(refusal));
        }
        let request = AgentRequest { method: method.as_str().to_owned(), path, body };
        let origin = Origin {
            last_event_id: reset.as_ref().map(|(id, _)| id.as_str().into()),
            request: deployed.module.resumes().then(|| agent::keep(&request, &head)),
            head,
            ..Origin::default()
        };
        self.directory
            .send(&instance, &deployed, |ledger| {
                let run = Run::new(ledger.clone(), id, origin, sender);
                Call { run, request, upload, entry: Entry::Request }
            })
            .map_err(|Refused { fault, .. }| fault)?
            .serve();
        Ok(BegunRun { id, instance, reset, answered, refused })
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
                let mut response = self.response(answer, run.reset).unwrap_or_else(|fault| {
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
    fn response(&self, answer: Answer, reset: Option<Reset>) -> Result<Response<Body>, Fault> {
        match answer {
            Answer::Response(head, body) => respond(head, Body::full(body)),
            Answer::Chunks(head, chunks) => respond(head, chunked(chunks)),
            Answer::Exchange(response) => Ok(exchanged(*response)),
            Answer::Events(reader) => {
                let mut response = Response::new(self.events(reader, reset));
                sse::insert_headers(response.headers_mut());
                Ok(response)
            }
            Answer::NoContent => Ok(no_content()),
            Answer::Failed(fault) => Err(fault),
        }
    }

    /// A run's events as a body.
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
async fn first_act(answered: oneshot::Receiver<Answered>) -> Result<(Answer, Digest), Fault> {
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
struct Asked {
    instance: InstanceKey,
    method: Method,
    /// What follows the instance's name, with the query.
    path: String,
    head: RequestHead,
    /// Not empty. In a box, as few have one.
    last_event_id: Option<Box<HeaderValue>>,
    body: Incoming,
}

impl Asked {
    fn of(request: Request<Incoming>) -> Result<Self, Problem> {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        // HTTP/2 and proxies' clients send the host in the target as well; what follows it is the same for all.
        let url = uri.path_and_query().map_or("/", |target| target.as_str());
        let Route::Agent { instance, path } = route::parse(url)?;
        // HTTP/2 has it in the target.
        let host = uri.authority().filter(|_| !headers.contains_key(header::HOST));
        let host = host.map(|host| (header::HOST.as_str(), host.as_str().into()));
        let fields = || {
            let fields = headers.iter().map(|(name, value)| (name.as_str(), text_of(value)));
            host.clone().into_iter().chain(fields)
        };
        let head = RequestHead::new(url, fields);
        let last_event_id = headers.get(LAST_EVENT_ID).filter(|id| !id.is_empty()).map(copy_of);
        let last_event_id = last_event_id.map(Box::new);
        Ok(Self { instance, method, path, head, last_event_id, body })
    }
}

/// A header's value in memory of its own.
pub(super) fn copy_of(value: &HeaderValue) -> HeaderValue {
    HeaderValue::from_bytes(value.as_bytes()).expect("the bytes of a header's value make one")
}

/// A header's value as agents get it: one character per byte.
fn text_of(value: &HeaderValue) -> Cow<'_, str> {
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
fn identify(response: &mut Response<Body>, run: RunId, module: Digest) {
    let headers = response.headers_mut();
    headers.insert(RUN, value(run));
    headers.insert(MODULE, value(module));
}

fn value(id: impl std::fmt::Display) -> HeaderValue {
    HeaderValue::try_from(id.to_string()).expect("ids and digests are ASCII letters and digits")
}

/// The response of an agent that speaks HTTP itself, which may say how long its body is and which trailers follow.
fn exchanged(response: AgentResponse) -> Response<Body> {
    let mut response = response.map(Body::Chunks);
    for field in NOT_THE_AGENTS {
        if field != header::CONTENT_LENGTH && field != header::TRAILER {
            response.headers_mut().remove(field);
        }
    }
    response
}

/// An agent's response, as far as HTTP can carry it.
fn respond(head: Head, body: Body) -> Result<Response<Body>, Fault> {
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
fn chunked(chunks: Chunks) -> Body {
    let stream = futures_util::stream::unfold(chunks, |mut chunks| async {
        let sent: Result<Bytes, BodyError> = match chunks.next().await? {
            Ok((bytes, after)) => after.durable().await.map(|()| bytes).map_err(Into::into),
            Err(truncated) => Err(truncated.into()),
        };
        Some((sent.map(http_body::Frame::data), chunks))
    });
    Body::Chunks(StreamBody::new(stream).boxed_unsync())
}
