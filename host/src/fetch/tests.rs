use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Empty};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// A server whose every connection gets the same bytes for an answer, each time a request's head has come.
struct Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Server {
    async fn answering(answer: &'static str) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), answer).await
    }

    async fn at(address: SocketAddr, answer: &'static str) -> Self {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connections, heads) = (Arc::new(AtomicUsize::new(0)), Arc::default());
        let server = Self { address, connections, heads };
        let (connections, heads) = (server.connections.clone(), server.heads.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                connections.fetch_add(1, Ordering::SeqCst);
                tokio::spawn(answer_all(stream, answer, heads.clone()));
            }
        });
        server
    }

    fn url(&self, host: &str) -> String {
        format!("http://{host}:{}", self.address.port())
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

async fn answer_all(mut stream: TcpStream, answer: &str, heads: Arc<Mutex<Vec<String>>>) {
    let mut read = String::new();
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        read.push_str(&String::from_utf8_lossy(&buffer[..count]));
        while let Some(end) = read.find("\r\n\r\n") {
            heads.lock().unwrap().push(read.drain(..end + 4).collect());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi";

/// A network whose lookups give these answers, one after the other and the last one for ever, and how many there were.
fn network(answers: &[&[&str]]) -> (Arc<Network>, Arc<AtomicUsize>) {
    let parse = |answer: &&[&str]| -> Vec<IpAddr> {
        answer.iter().map(|address| address.parse().unwrap()).collect()
    };
    let answers: Mutex<VecDeque<_>> = Mutex::new(answers.iter().map(parse).collect());
    let count = Arc::new(AtomicUsize::new(0));
    let counting = count.clone();
    let lookup: Lookup = Arc::new(move |_| {
        counting.fetch_add(1, Ordering::SeqCst);
        let mut answers = answers.lock().unwrap();
        let answer = answers.pop_front().unwrap_or_default();
        if answers.is_empty() {
            answers.push_back(answer.clone());
        }
        Box::pin(async move { Ok(answer) })
    });
    (Arc::new(Network::new(lookup)), count)
}

fn limits() -> OutboundLimits {
    OutboundLimits::default()
}

fn client(network: &Arc<Network>, grants: &[String], limits: OutboundLimits) -> Client {
    let grants: Vec<Pattern> = grants.iter().map(|grant| grant.parse().unwrap()).collect();
    Client::new(network.clone(), grants.into(), limits)
}

fn request(url: &str) -> Request<Sending> {
    let body = Empty::<Bytes>::new().map_err(|never| match never {}).boxed_unsync();
    Request::get(url).body(body).unwrap()
}

async fn get(client: &Client, url: &str) -> Result<Response<Received>, FetchError> {
    client.send(request(url), Patience::default()).await
}

async fn text(response: Response<Received>) -> String {
    let body = response.into_body().collect().await.expect("the body is whole");
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

/// What the operator would have to grant, of a request that went nowhere.
fn refused(sent: Result<Response<Received>, FetchError>) -> String {
    let error = sent.map(|response| response.status()).expect_err("it goes nowhere");
    error.missing().unwrap_or_else(|| panic!("no grant would help: {error}")).to_string()
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_refused_until_the_address_is_granted() {
    let server = Server::answering(OK).await;
    let (name, address) = (server.url("service.test"), server.url("127.0.0.1"));
    for answer in ["127.0.0.1", "::ffff:127.0.0.1"] {
        let (network, _) = network(&[&[answer]]);
        let named = client(&network, std::slice::from_ref(&name), limits());
        assert_eq!(refused(get(&named, &name).await), address, "{answer}");
        assert_eq!(server.connections(), 0);
    }
    for answer in [["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "::ffff:127.0.0.1"]] {
        let (network, _) = network(&[&answer]);
        let granted = client(&network, &[name.clone(), address.clone()], limits());
        assert_eq!(text(get(&granted, &name).await.unwrap()).await, "hi", "{answer:?}");
    }
}

#[tokio::test]
async fn a_name_that_changes_its_address_gains_nothing() {
    let first =
        Server::answering("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            .await;
    let mut inside = first.address;
    inside.set_ip([127, 0, 0, 2].into());
    let inside = Server::at(inside, OK).await;
    let (network, lookups) = network(&[&["127.0.0.1"], &["127.0.0.2"]]);
    let name = first.url("rebound.test");
    let client = client(&network, &[name.clone(), first.url("127.0.0.1")], limits());
    get(&client, &name).await.expect("the first address is granted");
    assert_eq!(lookups.load(Ordering::SeqCst), 1, "what was checked is what was connected to");
    assert_eq!(refused(get(&client, &name).await), inside.url("127.0.0.2"));
    assert_eq!((first.connections(), inside.connections()), (1, 0));
}

#[tokio::test]
async fn a_connection_is_kept_for_its_agent_alone() {
    let server = Server::answering(OK).await;
    let (network, lookups) = network(&[&["127.0.0.1"]]);
    let name = server.url("service.test");
    let granted = client(&network, &[name.clone(), server.url("127.0.0.1")], limits());
    for _ in 0..3 {
        assert_eq!(text(get(&granted, &name).await.unwrap()).await, "hi");
    }
    assert_eq!((server.connections(), lookups.load(Ordering::SeqCst)), (1, 1), "it is kept");
    let other = client(&network, std::slice::from_ref(&name), limits());
    assert_eq!(refused(get(&other, &name).await), server.url("127.0.0.1"));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn localhost_is_this_machine_where_it_is_granted_by_name() {
    let server = Server::answering(OK).await;
    let (network, lookups) = network(&[&["10.0.0.1"]]);
    let name = server.url("localhost");
    let granted = client(&network, std::slice::from_ref(&name), limits());
    assert_eq!(text(get(&granted, &server.url("LocalHost.")).await.unwrap()).await, "hi");
    assert_eq!(lookups.load(Ordering::SeqCst), 0, "nobody is asked what it means");
    assert_eq!(refused(get(&granted, &server.url("127.0.0.1")).await), server.url("127.0.0.1"));
    let any = client(&network, &[format!("http://*:{}", server.address.port())], limits());
    assert_eq!(refused(get(&any, &name).await), name);
}

#[tokio::test]
async fn what_is_sent_is_what_was_checked() {
    let server = Server::answering(OK).await;
    let (network, _) = network(&[&["127.0.0.1"]]);
    let url = server.url("127.0.0.1");
    let client = client(&network, std::slice::from_ref(&url), limits());
    let mut asked = request(&server.url("[::ffff:127.0.0.1]"));
    asked.headers_mut().insert(HOST, "inside.test".parse().unwrap());
    client.send(asked, Patience::default()).await.unwrap();
    assert_eq!(server.heads(), [format!("GET / HTTP/1.1\r\nhost: {}\r\n\r\n", &url[7..])]);

    let user = format!("http://user@{}", server.address);
    assert!(matches!(get(&client, &user).await, Err(FetchError::NoHost(_))));
    let mut tunnel = request(&url);
    *tunnel.method_mut() = Method::CONNECT;
    let tunnel = client.send(tunnel, Patience::default()).await;
    assert!(matches!(tunnel, Err(FetchError::Method(_))));
    assert_eq!(server.connections(), 1);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let answer = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.2/\r\ncontent-length: 0\r\n\r\n";
    let server = Server::answering(answer).await;
    let (network, _) = network(&[&[]]);
    let url = server.url("127.0.0.1");
    let client = client(&network, std::slice::from_ref(&url), limits());
    let answer = get(&client, &url).await.unwrap();
    assert_eq!(
        (answer.status(), &answer.headers()["location"]),
        (http::StatusCode::FOUND, &"http://127.0.0.2/".parse().unwrap())
    );
    assert_eq!(refused(get(&client, "http://127.0.0.2/").await), "http://127.0.0.2");
}

#[tokio::test]
async fn requests_and_connections_are_counted_until_they_have_ended() {
    let server = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi").await;
    let (network, _) = network(&[&[]]);
    let url = server.url("127.0.0.1");
    let one = OutboundLimits { requests: 1, ..limits() };
    let single = client(&network, std::slice::from_ref(&url), one);
    let first = get(&single, &url).await.unwrap();
    let second = get(&single, &url).await;
    assert!(matches!(second, Err(FetchError::TooManyRequests { limit: 1 })));
    drop(first);
    get(&single, &url).await.expect("the place is free again");

    let one = OutboundLimits { connections: 1, ..limits() };
    let narrow = client(&network, std::slice::from_ref(&url), one);
    let _first = get(&narrow, &url).await.unwrap();
    let second = get(&narrow, &url).await;
    assert!(
        matches!(second, Err(FetchError::Connect(ConnectError::TooMany { limit: 1 }))),
        "its only connection has a response on it"
    );
}

#[tokio::test]
async fn nobody_is_waited_for_without_end() {
    let (network, _) = network(&[&[]]);
    let soon = Duration::from_millis(20);
    let silent = Server::answering("").await;
    let halting = Server::answering("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi").await;
    let urls = [silent.url("127.0.0.1"), halting.url("127.0.0.1")];
    // What is short is what never comes, so that a slow machine changes nothing.
    let at_once = Patience { connect: Some(Duration::ZERO), ..Patience::default() };
    let cases = [
        (OutboundLimits { response_timeout: soon, ..limits() }, at_once),
        (limits(), Patience { head: Some(soon), ..at_once }),
    ];
    for (limits, patience) in cases {
        let late = client(&network, &urls, limits).send(request(&urls[0]), patience).await;
        assert!(matches!(late, Err(FetchError::ResponseTimeout)));
    }
    let cases = [
        (OutboundLimits { read_stall: soon, ..limits() }, Patience::default()),
        (limits(), Patience { bytes: Some(soon), ..Patience::default() }),
    ];
    for (limits, patience) in cases {
        let halted = client(&network, &urls, limits).send(request(&urls[1]), patience).await;
        let body = halted.expect("the head is there").into_body().collect().await;
        assert!(matches!(body, Err(FetchError::ReadTimeout)));
    }
}

#[tokio::test]
async fn what_cannot_be_reached_says_why() {
    let (network, _) = network(&[&[]]);
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let closed = format!("http://{closed}");
    let client = client(&network, &[closed.clone(), "http://nowhere.test".into()], limits());
    let nowhere = get(&client, "http://nowhere.test").await;
    assert!(matches!(nowhere, Err(FetchError::Connect(ConnectError::NoAddress { .. }))));
    let closed = get(&client, &closed).await;
    assert!(matches!(closed, Err(FetchError::Connect(ConnectError::Refused { .. }))));
}
