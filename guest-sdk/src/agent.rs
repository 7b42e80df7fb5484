//! The traits that an author implements, and what makes a component of them.
//!
//! [`export!`](crate::export) builds the agent on the first call and keeps it, so its fields live as long as the
//! component instance. Calls interleave wherever one of them waits and therefore share the agent by `&self`; there is
//! one thread, so `Cell` and `RefCell` are all that the fields need.

use std::marker::PhantomData;
use std::rc::Rc;

use serde_json::Value;

use crate::bindings::bureau::agent::{runs, types as raw};
use crate::error::Result;
use crate::reply::Reply;
use crate::request::Request;
use crate::run::Run;

/// An agent. One value of it is made for each live instance, by [`Default`].
///
/// ```no_run
/// use bureau_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Hello {
///     calls: std::cell::Cell<u32>,
/// }
///
/// impl Agent for Hello {
///     async fn on_request(&self, run: &Run, request: Request) -> Result<Reply> {
///         self.calls.update(|calls| calls + 1);
///         Ok(Reply::text(format!("hello from {}, {} calls", run.instance(), self.calls.get())))
///     }
/// }
/// ```
pub trait Agent: Default + 'static {
    /// Answers a request.
    fn on_request(&self, run: &Run, request: Request) -> impl Future<Output = Result<Reply>>;
}

/// An agent that goes on with its runs after the host was stopped or killed in the middle of them. It is exported as
/// `export!(MyAgent: Resume)`. The runs of an agent without it end with an event `failed`.
///
/// ```no_run
/// use bureau_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Count;
///
/// impl Count {
///     async fn count(&self, run: &Run, from: u64) -> Result<Reply> {
///         for n in from..=10 {
///             run.emit(n.to_string()).await?;
///         }
///         Ok(Reply::events())
///     }
/// }
///
/// impl Agent for Count {
///     async fn on_request(&self, run: &Run, _: Request) -> Result<Reply> {
///         self.count(run, 1).await
///     }
/// }
///
/// impl Resume for Count {
///     async fn on_resume(&self, run: &Run, _: Request, last_seq: u64) -> Result<Reply> {
///         self.count(run, last_seq + 1).await
///     }
/// }
/// ```
pub trait Resume: Agent {
    /// Goes on with a run. `request` is the one that began it, without `authorization`, `proxy-authorization` and
    /// `cookie`; `last_seq` is the number of its last durable event, 0 for none.
    fn on_resume(
        &self,
        run: &Run,
        request: Request,
        last_seq: u64,
    ) -> impl Future<Output = Result<Reply>>;
}

/// An agent that takes over what its instances keep from other builds of it, where the form of it has changed. It is exported as
/// `export!(MyAgent: Migrate)`, or `export!(MyAgent: Resume + Migrate)`.
///
/// What an instance keeps, its state and its storage, is of the build that wrote it last. When such an instance is to run on another
/// build that migrates, the host calls it once, before the first run there.
///
/// ```no_run
/// use bureau_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Counter;
///
/// impl Agent for Counter {
///     async fn on_request(&self, run: &Run, _: Request) -> Result<Reply> {
///         let state: Value = run.state()?;
///         Reply::json(&state["count"])
///     }
/// }
///
/// impl Migrate for Counter {
///     async fn migrate(&self, _from: &str, state: Option<Value>) -> Result<Option<Value>> {
///         // It was a bare number once.
///         Ok(state.map(|state| if state.is_number() { json!({ "count": state }) } else { state }))
///     }
/// }
///
/// bureau_sdk::export!(Counter: Migrate);
/// # fn main() {}
/// ```
pub trait Migrate: Agent {
    /// Makes this build's state of another's, whose SHA-256 digest is `from`. What it returns is the state from then on, `None` for no
    /// state. What it stores, in [`Storage::of_instance`](crate::Storage::of_instance), becomes durable with that as one; it must read there before it writes. When it
    /// fails nothing of it remains, the request that needed it gets a `503`, and the next one tries again.
    ///
    /// From its beginning on, runs of the instance that go on on an older build can change neither state nor storage.
    fn migrate(
        &self,
        from: &str,
        state: Option<Value>,
    ) -> impl Future<Output = Result<Option<Value>>>;
}

/// Makes the crate an agent's component. Once per crate, with the agent's type; as `export!(MyAgent: Resume)` for one
/// that implements [`Resume`], `export!(MyAgent: Migrate)` for one that implements [`Migrate`], and `export!(MyAgent: Resume + Migrate)` for one
/// that implements both.
///
/// ```standalone_crate
/// use bureau_sdk::prelude::*;
///
/// #[derive(Default)]
/// struct Hello;
///
/// impl Agent for Hello {
///     async fn on_request(&self, _: &Run, _: Request) -> Result<Reply> {
///         Ok(Reply::text("hello"))
///     }
/// }
///
/// bureau_sdk::export!(Hello);
/// # fn main() {}
/// ```
///
/// An agent that could be resumed but is not exported so does not compile:
///
/// ```compile_fail,E0080
/// # use bureau_sdk::prelude::*;
/// # #[derive(Default)]
/// # struct Hello;
/// # impl Agent for Hello {
/// #     async fn on_request(&self, _: &Run, _: Request) -> Result<Reply> { Ok(Reply::events()) }
/// # }
/// impl Resume for Hello {
///     async fn on_resume(&self, _: &Run, _: Request, _: u64) -> Result<Reply> {
///         Ok(Reply::events())
///     }
/// }
///
/// bureau_sdk::export!(Hello);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export {
    ($agent:ty) => {
        $crate::__export!($agent);
        $crate::__export!(@not_resume $agent);
        $crate::__export!(@not_migrate $agent);
    };
    ($agent:ty: Resume) => {
        $crate::__export!($agent, { $crate::__export!(@resume); });
        $crate::__export!(@not_migrate $agent);
    };
    ($agent:ty: Migrate) => {
        $crate::__export!($agent, { $crate::__export!(@migrate); });
        $crate::__export!(@not_resume $agent);
    };
    ($agent:ty: Resume + Migrate) => {
        $crate::__export!($agent, {
            $crate::__export!(@resume);
            $crate::__export!(@migrate);
        });
    };
    ($agent:ty: Migrate + Resume) => {
        $crate::export!($agent: Resume + Migrate);
    };
}

/// The parts of [`export!`](crate::export): those of an optional interface, which are put in the scope of what every agent has; and
/// the checks that an agent without one does not implement its trait.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    (@resume) => {
            use $crate::bindings::resumable::exports::bureau::agent::resumption;

            impl resumption::Guest for Component {
                fn on_resume(
                    run: resumption::Run,
                    request: resumption::Request,
                    last_seq: u64,
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<resumption::Reply, resumption::AgentError>,
                > {
                    let agent = AGENT.with(|agent| *agent);
                    $crate::agent::on_resume(agent, run, request, last_seq)
                }
            }

            $crate::bindings::resumable::export_resumption!(
                Component with_types_in $crate::bindings::resumable
            );
    };
    (@migrate) => {
            use $crate::bindings::migrating::exports::bureau::agent::migration;

            impl migration::Guest for Component {
                async fn migrate(
                    from: ::std::string::String,
                    state: ::core::option::Option<::std::string::String>,
                ) -> ::core::result::Result<
                    ::core::option::Option<::std::string::String>,
                    ::std::string::String,
                > {
                    let agent = AGENT.with(|agent| *agent);
                    $crate::agent::migrate(agent, &from, state).await
                }
            }

            $crate::bindings::migrating::export_migration!(
                Component with_types_in $crate::bindings::migrating
            );
    };
    (@not_resume $agent:ty) => {
        const _: () = {
            use $crate::agent::Plain as _;
            assert!(
                !$crate::agent::Resumability::<$agent>::IMPLEMENTED,
                "this agent implements `Resume`: export it as `export!(MyAgent: Resume)`",
            );
        };
    };
    (@not_migrate $agent:ty) => {
        const _: () = {
            use $crate::agent::Plain as _;
            assert!(
                !$crate::agent::Migration::<$agent>::IMPLEMENTED,
                "this agent implements `Migrate`: export it as `export!(MyAgent: Migrate)`",
            );
        };
    };
    ($agent:ty $(, { $($more:tt)* })?) => {
        const _: () = {
            use $crate::bindings::exports::bureau::agent::handler;

            struct Component;

            ::std::thread_local! {
                static AGENT: &'static $agent = ::std::boxed::Box::leak(::std::boxed::Box::default());
            }

            impl handler::Guest for Component {
                // Not an async function, which would have place for its arguments for as long as the call takes.
                fn on_request(
                    run: handler::Run,
                    request: handler::Request,
                ) -> impl ::core::future::Future<
                    Output = ::core::result::Result<handler::Reply, handler::AgentError>,
                > {
                    let agent = AGENT.with(|agent| *agent);
                    $crate::agent::on_request(agent, run, request)
                }
            }

            $crate::bindings::export_agent!(Component with_types_in $crate::bindings);

            $($($more)*)?
        };
    };
}

/// The answer for a type that the inherent constants of [`Resumability`] and [`Migration`] do not cover.
#[doc(hidden)]
pub trait Plain {
    const IMPLEMENTED: bool = false;
}

/// Whether a type implements [`Resume`], for a macro to ask: an inherent constant comes before a trait's.
#[doc(hidden)]
pub struct Resumability<A>(PhantomData<A>);

impl<A> Plain for Resumability<A> {}

impl<A: Resume> Resumability<A> {
    #[doc(hidden)]
    pub const IMPLEMENTED: bool = true;
}

/// Whether a type implements [`Migrate`].
#[doc(hidden)]
pub struct Migration<A>(PhantomData<A>);

impl<A> Plain for Migration<A> {}

impl<A: Migrate> Migration<A> {
    #[doc(hidden)]
    pub const IMPLEMENTED: bool = true;
}

#[doc(hidden)]
pub async fn on_request<A: Agent>(
    agent: &A,
    run: runs::Run,
    request: raw::Request,
) -> Result<raw::Reply, raw::AgentError> {
    let run = Rc::new(run);
    let request = Request::new(request, run.clone())?;
    let reply = agent.on_request(&Run::new(run), request).await?;
    Ok(reply.into())
}

#[doc(hidden)]
pub async fn on_resume<A: Resume>(
    agent: &A,
    run: runs::Run,
    request: raw::Request,
    last_seq: u64,
) -> Result<raw::Reply, raw::AgentError> {
    let run = Rc::new(run);
    let request = Request::new(request, run.clone())?;
    let reply = agent.on_resume(&Run::new(run), request, last_seq).await?;
    Ok(reply.into())
}

#[doc(hidden)]
pub async fn migrate<A: Migrate>(
    agent: &A,
    from: &str,
    state: Option<String>,
) -> Result<Option<String>, String> {
    let state = state.map(|state| serde_json::from_str(&state)).transpose();
    let state = state.map_err(|error| format!("the state is not JSON: {error}"))?;
    let migrated = agent.migrate(from, state).await.map_err(|error| error.to_string())?;
    Ok(migrated.map(|state| state.to_string()))
}
