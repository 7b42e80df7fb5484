//! `wasi:http`, for agents that speak it.
//!
//! **Problem.** Components that toolchains make for `wasi:http` 0.3 or 0.2 import its types, and often its client too, and are
//! to find both here. Most agents use neither and are not to pay for them.
//!
//! **Mechanism.** Wasmtime's implementation of both versions is in the one linker. What it needs in a store is made when a
//! guest first asks for something of it. Its hooks refuse every request to others.
//!
//! **Limits.** Fields by wasmtime's own bound, 128 KiB.
//!
//! **Cost.** A pointer per store, and a box for a guest that uses it.

use std::future::{Future, ready};

use wasmtime::component::Linker;
use wasmtime_wasi_http::{
    Error, RequestOptions, WasiBody, WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView,
};

use crate::wasm::chunks::MAX_CHUNK;
use crate::wasm::context::Context;

/// What a store has for `wasi:http`, once its guest has used it.
#[derive(Default)]
pub(super) struct Http {
    ctx: WasiHttpCtx,
    hooks: Hooks,
}

/// Links `wasi:http` 0.3 and 0.2.
pub(super) fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)
}

impl WasiHttpView for Context {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let Http { ctx, hooks } = &mut **self.http.get_or_insert_default();
        WasiHttpCtxView { hooks, table: &mut self.table, ctx }
    }
}

/// How requests to others are sent: not at all.
#[derive(Default)]
struct Hooks;

type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Transfer), Error>;

impl WasiHttpHooks for Hooks {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_CHUNK
    }

    fn send_request(
        &mut self,
        _request: http::Request<WasiBody>,
        _options: Option<RequestOptions>,
        _transfer: Transfer,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        Box::new(ready(Err(Error::HttpRequestDenied)))
    }
}
