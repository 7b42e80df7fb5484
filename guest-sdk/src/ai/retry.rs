//! Whether a request to a provider is made once more, and when: a decision without I/O.

use std::hash::{BuildHasher as _, RandomState};
use std::time::{Duration, SystemTime};

use http::{HeaderMap, header};

use super::error::{ModelError, ProviderError};
use crate::fetch::FetchFailure;

/// The wait before the first retry; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// A provider that wants to be left alone for longer is not waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How long to wait before trying again after this many failures, of which this is the last; `None` to give up. `chance` is from 0
/// to 1, and spreads those out that failed together.
pub(super) fn wait(error: &ModelError, failures: u32, most: u32, chance: f64) -> Option<Duration> {
    if failures > most || !may_pass(error) {
        return None;
    }
    let doubled = FIRST_WAIT.saturating_mul(2u32.saturating_pow(failures - 1));
    let backoff = doubled.min(LONGEST_WAIT).mul_f64(0.5 + chance / 2.0);
    match error {
        ModelError::Provider(ProviderError { retry_after: Some(asked), .. }) => {
            (*asked <= LONGEST_WAIT).then_some(*asked)
        }
        _ => Some(backoff),
    }
}

/// Whether the same request may succeed later.
fn may_pass(error: &ModelError) -> bool {
    match error {
        ModelError::Provider(ProviderError { status: Some(status), code, .. }) => {
            // What is used up does not come back in a minute.
            let used_up = code.as_deref() == Some("insufficient_quota");
            status.is_server_error() || status.as_u16() == 429 && !used_up
        }
        ModelError::Unreachable(error) => matches!(
            error.reason,
            FetchFailure::Busy
                | FetchFailure::Name
                | FetchFailure::Connection(_)
                | FetchFailure::Timeout
                | FetchFailure::CutOff
        ),
        _ => false,
    }
}

/// A number from 0 to 1, another each time.
pub(super) fn chance() -> f64 {
    f64::from(RandomState::new().hash_one(0) as u32) / f64::from(u32::MAX)
}

/// How long the response says to wait, in seconds or as a date, or in milliseconds by the field that OpenAI has for it.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = |value: Option<&http::HeaderValue>| Some(value?.to_str().ok()?.trim().to_owned());
    if let Some(milliseconds) = text(headers.get("retry-after-ms"))
        && let Ok(milliseconds) = milliseconds.parse()
    {
        return Some(Duration::from_millis(milliseconds));
    }
    let after = text(headers.get(header::RETRY_AFTER))?;
    if let Ok(seconds) = after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(&after).ok()?;
    Some(date.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::FetchError;

    fn provider(status: u16, code: Option<&str>, retry_after: Option<u64>) -> ModelError {
        ModelError::Provider(ProviderError {
            status: status.try_into().ok(),
            code: code.map(str::to_owned),
            message: String::new(),
            retry_after: retry_after.map(Duration::from_secs),
        })
    }

    fn unreachable(reason: FetchFailure) -> ModelError {
        ModelError::Unreachable(FetchError { target: "model".into(), reason })
    }

    #[test]
    fn what_may_pass_is_tried_again_and_nothing_else() {
        let again = |error| wait(&error, 1, 2, 1.0).is_some();
        for status in [429, 500, 502, 503, 529] {
            assert!(again(provider(status, None, None)), "{status}");
        }
        for status in [400, 401, 403, 404, 422] {
            assert!(!again(provider(status, None, None)), "{status}");
        }
        assert!(!again(provider(429, Some("insufficient_quota"), None)));
        assert!(again(unreachable(FetchFailure::Connection("refused"))));
        assert!(again(unreachable(FetchFailure::CutOff)));
        assert!(!again(unreachable(FetchFailure::Denied)));
        assert!(!again(unreachable(FetchFailure::Tls("not trusted"))));
        assert!(!again(ModelError::BrokenOff(None)));
        assert!(!again(ModelError::Protocol(String::new())));
    }

    #[test]
    fn waits_double_and_the_provider_knows_better() {
        let wait = |failures, retry_after, chance| {
            let wait = wait(&provider(429, None, retry_after), failures, 20, chance);
            wait.map(|wait| wait.as_millis())
        };
        assert_eq!([wait(1, None, 1.0), wait(2, None, 1.0)], [Some(500), Some(1000)]);
        assert_eq!([wait(1, None, 0.0), wait(20, None, 1.0)], [Some(250), Some(60_000)]);
        assert_eq!([wait(1, Some(7), 0.0), wait(1, Some(0), 1.0)], [Some(7000), Some(0)]);
        assert_eq!([wait(1, Some(61), 1.0), wait(21, None, 1.0)], [None, None]);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let after = |name: &'static str, value: &'static str| {
            let headers = HeaderMap::from_iter([(
                http::HeaderName::from_static(name),
                http::HeaderValue::from_static(value),
            )]);
            retry_after(&headers, now).map(|wait| wait.as_millis())
        };
        assert_eq!(after("retry-after", "3"), Some(3000));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:47 GMT"), Some(10_000));
        assert_eq!(after("retry-after", "Sun, 06 Nov 1994 08:49:00 GMT"), Some(0));
        assert_eq!(after("retry-after", "soon"), None);
        assert_eq!(after("retry-after", "-1"), None);
        assert_eq!(after("retry-after-ms", "20"), Some(20));
    }
}
