//! The sandbox: everything that knows wasmtime.
//!
//! `engine` makes the one engine, linker and clock; `module` turns bytes into something that can be
//! instantiated, and `capabilities` says what it would need; `run`, `ledger` and `session` are what a call, an instance and a store have written; `context`
//! is what a guest can call, `store` a live component instance, `account` and `watchdog` what ends its runs when they do not, `chunks` the
//! way of a raw body, `wasi_http` what others than agents of ours import, `exchange` their requests, `log` where
//! a guest's output goes, `kept` what of an answer is kept, `reclaim` how memory goes back, and `feed` where an operator hears of what happens.

mod account;
mod bindings;
mod capabilities;
mod chunks;
mod context;
mod engine;
mod exchange;
mod feed;
mod granted;
mod kept;
mod ledger;
mod load;
mod log;
mod module;
mod outbound;
mod reclaim;
mod run;
mod session;
mod store;
#[cfg(test)]
mod testing;
mod wasi_http;
mod watchdog;

pub use self::capabilities::{Asked, Capability, Provision};
pub use self::chunks::{Chunk, Chunks, Truncated};
pub use self::engine::{Engine, EngineError, Modules};
pub use self::exchange::{Response, Upload, UploadError};
pub use self::feed::{Counts, Feed, Happening, News, Watcher};
pub use self::granted::Granted;
pub use self::kept::KeptReply;
pub use self::ledger::Ledger;
pub use self::load::Load;
pub use self::module::{Gate, Inspection, Kind, LoadError, LoadKnownError, Module, Shape, inspect};
pub use self::run::{
    Answer, Answered, Head, Origin, RequestHead, Resumed, Run, check_status, epitaph,
};
#[cfg(test)]
pub(crate) use self::session::give_way;
pub use self::session::{Running, Session, take_gave_way, thread_time};
pub use self::store::{Call, Entry, LiveStore, Request, StartError};
pub use self::watchdog::Watchdog;
