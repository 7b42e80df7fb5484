//! What the tests have in common: guests to serve, hosts to serve them, and clients to read streams.

mod guests;
mod host;
mod stream;

pub use self::guests::guest;
pub use self::host::{Started, TestHost};
pub use self::stream::{Event, Stream, data};
