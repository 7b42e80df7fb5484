//! What the tests have in common: guests to serve, hosts to serve them, and clients to read streams.

mod allocations;
mod client;
mod disk;
mod follower;
pub mod frames;
mod guests;
mod host;
mod http;
mod patience;
mod process;
pub mod provider;
mod stream;
mod upstream;

pub use self::allocations::{allocations, held};
pub use self::client::{Client, http_client};
pub use self::disk::{Change, Disk, Fault, Image, Kind};
pub use self::follower::{Follower, ids};
pub use self::guests::{another_module, guest, module, target};
pub use self::host::{Started, TestHost};
pub use self::http::{Connection, header, problem};
pub use self::patience::{Lines, PATIENCE, seen};
pub use self::process::InProcess;
pub use self::stream::{Event, Stream, data};
pub use self::upstream::Upstream;
