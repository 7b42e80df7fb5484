//! Agents and their instances: which module serves a name, and which store serves an instance.
//!
//! `registry` maps an agent's name to its current module; `directory` an instance to its live store, starting
//! and retiring them; `instance` is the task that owns a store; `resume` goes on with runs that the host's
//! end cut off.

mod directory;
mod instance;
mod registry;
mod resume;

pub use self::directory::{Directory, Refused};
pub use self::registry::{Deployed, Deployment, Registry};
pub use self::resume::{Resumptions, keep};
