//! What WASI names already, time and configuration, under shorter names.

use std::fmt;
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
        store::Error::Upstream(message) | store::Error::Io(message) => {
            ConfigError::Unreadable(message)
        }
    })
}

/// A secret that the operator has given the agent, see [`Secret`]. It is an error if there is none of that name.
///
/// ```no_run
/// # use bureau_sdk::prelude::*;
/// # fn example() -> Result<()> {
/// let key = secret("OPENAI_API_KEY")?;
/// # Ok(())
/// # }
/// ```
pub fn secret(key: &str) -> Result<Secret, ConfigError> {
    match config(key)? {
        Some(value) => Ok(Secret(value)),
        None => Err(ConfigError::Missing(key.into())),
    }
}

/// A value that is not shown where it is formatted.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// Why a value of the configuration cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The configuration cannot be read; the message says why.
    #[error("the configuration cannot be read: {0}")]
    Unreadable(String),
    /// The secret of this name is not there.
    #[error("there is no secret {0:?}; the operator names an agent's secrets in `secrets`")]
    Missing(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::from("sesame".to_owned())), "(secret)");
    }
}
