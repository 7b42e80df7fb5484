//! One build of an agent, compiled and checked: ready to be instantiated.
//!
//! **Problem.** Compiling takes seconds for large components, and a module that does not fit the interface
//! must be refused with a message its author can act on, before anything is served from it.
//!
//! **Mechanism.** Bytes are compiled, or found in the cache by their digest and the engine's compatibility;
//! what the component imports is held against the [capabilities](Capability), then resolved against the linker; exports are
//! looked up by interface: an agent has this host's own or, if not, that of `wasi:http`. A cache entry begins with the
//! digest of its module's and of what follows, and one that does not match is compiled anew: compiled code is trusted blindly by
//! wasmtime, so it must be whole, and that of no other module.
//!
//! **Limits.** Its caller's, of the bytes, and of how many are compiled at once. The cache's directory is its owner's alone, and all of it may be
//! deleted at any time.
//!
//! **Cost.** Compiling a Rust agent takes tenths of a second and a Python one seconds; loading either from the cache, milliseconds.
//! While it compiles, a module takes what the processors have left.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use wasmtime::component::{Component, InstancePre};

use crate::id::Digest;
use crate::wasm::bindings::{handler, migration, resumption};
use crate::wasm::capabilities::{Asked, Capability, Provision};
use crate::wasm::context::Context;
use crate::wasm::engine::{Engine, Modules};
use crate::wasm::exchange::HandlerIndices;
use crate::wasm::granted::Granted;

/// A module that fits the interface.
pub struct Module {
    digest: Digest,
    shape: Shape,
    pub(super) pre: InstancePre<Context>,
    pub(super) exports: Exports,
    /// Counted among those in memory.
    _loaded: Loaded,
}

/// Where a module exports what it is called by.
pub(super) enum Exports {
    Agent {
        handler: handler::GuestIndices,
        resumption: Option<resumption::GuestIndices>,
        migration: Option<migration::GuestIndices>,
    },
    Http(HandlerIndices),
}

/// What a module is called by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Kind {
    /// This host's own interface.
    #[serde(rename = "agent")]
    Agent,
    /// `wasi:http/handler` 0.3.
    #[serde(rename = "wasi-http-0.3")]
    WasiHttp03,
    /// `wasi:http/incoming-handler` 0.2.
    #[serde(rename = "wasi-http-0.2")]
    WasiHttp02,
}

/// What a component takes and offers, by the names of its interfaces.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    pub imports: BTreeSet<String>,
    pub exports: BTreeSet<String>,
}

/// What a module passes before it serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// It is not too large.
    Size,
    /// It is a component and compiles.
    Compilation,
    /// Its imports are there, its exports are what an agent has, and all of them have the expected types.
    Interface,
    /// It asks for nothing that agents are not given.
    Capabilities,
    /// It can be instantiated within the limits.
    Instantiation,
    /// It answers for its health, if it is to.
    Health,
}

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the module has {bytes} bytes and may have {limit}")]
    TooLarge { bytes: u64, limit: usize },
    #[error(
        "this is a core WebAssembly module, and an agent is a component: build it for wasm32-wasip2"
    )]
    CoreModule,
    #[error("this is not a WebAssembly component: {0}")]
    NotComponent(String),
    #[error("the component imports {}, which this host does not have", list(.0))]
    UnknownImports(Vec<String>),
    #[error("the component's imports are not what the host has: {0}")]
    Imports(String),
    #[error(
        "the component needs http, which its agent is not granted: it imports {}; the hosts that it may reach \
         are named by `allow_hosts` in [agents.NAME]", list(.0)
    )]
    NotGranted(Vec<String>),
    #[error(
        "the component does not export {HANDLER}, which every agent has (in Rust: bureau_sdk::export!), \
         nor {HTTP_03} or {HTTP_02}, which serve as well; it exports {}", list(.0)
    )]
    NoHandler(Vec<String>),
    #[error("the component's export {export} does not have the expected type: {cause}")]
    Export { export: &'static str, cause: String },
    #[error("the component cannot be instantiated: {0}")]
    NotInstantiated(String),
    #[error("the agent is not healthy: {0}")]
    Unhealthy(String),
}

/// Names for people.
fn list(names: &[String]) -> String {
    if names.is_empty() { "nothing".into() } else { names.join(", ") }
}

impl LoadError {
    /// Where the module was stopped.
    pub fn gate(&self) -> Gate {
        match self {
            Self::TooLarge { .. } => Gate::Size,
            Self::CoreModule | Self::NotComponent(_) => Gate::Compilation,
            Self::UnknownImports(_)
            | Self::Imports(_)
            | Self::NoHandler(_)
            | Self::Export { .. } => Gate::Interface,
            Self::NotGranted(_) => Gate::Capabilities,
            Self::NotInstantiated(_) => Gate::Instantiation,
            Self::Unhealthy(_) => Gate::Health,
        }
    }
}

const HANDLER: &str = "bureau:agent/handler@0.1.0";
const RESUMPTION: &str = "bureau:agent/resumption@0.1.0";
const MIGRATION: &str = "bureau:agent/migration@0.1.0";
const HTTP_03: &str = "wasi:http/handler@0.3";
const HTTP_02: &str = "wasi:http/incoming-handler@0.2";

impl Module {
    /// Compiles a module and checks it, for an agent that is granted this. It computes for as long as it takes: not for an async thread.
    pub fn load(engine: &Engine, bytes: &[u8], granted: &Granted) -> Result<Self, LoadError> {
        let digest = Digest::of(bytes);
        let component = match engine.cached(digest) {
            Some(component) => component,
            None => engine.compile(digest, bytes)?,
        };
        Self::check(engine, digest, component, granted)
    }

    /// Loads a module that was checked before. Its bytes are only read when its code is not in the cache. Not for an async thread.
    pub fn load_known(
        engine: &Engine,
        digest: Digest,
        granted: &Granted,
        read: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Self, LoadKnownError> {
        let component = match engine.cached(digest) {
            Some(component) => component,
            None => {
                let bytes = read()?;
                if Digest::of(&bytes) != digest {
                    return Err(LoadKnownError::Damaged);
                }
                engine.compile(digest, &bytes)?
            }
        };
        Ok(Self::check(engine, digest, component, granted)?)
    }

    fn check(
        engine: &Engine,
        digest: Digest,
        component: Component,
        granted: &Granted,
    ) -> Result<Self, LoadError> {
        let shape = Shape::of(engine, &component);
        shape.check_imports(granted)?;
        let pre = engine
            .linker
            .instantiate_pre(&component)
            .map_err(|cause| LoadError::Imports(format!("{cause:#}")))?;
        let mistyped =
            |export| move |cause| LoadError::Export { export, cause: format!("{cause:#}") };
        let has = |export| shape.exports.contains(export);
        let exports = match shape.kind() {
            Some(Kind::Agent) => Exports::Agent {
                handler: handler::GuestIndices::new(&pre).map_err(mistyped(HANDLER))?,
                resumption: has(RESUMPTION)
                    .then(|| resumption::GuestIndices::new(&pre).map_err(mistyped(RESUMPTION)))
                    .transpose()?,
                migration: has(MIGRATION)
                    .then(|| migration::GuestIndices::new(&pre).map_err(mistyped(MIGRATION)))
                    .transpose()?,
            },
            Some(Kind::WasiHttp03) => {
                Exports::Http(HandlerIndices::v03(&pre).map_err(mistyped(HTTP_03))?)
            }
            Some(Kind::WasiHttp02) => {
                Exports::Http(HandlerIndices::v02(&pre).map_err(mistyped(HTTP_02))?)
            }
            None => return Err(LoadError::NoHandler(shape.exports.into_iter().collect())),
        };
        let loaded = Loaded::new(engine.modules(), code_bytes(&component));
        Ok(Self { digest, shape, pre, exports, _loaded: loaded })
    }

    /// The digest of the module's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the module imports and exports.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// What the module is called by.
    pub fn kind(&self) -> Kind {
        match &self.exports {
            Exports::Agent { .. } => Kind::Agent,
            Exports::Http(indices) => indices.kind(),
        }
    }

    /// Whether the module goes on with runs that were interrupted.
    pub fn resumes(&self) -> bool {
        matches!(&self.exports, Exports::Agent { resumption: Some(_), .. })
    }

    /// Whether the module takes over what instances keep from other modules.
    pub fn migrates(&self) -> bool {
        matches!(&self.exports, Exports::Agent { migration: Some(_), .. })
    }
}

/// Why a module that was checked before cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadKnownError {
    #[error("its file cannot be read: {0}")]
    Read(#[from] io::Error),
    #[error("its file is damaged: the bytes do not have the digest that it is named by")]
    Damaged,
    #[error(transparent)]
    Refused(#[from] LoadError),
}

impl Shape {
    /// The shape of any component, agent or not.
    pub(super) fn of(engine: &Engine, component: &Component) -> Self {
        let (engine, component) = (&engine.engine, component.component_type());
        Self {
            imports: component.imports(engine).map(|(name, _)| name.to_owned()).collect(),
            exports: component.exports(engine).map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// What the imports say that the component would need, and what an agent that is granted this has of it.
    pub fn asks(&self, granted: &Granted) -> Vec<Asked> {
        let asked: BTreeSet<_> =
            self.imports.iter().filter_map(|name| Capability::of(name)).collect();
        asked.into_iter().map(|capability| granted.answer(capability)).collect()
    }

    /// What a component of this shape is called by, if it is an agent.
    pub fn kind(&self) -> Option<Kind> {
        let has = |prefix| self.exports.iter().any(|export| export.starts_with(prefix));
        if self.exports.contains(HANDLER) {
            Some(Kind::Agent)
        } else if has(HTTP_03) {
            Some(Kind::WasiHttp03)
        } else if has(HTTP_02) {
            Some(Kind::WasiHttp02)
        } else {
            None
        }
    }

    fn check_imports(&self, granted: &Granted) -> Result<(), LoadError> {
        let unknown = |import: &&String| Capability::of(import).is_none();
        let unknown: Vec<_> = self.imports.iter().filter(unknown).cloned().collect();
        if !unknown.is_empty() {
            return Err(LoadError::UnknownImports(unknown));
        }
        let withheld = |import: &&String| {
            Capability::of(import).is_some_and(|of| granted.provision(of) == Provision::Withheld)
        };
        let withheld: Vec<_> = self.imports.iter().filter(withheld).cloned().collect();
        if withheld.is_empty() { Ok(()) } else { Err(LoadError::NotGranted(withheld)) }
    }
}

/// The bytes of a component's compiled code.
fn code_bytes(component: &Component) -> usize {
    let code = component.image_range();
    code.end.addr() - code.start.addr()
}

/// A module in memory, for as long as it is there.
struct Loaded {
    of: Arc<Modules>,
    bytes: usize,
}

impl Loaded {
    fn new(of: &Arc<Modules>, bytes: usize) -> Self {
        of.count.fetch_add(1, Ordering::Relaxed);
        of.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        Self { of: of.clone(), bytes }
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        self.of.count.fetch_sub(1, Ordering::Relaxed);
        self.of.bytes.fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

/// A component and what can be said of it, agent or not.
pub struct Inspection {
    pub digest: Digest,
    pub shape: Shape,
    /// The bytes of its compiled code.
    pub code_bytes: usize,
    /// Why it would be refused, if it would.
    pub refused: Option<LoadError>,
}

/// Compiles a component and looks at it, as at one of an agent that is granted this. It computes for as long as it takes.
pub fn inspect(engine: &Engine, bytes: &[u8], granted: &Granted) -> Result<Inspection, LoadError> {
    let digest = Digest::of(bytes);
    let component = engine.compilers.install(|| compile(engine, bytes))?;
    let shape = Shape::of(engine, &component);
    let code_bytes = code_bytes(&component);
    let refused = Module::check(engine, digest, component, granted).err();
    Ok(Inspection { digest, shape, code_bytes, refused })
}

/// Called on one of the threads that compile, wasmtime compiles on all of them.
fn compile(engine: &Engine, bytes: &[u8]) -> Result<Component, LoadError> {
    if bytes.starts_with(b"\0asm\x01\0\0\0") {
        return Err(LoadError::CoreModule);
    }
    if !bytes.starts_with(b"\0asm") {
        return Err(LoadError::NotComponent("it does not begin as WebAssembly does".into()));
    }
    Component::new(&engine.engine, bytes).map_err(|cause| {
        let why = format!("{cause:#}");
        // What is too large for any place in the pool is told by no type of error.
        match why.contains("pooling allocator") {
            true => LoadError::NotInstantiated(why),
            false => LoadError::NotComponent(why),
        }
    })
}

impl Engine {
    /// Where compiled code of a module is kept.
    fn cache_entry(&self, digest: Digest) -> PathBuf {
        self.cache().join(format!("{digest}-{:016x}.cwasm", self.compatibility()))
    }

    /// A module's code, if it has been compiled before.
    fn cached(&self, digest: Digest) -> Option<Component> {
        cached(self, digest, &self.cache_entry(digest))
    }

    /// Compiles a module and keeps its code.
    fn compile(&self, digest: Digest, bytes: &[u8]) -> Result<Component, LoadError> {
        self.compilers.install(|| {
            let component = compile(self, bytes)?;
            self.modules().compilations.fetch_add(1, Ordering::Relaxed);
            let path = self.cache_entry(digest);
            if let Err(cause) = keep(&component, digest, &path) {
                tracing::warn!(path = %path.display(), %cause, "compiled code was not cached");
            }
            Ok(component)
        })
    }

    /// Lets go of a module's compiled code, by whatever engine.
    pub fn forget(&self, digest: Digest) -> io::Result<()> {
        let name = format!("{digest}-");
        for entry in std::fs::read_dir(self.cache())? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(&name) {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }
}

/// What an entry of the cache begins with.
fn seal(module: Digest, code: &[u8]) -> Digest {
    Digest::of_all(&[module.as_bytes(), code])
}

fn cached(engine: &Engine, module: Digest, path: &Path) -> Option<Component> {
    let entry = std::fs::read(path).ok()?;
    let (begin, code) = entry.split_at_checked(32)?;
    if seal(module, code).as_bytes() != begin {
        tracing::warn!(path = %path.display(), "a damaged cache entry is compiled anew");
        return None;
    }
    // SAFETY: `deserialize` trusts its input to be what an engine of this very configuration serialized. The
    // seal says that the entry is whole and this module's, its name that the engine is compatible, and the directory, which
    // only the host's user can write to, that the host wrote it.
    #[expect(unsafe_code, reason = "compiled code cannot be checked, only trusted")]
    let component = unsafe { Component::deserialize(&engine.engine, code) };
    component
        .inspect_err(|cause| tracing::warn!(path = %path.display(), %cause, "a cache entry is compiled anew"))
        .ok()
}

fn keep(component: &Component, module: Digest, path: &Path) -> wasmtime::Result<()> {
    let code = component.serialize()?;
    let mut entry = seal(module, &code).as_bytes().to_vec();
    entry.extend_from_slice(&code);
    // Written beside and renamed, so that a reader finds the whole entry or none.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let draft = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let beside = PathBuf::from(format!("{}.{}-{draft}", path.display(), std::process::id()));
    std::fs::write(&beside, entry)?;
    std::fs::rename(&beside, path)?;
    Ok(())
}
