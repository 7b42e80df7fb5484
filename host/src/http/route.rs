//! Which request means what: pure functions from a request's target to a [`Route`].
//!
//! Agents and the operator are served on two addresses, so there are two functions. Both look at the target as
//! the client sent it: only an agent's and an instance's name are percent-decoded, once, so `%2F` in an
//! instance's name is a part of the name, and what follows the name reaches the agent untouched. The cost is
//! one pass over the target, whose length the server bounds.

use std::borrow::Cow;

use http::Method;
use percent_encoding::percent_decode_str;

use super::problem::Problem;
use crate::id::{AgentName, InstanceKey, RunId};

/// What a request on the public address asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/agents/{agent}/{instance}[/...][?...]`, any method: a call on an instance.
    Agent {
        instance: InstanceKey,
        /// What follows the instance's name, with the query.
        path: String,
    },
}

/// What a request on the admin address asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRoute {
    /// `GET /healthz`: whether the process runs.
    Health,
    /// `GET /readyz`: whether it can serve.
    Ready,
    /// `GET /metrics`: its figures.
    Metrics,
    /// `POST /v1/runs/{run}/cancel`: asks a run to end.
    Cancel(RunId),
}

/// The route of a target, path and query, on the public address.
pub fn parse(target: &str) -> Result<Route, Problem> {
    let path = target.split('?').next().unwrap_or_default();
    let (prefix, rest) = segment(path);
    let (agent, rest) = segment(rest);
    let (name, rest) = segment(rest);
    if prefix != "agents" || name.is_empty() {
        return Err(Problem::NotFound);
    }
    let agent: AgentName = decode("agent", agent)?.parse().map_err(bad_name)?;
    let instance = InstanceKey::new(agent, &decode("instance", name)?).map_err(bad_name)?;
    let follows = path.len() - rest.len();
    Ok(Route::Agent { instance, path: target[follows..].into() })
}

/// The route of a method and a target on the admin address.
pub fn parse_admin(method: &Method, target: &str) -> Result<AdminRoute, Problem> {
    let path = target.split('?').next().unwrap_or_default();
    let (route, allow) = match path {
        "/healthz" => (AdminRoute::Health, "GET, HEAD"),
        "/readyz" => (AdminRoute::Ready, "GET, HEAD"),
        "/metrics" => (AdminRoute::Metrics, "GET, HEAD"),
        _ => {
            let run = path.strip_prefix("/v1/runs/").and_then(|rest| rest.strip_suffix("/cancel"));
            let run = run.filter(|run| !run.contains('/')).ok_or(Problem::NotFound)?;
            (AdminRoute::Cancel(run.parse().map_err(bad_name)?), "POST")
        }
    };
    if !allow.split(", ").any(|allowed| allowed == method.as_str()) {
        return Err(Problem::MethodNotAllowed { allow });
    }
    Ok(route)
}

/// The first segment that is not empty, and what follows it.
fn segment(path: &str) -> (&str, &str) {
    let path = path.trim_start_matches('/');
    path.split_at(path.find('/').unwrap_or(path.len()))
}

fn decode<'a>(what: &str, name: &'a str) -> Result<Cow<'a, str>, Problem> {
    percent_decode_str(name).decode_utf8().map_err(|_| {
        let start: String = name.chars().take(80).collect();
        Problem::BadName(format!("the {what}'s name {start:?} is not UTF-8 once percent-decoded"))
    })
}

fn bad_name(error: impl std::error::Error) -> Problem {
    Problem::BadName(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(target: &str) -> (String, String, String) {
        let Route::Agent { instance, path } =
            parse(target).unwrap_or_else(|problem| panic!("{target}: {problem:?}"));
        (instance.agent().to_string(), instance.name().to_owned(), path)
    }

    #[test]
    fn agent_routes() {
        let cases = [
            ("/agents/chat/demo", "demo", ""),
            ("/agents/chat/demo/", "demo", "/"),
            ("/agents/chat/demo?x=1", "demo", "?x=1"),
            ("/agents/chat/demo?", "demo", "?"),
            ("/agents/chat/demo/status?x=/agents/a/b", "demo", "/status?x=/agents/a/b"),
            ("/agents/chat/demo//a%20b/%zz", "demo", "//a%20b/%zz"),
            ("//agents///chat//demo/rest", "demo", "/rest"),
            ("/agents/%63hat/a%2Fb/c", "a/b", "/c"),
            ("/agents/chat/%E2%9C%93+%25", "✓+%", ""),
            ("/agents/chat/é?x", "é", "?x"),
            ("/agents/chat/../x", "..", "/x"),
            ("/agents/chat/a?b?c", "a", "?b?c"),
        ];
        for (target, name, path) in cases {
            assert_eq!(agent(target), ("chat".into(), name.into(), path.into()), "{target}");
        }
    }

    #[test]
    fn anything_else_is_not_found() {
        for target in [
            "",
            "/",
            "*",
            "/agents",
            "/agents/",
            "/agents/chat",
            "/agents/chat/",
            "/agents/chat//",
            "/agents?/a/b",
            "/agents/chat?/b",
            "/Agents/chat/demo",
            "/%61gents/chat/demo",
            "/x/agents/chat/demo",
            "/healthz",
        ] {
            assert_eq!(parse(target), Err(Problem::NotFound), "{target}");
        }
    }

    #[test]
    fn a_bad_name_is_told_from_one_that_is_not_there() {
        let long = format!("/agents/chat/{}", "é".repeat(129));
        let cases = [
            ("/agents/chat/%ff", "\"%ff\""),
            ("/agents/%ff/x", "agent's name"),
            ("/agents/Chat/x", "\"Chat\""),
            ("/agents/chat%00/x", "chat\\0"),
            ("/agents/a%2Fb/x", "\"a/b\""),
            ("/agents/chat/a%0Ab", "control character"),
            ("/agents/chat/%C2%85", "control character"),
            (&long, "longer"),
        ];
        for (target, names) in cases {
            let Err(Problem::BadName(message)) = parse(target) else { panic!("{target}") };
            assert!(message.contains(names), "{target}: {message}");
        }
        assert_eq!(agent(&format!("/agents/chat/{}", "é".repeat(128))).1.len(), 256);
    }

    #[test]
    fn admin_routes() {
        let run = RunId::generate();
        let cancel = format!("/v1/runs/{run}/cancel");
        assert_eq!(parse_admin(&Method::GET, "/healthz"), Ok(AdminRoute::Health));
        assert_eq!(parse_admin(&Method::HEAD, "/readyz?x"), Ok(AdminRoute::Ready));
        assert_eq!(parse_admin(&Method::GET, "/metrics"), Ok(AdminRoute::Metrics));
        assert_eq!(parse_admin(&Method::POST, &cancel), Ok(AdminRoute::Cancel(run)));
        assert_eq!(
            parse_admin(&Method::POST, "/healthz"),
            Err(Problem::MethodNotAllowed { allow: "GET, HEAD" })
        );
        assert_eq!(
            parse_admin(&Method::GET, &cancel),
            Err(Problem::MethodNotAllowed { allow: "POST" })
        );
        assert!(matches!(
            parse_admin(&Method::POST, "/v1/runs/x/cancel"),
            Err(Problem::BadName(_))
        ));
        for target in
            ["", "/", "/healthz/", "/v1/runs/cancel", "/v1/runs/a/b/cancel", "/agents/chat/demo"]
        {
            assert_eq!(parse_admin(&Method::POST, target), Err(Problem::NotFound), "{target}");
        }
    }
}
