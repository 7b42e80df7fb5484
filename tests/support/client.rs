//! A client of a host, of its agents and of its operator's address.

use std::collections::HashMap;
use std::time::Duration;

use reqwest::{Method, RequestBuilder, Response};

use super::patience::{PATIENCE, seen};
use super::stream::Stream;

/// For how long a connection waits for another request: less than a host lets it, so that none is sent on one that closes.
const KEPT: Duration = Duration::from_secs(2);

/// What a test asks a host by.
#[derive(Clone)]
pub struct Client {
    /// Where the host serves agents, `http://127.0.0.1:PORT`.
    pub url: String,
    /// Where it serves its operator.
    pub admin: String,
    http: reqwest::Client,
}

/// A client that waits neither for ever nor on a connection that the host may close.
pub fn http_client() -> reqwest::Client {
    let client = reqwest::Client::builder().read_timeout(PATIENCE).pool_idle_timeout(KEPT);
    client.build().expect("it is configured right")
}

impl Client {
    /// A client of the host at these addresses.
    pub(super) fn new(url: String, admin: String) -> Self {
        Self { url, admin, http: http_client() }
    }

    /// A request to a path below `/agents/`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, self.agent_url(path))
    }

    /// The URL of a path below `/agents/`.
    pub fn agent_url(&self, path: &str) -> String {
        format!("{}/agents/{path}", self.url)
    }

    /// Gets a path below `/agents/`.
    pub async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.expect("the host answers")
    }

    /// Gets JSON from a path below `/agents/`.
    pub async fn json(&self, path: &str) -> serde_json::Value {
        self.get(path).await.json().await.expect("the agent answers with JSON")
    }

    /// Posts JSON to a path below `/agents/`.
    pub async fn post(&self, path: &str, body: &serde_json::Value) -> Response {
        let request = self.request(Method::POST, path).json(body);
        request.send().await.expect("the host answers")
    }

    /// Opens the event stream at a path below `/agents/`.
    pub async fn stream(&self, path: &str) -> Stream {
        Stream::open(self.request(Method::GET, path)).await
    }

    /// Opens the event stream at a path below `/agents/` after the event of this id.
    pub async fn resume(&self, path: &str, last_event_id: &str) -> Stream {
        let request = self.request(Method::GET, path);
        Stream::open(request.header("last-event-id", last_event_id)).await
    }

    /// A request to a path of the public address.
    pub fn at(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.url))
    }

    /// Gets JSON from a path of the public address.
    pub async fn json_of(&self, path: &str) -> serde_json::Value {
        let answer = self.at(Method::GET, path).send().await.expect("the host answers");
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.expect("the host's documents are JSON")
    }

    /// A request of the operator to a path of the admin address.
    pub fn operate(&self, method: Method, path: &str) -> RequestBuilder {
        self.http.request(method, format!("{}{path}", self.admin))
    }

    /// What the operator gets from a path of the admin address, as JSON.
    pub async fn operator_sees(&self, path: &str) -> serde_json::Value {
        let answer = self.operate(Method::GET, path).send().await.expect("the host answers");
        assert_eq!(answer.status(), 200, "{path}");
        answer.json().await.expect("the operator's documents are JSON")
    }

    /// Deploys a module.
    pub async fn put_module(&self, agent: &str, module: Vec<u8>) -> Response {
        let request = self.operate(Method::PUT, &format!("/v1/agents/{agent}"));
        request.body(module).send().await.expect("the host answers its operator")
    }

    /// A request to the admin address.
    pub async fn admin(&self, method: Method, path: &str) -> Response {
        let url = format!("{}{path}", self.admin);
        self.http.request(method, url).send().await.expect("the host answers its operator")
    }

    /// The host's own figures, without their prefix `bureau_`.
    pub async fn metrics(&self) -> HashMap<String, u64> {
        let text = self.admin(Method::GET, "/metrics").await.text().await.unwrap();
        let figures = text.lines().filter_map(|line| line.strip_prefix("bureau_")?.split_once(' '));
        figures.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
    }

    /// Waits until one of the host's figures satisfies this, and returns it.
    pub async fn reaches(&self, metric: &str, what: impl Fn(u64) -> bool) -> u64 {
        seen(metric, async || Some(self.metrics().await[metric]).filter(|figure| what(*figure)))
            .await
    }
}
