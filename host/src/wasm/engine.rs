//! The one wasmtime engine: its pool, its linker and its clock.
//!
//! **Problem.** Instances come and go by the thousand, components differ a hundredfold in what they need, and
//! no guest may hold a thread.
//!
//! **Mechanism.** A pooling allocator sized by the cap on live instances; one linker with everything an agent
//! may import, so that loading a module resolves its imports once; a thread that ticks the epoch, at which
//! guest code gives way.
//!
//! **Limits.** The pool's totals follow from [`InstanceLimits::live`](crate::config::InstanceLimits::live); per component they allow for what
//! Python and JavaScript toolchains produce, dozens of core instances and tables.
//!
//! **Cost.** Address space, not memory: a slot costs its touched pages. A hundred wake-ups per second. Two sleeping threads per
//! processor, for compiling and for guests that compute.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use rayon::{ThreadPool, ThreadPoolBuilder};
use tokio::sync::watch;
use wasmtime::component::Linker;
use wasmtime::{Config, PoolingAllocationConfig};

use crate::config::{MOST_CORE_INSTANCES, MOST_MEMORIES, MOST_TABLES};
use crate::wasm::context::{self, Context};
use crate::wasm::reclaim::Reclaim;
use crate::wasm::session::Session;

/// How often guest code gives way, once it has computed for as long.
const TICK: Duration = Duration::from_millis(10);

/// Live instances that the pool has room for beyond their cap: those that are on their way out.
const LEAVING: usize = 64;

/// Core instances, memories and tables that an average component takes. A Rust one has up to four
/// core instances, one memory and two tables; a Python one more than twenty, so fewer of those fit.
const AVERAGE_CORE_INSTANCES: usize = 4;
const AVERAGE_TABLES: usize = 3;

/// Elements of a table. CPython's has some ten thousand.
const MAX_TABLE_ELEMENTS: usize = 40_000;

/// How much of a table is wiped in place for the next guest. A Rust agent's are a page each, and giving a page back to the
/// system and taking it again costs several times as much as wiping it.
pub(super) const WIPED_TABLE: usize = 8 << 10;

/// Regions that are given back to the system with one call: each call interrupts the other threads. A Rust agent has four, its
/// tables counted, so this is some sixteen instances. Those that wait for it can be used at once when the pool has no others.
pub(super) const GIVEN_BACK: usize = 64;

/// How far compiling stands back, and computing, of 19. A thread that wakes to serve takes the processor from one like this at once; when all
/// processors are busy serving, each like this still gets a tenth, so that a swap is late but comes.
#[cfg(target_os = "linux")]
const NICE: i32 = 10;

/// Everything that modules are compiled with and linked against.
pub struct Engine {
    pub(super) engine: wasmtime::Engine,
    pub(super) linker: Linker<Context>,
    /// Threads that compile, and give way to those that serve.
    pub(super) compilers: ThreadPool,
    computing: Arc<ThreadPool>,
    reclaim: Reclaim,
    cache: PathBuf,
    modules: Arc<Modules>,
    /// Closed when the thread is gone that ticks.
    ticking: watch::Receiver<()>,
}

/// Figures of the modules that an engine has in memory.
#[derive(Debug, Default)]
pub struct Modules {
    /// Gauge: how many there are, with those that only runs on their way out still need.
    pub count: AtomicU64,
    /// Gauge: the bytes of their compiled code.
    pub bytes: AtomicU64,
    /// How often one was compiled, where the cache had none.
    pub compilations: AtomicU64,
}

/// The engine cannot be made on this machine.
#[derive(Debug, thiserror::Error)]
#[error("cannot set up WebAssembly for {live} live instances of {memory} bytes: {cause:#}")]
pub struct EngineError {
    live: usize,
    memory: usize,
    cause: wasmtime::Error,
}

impl Engine {
    /// An engine for so many live instances, of at most so many bytes of memory each, that keeps compiled code under `cache`.
    pub fn new(live: usize, memory: usize, cache: PathBuf) -> Result<Self, EngineError> {
        let set_up = move || {
            let engine = wasmtime::Engine::new(&configuration(live, memory))?;
            let mut linker = Linker::new(&engine);
            context::link(&mut linker)?;
            wasmtime::error::Ok(Self {
                ticking: tick(&engine)?,
                reclaim: Reclaim::new(&engine)?,
                compilers: standing_back("compiler")?,
                computing: Arc::new(standing_back("computing")?),
                modules: Arc::default(),
                cache,
                engine,
                linker,
            })
        };
        set_up().map_err(|cause| EngineError { live, memory, cause })
    }

    /// Threads for guests that compute, which give way to those that serve.
    pub fn computing(&self) -> &Arc<ThreadPool> {
        &self.computing
    }

    /// The store of this session has been dropped, by this thread and just now.
    pub fn reclaim(&self, session: &Session) {
        self.reclaim.after(session.memory());
    }

    /// Waits for the end of the clock by which guests give way, which goes on for as long as the engine is there.
    pub fn clock(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ticking = self.ticking.clone();
        // It never changes.
        async move { while ticking.changed().await.is_ok() {} }
    }

    /// The modules in memory.
    pub fn modules(&self) -> &Arc<Modules> {
        &self.modules
    }

    /// Where compiled code is kept.
    pub(super) fn cache(&self) -> &Path {
        &self.cache
    }

    /// A word that differs whenever compiled code of one engine cannot run on another.
    pub(super) fn compatibility(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }
}

fn configuration(live: usize, memory: usize) -> Config {
    let slots = live + LEAVING;
    let count = |each: usize| u32::try_from(slots.saturating_mul(each)).unwrap_or(u32::MAX);
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(count(1))
        .total_core_instances(count(AVERAGE_CORE_INSTANCES))
        .total_memories(count(1))
        .total_tables(count(AVERAGE_TABLES))
        .total_stacks(count(1))
        .max_memory_size(memory)
        .max_component_instance_size(16 << 20)
        .max_core_instance_size(4 << 20)
        .max_core_instances_per_component(MOST_CORE_INSTANCES as u32)
        .max_memories_per_component(MOST_MEMORIES as u32)
        .max_tables_per_component(MOST_TABLES as u32)
        .max_tables_per_module(GIVEN_BACK as u32)
        .max_memories_per_module(4)
        .table_elements(MAX_TABLE_ELEMENTS)
        .table_keep_resident(WIPED_TABLE)
        // Memories are not wiped in place: without `pagemap_scan` that takes all pages from the first one on, and with it
        // a page that is swapped out is overlooked (wasmtime #14357), so that a guest would find what another left there.
        .decommit_batch_size(GIVEN_BACK);
    let mut config = Config::new();
    config.wasm_component_model_async(true).epoch_interruption(true).allocation_strategy(pool);
    config
}

/// As many threads as there are processors, which let others go before them.
fn standing_back(name: &'static str) -> wasmtime::Result<ThreadPool> {
    let threads = ThreadPoolBuilder::new().thread_name(move |n| format!("{name}-{n}"));
    Ok(threads.start_handler(|_| give_way()).build()?)
}

/// Lets other threads go before this one.
#[cfg(target_os = "linux")]
fn give_way() {
    if let Err(cause) = rustix::process::nice(NICE) {
        tracing::debug!(%cause, "compiling does not give way");
    }
}

/// Elsewhere a thread has no priority of its own, or none that can be had without `unsafe`.
#[cfg(not(target_os = "linux"))]
fn give_way() {}

fn tick(engine: &wasmtime::Engine) -> wasmtime::Result<watch::Receiver<()>> {
    let engine = engine.weak();
    let (held, ticking) = watch::channel(());
    std::thread::Builder::new().name("epoch".into()).spawn(move || {
        let _held = held;
        while let Some(engine) = engine.upgrade() {
            engine.increment_epoch();
            drop(engine);
            std::thread::sleep(TICK);
        }
    })?;
    Ok(ticking)
}
