//! Where an agent's requests may go.
//!
//! **Problem.** An operator writes down hosts. A guest writes hosts as well, and would like to have one taken for another: by capitals, a final dot, a
//! user in front, a number in place of an address, a name that ends alike.
//!
//! **Mechanism.** Both are parsed by the same function into the same [`Host`], and only then compared. A pattern is
//! `[SCHEME://]HOST[:PORT]`:
//!
//! | pattern | what it grants |
//! | --- | --- |
//! | `api.example.org` | `https://api.example.org`, port 443 |
//! | `https://api.example.org:8443` | that port instead |
//! | `http://api.example.org` | without TLS, port 80; never meant unless it is written |
//! | `*.example.org` | all names that end in `.example.org`, however long; not `example.org` |
//! | `*` | all names but `localhost` |
//! | `http://127.0.0.1:9000`, `https://[fd00::1]` | that address, whatever it is |
//! | `http://localhost:9000` | 127.0.0.1 and ::1, without asking anyone |
//!
//! A name, with `*` or without, grants public addresses only. What it leads to beyond those must be granted by itself, as an address with the
//! same scheme and port. An address is granted by itself alone, never by a `*`.
//!
//! **Limits.** Names are ASCII: others are written as `xn--`. No networks, no paths. **Cost.** A pass over the agent's patterns for each request.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use http::Uri;

use super::address::is_public;

/// The hosts that one agent is granted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Grants(Vec<Pattern>);

/// Hosts that are granted together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    scheme: Scheme,
    hosts: Hosts,
    port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Any,
    /// Those whose names end in a dot and this.
    Under(String),
    Exactly(Host),
}

/// Where a request goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub scheme: Scheme,
    pub host: Host,
    pub port: u16,
}

/// A host, in the one way in which it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A name in lower case, without a final dot, that is not an address.
    Name(String),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// What is wrong with a host that someone wrote.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no host to send requests to: {reason}")]
pub struct NoHost {
    text: String,
    reason: &'static str,
}

impl NoHost {
    pub(super) fn new(text: impl Into<String>, reason: &'static str) -> Self {
        Self { text: text.into(), reason }
    }
}

/// The name that means this machine wherever it is asked for.
const LOCALHOST: &str = "localhost";

impl Grants {
    /// Whether a request may go there, as far as its URL says.
    pub fn allow(&self, target: &Target) -> bool {
        self.0.iter().any(|pattern| pattern.covers(target))
    }

    /// Whether a connection for this target, which is [allowed](Self::allow), may be made to that address.
    pub(super) fn permit(&self, target: &Target, address: IpAddr) -> bool {
        is_public(address)
            || (target.host.is_localhost() && address.is_loopback())
            || self.allow(&target.at(address))
    }
}

impl From<Vec<Pattern>> for Grants {
    fn from(patterns: Vec<Pattern>) -> Self {
        Self(patterns)
    }
}

impl Pattern {
    fn covers(&self, target: &Target) -> bool {
        let host = match (&self.hosts, &target.host) {
            (Hosts::Any, Host::Name(_)) => !target.host.is_localhost(),
            (Hosts::Under(parent), Host::Name(name)) => {
                name.strip_suffix(parent.as_str()).is_some_and(|rest| rest.ends_with('.'))
            }
            (Hosts::Exactly(host), asked) => host == asked,
            (Hosts::Any | Hosts::Under(_), Host::Address(_)) => false,
        };
        host && (self.scheme, self.port) == (target.scheme, target.port)
    }
}

impl FromStr for Pattern {
    type Err = NoHost;

    fn from_str(text: &str) -> Result<Self, NoHost> {
        let no_host = |reason| NoHost::new(text, reason);
        let (scheme, authority) = match text.split_once("://") {
            None => (Scheme::Https, text),
            Some((scheme, authority)) => (Scheme::parse(scheme).map_err(no_host)?, authority),
        };
        if authority.contains(['/', '?', '#']) {
            return Err(no_host("a grant is for a whole host, so nothing follows its port"));
        }
        let (host, port) = split(authority).map_err(no_host)?;
        let hosts = match host.strip_prefix("*.") {
            _ if host == "*" => Hosts::Any,
            None => Hosts::Exactly(Host::parse(host).map_err(no_host)?),
            Some(parent) => match Host::parse(parent).map_err(no_host)? {
                Host::Name(parent) => Hosts::Under(parent),
                Host::Address(_) => return Err(no_host("an address has no names under it")),
            },
        };
        Ok(Self { scheme, hosts, port: port.unwrap_or(scheme.port()) })
    }
}

impl Target {
    /// Where a request to this URL would go.
    pub fn of(uri: &Uri) -> Result<Self, NoHost> {
        let no_host = |reason| NoHost::new(uri.to_string(), reason);
        let scheme = Scheme::parse(uri.scheme_str().unwrap_or_default()).map_err(no_host)?;
        let authority = uri.authority().ok_or_else(|| no_host("it names none"))?;
        let (host, port) = split(authority.as_str()).map_err(no_host)?;
        let host = Host::parse(host).map_err(no_host)?;
        Ok(Self { scheme, host, port: port.unwrap_or(scheme.port()) })
    }

    /// The same at another host, which is this address.
    pub(super) fn at(&self, address: IpAddr) -> Self {
        Self { host: Host::Address(address.to_canonical()), ..*self }
    }
}

impl Host {
    /// Reads a host as URLs have it. What looks like an address is one that is written in full, or nothing: resolvers take
    /// `2130706433`, `0x7f.1` and `0177.0.0.1` for 127.0.0.1.
    fn parse(text: &str) -> Result<Self, &'static str> {
        if let Some(address) = text.strip_prefix('[') {
            let address = address.strip_suffix(']').and_then(|text| text.parse::<Ipv6Addr>().ok());
            let address = address.ok_or("what is in brackets is an IPv6 address without a zone")?;
            return Ok(Self::Address(IpAddr::from(address).to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let last = name.rsplit('.').next().unwrap_or_default();
        let digits = last.strip_prefix("0x").unwrap_or(last);
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || (digits.len() < last.len() && digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_number && !last.is_empty() {
            let address = name.parse::<Ipv4Addr>();
            let address = address.map_err(|_| "an IPv4 address is four decimal numbers")?;
            return Ok(Self::Address(address.into()));
        }
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        match name.len() <= 253 && name.split('.').all(is_label) {
            true => Ok(Self::Name(name)),
            false => Err("a name is labels of letters, digits, - and _ (others as xn--)"),
        }
    }

    pub(super) fn is_localhost(&self) -> bool {
        matches!(self, Self::Name(name) if name == LOCALHOST)
    }
}

impl Scheme {
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "http" => Ok(Self::Http),
            "https" => Ok(Self::Https),
            _ => Err("the scheme is http or https"),
        }
    }

    fn port(self) -> u16 {
        match self {
            Self::Http => 80,
            Self::Https => 443,
        }
    }
}

/// The host and the port of an authority without a user.
fn split(authority: &str) -> Result<(&str, Option<u16>), &'static str> {
    if authority.contains('@') {
        return Err("a user is not sent in a URL");
    }
    let bracket = authority.find(']').map_or(0, |at| at + 1);
    if bracket == 0 && authority.matches(':').nth(1).is_some() {
        return Err("an IPv6 address is in brackets");
    }
    let Some(colon) = authority[bracket..].find(':') else { return Ok((authority, None)) };
    let (host, port) = authority.split_at(bracket + colon);
    let port = &port[1..];
    let is_number = port.bytes().all(|byte| byte.is_ascii_digit());
    match port.parse() {
        Ok(number @ 1..) if is_number => Ok((host, Some(number))),
        _ => Err("a port is a number from 1 to 65535"),
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
        }
    }
}

/// As it is written in a grant, and in a URL.
fn write(
    f: &mut fmt::Formatter<'_>,
    scheme: Scheme,
    host: &dyn fmt::Display,
    port: u16,
) -> fmt::Result {
    write!(f, "{scheme}://{host}")?;
    if port == scheme.port() { Ok(()) } else { write!(f, ":{port}") }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, self.scheme, &self.host, self.port)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.hosts {
            Hosts::Any => write(f, self.scheme, &"*", self.port),
            Hosts::Under(parent) => write(f, self.scheme, &format_args!("*.{parent}"), self.port),
            Hosts::Exactly(host) => write(f, self.scheme, host, self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(patterns: &[&str]) -> Grants {
        let patterns = patterns.iter().map(|pattern| pattern.parse().expect("it is a pattern"));
        Grants(patterns.collect())
    }

    fn allows(pattern: &str, url: &str) -> bool {
        let target = url.parse().ok().and_then(|uri| Target::of(&uri).ok());
        target.is_some_and(|target| grants(&[pattern]).allow(&target))
    }

    #[test]
    fn a_grant_covers_what_it_says() {
        let covered = [
            ("api.example.org", "https://api.example.org/v1?q=1"),
            ("api.example.org", "https://API.Example.ORG/"),
            ("api.example.org", "https://api.example.org./"),
            ("api.example.org", "https://api.example.org:443/"),
            ("API.example.org.", "https://api.example.org/"),
            ("https://api.example.org:8443", "https://api.example.org:8443/"),
            ("http://api.example.org", "http://api.example.org:80/"),
            ("*.example.org", "https://a.example.org/"),
            ("*.example.org", "https://a.b.c.example.org/"),
            ("*.example.org:8443", "https://a.example.org:8443/"),
            ("*", "https://anything.example/"),
            ("*", "https://intranet/"),
            ("http://*", "http://anything.example/"),
            ("http://127.0.0.1:9000", "http://127.0.0.1:9000/"),
            ("http://127.0.0.1:9000", "http://[::ffff:127.0.0.1]:9000/"),
            ("https://[fd00::1]", "https://[FD00:0::1]/"),
            ("http://localhost:9000", "http://LOCALHOST:9000/"),
        ];
        for (pattern, url) in covered {
            assert!(allows(pattern, url), "{pattern} {url}");
        }
    }

    #[test]
    fn a_grant_covers_nothing_else() {
        let refused = [
            ("api.example.org", "http://api.example.org/"),
            ("api.example.org", "http://api.example.org:443/"),
            ("api.example.org", "https://api.example.org:8443/"),
            ("https://api.example.org:8443", "https://api.example.org/"),
            ("http://api.example.org", "https://api.example.org/"),
            ("api.example.org", "https://evilapi.example.org/"),
            ("api.example.org", "https://api.example.org.evil.example/"),
            ("api.example.org", "https://example.org/"),
            ("api.example.org", "https://api.example.org../"),
            ("*.example.org", "https://example.org/"),
            ("*.example.org", "https://evilexample.org/"),
            ("*.example.org", "https://.example.org/"),
            ("*.example.org", "https://a.example.org.evil.example/"),
            ("api.example.org", "https://api.example.org@evil.example/"),
            ("evil.example", "https://api.example.org@evil.example/"),
            ("api.example.org", "https://user:password@api.example.org/"),
            ("*", "https://1.1.1.1/"),
            ("*", "https://[2606:4700::1111]/"),
            ("*", "https://localhost/"),
            ("*", "https://2130706433/"),
            ("*", "https://0x7f000001/"),
            ("*", "https://0x7f.1/"),
            ("*", "https://127.1/"),
            ("*", "https://0177.0.0.1/"),
            ("*", "https://a%2eexample/"),
            ("http://127.0.0.1:9000", "http://2130706433:9000/"),
            ("http://127.0.0.1:9000", "http://0x7f000001:9000/"),
            ("http://127.0.0.1:9000", "http://0177.0.0.1:9000/"),
            ("http://127.0.0.1:9000", "http://127.1:9000/"),
            ("http://127.0.0.1:9000", "http://127.0.0.2:9000/"),
            ("http://127.0.0.1:9000", "http://localhost:9000/"),
            ("http://localhost:9000", "http://127.0.0.1:9000/"),
            ("*", "ftp://anything.example/"),
            ("*", "https://anything.example:0/"),
            ("*", "https://anything.example:99999/"),
        ];
        for (pattern, url) in refused {
            assert!(!allows(pattern, url), "{pattern} {url}");
        }
    }

    #[test]
    fn what_is_no_pattern_is_refused_with_the_reason() {
        let wrong = [
            ("", "a name is labels"),
            ("https://", "a name is labels"),
            ("ftp://example.org", "the scheme is http or https"),
            ("HTTPS://example.org", "the scheme is http or https"),
            ("https://example.org/", "nothing follows its port"),
            ("https://example.org/v1", "nothing follows its port"),
            ("user@example.org", "a user is not sent"),
            ("example.org:", "from 1 to 65535"),
            ("example.org:0", "from 1 to 65535"),
            ("example.org:+80", "from 1 to 65535"),
            ("example.org:https", "from 1 to 65535"),
            ("a.*.example.org", "a name is labels"),
            ("*example.org", "a name is labels"),
            ("**", "a name is labels"),
            ("*.", "a name is labels"),
            ("*.127.0.0.1", "has no names under it"),
            ("10.0.0.0/8", "nothing follows its port"),
            ("127.1", "four decimal numbers"),
            ("[fe80::1%25eth0]", "in brackets"),
            ("::1", "in brackets"),
            ("b\u{fc}cher.example", "a name is labels"),
        ];
        for (text, why) in wrong {
            let error = text.parse::<Pattern>().expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_pattern_is_shown_as_it_could_be_written() {
        let shown = [
            ("api.example.org", "https://api.example.org"),
            ("*.Example.org:8443", "https://*.example.org:8443"),
            ("http://[::1]:80", "http://[::1]"),
            ("*", "https://*"),
        ];
        for (text, shown) in shown {
            let pattern: Pattern = text.parse().unwrap();
            assert_eq!(pattern.to_string(), shown);
            assert_eq!(shown.parse(), Ok(pattern));
        }
    }

    #[test]
    fn a_name_leads_to_public_addresses_and_to_those_that_are_granted() {
        let permits = |patterns: &[&str], url: &str, address: &str| {
            let target = Target::of(&url.parse().unwrap()).unwrap();
            let grants = grants(patterns);
            assert!(grants.allow(&target), "{patterns:?} {url}");
            grants.permit(&target, address.parse().unwrap())
        };
        let name = "https://db.example.org";
        assert!(permits(&[name], name, "8.8.8.8"));
        assert!(!permits(&[name], name, "10.0.0.5"));
        assert!(!permits(&["*"], name, "127.0.0.1"));
        assert!(permits(&[name, "10.0.0.5"], name, "10.0.0.5"));
        assert!(permits(&[name, "10.0.0.5"], name, "::ffff:10.0.0.5"));
        assert!(!permits(&[name, "10.0.0.5"], name, "10.0.0.6"));
        assert!(!permits(&[name, "10.0.0.5:5432"], name, "10.0.0.5"), "another port");
        assert!(!permits(&[name, "http://10.0.0.5"], name, "10.0.0.5"), "another scheme");
        let local = "http://localhost:9000";
        assert!(permits(&[local], local, "127.0.0.1") && permits(&[local], local, "::1"));
        assert!(!permits(&[local], local, "10.0.0.5"));
        assert!(!permits(&["*.localhost"], "https://a.localhost", "127.0.0.1"));
    }
}
