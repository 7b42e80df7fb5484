//! The sandbox: everything that knows wasmtime.
//!
//! `engine` makes the one engine, linker and clock; `module` turns bytes into something that can be
//! instantiated; `run`, `ledger` and `session` are what a call, an instance and a store have written; `context`
//! is what a guest can call, `store` a live component instance, `chunks` the way of a raw body, and `log` where
//! a guest's output goes.

mod bindings;
mod chunks;
mod context;
mod engine;
mod ledger;
mod log;
mod module;
mod run;
mod session;
mod store;

pub use self::chunks::{Chunk, Chunks, Truncated};
pub use self::context::Variables;
pub use self::engine::{Engine, EngineError};
pub use self::ledger::Ledger;
pub use self::module::{LoadError, Module};
pub use self::run::{Answer, Answered, Head, Origin, RequestHead, Run, epitaph};
pub use self::session::{Load, Session};
pub use self::store::{Call, Entry, LiveStore, Request, StartError};
