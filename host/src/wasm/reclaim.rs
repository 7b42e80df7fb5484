//! How the memory of large instances goes back to the system.
//!
//! **Problem.** The pool gives back what retired instances had in batches of [regions](GIVEN_BACK), since each call interrupts the other threads. A
//! batch that is not full waits for more, however large its regions are and however long nothing else retires, and each thread has its own: a host that
//! had served forty instances of 30 MiB kept 600 MiB for nobody. wasmtime has no call that ends the wait.
//!
//! **Mechanism.** The batch is filled. Behind a [large](LARGE) instance comes one of a module that is nothing but as many tables as a batch has regions, and
//! goes at once, on the same thread.
//!
//! **Limits.** Smaller instances wait, some sixteen for each thread; those of a trial that no agent's instance follows do too.
//!
//! **Cost.** A fifth of a millisecond for a large instance, which takes some three of them to serve in any case.

use wasmtime::{Engine, Instance, Module, Store};

use crate::wasm::engine::{GIVEN_BACK, WIPED_TABLE};

/// An instance of this many bytes of memory is large.
const LARGE: usize = 4 << 20;

/// Elements of a table that is not wiped as a whole, so that the rest is a region to give back.
const ELEMENTS: usize = 2 * WIPED_TABLE / size_of::<usize>();

/// What fills a batch.
pub(super) struct Reclaim(Module);

impl Reclaim {
    pub(super) fn new(engine: &Engine) -> wasmtime::Result<Self> {
        Ok(Self(Module::new(engine, tables(GIVEN_BACK))?))
    }

    /// A store that had so many bytes of memory has been dropped, by this thread and just now.
    pub(super) fn after(&self, memory: usize) {
        if memory < LARGE {
            return;
        }
        let mut store = Store::new(self.0.engine(), ());
        // A pool that has no room for it has given back all it could.
        if let Err(cause) = Instance::new(&mut store, &self.0, &[]) {
            tracing::debug!(%cause, "a batch of memory to give back is not filled");
        }
    }
}

/// A module of so many tables.
fn tables(count: usize) -> Vec<u8> {
    const FUNCREF: u8 = 0x70;
    const NO_MAXIMUM: u8 = 0;
    const TABLE_SECTION: u8 = 4;
    let table = [&[FUNCREF, NO_MAXIMUM][..], &leb128(ELEMENTS)].concat();
    let section = [leb128(count), table.repeat(count)].concat();
    [b"\0asm\x01\0\0\0", &[TABLE_SECTION][..], &leb128(section.len()), &section].concat()
}

/// A number as WebAssembly has them in its binary format.
fn leb128(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        bytes.push(if number == 0 { low } else { low | 0x80 });
        if number == 0 {
            return bytes;
        }
    }
}
