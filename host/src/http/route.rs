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
    /// What the host knows itself.
    Resource(Resource),
}

/// What the host knows of runs, and answers without an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resource {
    /// What a run emits.
    Run(RunId),
    RunStatus(RunId),
    CancelRun(RunId),
    /// The runs of an instance.
    Runs(InstanceKey, PageQuery),
    /// What the runs of an instance emit from now on.
    Events(InstanceKey),
    /// What the newest run of an instance emits, if one goes on.
    Latest(InstanceKey),
}

/// What a request on the admin address asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AdminRoute {
    /// Whether the process runs.
    Health,
    /// Whether it can serve.
    Ready,
    /// Its figures.
    Metrics,
    /// What can be asked for here.
    OpenApi,
    Agents,
    Deploy(AgentName),
    Remove(AgentName),
    RollBack(AgentName),
    Deployments(AgentName),
    /// Those of an agent, or all.
    Instances(Option<AgentName>),
    Runs(RunsQuery),
    Run(RunId),
    RunEvents(RunId),
    Cancel(RunId),
    /// What happens from now on.
    Happenings,
}

impl AdminRoute {
    /// Whether anyone may ask, also where the operator has a token: probes have none.
    pub fn is_open(&self) -> bool {
        matches!(self, Self::Health | Self::Ready)
    }
}

/// Which page of a list is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageQuery {
    pub limit: usize,
    pub before: Option<RunId>,
}

/// Which runs are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunsQuery {
    pub agent: Option<AgentName>,
    pub instance: Option<String>,
    pub page: PageQuery,
}

/// Makes a route of what stands in the places of `{..}` and the query.
type Make<R> = fn([&str; 2], &str) -> Result<R, Problem>;

/// A method, a path, and what they mean.
type Entry<R> = (&'static str, &'static str, Make<R>);

/// Everything on the public address but the agents themselves.
const RESOURCES: [Entry<Resource>; 6] = [
    ("GET", "/runs/{run}", |[run, _], _| Ok(Resource::Run(run_id(run)?))),
    ("DELETE", "/runs/{run}", |[run, _], _| Ok(Resource::CancelRun(run_id(run)?))),
    ("GET", "/runs/{run}/status", |[run, _], _| Ok(Resource::RunStatus(run_id(run)?))),
    ("GET", "/instances/{agent}/{instance}/runs", |[agent, name], query| {
        let instance = instance_key(agent, name)?;
        let [limit, before] = fields(query, ["limit", "before"])?;
        Ok(Resource::Runs(instance, page_query(limit, before)?))
    }),
    ("GET", "/instances/{agent}/{instance}/events", |[agent, name], _| {
        Ok(Resource::Events(instance_key(agent, name)?))
    }),
    ("GET", "/instances/{agent}/{instance}/stream", |[agent, name], _| {
        Ok(Resource::Latest(instance_key(agent, name)?))
    }),
];

/// Everything on the admin address.
pub(super) const ADMIN_ROUTES: [Entry<AdminRoute>; 15] = [
    ("GET", "/healthz", |_, _| Ok(AdminRoute::Health)),
    ("GET", "/readyz", |_, _| Ok(AdminRoute::Ready)),
    ("GET", "/metrics", |_, _| Ok(AdminRoute::Metrics)),
    ("GET", "/openapi.json", |_, _| Ok(AdminRoute::OpenApi)),
    ("GET", "/v1/agents", |_, _| Ok(AdminRoute::Agents)),
    ("PUT", "/v1/agents/{name}", |[name, _], _| Ok(AdminRoute::Deploy(agent_name(name)?))),
    ("DELETE", "/v1/agents/{name}", |[name, _], _| Ok(AdminRoute::Remove(agent_name(name)?))),
    ("POST", "/v1/agents/{name}/rollback", |[name, _], _| {
        Ok(AdminRoute::RollBack(agent_name(name)?))
    }),
    ("GET", "/v1/agents/{name}/deployments", |[name, _], _| {
        Ok(AdminRoute::Deployments(agent_name(name)?))
    }),
    ("GET", "/v1/instances", |_, query| {
        let [agent] = fields(query, ["agent"])?;
        Ok(AdminRoute::Instances(agent.as_deref().map(agent_name).transpose()?))
    }),
    ("GET", "/v1/runs", |_, query| Ok(AdminRoute::Runs(runs_query(query)?))),
    ("GET", "/v1/runs/{run}", |[run, _], _| Ok(AdminRoute::Run(run_id(run)?))),
    ("GET", "/v1/runs/{run}/events", |[run, _], _| Ok(AdminRoute::RunEvents(run_id(run)?))),
    ("POST", "/v1/runs/{run}/cancel", |[run, _], _| Ok(AdminRoute::Cancel(run_id(run)?))),
    ("GET", "/v1/events", |_, _| Ok(AdminRoute::Happenings)),
];

/// The route of a method and a target, path and query, on the public address.
pub fn parse(method: &Method, target: &str) -> Result<Route, Problem> {
    let path = target.split('?').next().unwrap_or_default();
    let (prefix, rest) = segment(path);
    if prefix != "agents" {
        return find(&RESOURCES, method, target).map(Route::Resource);
    }
    let (agent, rest) = segment(rest);
    let (name, rest) = segment(rest);
    if name.is_empty() {
        return Err(Problem::NotFound);
    }
    let instance = instance_key(agent, name)?;
    let follows = path.len() - rest.len();
    Ok(Route::Agent { instance, path: target[follows..].into() })
}

/// The route of a method and a target on the admin address. `HEAD` is `GET` without the body.
pub fn parse_admin(method: &Method, target: &str) -> Result<AdminRoute, Problem> {
    find(&ADMIN_ROUTES, method, target)
}

fn find<R>(routes: &[Entry<R>], method: &Method, target: &str) -> Result<R, Problem> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let method = if method == Method::HEAD { &Method::GET } else { method };
    let mut allow = Vec::new();
    for (of, template, make) in routes {
        let Some(names) = fits(template, path) else { continue };
        if *of == method.as_str() {
            return make(names, query);
        }
        allow.push(if *of == "GET" { "GET, HEAD" } else { of });
    }
    Err(match allow.is_empty() {
        true => Problem::NotFound,
        false => Problem::MethodNotAllowed { allow: allow.join(", ") },
    })
}

/// What stands in the places of the template's `{..}`, empty where it has fewer, when the path is one of it.
fn fits<'a>(template: &str, path: &'a str) -> Option<[&'a str; 2]> {
    let mut found = [""; 2];
    let mut places = found.iter_mut();
    let mut segments = path.split('/');
    for expected in template.split('/') {
        let segment = segments.next()?;
        if expected.starts_with('{') && !segment.is_empty() {
            *places.next()? = segment;
        } else if expected != segment {
            return None;
        }
    }
    segments.next().is_none().then_some(found)
}

fn instance_key(agent: &str, name: &str) -> Result<InstanceKey, Problem> {
    InstanceKey::new(agent_name(agent)?, &decode("instance", name)?).map_err(bad_name)
}

fn agent_name(name: &str) -> Result<AgentName, Problem> {
    decode("agent", name)?.parse().map_err(bad_name)
}

fn run_id(run: &str) -> Result<RunId, Problem> {
    run.parse().map_err(bad_name)
}

const MAX_RUNS: usize = 1000;

fn runs_query(query: &str) -> Result<RunsQuery, Problem> {
    let [agent, instance, limit, before] = fields(query, ["agent", "instance", "limit", "before"])?;
    if instance.is_some() && agent.is_none() {
        let why = "`instance` needs the `agent` that it is one of";
        return Err(Problem::BadRequest(why.into()));
    }
    Ok(RunsQuery {
        agent: agent.as_deref().map(agent_name).transpose()?,
        instance,
        page: page_query(limit, before)?,
    })
}

fn page_query(limit: Option<String>, before: Option<String>) -> Result<PageQuery, Problem> {
    let before = before.as_deref().map(run_id).transpose()?;
    let Some(limit) = limit else { return Ok(PageQuery { limit: 100, before }) };
    let number = limit.parse().ok().filter(|limit| (1..=MAX_RUNS).contains(limit));
    let limit = number.ok_or_else(|| {
        Problem::BadRequest(format!("`limit` is a number from 1 to {MAX_RUNS}, and not {limit:?}"))
    })?;
    Ok(PageQuery { limit, before })
}

/// The values of these fields of a query, which has no others and none of them twice.
fn fields<const N: usize>(query: &str, names: [&str; N]) -> Result<[Option<String>; N], Problem> {
    let mut values = [const { None }; N];
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let place = names.iter().position(|known| *known == name);
        let place = place.and_then(|place| values.get_mut(place)).ok_or_else(|| {
            Problem::BadRequest(format!("the query takes {}, and not {name:?}", names.join(", ")))
        })?;
        if place.replace(value.into_owned()).is_some() {
            return Err(Problem::BadRequest(format!("the query has {name:?} twice")));
        }
    }
    Ok(values)
}

/// The first segment that is not empty, and what follows it.
fn segment(path: &str) -> (&str, &str) {
    // By bytes: a search for a character is made for longer texts.
    let is_slash = |byte: &u8| *byte == b'/';
    let begins = path.bytes().take_while(is_slash).count();
    let path = &path[begins..];
    path.split_at(path.bytes().position(|byte| is_slash(&byte)).unwrap_or(path.len()))
}

fn decode<'a>(what: &str, name: &'a str) -> Result<Cow<'a, str>, Problem> {
    if !name.bytes().any(|byte| byte == b'%') {
        return Ok(name.into());
    }
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
        let parsed = parse(&Method::PATCH, target);
        let Ok(Route::Agent { instance, path }) = parsed else { panic!("{target}: {parsed:?}") };
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
            assert_eq!(parse(&Method::GET, target), Err(Problem::NotFound), "{target}");
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
            let parsed = parse(&Method::GET, target);
            let Err(Problem::BadName(message)) = parsed else { panic!("{target}: {parsed:?}") };
            assert!(message.contains(names), "{target}: {message}");
        }
        assert_eq!(agent(&format!("/agents/chat/{}", "é".repeat(128))).1.len(), 256);
    }

    #[test]
    fn resources() {
        let run = RunId::generate();
        let instance = InstanceKey::new("chat".parse().unwrap(), "a/b").unwrap();
        let page = PageQuery { limit: 5, before: Some(run) };
        let cases = [
            (Method::GET, format!("/runs/{run}"), Resource::Run(run)),
            (Method::HEAD, format!("/runs/{run}?x"), Resource::Run(run)),
            (Method::DELETE, format!("/runs/{run}"), Resource::CancelRun(run)),
            (Method::GET, format!("/runs/{run}/status"), Resource::RunStatus(run)),
            (
                Method::GET,
                format!("/instances/chat/a%2Fb/runs?limit=5&before={run}"),
                Resource::Runs(instance.clone(), page),
            ),
            (
                Method::GET,
                "/instances/chat/a%2Fb/events".into(),
                Resource::Events(instance.clone()),
            ),
            (Method::GET, "/instances/chat/a%2Fb/stream".into(), Resource::Latest(instance)),
        ];
        for (method, target, resource) in cases {
            assert_eq!(parse(&method, &target), Ok(Route::Resource(resource)), "{target}");
        }
        let refused = parse(&Method::POST, &format!("/runs/{run}"));
        let allow = "GET, HEAD, DELETE".into();
        assert_eq!(refused, Err(Problem::MethodNotAllowed { allow }));
        for target in ["/runs", "/runs/", "/instances/chat", "/instances/chat/a", "/runs/x/y"] {
            assert_eq!(parse(&Method::GET, target), Err(Problem::NotFound), "{target}");
        }
        for target in ["/runs/x", "/instances/Chat/a/runs", "/instances/chat/%ff/stream"] {
            let parsed = parse(&Method::GET, target);
            assert!(matches!(parsed, Err(Problem::BadName(_))), "{target}: {parsed:?}");
        }
    }

    #[test]
    fn admin_routes() {
        let run = RunId::generate();
        let agent = || "chat".parse::<AgentName>().unwrap();
        let get = |target: &str| parse_admin(&Method::GET, target);
        assert_eq!(get("/healthz"), Ok(AdminRoute::Health));
        assert_eq!(parse_admin(&Method::HEAD, "/readyz?x"), Ok(AdminRoute::Ready));
        assert_eq!(get("/v1/agents"), Ok(AdminRoute::Agents));
        assert_eq!(parse_admin(&Method::PUT, "/v1/agents/%63hat"), Ok(AdminRoute::Deploy(agent())));
        assert_eq!(get("/v1/agents/chat/deployments"), Ok(AdminRoute::Deployments(agent())));
        assert_eq!(get("/v1/instances?agent=chat"), Ok(AdminRoute::Instances(Some(agent()))));
        let cancel = format!("/v1/runs/{run}/cancel");
        assert_eq!(parse_admin(&Method::POST, &cancel), Ok(AdminRoute::Cancel(run)));
        assert_eq!(get(&format!("/v1/runs/{run}")), Ok(AdminRoute::Run(run)));
        let runs = format!("/v1/runs?agent=chat&instance=a%20b+c&limit=7&before={run}");
        let query = RunsQuery {
            agent: Some(agent()),
            instance: Some("a b c".into()),
            page: PageQuery { limit: 7, before: Some(run) },
        };
        assert_eq!(get(&runs), Ok(AdminRoute::Runs(query)));
    }

    #[test]
    fn what_is_described_is_what_there_is() {
        let document: serde_json::Value =
            serde_json::from_str(include_str!("openapi.json")).unwrap();
        let mut described = Vec::new();
        for (path, methods) in document["paths"].as_object().unwrap() {
            let methods = methods.as_object().unwrap().keys().filter(|key| *key != "parameters");
            described.extend(methods.map(|method| (method.to_uppercase(), path.clone())));
        }
        let routes = ADMIN_ROUTES.map(|(method, path, _)| (method.to_owned(), path.to_owned()));
        let mut routes = Vec::from(routes);
        described.sort();
        routes.sort();
        assert_eq!(described, routes);
    }

    #[test]
    fn what_is_wrong_with_an_operators_request_is_told() {
        let allowed = |method, target: &str| match parse_admin(&method, target) {
            Err(Problem::MethodNotAllowed { allow }) => allow,
            other => panic!("{target}: {other:?}"),
        };
        assert_eq!(allowed(Method::POST, "/healthz"), "GET, HEAD");
        assert_eq!(allowed(Method::GET, "/v1/agents/chat"), "PUT, DELETE");
        for (method, target) in [(Method::POST, "/v1/runs/x/cancel"), (Method::GET, "/v1/runs/x")] {
            assert!(matches!(parse_admin(&method, target), Err(Problem::BadName(_))), "{target}");
        }
        let bad_name = parse_admin(&Method::PUT, "/v1/agents/Chat");
        assert!(matches!(bad_name, Err(Problem::BadName(why)) if why.contains("Chat")));
        for (query, names) in [
            ("limit=0", "limit"),
            ("limit=1001", "1000"),
            ("agents=x", "agents"),
            ("limit=1&limit=2", "twice"),
            ("instance=x", "agent"),
        ] {
            let Err(Problem::BadRequest(why)) =
                parse_admin(&Method::GET, &format!("/v1/runs?{query}"))
            else {
                panic!("{query}")
            };
            assert!(why.contains(names), "{query}: {why}");
        }
        for target in [
            "",
            "/",
            "/healthz/",
            "/v1/agents/",
            "/v1/agents/chat/",
            "/v1/runs/cancel/x",
            "/v1/runs/a/b/cancel",
            "/agents/chat/demo",
        ] {
            assert_eq!(parse_admin(&Method::POST, target), Err(Problem::NotFound), "{target}");
        }
    }
}
