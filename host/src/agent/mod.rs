//! Agents and their instances: which module serves a name, and which store serves an instance.
//!
//! `registry` maps an agent's name to its current module; `directory` an instance to its live store, starting
//! and retiring them; `instance` is the actor that owns a store, and `drive` says who polls it; `resume` goes on with runs that the host's
//! end cut off.

mod directory;
mod drive;
mod instance;
mod registry;
mod resume;

pub use self::directory::{Directory, Refused, Sent};
pub use self::registry::{Deployed, Deployment, Registry};
pub use self::resume::{Resumptions, keep};
