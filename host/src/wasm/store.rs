//! A live component instance, and the calls on it.
//!
//! **Problem.** A call can only be stopped by dropping its store, a store must stay inside one
//! `run_concurrent` for its calls to interleave, and what goes wrong in a guest must come out as one fault.
//!
//! **Mechanism.** [`LiveStore::serve`] runs the store until its mailbox closes and its last call has ended,
//! with its calls side by side in one set of futures: tasks of wasmtime's could be aborted too, and cost more. A
//! failure of any kind, a panic of a host function included, comes back as a [`Fault`] after the session has
//! ended the runs in flight with it.
//!
//! **Limits.** Those of the session. **Cost.** Some microseconds a call, and some tens of them a start.

use std::future::{poll_fn, ready};
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context as Waking, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::Either::{Left, Right};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use http_body::Body as _;
use tokio::sync::mpsc;
use wasmtime::component::{Accessor, Instance, StreamReader};
use wasmtime::{Store, Trap};

use crate::config::InstanceLimits;
use crate::fault::{Fault, Limit};
use crate::id::Seq;
use crate::wasm::bindings::types::{AgentError, Body, Header, Reply, Request as GuestRequest};
use crate::wasm::bindings::{handler, migration, resumption};
use crate::wasm::chunks::{self, OfRun};
use crate::wasm::context::{Context, LimitReached};
use crate::wasm::engine::Engine;
use crate::wasm::exchange::{self, Handled, Upload};
use crate::wasm::granted::Granted;
use crate::wasm::module::{Exports, Module};
use crate::wasm::run::{Answer, Head, Run};
use crate::wasm::session::{Session, TurnTooLarge, Turns};

/// A request as an agent gets it; the run has the [rest](crate::wasm::RequestHead).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The method.
    pub method: String,
    /// What follows the instance's name, with the query.
    pub path: String,
    /// The body.
    pub body: Bytes,
}

/// What an instance is asked to do.
pub struct Call {
    pub run: Run,
    pub request: Request,
    /// The request's body, where the agent is to have it as it comes: then `request` has none.
    pub upload: Option<Box<Upload>>,
    pub entry: Entry,
}

/// Which export a call goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// `on-request`.
    Request,
    /// `on-resume`, after this event.
    Resume(Seq),
}

/// A store could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The pool has no room now; another instance must go first.
    #[error("no room for another instance")]
    NoRoom,
    #[error("{cause}")]
    Failed { fault: Fault, cause: String },
}

/// A component instance in its store.
pub struct LiveStore {
    // Before the store, whose end it announces.
    guest: Guest,
    store: Store<Context>,
    session: Arc<Session>,
}

enum Guest {
    Agent(Agent),
    Http(exchange::Handler),
}

struct Agent {
    handler: handler::Guest,
    resumption: Option<resumption::Guest>,
    migration: Option<migration::Guest>,
}

impl LiveStore {
    /// Instantiates a module.
    pub async fn start(
        engine: &Engine,
        module: &Module,
        session: Arc<Session>,
        granted: Arc<Granted>,
    ) -> Result<Self, StartError> {
        let context = Context::new(session.clone(), granted).map_err(|cause| {
            StartError::Failed { fault: Fault::AgentUnavailable, cause: cause.to_string() }
        })?;
        let mut store = Store::new(&engine.engine, context);
        store.limiter(Context::limiter);
        store.set_max_component_handles(session.limits().handles);
        store.set_hostcall_fuel(session.limits().memory_bytes);
        store.epoch_deadline_callback(Context::tick);
        store.set_epoch_deadline(1);
        // Guest code can run here already, and has the same limits as later.
        let starting = Turns::new(module.pre.instantiate_async(&mut store), session.clone());
        let failed = |cause: wasmtime::Error, store: &Store<Context>| {
            let fault = match classify(&cause, store.data()) {
                limit @ Fault::Limit(_) => limit,
                _ => Fault::AgentUnavailable,
            };
            StartError::Failed { fault, cause: cause.root_cause().to_string() }
        };
        let instance = match AssertUnwindSafe(starting).catch_unwind().await {
            Ok(Ok(instance)) => instance,
            Ok(Err(cause)) if cause.is::<wasmtime::PoolConcurrencyLimitError>() => {
                return Err(StartError::NoRoom);
            }
            Ok(Err(cause)) => return Err(failed(cause, &store)),
            Err(_) => {
                let cause = "a host function panicked".into();
                return Err(StartError::Failed { fault: panicked(&session), cause });
            }
        };
        let guest = Guest::load(module, &mut store, &instance, &session);
        let guest = guest.map_err(|cause| failed(cause, &store))?;
        Ok(Self { guest, store, session })
    }

    /// Has the module take over what the instance keeps, if another one wrote it last. For a store that has served nothing.
    /// After a failure it is of no use, and what the instance keeps is as it was.
    pub async fn migrate(&mut self, timeout: Duration) -> Result<(), Fault> {
        let Self { store, session, guest } = self;
        let Guest::Agent(Agent { migration: Some(migration), .. }) = guest else { return Ok(()) };
        let ledger = session.ledger().clone();
        let unreadable = |cause| {
            tracing::error!(instance = %ledger.key(), %cause, "cannot read what the instance keeps");
            Fault::JournalUnavailable
        };
        // Looked at again behind the fence.
        let from = ledger.module().map_err(unreadable)?;
        if from.is_none_or(|from| from == session.module()) {
            return Ok(());
        }
        let fence = ledger.fence(session.version()).await;
        let from = ledger.module().map_err(unreadable)?;
        let Some(from) = from.filter(|from| *from != session.module()) else { return Ok(()) };
        let document = ledger.document().map_err(unreadable)?.map(|document| document.to_string());
        session.hold();
        let call = store.run_concurrent(async |accessor| {
            migration.call_migrate(accessor, from.to_string(), document).await
        });
        let call = AssertUnwindSafe(Turns::new(call, session.clone())).catch_unwind();
        let migrated = match tokio::time::timeout(timeout, call).await {
            Ok(Ok(Ok(Ok(Ok(document))))) => take_over(session, document),
            Ok(Ok(Ok(Ok(Err(message))))) => Err(message),
            Ok(Ok(Ok(Err(cause)) | Err(cause))) => {
                classify(&cause, store.data());
                Err(cause.root_cause().to_string())
            }
            Ok(Err(_)) => Err(panicked(session).facts().detail.into()),
            Err(_) => Err(format!("it took longer than {} ms", timeout.as_millis())),
        };
        migrated.map_err(|why| {
            session.throw_away();
            tracing::error!(
                instance = %ledger.key(), module = %session.module(), %from, why, "the instance could not be migrated"
            );
            Fault::MigrationFailed
        })?;
        tracing::info!(instance = %ledger.key(), module = %session.module(), %from, "migrated");
        fence.stand();
        Ok(())
    }

    /// Asks a held instance, and returns what it did first, before any of it is durable. The store is of no use after that.
    pub async fn try_out(self, call: Call) -> Result<Answer, Fault> {
        let session = self.session.clone();
        let (send, mut mailbox) = mpsc::channel(1);
        // There is room for one.
        let _ = send.try_send(Box::new(call));
        let mut serving = pin!(self.serve(&mut mailbox));
        poll_fn(|cx| {
            let served = serving.as_mut().poll(cx);
            match (session.take_answer(), served) {
                (Some(answer), _) => Poll::Ready(Ok(answer)),
                (None, Poll::Ready(Err(fault))) => Poll::Ready(Err(fault)),
                (None, Poll::Ready(Ok(()))) => Poll::Ready(Err(Fault::Internal)),
                (None, Poll::Pending) => Poll::Pending,
            }
        })
        .await
    }

    /// Serves calls until the mailbox is closed and the last call has ended, or the store fails: then the
    /// runs in flight have ended with the fault that is returned.
    pub async fn serve(mut self, mailbox: &mut mpsc::Receiver<Box<Call>>) -> Result<(), Fault> {
        let Self { store, session, guest } = &mut self;
        let (guest, session) = (&*guest, &*session);
        let driver = store.run_concurrent(async |accessor| {
            let mut calls = FuturesUnordered::new();
            let mut closed = false;
            // The event loop polls this before each of its steps.
            poll_fn(|cx| {
                session.between();
                while !closed && let Poll::Ready(call) = mailbox.poll_recv(cx) {
                    match call {
                        Some(call) => {
                            session.begin(&call.run);
                            calls.push(begin(*call, accessor, guest, session)?);
                        }
                        None => closed = true,
                    }
                }
                // A call ends in a step of the event loop, which looks here again before it waits: it need wake nobody.
                let quiet = &mut Waking::from_waker(Waker::noop());
                while !calls.is_empty()
                    && let Poll::Ready(Some((run, returned))) = calls.poll_next_unpin(quiet)
                {
                    match returned? {
                        Returned::Agent(returned) => finish(run, returned, accessor, session)?,
                        Returned::Http(handled) => exchange::finish(handled, accessor)?,
                        Returned::Refused(fault) => session.finish(&run, Answer::Failed(fault)),
                    }
                }
                if closed { session.poll_idle(cx).map(Ok) } else { Poll::Pending }
            })
            .await
        });
        // A panic of a host function must not take more than this instance with it.
        let served = AssertUnwindSafe(Turns::new(driver, session.clone())).catch_unwind().await;
        let fault = match served {
            Ok(Ok(Ok(()))) => return Ok(()),
            Ok(Ok(Err(cause)) | Err(cause)) => classify(&cause, store.data()),
            Err(_) => panicked(session),
        };
        session.fail(&fault);
        Err(fault)
    }
}

/// Ends a migration with the document that it returned.
fn take_over(session: &Session, document: Option<String>) -> Result<(), String> {
    let limit = session.limits().state_bytes;
    if let Some(document) = &document {
        if document.len() > limit {
            return Err(format!("it returned a document of more than {limit} bytes"));
        }
        serde_json::from_str::<serde::de::IgnoredAny>(document)
            .map_err(|fault| format!("what it returned is no JSON document: {fault}"))?;
    }
    session.let_go(document.map(Into::into)).map_err(|refused| refused.to_string())
}

fn panicked(session: &Session) -> Fault {
    session.ledger().feed().counts.panics.fetch_add(1, Ordering::Relaxed);
    tracing::error!(instance = %session.ledger().key(), "a host function panicked");
    Fault::Internal
}

/// Says what a store's failure is to a client, and logs what it is to an operator.
fn classify(cause: &wasmtime::Error, context: &Context) -> Fault {
    let session = context.session();
    let fault = if let Some(LimitReached::Cpu(_)) = cause.downcast_ref() {
        Fault::Limit(Limit::Cpu(session.limits().cpu))
    } else if let Some(TurnTooLarge(limit)) = cause.downcast_ref() {
        Fault::Limit(Limit::Turn(*limit))
    } else if let Some(crate::journal::StoreError(_)) = cause.downcast_ref() {
        Fault::JournalUnavailable
    } else if context.memory_limit_reached() {
        Fault::Limit(Limit::Memory(session.limits().memory_bytes))
    } else {
        told_by(cause, session.limits()).map_or(Fault::AgentTrapped, Fault::Limit)
    };
    let trap = cause.downcast_ref::<Trap>().map(tracing::field::display);
    tracing::warn!(
        instance = %session.ledger().key(), module = %session.module(), code = fault.code(), trap,
        "the instance failed: {cause:?}"
    );
    fault
}

/// The limit of a store that a guest went over, where wasmtime tells it by nothing but text.
fn told_by(cause: &wasmtime::Error, limits: &InstanceLimits) -> Option<Limit> {
    let texts = [
        ("resource limit exceeded: instance count", Limit::CoreInstances(limits.core_instances)),
        ("resource limit exceeded: memory count", Limit::Memories(limits.memories)),
        ("resource limit exceeded: table count", Limit::Tables(limits.tables)),
        ("store handle limit exceeded", Limit::Handles(limits.handles)),
        ("fuel allocated for hostcalls", Limit::Memory(limits.memory_bytes)),
    ];
    let told = cause.root_cause().to_string();
    texts.into_iter().find(|(text, _)| told.contains(text)).map(|(_, limit)| limit)
}

impl Guest {
    fn load(
        module: &Module,
        mut store: &mut Store<Context>,
        instance: &Instance,
        session: &Arc<Session>,
    ) -> wasmtime::Result<Self> {
        Ok(match &module.exports {
            Exports::Agent { handler, resumption, migration } => Self::Agent(Agent {
                handler: handler.load(&mut store, instance)?,
                resumption: match resumption {
                    Some(indices) => Some(indices.load(&mut store, instance)?),
                    None => None,
                },
                migration: match migration {
                    Some(indices) => Some(indices.load(&mut store, instance)?),
                    None => None,
                },
            }),
            Exports::Http(indices) => Self::Http(indices.load(store, instance, session.clone())?),
        })
    }
}

/// What a call came to.
enum Returned {
    Agent(Result<Reply, AgentError>),
    Http(Handled),
    /// There is no such call on this module.
    Refused(Fault),
}

impl Returned {
    fn agent(returned: wasmtime::Result<(Result<Reply, AgentError>,)>) -> wasmtime::Result<Self> {
        returned.map(|(returned,)| Self::Agent(returned))
    }
}

/// Begins a call. What it was made with is the store's from here on; the future is as small as what it waits for.
fn begin<'a>(
    Call { run, request, upload, entry }: Call,
    accessor: &'a Accessor<Context>,
    guest: &Guest,
    session: &Session,
) -> wasmtime::Result<impl Future<Output = (Run, wasmtime::Result<Returned>)> + use<'a>> {
    let refused = |fault| Right(Right(ready(Ok(Returned::Refused(fault)))));
    let returned = match (guest, entry) {
        // The module was swapped for one of another kind under the request, which can come again.
        (Guest::Agent(_), _) if upload.as_ref().is_some_and(|of| !of.body.is_end_stream()) => {
            refused(Fault::AgentUnavailable)
        }
        (Guest::Agent(agent), _) => Left(call(&run, request, entry, accessor, agent)?),
        // Its client has left while it waited, and nobody else ever hears of it.
        (Guest::Http(_), Entry::Request) if !run.is_awaited() && !session.is_held() => {
            refused(Fault::Cancelled)
        }
        (Guest::Http(handler), Entry::Request) => {
            let handled = handler.begin(&run, request, upload, accessor)?;
            Right(Left(handled.map(|handled| handled.map(Returned::Http))))
        }
        (Guest::Http(_), Entry::Resume(_)) => refused(Fault::Interrupted),
    };
    // Not an async block, which would have place for what it waits for twice.
    Ok(returned.map(|returned| (run, returned)))
}

/// Calls an agent.
fn call<'a>(
    run: &Run,
    Request { method, path, body }: Request,
    entry: Entry,
    accessor: &'a Accessor<Context>,
    agent: &Agent,
) -> wasmtime::Result<impl Future<Output = wasmtime::Result<Returned>> + use<'a>> {
    let request = GuestRequest { method, path, body: body.into() };
    accessor.with(|mut access| {
        let handle = access.get().table.push(run.clone())?;
        Ok(match (entry, &agent.resumption) {
            (Entry::Request, _) => {
                let export = agent.handler.func_on_request();
                let call = export.start_call_concurrent(access, (handle, request))?;
                Left(Left(export.finish_call_concurrent(accessor, call).map(Returned::agent)))
            }
            (Entry::Resume(Seq(last)), Some(resumption)) => {
                let export = resumption.func_on_resume();
                let call = export.start_call_concurrent(access, (handle, request, last))?;
                Left(Right(export.finish_call_concurrent(accessor, call).map(Returned::agent)))
            }
            (Entry::Resume(_), None) => Right(ready(Ok(Returned::Refused(Fault::Interrupted)))),
        })
    })
}

/// Sees to the answer of a call.
fn finish(
    run: Run,
    returned: Result<Reply, AgentError>,
    accessor: &Accessor<Context>,
    session: &Arc<Session>,
) -> wasmtime::Result<()> {
    let answer = match returned {
        Ok(Reply::Response(response)) => {
            let head = Head { status: response.status, headers: from_guest(response.headers) };
            match response.body {
                Body::Bytes(bytes) => Answer::Response(head, bytes.into()),
                Body::Chunks(stream) => {
                    return answer_chunks(accessor, session, run, head, stream);
                }
            }
        }
        Ok(Reply::Events) => Answer::NoContent,
        Err(error) => Answer::Failed(fault_of(error, session, &run)),
    };
    session.finish(&run, answer);
    Ok(())
}

/// What is told of an agent's error, in bytes: a guest that has megabytes to say would have them in an event, or in the log.
const MESSAGE: usize = 16 << 10;

fn fault_of(mut error: AgentError, session: &Session, run: &Run) -> Fault {
    if let AgentError::BadRequest(message) | AgentError::Other(message) = &mut error {
        message.truncate(message.floor_char_boundary(MESSAGE));
    }
    match error {
        AgentError::BadRequest(message) => Fault::BadRequest(message),
        AgentError::Cancelled => Fault::Cancelled,
        AgentError::Other(message) => {
            tracing::warn!(
                instance = %session.ledger().key(), run = %run.id(),
                "the agent returned an error: {message}"
            );
            Fault::AgentFailed
        }
    }
}

fn from_guest(headers: Vec<Header>) -> Vec<(String, String)> {
    headers.into_iter().map(|Header { name, value }| (name, value)).collect()
}

/// Answers with a body that comes as the guest writes it. The run ends with the body.
fn answer_chunks(
    accessor: &Accessor<Context>,
    session: &Arc<Session>,
    run: Run,
    head: Head,
    mut stream: StreamReader<u8>,
) -> wasmtime::Result<()> {
    if run.is_streaming() {
        // Nobody will read the chunks: the guest's first write says so.
        accessor.with(|access| stream.close(access))?;
        session.finish(&run, Answer::Response(head, Bytes::new()));
        return Ok(());
    }
    let of_run = OfRun(session.clone(), run.clone());
    let (pipe, chunks) = chunks::channel(session.clone(), of_run);
    session.answer(&run, Answer::Chunks(head, chunks));
    accessor.with(|access| stream.pipe(access, pipe))
}

#[cfg(test)]
mod tests {
    use wasmtime::StoreContextMut;
    use wasmtime::component::Resource;

    use super::*;
    use crate::config::InstanceLimits;
    use crate::wasm::testing::Bench;

    /// An agent that opens its stream, with a function of the host that panics instead.
    #[tokio::test]
    async fn a_panic_of_a_host_function_ends_the_runs_of_its_instance_and_is_counted() {
        let bench = Bench::new();
        let mut engine = Engine::new(1, 1 << 20, bench.directory.path().into()).unwrap();
        engine.linker.allow_shadowing(true);
        let mut runs = engine.linker.instance("bureau:agent/runs@0.1.0").unwrap();
        let open = |_: StoreContextMut<'_, Context>, _: (Resource<Run>,)| -> wasmtime::Result<()> {
            panic!("on purpose")
        };
        runs.func_wrap("[method]run.open", open).unwrap();
        let body = "(call $open (local.get 0)) i32.const 0";
        let agent = include_str!("../../../tests/guests/agent.wat").replace("BODY", body);
        let granted = Arc::<Granted>::default();
        let module = Module::load(&engine, &wat::parse_str(agent).unwrap(), &granted).unwrap();

        let session = bench.session(module.digest(), InstanceLimits::default());
        let store = LiveStore::start(&engine, &module, session, granted).await;
        let (run, answered) = bench.run();
        let request = Request { method: "GET".into(), path: "/".into(), body: Bytes::new() };
        let (mailbox, mut calls) = mpsc::channel(1);
        let call = Call { run, request, upload: None, entry: Entry::Request };
        drop(mailbox.try_send(Box::new(call)));
        let served = store.map_err(|error| error.to_string()).unwrap().serve(&mut calls).await;
        assert_eq!(served, Err(Fault::Internal));
        assert!(matches!(answered.await.unwrap().answer, Answer::Failed(Fault::Internal)));
        assert_eq!(bench.feed.counts.panics.load(Ordering::Relaxed), 1);
        assert_eq!(bench.load.in_flight(), 0);
        bench.journal.close().await;
    }
}
