//! Several things at once within one call. They take turns at the points where they wait; there are no threads.

use std::pin::pin;

pub use futures_util::future::{Either, join, join_all};

/// Waits for whichever comes first; the other is dropped, which stops it.
///
/// ```
/// use bureau_sdk::prelude::*;
///
/// async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Option<T> {
///     match select(work, sleep(time)).await {
///         Either::Left(value) => Some(value),
///         Either::Right(()) => None,
///     }
/// }
/// ```
pub async fn select<A: Future, B: Future>(a: A, b: B) -> Either<A::Output, B::Output> {
    match futures_util::future::select(pin!(a), pin!(b)).await {
        Either::Left((value, _)) => Either::Left(value),
        Either::Right((value, _)) => Either::Right(value),
    }
}
