//! Agents and their instances: which module serves a name, and which store serves an instance.
//!
//! `registry` maps an agent's name to its current module, `trial` has a module show that it works first, `modules` keeps what was
//! deployed, and `deployments` sees each one through; `directory` an instance to its live store, starting
//! and retiring them, in the `order` in which they make room; `instance` is the actor that owns a store, and `drive` says who polls it; `resume` goes on with runs that the host's
//! end cut off.

mod deployments;
mod directory;
mod drive;
mod instance;
mod modules;
mod order;
mod registry;
mod resume;
mod trial;

pub use self::deployments::{Deployments, FileError};
pub use self::directory::{Directory, LiveInstance, LiveRun, Refused, Sent};
pub use self::modules::check_modules;
pub use self::registry::{API, DeployError, Deployed, Deployment, Failed, Registry};
pub use self::resume::{Resumptions, keep, keeps_reply, prefers_async};
