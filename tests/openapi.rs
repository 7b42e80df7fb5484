//! The admin API is what its own description says: what a host answers is held against the document that it serves.

use jsonschema::Validator;
use reqwest::{Method, Response};
use serde_json::{Value, json};

use crate::support::{Started, Stream, TestHost, header, module};

/// The document, as the host serves it.
struct Described {
    document: Value,
    seen: Vec<(String, String)>,
}

impl Described {
    async fn by(host: &Started) -> Self {
        let document = host.operator_sees("/openapi.json").await;
        Self { document, seen: Vec::new() }
    }

    /// A validator of the schema at this place in the document.
    fn schema(&self, place: &str) -> Validator {
        let mut schema = self.document.clone();
        let place = place.replace('{', "%7B").replace('}', "%7D");
        schema["$ref"] = json!(format!("#{place}"));
        jsonschema::validator_for(&schema).unwrap()
    }

    /// Asks, and holds the answer against what is said of the route.
    async fn ask(
        &mut self,
        host: &Started,
        (method, template): (&str, &str),
        path: &str,
        body: Vec<u8>,
    ) -> Value {
        self.seen.push((method.to_lowercase(), template.to_owned()));
        let request = host.operate(method.parse::<Method>().unwrap(), path).body(body);
        self.check(method, template, request.send().await.unwrap()).await
    }

    async fn check(&self, method: &str, template: &str, answer: Response) -> Value {
        let status = answer.status().as_u16().to_string();
        let escaped = template.replace('/', "~1");
        let mut place = format!("/paths/{escaped}/{}/responses/{status}", method.to_lowercase());
        let described = self.document.pointer(&place);
        let described = described.unwrap_or_else(|| panic!("{method} {template}: {status}?"));
        if let Some(elsewhere) = described["$ref"].as_str() {
            place = elsewhere.trim_start_matches('#').to_owned();
        }
        let described = self.document.pointer(&place).unwrap();
        let kind = header(answer.headers(), "content-type").to_owned();
        let kind = kind.split(';').next().unwrap();
        for (name, of) in described["headers"].as_object().into_iter().flatten() {
            assert!(of["required"] != true || answer.headers().contains_key(name), "{name}");
        }
        if kind.is_empty() {
            assert!(described["content"].is_null(), "{method} {template}: {status}");
            return Value::Null;
        }
        assert!(!described["content"][kind].is_null(), "{method} {template}: {status} {kind}");
        if !kind.ends_with("json") {
            return Value::Null;
        }
        let document: Value = answer.json().await.unwrap();
        let place = format!("{place}/content/{}/schema", kind.replace('/', "~1"));
        self.holds(&place, &document);
        document
    }

    fn holds(&self, place: &str, document: &Value) {
        let wrong: Vec<_> =
            self.schema(place).iter_errors(document).map(|e| e.to_string()).collect();
        assert!(wrong.is_empty(), "{place}: {document}: {wrong:#?}");
    }
}

#[tokio::test]
async fn the_admin_api_is_as_it_is_described() {
    let host = TestHost::serving(&["probe"]).start();
    let mut api = Described::by(&host).await;
    let mut happenings = Stream::open(host.operate(Method::GET, "/v1/events")).await;
    api.seen.push(("get".into(), "/v1/events".into()));

    let none = Vec::new;
    for path in ["/healthz", "/readyz", "/metrics", "/openapi.json", "/v1/agents"] {
        api.ask(&host, ("GET", path), path, none()).await;
    }
    let deploy = ("PUT", "/v1/agents/{name}");
    for guest in ["stream", "stream", "resume"] {
        api.ask(&host, deploy, "/v1/agents/chat", module(guest)).await;
    }
    for (path, body) in [("/v1/agents/Chat", none()), ("/v1/agents/chat", b"no module".to_vec())] {
        let problem = api.ask(&host, deploy, path, body).await;
        assert!(problem["code"].is_string(), "{problem}");
    }
    let stale = host.operate(Method::PUT, "/v1/agents/chat").header("if-match", "\"1\"");
    api.check("PUT", deploy.1, stale.send().await.unwrap()).await;
    let stale = host.operate(Method::PUT, "/v1/agents/chat").header("if-match", "0".repeat(64));
    api.check("PUT", deploy.1, stale.send().await.unwrap()).await;

    let stream = host.stream("probe/demo/emit?count=2").await;
    let finished = header(&stream.headers, "bureau-run").to_owned();
    stream.rest().await;
    let mut waiting = host.stream("probe/demo/cancellable").await;
    waiting.next().await.unwrap();
    let running = header(&waiting.headers, "bureau-run").to_owned();

    let rollback = ("POST", "/v1/agents/{name}/rollback");
    for (path, body) in [
        ("/v1/agents/chat/rollback", "{}"),
        ("/v1/agents/chat/rollback", "{\"to\": 1}"),
        ("/v1/agents/probe/rollback", ""),
        ("/v1/agents/nobody/rollback", ""),
    ] {
        api.ask(&host, rollback, path, body.into()).await;
    }
    let deployments = ("GET", "/v1/agents/{name}/deployments");
    api.ask(&host, deployments, "/v1/agents/chat/deployments", none()).await;
    api.ask(&host, deployments, "/v1/agents/nobody/deployments", none()).await;
    for path in ["/v1/instances", "/v1/instances?agent=probe", "/v1/instances?x"] {
        api.ask(&host, ("GET", "/v1/instances"), path, none()).await;
    }
    for path in ["/v1/runs", "/v1/runs?limit=1", "/v1/runs?limit=0"] {
        api.ask(&host, ("GET", "/v1/runs"), path, none()).await;
    }
    for run in [&finished, &running, "01ARZ3NDEKTSV4RRFFQ69G5FAV", "x"] {
        let path = format!("/v1/runs/{run}");
        api.ask(&host, ("GET", "/v1/runs/{run}"), &path, none()).await;
        let cancel = ("POST", "/v1/runs/{run}/cancel");
        api.ask(&host, cancel, &format!("{path}/cancel"), none()).await;
        let events = ("GET", "/v1/runs/{run}/events");
        api.ask(&host, events, &format!("{path}/events"), none()).await;
    }
    api.ask(&host, ("DELETE", deploy.1), "/v1/agents/chat", none()).await;
    api.ask(&host, ("DELETE", deploy.1), "/v1/agents/chat", none()).await;

    let paths = api.document["paths"].as_object().unwrap().iter();
    let described = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().unwrap().keys().filter(|key| *key != "parameters");
        methods.map(move |method| (method.clone(), path.clone()))
    });
    for route in described {
        assert!(api.seen.contains(&route), "{route:?} was never asked for");
    }

    let mut told = Vec::new();
    while !told.contains(&"run-ended".to_owned()) || !told.contains(&"deployed".to_owned()) {
        let event = happenings.next().await.unwrap();
        let schema = match &*event.name {
            "deployed" => "Deployed",
            "run-ended" => "RunEnded",
            _ => "InstanceChange",
        };
        let data = serde_json::from_str(&event.data).unwrap();
        api.holds(&format!("/components/schemas/{schema}"), &data);
        told.push(event.name);
    }
}
