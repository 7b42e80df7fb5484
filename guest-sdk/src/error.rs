//! How a call fails, and what the client learns of it: of its own faults everything, of the agent's nothing.

use std::fmt;

use crate::bindings::bureau::agent::types as raw;

/// What a call of an agent returns: a value, or an [`Error`] made by `?` from any error at all.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed.
///
/// `?` makes an [`Error::Other`] of anything that is a [`std::error::Error`].
///
/// ```
/// use bureau_sdk::prelude::*;
///
/// fn parse(text: &str) -> Result<u32> {
///     if text.is_empty() {
///         return Err(Error::bad_request("a number is missing"));
///     }
///     Ok(text.parse()?)
/// }
///
/// assert!(matches!(parse(""), Err(Error::BadRequest(_))));
/// assert!(matches!(parse("x"), Err(Error::Other(_))));
/// ```
#[derive(Debug)]
pub enum Error {
    /// The request is at fault: the client gets `400` and this message.
    BadRequest(String),
    /// The run was cancelled, and ends early because of it.
    Cancelled,
    /// Anything else: the client gets `500` and no message; the message goes to the host's log.
    Other(Box<dyn std::error::Error>),
}

impl Error {
    /// The request is at fault, and this says how.
    pub fn bad_request(message: impl fmt::Display) -> Self {
        Self::BadRequest(message.to_string())
    }

    /// The agent is at fault, or something it relies on.
    pub fn other(message: impl fmt::Display) -> Self {
        Self::Other(message.to_string().into())
    }
}

impl fmt::Display for Error {
    /// The whole chain of causes on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BadRequest(message) => f.write_str(message),
            Self::Cancelled => f.write_str("the run was cancelled"),
            Self::Other(error) => {
                write!(f, "{error}")?;
                let mut cause = error.source();
                while let Some(error) = cause {
                    write!(f, ": {error}")?;
                    cause = error.source();
                }
                Ok(())
            }
        }
    }
}

// `Error` is no `std::error::Error` itself: then this conversion and that of a type to itself would overlap.
impl<E: std::error::Error + 'static> From<E> for Error {
    fn from(error: E) -> Self {
        Self::Other(Box::new(error))
    }
}

impl From<Error> for raw::AgentError {
    fn from(error: Error) -> Self {
        match error {
            Error::BadRequest(message) => Self::BadRequest(message),
            Error::Cancelled => Self::Cancelled,
            Error::Other(_) => Self::Other(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the model is away")]
    struct Away(#[source] std::num::ParseIntError);

    #[test]
    fn the_log_gets_the_whole_chain() {
        let cause = "x".parse::<u32>().expect_err("x is no number");
        let error = raw::AgentError::from(Error::from(Away(cause)));
        let raw::AgentError::Other(message) = error else {
            panic!("{error:?} is not `other`");
        };
        assert_eq!(message, "the model is away: invalid digit found in string");
    }
}
