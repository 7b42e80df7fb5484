//! `wasi:http`, for agents that speak it.
//!
//! **Problem.** Components that toolchains make for `wasi:http` 0.3 or 0.2 import its types, and often its client too, and are
//! to find both here. Most agents use neither and are not to pay for them.
//!
//! **Mechanism.** Wasmtime's implementation of both versions is in the one linker. What it needs in a store is made when a
//! guest first asks for something of it. Its hooks are [`outbound`](crate::wasm::outbound)'s, through which requests to others go.
//!
//! **Limits.** Fields by wasmtime's own bound, 128 KiB.
//!
//! **Cost.** A pointer per store, and a box for a guest that uses it.

use wasmtime::component::Linker;
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::wasm::context::Context;
use crate::wasm::outbound::Outbound;

/// What a store has for `wasi:http`, once its guest has used it.
pub(super) struct Http {
    ctx: WasiHttpCtx,
    hooks: Outbound,
}

impl From<Outbound> for Http {
    fn from(hooks: Outbound) -> Self {
        Self { ctx: WasiHttpCtx::new(), hooks }
    }
}

/// Links `wasi:http` 0.3 and 0.2.
pub(super) fn link(linker: &mut Linker<Context>) -> wasmtime::Result<()> {
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    wasmtime_wasi_http::p3::add_to_linker(linker)
}

impl WasiHttpView for Context {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        let (session, granted) = (&self.session, &self.granted);
        let made = || Box::new(Outbound::new(session.clone(), granted.clone()).into());
        let Http { ctx, hooks } = &mut **self.http.get_or_insert_with(made);
        WasiHttpCtxView { hooks, table: &mut self.table, ctx }
    }
}
