//! The traits that an author implements, and what makes a component of them.
//!
//! [`export!`](crate::export) builds the agent on the first call and keeps it, so its fields live as long as the
//! component instance. Calls interleave wherever one of them waits and therefore share the agent by `&self`; there is
//! one thread, so `Cell` and `RefCell` are all that the fields need.

use std::marker::PhantomData;
use std::rc::Rc;

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

/// Makes the crate an agent's component. Once per crate, with the agent's type; as `export!(MyAgent: Resume)` for one
/// that implements [`Resume`].
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
        const _: () = {
            use $crate::agent::NotResumable as _;
            assert!(
                !$crate::agent::Resumability::<$agent>::RESUMES,
                "this agent implements `Resume`: export it as `export!(MyAgent: Resume)`",
            );
        };
    };
    ($agent:ty: Resume) => {
        $crate::__export!($agent, {
            use $crate::bindings::resumable::exports::bureau::agent::resumption;

            impl resumption::Guest for Component {
                async fn on_resume(
                    run: resumption::Run,
                    request: resumption::Request,
                    last_seq: u64,
                ) -> ::core::result::Result<resumption::Reply, resumption::AgentError> {
                    let agent = AGENT.with(|agent| *agent);
                    $crate::agent::on_resume(agent, run, request, last_seq).await
                }
            }

            $crate::bindings::resumable::export_resumption!(
                Component with_types_in $crate::bindings::resumable
            );
        });
    };
}

/// The exports that every agent has, and in their scope what else there is.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($agent:ty $(, { $($more:tt)* })?) => {
        const _: () = {
            use $crate::bindings::exports::bureau::agent::handler;

            struct Component;

            ::std::thread_local! {
                static AGENT: &'static $agent = ::std::boxed::Box::leak(::std::boxed::Box::default());
            }

            impl handler::Guest for Component {
                async fn on_request(
                    run: handler::Run,
                    request: handler::Request,
                ) -> ::core::result::Result<handler::Reply, handler::AgentError> {
                    let agent = AGENT.with(|agent| *agent);
                    $crate::agent::on_request(agent, run, request).await
                }
            }

            $crate::bindings::export_agent!(Component with_types_in $crate::bindings);

            $($($more)*)?
        };
    };
}

/// The answer for a type that the inherent constant of [`Resumability`] does not cover.
#[doc(hidden)]
pub trait NotResumable {
    const RESUMES: bool = false;
}

/// Whether a type implements [`Resume`], for a macro to ask: an inherent constant comes before a trait's.
#[doc(hidden)]
pub struct Resumability<A>(PhantomData<A>);

impl<A> NotResumable for Resumability<A> {}

impl<A: Resume> Resumability<A> {
    #[doc(hidden)]
    pub const RESUMES: bool = true;
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
