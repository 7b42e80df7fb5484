//! What `wit/` says, as Rust: generated, and wrapped by the rest of this crate.
//!
//! There are several worlds in here, because a component exports all that its world does and the host takes an
//! exported `resumption` for the wish to be resumed. The first is a plain agent; two others add nothing but
//! one export each, and [`export!`](crate::export) joins it to the first for an agent that asks for it. The last one adds an
//! import, which is only in the component of an agent that uses it.

wit_bindgen::generate!({
    path: "../wit",
    world: "agent",
    generate_all,
    runtime_path: "crate::rt",
    pub_export_macro: true,
    export_macro_name: "export_agent",
});

/// The export that makes a run go on after a crash.
pub mod resumable {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "
            package bureau:sdk;

            world resumable {
                export bureau:agent/resumption@0.1.0;
            }
        ",
        with: {
            "bureau:agent/types@0.1.0": super::bureau::agent::types,
            "bureau:agent/runs@0.1.0": super::bureau::agent::runs,
            "bureau:agent/resumption@0.1.0": generate,
        },
        runtime_path: "crate::rt",
        pub_export_macro: true,
        export_macro_name: "export_resumption",
    });
}

/// The export that takes over what instances keep from another build of the agent.
pub mod migrating {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "
            package bureau:sdk;

            world migrating {
                export bureau:agent/migration@0.1.0;
            }
        ",
        with: {
            "bureau:agent/migration@0.1.0": generate,
        },
        runtime_path: "crate::rt",
        pub_export_macro: true,
        export_macro_name: "export_migration",
    });
}

/// The client of `wasi:http`, which the operator must have granted an agent that imports it.
pub mod outbound {
    wit_bindgen::generate!({
        path: "../wit",
        inline: "
            package bureau:sdk;

            world outbound {
                import wasi:http/client@0.3.0;
            }
        ",
        with: {
            "wasi:clocks/types@0.3.0": super::wasi::clocks::types,
            "wasi:http/types@0.3.0": generate,
            "wasi:http/client@0.3.0": generate,
        },
        runtime_path: "crate::rt",
    });
}
