//! Requests that two servers may read in two ways.
//!
//! **Problem.** A proxy in front of the host and the host must agree on where a request ends and whom it is for. Where they may not, one client
//! speaks in another's name, and past what the proxy checks.
//!
//! **Mechanism.** What is ambiguous about a request's end is hyper's to refuse: two lengths, a transfer coding that is not the last one, white
//! space before a colon, folded lines. Of a length beside a transfer coding it takes the coding and closes the connection afterwards, as
//! RFC 9112 allows. Refused here is what it lets through: other codings than `chunked` alone, no host or several, and a target whose
//! host is another than the field's. And it counts the fields of HTTP/2, which hyper does not.
//!
//! **Limits.** A line that ends without a carriage return is taken for one, which RFC 9112 allows. **Cost.** Three look-ups.

use http::header::{HOST, TRANSFER_ENCODING};
use http::{Request, Version};

use super::problem::Problem;

/// Refuses a request with more than this many fields, or one that others may read differently.
pub(super) fn check<B>(request: &Request<B>, header_count: usize) -> Result<(), Problem> {
    let headers = request.headers();
    if headers.len() > header_count {
        return Err(Problem::TooManyFields { limit: header_count });
    }
    let bad = |why: &str| Err(Problem::BadRequest(why.into()));
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next()
        && (!coding.as_bytes().eq_ignore_ascii_case(b"chunked") || codings.next().is_some())
    {
        return bad("the only transfer coding that is taken is `chunked`, once");
    }
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return bad("there is more than one `host` field");
    }
    if host.is_none() && request.version() == Version::HTTP_11 {
        return bad("there is no `host` field");
    }
    if let (Some(host), Some(target)) = (host, request.uri().authority())
        && !host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes())
    {
        return bad("the target is on another host than the `host` field says");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_may_read_differently_is_refused() {
        let check = |target: &str, version, fields: &[(&str, &str)]| {
            let mut request = Request::builder().uri(target).version(version);
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            super::check(&request.body(()).unwrap(), 3).map_err(|problem| problem.status().as_u16())
        };
        let (h10, h11, h2) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        let host = ("host", "a:1");
        for (target, version, fields) in [
            ("/", h11, &[host][..]),
            ("/", h10, &[]),
            ("http://A:1/", h11, &[host]),
            ("http://a/", h2, &[]),
            ("http://a:1/", h2, &[host]),
            ("/", h11, &[host, ("transfer-encoding", "Chunked")]),
            ("/", h11, &[host, ("a", "b"), ("a", "b")]),
        ] {
            assert_eq!(check(target, version, fields), Ok(()), "{target} {fields:?}");
        }
        for (target, version, fields, status) in [
            ("/", h11, &[][..], 400),
            ("/", h10, &[host, host], 400),
            ("/", h2, &[host, host], 400),
            ("http://a/", h11, &[], 400),
            ("http://b:1/", h11, &[host], 400),
            ("http://a:2/", h2, &[host], 400),
            ("http://me@a:1/", h11, &[host], 400),
            ("/", h11, &[host, ("transfer-encoding", "gzip, chunked")], 400),
            (
                "/",
                h11,
                &[host, ("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")],
                400,
            ),
            ("/", h11, &[host, ("a", "b"), ("a", "b"), ("a", "b")], 431),
        ] {
            assert_eq!(check(target, version, fields), Err(status), "{target} {fields:?}");
        }
    }
}
