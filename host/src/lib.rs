//! Bureau: a host for agents written as WebAssembly components.
//!
//! The modules in reading order. Each knows only those above it, `base` first: a floor never
//! looks up. `ARCHITECTURE.md` beside this crate draws the whole.

// Base: plain values and settings.
pub mod config;
pub mod event;
pub mod fault;
pub mod fetch;
pub mod format;
pub mod id;
pub mod shutdown;

// The floors.
pub mod journal;
pub mod wasm;
pub mod agent;
pub mod http;

// The whole.
pub mod watch;
pub mod dev;
pub mod agents_dir;
pub mod host;

#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;

pub use self::host::Host;
