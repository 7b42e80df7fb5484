//! Write agents for Bureau in Rust.
//!
//! An agent is a type that answers requests. Bureau runs one value of it for each *instance*, which comes into being
//! when its address is first used, keeps state, and takes one step at a time. Each call is a *run*; what a run
//! emits is durable before a client sees it, and a client that comes back goes on where it stopped.
//!
//! ```standalone_crate
//! use bureau_sdk::prelude::*;
//!
//! #[derive(Default)]
//! struct StreamAgent;
//!
//! impl Agent for StreamAgent {
//!     async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
//!         run.emit("Starting...").await?;
//!         for step in 1..=5 {
//!             sleep(Duration::from_millis(500)).await;
//!             run.emit(format!("Step {step} complete")).await?;
//!         }
//!         run.emit("Done!").await?;
//!         Ok(Reply::events())
//!     }
//! }
//!
//! bureau_sdk::export!(StreamAgent);
//! # fn main() {}
//! ```
//!
//! The crate is a `cdylib`, built by `cargo build --target wasm32-wasip2`.
//!
//! - [`Agent`] is the one trait to implement, [`Resume`] a second one for runs that outlive a crash of the host, [`Migrate`] a third for
//!   state whose form has changed.
//! - [`Request`] and [`Reply`] are what comes in and goes out, with [`http`]'s types and JSON in one call each.
//! - [`Run`] emits [`Event`]s, and holds the instance's state and [`Storage`].
//! - [`sleep`], [`join`] and [`select`] do several things at once. Calls on one instance interleave wherever one waits.
//! - [`fetch`] sends requests to other servers, where the operator has granted them; [`ai`] asks models, and streams their answers.
//! - What is printed goes to the host's log, with the agent, the instance and, when only one is under way, the run.
//! - An agent that brings a `#[global_allocator]` of its own does without the default feature `allocator`, which is one that makes new
//!   instances cheap.

#![deny(missing_docs)]

#[doc(hidden)]
pub mod agent;
#[cfg(feature = "ai")]
pub mod ai;
#[cfg(all(target_family = "wasm", feature = "allocator"))]
mod allocator;
#[doc(hidden)]
pub mod bindings;
mod concurrency;
mod error;
mod event;
pub mod fetch;
#[cfg(target_family = "wasm")]
mod output;
mod reply;
mod request;
#[doc(hidden)]
pub mod rt;
mod run;
mod storage;
mod wasi;

pub use http;
pub use serde_json::{Value, json};

pub use self::agent::{Agent, Migrate, Resume};
pub use self::concurrency::{Either, join, join_all, select};
pub use self::error::{Error, Result};
pub use self::event::{EmitError, Event};
pub use self::reply::{Body, Chunks, ClientLeft, Reply};
pub use self::request::Request;
pub use self::run::{Format, Run};
pub use self::storage::{Storage, StoreError};
pub use self::wasi::{ConfigError, Secret, config, secret, sleep};

/// What most agents need, by `use bureau_sdk::prelude::*`.
pub mod prelude {
    pub use std::time::Duration;

    pub use http::{HeaderValue, Method, StatusCode, header};

    pub use crate::{
        Agent, Either, Error, Event, Format, Migrate, Reply, Request, Result, Resume, Run, Storage,
        Value, config, join, join_all, json, secret, select, sleep,
    };
}
