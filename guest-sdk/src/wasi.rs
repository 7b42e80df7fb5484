//! What WASI names already, time and configuration, under shorter names.

use std::time::Duration;

use crate::bindings::wasi::clocks::monotonic_clock;
use crate::bindings::wasi::config::store;

/// Waits for this long. Other calls on the instance go on meanwhile.
///
/// ```no_run
/// # use bureau_sdk::prelude::*;
/// # async fn example() {
/// sleep(Duration::from_millis(500)).await;
/// # }
/// ```
pub async fn sleep(duration: Duration) {
    // More nanoseconds than fit are 584 years: nobody sees such a wait end.
    let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    monotonic_clock::wait_for(nanoseconds).await;
}

/// A value of the agent's configuration, if it is set.
///
/// ```no_run
/// # use bureau_sdk::prelude::*;
/// # fn example() -> Result<()> {
/// let model = config("model")?.unwrap_or_else(|| "small".into());
/// # Ok(())
/// # }
/// ```
pub fn config(key: &str) -> Result<Option<String>, ConfigError> {
    store::get(key).map_err(|error| match error {
        store::Error::Upstream(message) | store::Error::Io(message) => ConfigError(message),
    })
}

/// The configuration cannot be read; the message says why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the configuration cannot be read: {0}")]
pub struct ConfigError(String);
