//! What a client asked: the interface's plain strings as the `http` crate's types.
//!
//! The host gives the method, the path and the body, and keeps the rest until it is asked for: most agents look at no more,
//! and a browser sends a dozen headers. The host has parsed the request before, so nothing is refused
//! here but a query or a body that does not fit, which is the client's fault and is told to it. The body is in
//! memory as a whole, bounded by the host, and nothing is copied but what is not ASCII.

use std::cell::{OnceCell, RefCell};
use std::ops::Deref;
use std::rc::Rc;

use http::{HeaderName, HeaderValue, Method, Uri};
use serde::de::DeserializeOwned;

use crate::bindings::bureau::agent::{runs, types as raw};
use crate::error::{Error, Result};

/// A request to an instance: an [`http::Request`] with its whole body, which it dereferences to, and what
/// the address says below the instance.
///
/// ```
/// use bureau_sdk::prelude::*;
///
/// fn greeting(request: &Request) -> Result<String> {
///     match (request.method(), request.path()) {
///         (&Method::GET, "/hello") => Ok("hello".into()),
///         _ => Err(Error::bad_request("only GET /hello is known here")),
///     }
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Request {
    method: Method,
    target: String,
    /// The body, until it is a part of `http`.
    body: RefCell<Vec<u8>>,
    /// In a box, as a request lies in the futures of its call more than once, and most are never asked for this.
    http: OnceCell<Box<http::Request<Vec<u8>>>>,
    rest: Rest,
}

/// Who has the rest of a request.
#[derive(Debug, Clone)]
enum Rest {
    Host(Rc<runs::Run>),
    #[cfg(test)]
    Test(String, Vec<raw::Header>),
}

impl Request {
    pub(crate) fn new(request: raw::Request, run: Rc<runs::Run>) -> Result<Self> {
        Self::of(request, Rest::Host(run))
    }

    fn of(request: raw::Request, rest: Rest) -> Result<Self> {
        let raw::Request { method, path, body } = request;
        let method = Method::from_bytes(method.as_bytes()).map_err(Error::bad_request)?;
        Ok(Self { method, target: path, body: body.into(), http: OnceCell::new(), rest })
    }

    /// The method.
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// What follows the instance's name, without the query, and never empty: `/status` for
    /// `/agents/api/demo/status`, and `/` for `/agents/api/demo`. As the client sent it, so percent-encoded.
    pub fn path(&self) -> &str {
        match self.target.split('?').next() {
            None | Some("") => "/",
            Some(path) => path,
        }
    }

    /// The query as a value. A query that does not fit is a [`Error::BadRequest`] which names the fault.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    /// use serde::Deserialize;
    ///
    /// #[derive(Deserialize)]
    /// struct Steps {
    ///     #[serde(default)]
    ///     steps: u32,
    /// }
    ///
    /// fn steps(request: &Request) -> Result<u32> {
    ///     let Steps { steps } = request.query()?;
    ///     Ok(steps)
    /// }
    /// ```
    pub fn query<T: DeserializeOwned>(&self) -> Result<T> {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        serde_urlencoded::from_str(query)
            .map_err(|fault| Error::BadRequest(format!("the query does not fit: {fault}")))
    }

    /// The body as a value. A body that is not JSON or does not fit is a [`Error::BadRequest`] which names the
    /// fault with its line and column.
    ///
    /// ```
    /// use bureau_sdk::prelude::*;
    /// use serde::Deserialize;
    ///
    /// #[derive(Deserialize)]
    /// struct Action {
    ///     action: String,
    /// }
    ///
    /// fn action(request: &Request) -> Result<String> {
    ///     let Action { action } = request.json()?;
    ///     Ok(action)
    /// }
    /// ```
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let body = self.body.borrow();
        let body = self.http.get().map_or(&*body, |http| http.body());
        serde_json::from_slice(body)
            .map_err(|fault| Error::BadRequest(format!("the body does not fit: {fault}")))
    }

    /// The request as the client sent it.
    pub fn into_http(self) -> http::Request<Vec<u8>> {
        let Self { method, body, http, rest, .. } = self;
        match http.into_inner() {
            Some(http) => *http,
            None => rest.http(method, body.into_inner()),
        }
    }
}

impl Deref for Request {
    type Target = http::Request<Vec<u8>>;

    fn deref(&self) -> &Self::Target {
        let http = || Box::new(self.rest.http(self.method.clone(), self.body.take()));
        self.http.get_or_init(http)
    }
}

impl Rest {
    /// The whole request. What the host took for an address or a header field and the `http` crate does not is left out.
    fn http(&self, method: Method, body: Vec<u8>) -> http::Request<Vec<u8>> {
        let (url, headers) = match self {
            Self::Host(run) => (run.url(), run.headers()),
            #[cfg(test)]
            Self::Test(url, headers) => (url.clone(), headers.clone()),
        };
        let mut http = http::Request::new(body);
        *http.method_mut() = method;
        *http.uri_mut() = Uri::try_from(url).unwrap_or_default();
        http.headers_mut().reserve(headers.len());
        for raw::Header { name, value } in headers {
            if let (Ok(name), Some(value)) = (HeaderName::try_from(name), header_value(value)) {
                http.headers_mut().append(name, value);
            }
        }
        http
    }
}

/// A header's value, of which each character stands for one byte.
fn header_value(value: String) -> Option<HeaderValue> {
    if value.is_ascii() {
        return HeaderValue::try_from(value).ok();
    }
    let bytes: Option<Vec<u8>> = value.chars().map(|char| u8::try_from(char).ok()).collect();
    HeaderValue::try_from(bytes?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(path: &str, body: &str) -> Request {
        let header = raw::Header { name: "x-name".into(), value: "J\u{fc}rgen".into() };
        let request = raw::Request { method: "PURGE".into(), path: path.into(), body: body.into() };
        let rest = Rest::Test(format!("/agents/api/demo{path}"), vec![header.clone(), header]);
        Request::of(request, rest).expect("the request is valid")
    }

    #[test]
    fn the_path_is_what_is_below_the_instance() {
        for (target, path) in [("/a/b?c=/d", "/a/b"), ("/", "/"), ("", "/"), ("?a=1", "/")] {
            assert_eq!(request(target, "").path(), path, "of {target:?}");
        }
    }

    #[test]
    fn the_rest_is_as_the_client_sent_it() {
        let request = request("/a?b=1", "");
        assert_eq!(request.method().as_str(), "PURGE");
        assert_eq!(request.uri(), "/agents/api/demo/a?b=1");
        let names: Vec<_> = request.headers().get_all("x-name").iter().collect();
        assert_eq!(names, [&b"J\xfcrgen"[..]; 2]);
    }

    #[test]
    fn the_body_and_the_rest_come_in_any_order() {
        let request = request("/a", "[1]");
        assert_eq!(request.json::<[u8; 1]>().expect("the body fits"), [1]);
        let cloned = request.clone();
        assert_eq!(request.body(), b"[1]");
        assert_eq!(request.json::<[u8; 1]>().expect("the body fits"), [1]);
        assert_eq!(request.headers().len(), 2);
        for http in [request.into_http(), cloned.into_http()] {
            assert_eq!(
                (http.method().as_str(), http.uri().path()),
                ("PURGE", "/agents/api/demo/a")
            );
            assert_eq!((http.headers().len(), http.body().as_slice()), (2, &b"[1]"[..]));
        }
    }

    #[test]
    fn a_field_that_cannot_be_is_left_out() {
        let header =
            |name: &str, value: &str| raw::Header { name: name.into(), value: value.into() };
        let headers =
            vec![header("a b", "1"), header("a", "\u{100}"), header("b", "\n"), header("c", "2")];
        let request = Rest::Test("/".into(), headers).http(Method::GET, Vec::new());
        let names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names, ["c"]);
    }

    #[derive(Debug, PartialEq, serde::Deserialize)]
    struct Options {
        name: String,
        steps: Option<u32>,
    }

    #[test]
    fn a_query_that_does_not_fit_is_the_clients_fault() {
        let options = request("/?name=a%20b", "").query::<Options>();
        let expected = Options { name: "a b".into(), steps: None };
        assert_eq!(options.expect("the query fits"), expected);

        for (target, fault) in [("?name=a&steps=many", "invalid digit"), ("/", "`name`")] {
            let options = request(target, "").query::<Options>();
            assert!(
                matches!(&options, Err(Error::BadRequest(message)) if message.contains(fault)),
                "{options:?} for {target}"
            );
        }
    }

    #[test]
    fn a_body_that_does_not_fit_is_named_with_its_place() {
        let body = request("/", "{\"action\": \"go\"}").json::<serde_json::Value>();
        assert_eq!(body.expect("the body fits")["action"], "go");

        let fault = request("/", "{\n  \"action\": }").json::<serde_json::Value>();
        let Err(Error::BadRequest(message)) = fault else {
            panic!("{fault:?} is not the client's fault");
        };
        assert!(message.contains("line 2 column 13"), "{message}");
    }
}
