//! The types and traits generated from `wit/`.
//!
//! One world is generated, the fullest one. What a module exports beyond `handler` is found out when it is
//! loaded, through the `GuestIndices` of each optional interface.

wasmtime::component::bindgen!({
    path: "../wit",
    inline: "
        package bureau:host;

        world every-agent {
            include bureau:agent/resumable-agent@0.1.0;
            include bureau:agent/migrating-agent@0.1.0;
        }
    ",
    world: "bureau:host/every-agent",
    imports: {
        "bureau:agent/runs.[drop]run": trappable,
        default: trappable,
    },
    exports: { default: async | store },
    with: {
        "bureau:agent/runs.run": crate::wasm::run::Run,
        "wasi:clocks": wasmtime_wasi::p3::bindings::clocks,
    },
});

pub(crate) use self::bureau::agent::{identity, runs, state, storage, types};
pub(crate) use self::exports::bureau::agent::{handler, migration, resumption};
pub(crate) use self::wasi::config::store as config;
