//! What a store knows, and the host functions that its guest calls.
//!
//! **Problem.** A guest may call anything, with anything, at any time, and must find only its own instance.
//!
//! **Mechanism.** The store's data holds the session, the WASI context without any grant, and the
//! table of handles. Functions that never wait add to the turn; those that wait do so concurrently, so that
//! other calls on the instance go on meanwhile.
//!
//! **Limits.** Each value's size, the turn's, and what the store is made of, by configuration. A guest that
//! exceeds one gets an error where the interface has one, and traps where it has none.
//!
//! **Cost.** Less than a microsecond a call, beyond what the function does.

use std::io;
use std::sync::Arc;

use wasmtime::component::{Accessor, HasSelf, Linker, Resource, ResourceTable};
use wasmtime::{ResourceLimiter, StoreContextMut, UpdateDeadline};
use wasmtime_wasi::{WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::format::Format;
use crate::journal::Pair;
use crate::wasm::bindings::types::{
    EmitError, Event as GuestEvent, Format as GuestFormat, Header, StoreError,
};
use crate::wasm::bindings::{config, identity, runs, state, storage, types};
use crate::wasm::granted::Granted;
use crate::wasm::log::GuestLog;
use crate::wasm::run::Run;
use crate::wasm::session::{EmitRefused, Session, WriteRefused};
use crate::wasm::wasi_http::{self, Http};

/// The data of one store.
pub(super) struct Context {
    pub(super) session: Arc<Session>,
    pub(super) granted: Arc<Granted>,
    /// Made when the guest first asks for something of it, which many never do, unless it has files.
    wasi: Option<WasiCtx>,
    /// Likewise.
    pub(super) http: Option<Box<Http>>,
    pub(super) table: ResourceTable,
    limiter: Limiter,
}

/// A guest used up what it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum LimitReached {
    /// Time without return to the host, in milliseconds.
    #[error("the guest computed for {0} ms without returning to the host")]
    Cpu(u64),
}

/// What the store may be made of.
struct Limiter {
    session: Arc<Session>,
    /// Whether the guest asked for more of them than it may have.
    reached: bool,
}

impl Context {
    /// What a guest that is granted this finds. It fails when what is granted cannot be opened.
    pub(super) fn new(session: Arc<Session>, granted: Arc<Granted>) -> io::Result<Self> {
        let limiter = Limiter { session: session.clone(), reached: false };
        let wasi = granted.has_files().then(|| wasi(&session, &granted)).transpose()?;
        Ok(Self { session, granted, wasi, http: None, table: ResourceTable::new(), limiter })
    }

    /// What the store and its actor share.
    pub(super) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Whether the guest asked for more memory than it may have.
    pub(super) fn memory_limit_reached(&self) -> bool {
        self.limiter.reached
    }

    /// The store's limiter.
    pub(super) fn limiter(&mut self) -> &mut dyn ResourceLimiter {
        &mut self.limiter
    }

    /// What happens on an epoch tick in guest code: give way from the second one on, or end when it has been too long.
    pub(super) fn tick(store: StoreContextMut<'_, Self>) -> wasmtime::Result<UpdateDeadline> {
        let session = &store.data().session;
        let limit = session.limits().cpu;
        let (computed, gives_way) = session.clock().tick();
        if computed >= limit {
            let milliseconds = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
            return Err(LimitReached::Cpu(milliseconds).into());
        }
        Ok(if gives_way { UpdateDeadline::Yield(1) } else { UpdateDeadline::Continue(1) })
    }
}

/// Links everything that an agent may import.
pub(super) fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
    type Own = HasSelf<Context>;
    wasmtime_wasi::p2::add_to_linker_async(linker)?;
    wasmtime_wasi::p3::add_to_linker(linker)?;
    wasi_http::link(linker)?;
    types::add_to_linker::<_, Own>(linker, |context| context)?;
    runs::add_to_linker::<_, Own>(linker, |context| context)?;
    state::add_to_linker::<_, Own>(linker, |context| context)?;
    storage::add_to_linker::<_, Own>(linker, |context| context)?;
    identity::add_to_linker::<_, Own>(linker, |context| context)?;
    config::add_to_linker::<_, Own>(linker, |context| context)
}

/// The most random bytes of one call, in which the guest does not give way: some milliseconds.
const MAX_RANDOM: u64 = 1 << 20;

/// Clocks, random numbers, a log for what the guest prints, and its files.
fn wasi(session: &Arc<Session>, granted: &Granted) -> io::Result<WasiCtx> {
    let mut wasi = without_files(session);
    granted.open_files(&mut wasi)?;
    Ok(wasi.build())
}

fn without_files(session: &Arc<Session>) -> WasiCtxBuilder {
    let log = |stream| GuestLog::new(session.clone(), stream);
    let mut wasi = WasiCtxBuilder::new();
    wasi.stdout(log("stdout")).stderr(log("stderr")).allow_tcp(false).allow_udp(false);
    wasi.max_random_size(MAX_RANDOM);
    wasi
}

impl WasiView for Context {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| without_files(&self.session).build());
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let used = self.session.memory() + desired.saturating_sub(current);
        let limit = self.session.limits().memory_bytes;
        self.reached |= used > limit;
        if used > limit {
            return Ok(false);
        }
        self.session.set_memory(used);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        _desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // The pool's own limit on a table's elements holds.
        Ok(true)
    }

    fn instances(&self) -> usize {
        self.session.limits().core_instances
    }

    fn memories(&self) -> usize {
        self.session.limits().memories
    }

    fn tables(&self) -> usize {
        self.session.limits().tables
    }
}

impl types::Host for Context {}

impl runs::Host for Context {}

impl runs::HostRun for Context {
    fn id(&mut self, run: Resource<Run>) -> wasmtime::Result<String> {
        Ok(self.table.get(&run)?.id().to_string())
    }

    fn url(&mut self, run: Resource<Run>) -> wasmtime::Result<String> {
        Ok(self.table.get(&run)?.origin().head.url().into())
    }

    fn headers(&mut self, run: Resource<Run>) -> wasmtime::Result<Vec<Header>> {
        let fields = self.table.get(&run)?.origin().head.fields();
        Ok(fields.map(|(name, value)| Header { name: name.into(), value: value.into() }).collect())
    }

    fn last_event_id(&mut self, run: Resource<Run>) -> wasmtime::Result<Option<String>> {
        Ok(self.table.get(&run)?.origin().last_event_id.as_deref().map(String::from))
    }

    fn open(&mut self, run: Resource<Run>) -> wasmtime::Result<()> {
        self.session.open(self.table.get(&run)?);
        Ok(())
    }

    fn present_as(&mut self, run: Resource<Run>, format: GuestFormat) -> wasmtime::Result<()> {
        self.table.get(&run)?.wish_for(match format {
            GuestFormat::Events => Format::Events,
            GuestFormat::Text => Format::Text,
            GuestFormat::Lines => Format::Lines,
            GuestFormat::Document => Format::Document,
            GuestFormat::UiMessages => Format::UiMessages,
        });
        Ok(())
    }

    fn emit_event(
        &mut self,
        run: Resource<Run>,
        event: GuestEvent,
    ) -> wasmtime::Result<Result<u64, EmitError>> {
        let run = self.table.get(&run)?;
        let emitted = self.session.emit(run, event.name, event.id, event.data);
        Ok(emitted.map(|seq| seq.0).map_err(|refused| match refused {
            EmitRefused::Closed => EmitError::Closed,
            EmitRefused::Backlogged => EmitError::Backlogged,
            EmitRefused::TooLarge(limit) => EmitError::TooLarge(limit as u64),
            EmitRefused::Invalid(why) => EmitError::Invalid(why),
        }))
    }

    fn is_cancelled(&mut self, run: Resource<Run>) -> wasmtime::Result<bool> {
        Ok(self.table.get(&run)?.is_cancelled())
    }

    fn drop(&mut self, run: Resource<Run>) -> wasmtime::Result<()> {
        self.table.delete(run)?;
        Ok(())
    }
}

impl<T: Send> runs::HostRunWithStore<T> for HasSelf<Context> {
    async fn flush(
        accessor: &Accessor<T, Self>,
        run: Resource<Run>,
    ) -> wasmtime::Result<Result<u64, EmitError>> {
        let (session, run) = accessor.with(|mut access| {
            let context = access.get();
            let run = context.table.get(&run)?.clone();
            wasmtime::error::Ok((context.session.clone(), run))
        })?;
        let last = run.last();
        Ok(session.flush().await.map(|()| last.0).map_err(|_| EmitError::Closed))
    }

    async fn cancelled(accessor: &Accessor<T, Self>, run: Resource<Run>) -> wasmtime::Result<()> {
        let run = accessor.with(|mut access| access.get().table.get(&run).cloned())?;
        run.cancelled().await;
        Ok(())
    }
}

impl state::Host for Context {
    fn get(&mut self) -> wasmtime::Result<Option<String>> {
        let document = self.session.document()?;
        Ok(document.map(|document| document.to_string()))
    }

    fn set(&mut self, json: String) -> wasmtime::Result<Result<(), StoreError>> {
        let limit = self.session.limits().state_bytes;
        if json.len() > limit {
            return Ok(Err(StoreError::TooLarge(limit as u64)));
        }
        if let Err(fault) = serde_json::from_str::<serde::de::IgnoredAny>(&json) {
            return Ok(Err(StoreError::Invalid(format!("not a JSON document: {fault}"))));
        }
        written(self.session.set_document(json))
    }
}

/// What a guest learns of a write, if it lives to.
fn written(written: Result<(), WriteRefused>) -> wasmtime::Result<Result<(), StoreError>> {
    match written {
        Ok(()) => Ok(Ok(())),
        Err(WriteRefused::Outdated(outdated)) => {
            Ok(Err(StoreError::Unavailable(outdated.to_string())))
        }
        Err(WriteRefused::StorageFull(full)) => Ok(Err(StoreError::Invalid(full.to_string()))),
        Err(WriteRefused::Unreadable(fault)) => Ok(Err(unavailable(fault))),
        Err(WriteRefused::TurnTooLarge(too_large)) => Err(too_large.into()),
    }
}

/// The longest storage key, in bytes.
const MAX_KEY: usize = 512;

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        1..=MAX_KEY => Ok(()),
        0 => Err(StoreError::Invalid("a key takes 1 to 512 bytes; this one is empty".into())),
        _ => Err(StoreError::Invalid("a key takes 1 to 512 bytes; this one is longer".into())),
    }
}

impl storage::Host for Context {
    fn set(&mut self, key: String, value: Vec<u8>) -> wasmtime::Result<Result<(), StoreError>> {
        let limit = self.session.limits().value_bytes;
        if value.len() > limit {
            return Ok(Err(StoreError::TooLarge(limit as u64)));
        }
        if let Err(wrong) = check_key(&key) {
            return Ok(Err(wrong));
        }
        written(self.session.store(key, Some(value.into())))
    }

    fn delete(&mut self, key: String) -> wasmtime::Result<Result<(), StoreError>> {
        if let Err(wrong) = check_key(&key) {
            return Ok(Err(wrong));
        }
        written(self.session.store(key, None))
    }
}

impl<T: Send> storage::HostWithStore<T> for HasSelf<Context> {
    async fn get(
        accessor: &Accessor<T, Self>,
        key: String,
    ) -> wasmtime::Result<Result<Option<Vec<u8>>, StoreError>> {
        if let Err(wrong) = check_key(&key) {
            return Ok(Err(wrong));
        }
        let session = accessor.with(|mut access| access.get().session.clone());
        if let Some(written) = session.written(&key) {
            return Ok(Ok(written.map(Vec::from)));
        }
        let value = session.ledger().value(key).await;
        Ok(value.map(|value| value.map(Vec::from)).map_err(unavailable))
    }

    async fn list(
        accessor: &Accessor<T, Self>,
        prefix: String,
        after: Option<String>,
        limit: u32,
    ) -> wasmtime::Result<Result<Vec<(String, Vec<u8>)>, StoreError>> {
        let session = accessor.with(|mut access| access.get().session.clone());
        if session.is_held() && session.has_stored() {
            let why = "what a migration has stored can be listed when it has returned; list before it stores";
            return Ok(Err(StoreError::Unavailable(why.into())));
        }
        if session.flush().await.is_err() {
            return Ok(Err(StoreError::Unavailable("the journal has ended".into())));
        }
        let bytes = session.limits().value_bytes;
        let pairs = session.ledger().list(prefix, after, limit as usize, bytes).await;
        let owned = |(key, value): Pair| (String::from(key), Vec::from(value));
        Ok(pairs.map(|pairs| pairs.into_iter().map(owned).collect()).map_err(unavailable))
    }
}

fn unavailable(fault: crate::journal::StoreError) -> StoreError {
    StoreError::Unavailable(fault.to_string())
}

impl identity::Host for Context {
    fn agent(&mut self) -> wasmtime::Result<String> {
        Ok(self.session.ledger().key().agent().to_string())
    }

    fn instance(&mut self) -> wasmtime::Result<String> {
        Ok(self.session.ledger().key().name().into())
    }

    fn module(&mut self) -> wasmtime::Result<String> {
        Ok(self.session.module().to_string())
    }
}

impl config::Host for Context {
    fn get(&mut self, key: String) -> wasmtime::Result<Result<Option<String>, config::Error>> {
        Ok(Ok(self.granted.value(&key).map(String::from)))
    }

    fn get_all(&mut self) -> wasmtime::Result<Result<Vec<(String, String)>, config::Error>> {
        Ok(Ok(self.granted.values()))
    }
}
