//! How asking a model fails.

use std::time::Duration;

use http::StatusCode;
use serde::Deserialize;
use serde_json::Value;

use crate::fetch::FetchError;

/// Why there is no answer of a model, or no more of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// The request cannot be made; the message says why.
    #[error("the request to the model cannot be made: {0}")]
    Invalid(String),
    /// The provider cannot be reached.
    #[error("the model's provider cannot be reached")]
    Unreachable(#[source] FetchError),
    /// The provider says that it failed.
    #[error(transparent)]
    Provider(#[from] ProviderError),
    /// The answer ended before its end: its text so far is all there is.
    #[error("the model's answer broke off")]
    BrokenOff(#[source] Option<FetchError>),
    /// The answer is not what the protocol says; the message says how.
    #[error("the provider does not keep to the protocol of chat completions: {0}")]
    Protocol(String),
    /// The answer is not of the type that was asked for.
    #[error("the model's answer is not of the type that was asked for")]
    Output(#[source] serde_json::Error),
}

/// What a provider says of its failure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the model's provider answers {}: {message}", self.told())]
#[non_exhaustive]
pub struct ProviderError {
    /// The status; none if the provider said so in the middle of an answer.
    pub status: Option<StatusCode>,
    /// The provider's code, such as `invalid_api_key`.
    pub code: Option<String>,
    /// The provider's message.
    pub message: String,
    /// How long the provider wants to be left alone.
    pub retry_after: Option<Duration>,
}

impl ProviderError {
    fn told(&self) -> String {
        let status = self.status.map(|status| status.as_str().to_owned());
        let words: Vec<_> = [status, self.code.clone()].into_iter().flatten().collect();
        if words.is_empty() { "with an error".into() } else { words.join(" ") }
    }

    /// What a response of this status and body says. Bodies differ among providers, and may be a proxy's.
    pub(super) fn of(status: StatusCode, retry_after: Option<Duration>, body: &[u8]) -> Self {
        let said = serde_json::from_slice(body).ok().and_then(|body| Self::said(&body));
        let plain = || Self {
            status: None,
            code: None,
            message: String::from_utf8_lossy(body).trim().chars().take(200).collect(),
            retry_after: None,
        };
        Self { status: Some(status), retry_after, ..said.unwrap_or_else(plain) }
    }

    /// The error that this document tells of, if it does.
    pub(super) fn said(document: &Value) -> Option<Self> {
        #[derive(Deserialize)]
        struct Said {
            message: Option<String>,
            code: Option<Value>,
            #[serde(rename = "type")]
            kind: Option<String>,
        }
        let error = document.get("error").filter(|error| !error.is_null())?;
        let said = Said::deserialize(error).ok();
        let (message, code) = match said {
            Some(Said { message: Some(message), code, kind }) => {
                // Some providers repeat the status here, as a number.
                let code = code.and_then(|code| code.as_str().map(str::to_owned));
                (message, code.or(kind))
            }
            _ => (error.as_str().map_or_else(|| error.to_string(), str::to_owned), None),
        };
        Some(Self { status: None, code, message, retry_after: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_provider_says_is_kept_apart() {
        let body = br#"{"error": {"message": "No.", "type": "auth", "code": "invalid_api_key"}}"#;
        let error = ProviderError::of(StatusCode::UNAUTHORIZED, None, body);
        assert_eq!(error.code.as_deref(), Some("invalid_api_key"));
        assert_eq!(error.to_string(), "the model's provider answers 401 invalid_api_key: No.");

        for (body, code, message) in [
            (r#"{"error": {"message": "m", "code": 400, "type": "t"}}"#, Some("t"), "m"),
            (r#"{"error": "m"}"#, None, "m"),
            (r#"{"error": {"a": 1}}"#, None, r#"{"a":1}"#),
            ("<h1>Bad gateway</h1>\n", None, "<h1>Bad gateway</h1>"),
        ] {
            let error = ProviderError::of(StatusCode::BAD_GATEWAY, None, body.as_bytes());
            assert_eq!((error.code.as_deref(), &*error.message), (code, message), "{body}");
        }
    }
}
