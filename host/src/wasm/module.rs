//! One build of an agent, compiled and checked: ready to be instantiated.
//!
//! **Problem.** Compiling takes seconds for large components, and a module that does not fit the interface
//! must be refused with a message its author can act on, before anything is served from it.
//!
//! **Mechanism.** Bytes are compiled, or found in the cache by their digest and the engine's compatibility;
//! imports are resolved against the linker, exports looked up by interface. A cache entry begins with the
//! digest of what follows, and one that does not match is compiled anew: compiled code is trusted blindly by
//! wasmtime, so it must be whole.
//!
//! **Limits.** [`MAX_BYTES`]. The cache's directory is its owner's alone; nothing deletes old entries, and all of it may be
//! deleted at any time.
//!
//! **Cost.** Compiling a Rust agent takes tenths of a second and a Python one seconds; loading either from the cache, milliseconds.
//! While it compiles, a module takes what the processors have left.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use wasmtime::component::{Component, InstancePre};

use crate::id::Digest;
use crate::wasm::bindings::{handler, resumption};
use crate::wasm::context::Context;
use crate::wasm::engine::Engine;

/// The largest module.
const MAX_BYTES: usize = 256 << 20;

/// A module that fits the interface.
pub struct Module {
    digest: Digest,
    pub(super) pre: InstancePre<Context>,
    pub(super) handler: handler::GuestIndices,
    pub(super) resumption: Option<resumption::GuestIndices>,
}

/// Why a module was refused.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("the module has {0} bytes and may have {MAX_BYTES}")]
    TooLarge(usize),
    #[error(
        "this is a core WebAssembly module, and an agent is a component: build it for wasm32-wasip2"
    )]
    CoreModule,
    #[error("this is not a WebAssembly component: {0}")]
    NotComponent(String),
    #[error("the component imports what the host does not have: {0}")]
    Imports(String),
    #[error(
        "the component does not export {HANDLER}, which every agent has (in Rust: bureau_sdk::export!)"
    )]
    NoHandler,
    #[error("the component's export {export} does not have the expected type: {cause}")]
    Export { export: &'static str, cause: String },
}

const HANDLER: &str = "bureau:agent/handler@0.1.0";
const RESUMPTION: &str = "bureau:agent/resumption@0.1.0";

impl Module {
    /// Compiles and checks a module. It computes for as long as it takes: not for an async thread.
    pub fn load(engine: &Engine, bytes: &[u8]) -> Result<Self, LoadError> {
        let digest = Digest::of(bytes);
        let component = compile(engine, digest, bytes)?;
        let pre = engine
            .linker
            .instantiate_pre(&component)
            .map_err(|cause| LoadError::Imports(format!("{cause:#}")))?;
        if component.get_export_index(None, HANDLER).is_none() {
            return Err(LoadError::NoHandler);
        }
        let mistyped =
            |export| move |cause| LoadError::Export { export, cause: format!("{cause:#}") };
        let handler = handler::GuestIndices::new(&pre).map_err(mistyped(HANDLER))?;
        let resumption = component
            .get_export_index(None, RESUMPTION)
            .map(|_| resumption::GuestIndices::new(&pre).map_err(mistyped(RESUMPTION)))
            .transpose()?;
        Ok(Self { digest, pre, handler, resumption })
    }

    /// The digest of the module's bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether the module goes on with runs that were interrupted.
    pub fn resumes(&self) -> bool {
        self.resumption.is_some()
    }
}

fn compile(engine: &Engine, digest: Digest, bytes: &[u8]) -> Result<Component, LoadError> {
    if bytes.len() > MAX_BYTES {
        return Err(LoadError::TooLarge(bytes.len()));
    }
    if bytes.starts_with(b"\0asm\x01\0\0\0") {
        return Err(LoadError::CoreModule);
    }
    let path = engine.cache().join(format!("{digest}-{:016x}.cwasm", engine.compatibility()));
    if let Some(component) = cached(engine, &path) {
        return Ok(component);
    }
    // Called on one of these threads, wasmtime compiles on all of them.
    engine.compilers.install(|| {
        let component = Component::new(&engine.engine, bytes)
            .map_err(|cause| LoadError::NotComponent(format!("{cause:#}")))?;
        if let Err(cause) = keep(&component, &path) {
            tracing::warn!(path = %path.display(), %cause, "compiled code was not cached");
        }
        Ok(component)
    })
}

fn cached(engine: &Engine, path: &Path) -> Option<Component> {
    let entry = std::fs::read(path).ok()?;
    let (digest, code) = entry.split_at_checked(32)?;
    if Digest::of(code).as_bytes() != digest {
        tracing::warn!(path = %path.display(), "a damaged cache entry is compiled anew");
        return None;
    }
    // SAFETY: `deserialize` trusts its input to be what an engine of this very configuration serialized. The
    // digest says that the entry is whole, its name that the engine is compatible, and the directory, which
    // only the host's user can write to, that the host wrote it.
    let component = unsafe { Component::deserialize(&engine.engine, code) };
    component
        .inspect_err(|cause| tracing::warn!(path = %path.display(), %cause, "a cache entry is compiled anew"))
        .ok()
}

fn keep(component: &Component, path: &Path) -> wasmtime::Result<()> {
    let code = component.serialize()?;
    let mut entry = Digest::of(&code).as_bytes().to_vec();
    entry.extend_from_slice(&code);
    // Written beside and renamed, so that a reader finds the whole entry or none.
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let draft = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let beside = PathBuf::from(format!("{}.{}-{draft}", path.display(), std::process::id()));
    std::fs::write(&beside, entry)?;
    std::fs::rename(&beside, path)?;
    Ok(())
}
