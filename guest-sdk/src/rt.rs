//! The runtime of `wit-bindgen` with a way of its own to go on after a call has returned.
//!
//! Only bodies written in chunks do, so a call is one future, and the list of those that joined it is empty but for them.
//! `wit-bindgen`'s own `async-spawn` keeps a set of futures for every call, at three allocations.

use std::cell::RefCell;
use std::pin::Pin;

use futures_util::future::join_all;
pub use wit_bindgen::rt::*;

thread_local! {
    static SPAWNED: RefCell<Vec<Pin<Box<dyn Future<Output = ()>>>>> = const { RefCell::new(Vec::new()) };
}

/// Lets the call that is being made go on with this future when it has returned.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    SPAWNED.with_borrow_mut(|spawned| spawned.push(Box::pin(future)));
}

/// What the generated code knows by this name.
pub mod async_support {
    use super::{SPAWNED, join_all};

    pub use wit_bindgen::rt::async_support::*;

    /// Starts the call of an export: `call` is over when it has returned its value.
    pub fn start_task(call: impl Future<Output = ()> + 'static) -> i32 {
        wit_bindgen::rt::async_support::start_task(async {
            call.await;
            // Made in the same poll in which the call returned, so no other call's are among them.
            let spawned = SPAWNED.take();
            if !spawned.is_empty() {
                join_all(spawned).await;
            }
        })
    }
}
