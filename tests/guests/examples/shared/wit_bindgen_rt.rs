//! `wit-bindgen`'s runtime, in which a call goes on with what it has spawned. Its own way would be that of all guests here.

use std::cell::Cell;
use std::pin::Pin;

pub(crate) use wit_bindgen::rt::*;

thread_local! {
    static SPAWNED: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>> = const { Cell::new(None) };
}

/// Lets the call that is being made go on with this when it has returned.
pub(crate) fn spawn(future: impl Future<Output = ()> + 'static) {
    SPAWNED.set(Some(Box::pin(future)));
}

pub(crate) mod async_support {
    use super::SPAWNED;

    pub(crate) use wit_bindgen::rt::async_support::*;

    pub(crate) fn start_task(call: impl Future<Output = ()> + 'static) -> i32 {
        wit_bindgen::rt::async_support::start_task(async {
            call.await;
            if let Some(spawned) = SPAWNED.take() {
                spawned.await;
            }
        })
    }
}
