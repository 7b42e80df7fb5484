//! The runtime of `wit-bindgen` with a way of its own to go on after a call has returned.
//!
//! Only bodies written in chunks do, so a call is one future, and the list of those that joined it is empty but for them.
//! `wit-bindgen`'s own `async-spawn` keeps a set of futures for every call, at three allocations.

use std::cell::Cell;
use std::pin::Pin;

use futures_util::future::{FutureExt, join_all};
pub use wit_bindgen::rt::*;

thread_local! {
    /// `None`, which is zeros: what is not zeros at first lies among the constants, and an instance that writes there has
    /// one page more for itself.
    static SPAWNED: Cell<Option<Box<Spawned>>> = const { Cell::new(None) };
}

type Spawned = Vec<Pin<Box<dyn Future<Output = ()>>>>;

/// Lets the call that is being made go on with this future when it has returned.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    let mut spawned = SPAWNED.take().unwrap_or_default();
    spawned.push(Box::pin(future));
    SPAWNED.set(Some(spawned));
}

/// What the generated code knows by this name.
pub mod async_support {
    use super::{FutureExt as _, SPAWNED, join_all};

    pub use wit_bindgen::rt::async_support::*;

    /// Starts the call of an export: `call` is over when it has returned its value.
    pub fn start_task(call: impl Future<Output = ()> + 'static) -> i32 {
        // Not an async block, which would have place for the call twice, for as long as it takes.
        wit_bindgen::rt::async_support::start_task(call.then(|()| async {
            // Made in the same poll in which the call returned, so no other call's are among them.
            if let Some(spawned) = SPAWNED.take() {
                join_all(*spawned).await;
            }
        }))
    }
}

/// Memory for what the host hands over: the first thing that runs in a new instance, in place of the standard library's own.
///
/// Instances share the pages of their module until they write to them. A page that was read before it is written to is
/// taken from one processor's view after the other, at ten times the cost of one that is written to at once. So this
/// writes among the statics, and where the allocator, which reads first, keeps its books.
///
/// # Safety
///
/// The canonical ABI's: a block that it returned, with its size, or none and 0.
#[cfg(target_family = "wasm")]
#[expect(unsafe_code, reason = "the canonical ABI hands out memory by this function")]
#[unsafe(no_mangle)]
unsafe extern "C" fn cabi_realloc(
    block: *mut u8,
    old_size: usize,
    align: usize,
    size: usize,
) -> *mut u8 {
    use std::alloc::{Layout, alloc, handle_alloc_error, realloc};

    static mut AMONG_STATICS: u8 = 0;
    // SAFETY: there is one thread, and nothing else uses this byte. The rest is the caller's promise.
    unsafe {
        (&raw mut AMONG_STATICS).write_volatile(1);
        #[cfg(feature = "allocator")]
        crate::allocator::write_first();
        let layout = |size| Layout::from_size_align_unchecked(size, align);
        let block = match (old_size, size) {
            (0, 0) => return std::ptr::without_provenance_mut(align),
            (0, _) => alloc(layout(size)),
            _ => realloc(block, layout(old_size), size),
        };
        if block.is_null() {
            handle_alloc_error(layout(size));
        }
        block
    }
}
