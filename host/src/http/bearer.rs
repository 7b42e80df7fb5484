//! Bearer tokens (RFC 6750): what a request shows, and whether it is one that is taken.
//!
//! Digests are compared, which are of equal length whatever was sent, in constant time, and all of them always. The cost is a
//! hash of what was sent.

use http::header::{AUTHORIZATION, HeaderMap};
use subtle::{Choice, ConstantTimeEq as _};

use super::problem::Problem;
use crate::id::Digest;

/// Whether the request shows one of the tokens of these digests.
pub(super) fn check(headers: &HeaderMap, tokens: &[Digest]) -> Result<(), Problem> {
    let Some(shown) = shown(headers) else { return Err(Problem::Unauthorized { shown: false }) };
    let shown = Digest::of(shown.as_bytes());
    let is = |token: &Digest| shown.as_bytes().ct_eq(token.as_bytes());
    let taken = tokens.iter().map(is).fold(Choice::from(0), |any, one| any | one);
    if bool::from(taken) { Ok(()) } else { Err(Problem::Unauthorized { shown: true }) }
}

/// The token that the request shows, if it shows exactly one.
fn shown(headers: &HeaderMap) -> Option<&str> {
    let mut fields = headers.get_all(AUTHORIZATION).iter();
    let field = fields.next()?.to_str().ok()?;
    if fields.next().is_some() {
        return None;
    }
    let (scheme, token) = field.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}
