//! Agents that the host's tests and benchmarks talk to, each an example of this crate, so that one command builds them all:
//!
//!     cargo build --release --target wasm32-wasip2 -p guests --examples
//!
//! - `load` is what the benchmarks drive.
//! - `peer` is what they drive in another host.
//! - `probe` does one thing per path: whatever an agent may do, and whatever may go wrong with one.
//! - `phoenix` is resumed after a crash of the host, and says so.
//! - `rogue` is written without the SDK and says to the host what the SDK would not.
//!
//! The agent in `python` is built by other means: see its first lines.
