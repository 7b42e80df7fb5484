//! Who may operate the host.
//!
//! **Problem.** Whoever reaches the admin address deploys code. On the machine itself that may be anyone's browser, which a page can send
//! here.
//!
//! **Mechanism.** With a token configured, each request must carry it, compared in constant time. Without one the address is a loopback one,
//! and what a web page could send is refused: a request that says which page it is from, and one for a host that has a domain's name, as a page
//! has that rebinds its own name to this machine.
//!
//! **Limits.** Without a token every process of the machine may operate the host. **Cost.** Two hashes a request.

use http::HeaderMap;
use http::header::{HOST, HeaderName, ORIGIN};
use http::uri::Authority;

use crate::config::Secret;
use crate::http::bearer;
use crate::http::problem::Problem;
use crate::id::Digest;

/// Says what is wrong with who asks, if something is. `authority` is that of the request's target, if it has one.
pub(super) fn check(
    token: Option<&Secret>,
    headers: &HeaderMap,
    authority: Option<&Authority>,
) -> Result<(), Problem> {
    match token {
        Some(token) => bearer::check(headers, &[Digest::of(token.reveal().as_bytes())]),
        None if headers.contains_key(ORIGIN) => Err(Problem::CrossOrigin("carries an Origin")),
        None if !is_for_an_address(headers, authority) => {
            Err(Problem::CrossOrigin("is for a domain's name, not for an address or localhost"))
        }
        None => Ok(()),
    }
}

fn is_for_an_address(headers: &HeaderMap, authority: Option<&Authority>) -> bool {
    let named = single(headers, HOST).and_then(|host| host.parse().ok());
    let Some(authority) = authority.or(named.as_ref()) else { return false };
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost") || host.parse::<std::net::IpAddr>().is_ok()
}

fn single(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    let mut fields = headers.get_all(name).iter();
    let first = fields.next()?;
    if fields.next().is_some() { None } else { first.to_str().ok() }
}

#[cfg(test)]
mod tests {
    use http::header::AUTHORIZATION;

    use super::*;

    fn headers(fields: &[(HeaderName, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn with_a_token_only_who_carries_it_may() {
        let token = Secret::from("0123456789abcdef".to_owned());
        let with = |value| check(Some(&token), &headers(&[(AUTHORIZATION, value)]), None);
        assert_eq!(with("Bearer 0123456789abcdef"), Ok(()));
        assert_eq!(with("bearer  0123456789abcdef"), Ok(()));
        for (wrong, shown) in [
            ("", false),
            ("Bearer", false),
            ("Bearer 0123456789abcde", true),
            ("Bearer 0123456789abcdef0", true),
            ("Basic 0123456789abcdef", false),
        ] {
            assert_eq!(with(wrong), Err(Problem::Unauthorized { shown }), "{wrong:?}");
        }
        let none = Err(Problem::Unauthorized { shown: false });
        assert_eq!(check(Some(&token), &HeaderMap::new(), None), none);
        let twice =
            headers(&[(AUTHORIZATION, "Bearer 0123456789abcdef"), (AUTHORIZATION, "Bearer x")]);
        assert_eq!(check(Some(&token), &twice, None), none);
    }

    #[test]
    fn without_one_no_page_may() {
        let host = |value| check(None, &headers(&[(HOST, value)]), None);
        for ours in ["localhost", "LOCALHOST:8788", "127.0.0.1:8788", "[::1]:8788"] {
            assert_eq!(host(ours), Ok(()), "{ours}");
        }
        for theirs in ["", "evil.example", "127.0.0.1.evil.example:8788", "localhost.evil.example"]
        {
            assert!(matches!(host(theirs), Err(Problem::CrossOrigin(_))), "{theirs}");
        }
        let from_a_page = headers(&[(HOST, "127.0.0.1"), (ORIGIN, "http://127.0.0.1")]);
        assert!(matches!(check(None, &from_a_page, None), Err(Problem::CrossOrigin(_))));
    }
}
