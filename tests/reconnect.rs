//! An `EventSource` client of other people's making behind a network that breaks: it loses nothing, sees nothing
//! twice, and stops when there is nothing more.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use futures_util::StreamExt as _;
use futures_util::future::join_all;
use reqwest_eventsource::{Error, Event, EventSource, retry};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{Started, TestHost};

/// How many events each client reads.
const EVENTS: usize = 1000;

/// Clients heed the host's delay from the first event on; before it they have one of their own.
const RETRY: &str = "[http]\nretry = \"1ms\"";

#[tokio::test]
async fn a_client_whose_connections_are_cut_at_random_bytes_sees_every_event_once() {
    let host = TestHost::serving(&["probe"]).config(RETRY).start();
    let clients = (0..4).map(async |seed| {
        let proxy = Proxy::start(&host, seed).await;
        let path = format!("probe/{seed}/emit?count={EVENTS}&delay=1");
        let mut client = proxy.client(&path);
        let seen = Seen::by(&mut client, |_| {}).await;
        (seed, seen, proxy)
    });
    for (seed, seen, proxy) in join_all(clients).await {
        seen.check(seed);
        let numbers = seen.data.iter().map(|data| data.parse::<usize>().unwrap());
        assert!(numbers.eq(1..=EVENTS), "seed {seed}: {:?}", seen.data);
        proxy.check();
    }
}

#[tokio::test]
async fn a_client_whose_host_is_killed_as_well_sees_every_event_once() {
    let mut host = Some(TestHost::serving(&["resume"]).config(RETRY).start());
    let proxy = Proxy::start(host.as_ref().unwrap(), 0).await;
    let mut client = proxy.client(&format!("resume/one?total={EVENTS}&delay=1"));
    let mut log = Vec::new();
    let seen = Seen::by(&mut client, |count| {
        if [250, 500, 750].contains(&count) {
            let first = host.take().expect("there is always a host");
            log.extend(first.log());
            let second = first.kill().start();
            proxy.redirect(&second);
            host = Some(second);
        }
    });
    let seen = seen.await;
    log.extend(host.as_ref().unwrap().log());
    assert!(log.iter().any(|line| line.contains("\"resuming\"")), "no end of a host met the run");
    seen.check(0);
    let numbers = (1..=EVENTS).map(|n| format!("{{\"n\":{n}}}"));
    assert!(numbers.eq(seen.data.iter().cloned()), "{:?}", seen.data);
    proxy.check();
}

/// What a client saw until it stopped of itself.
struct Seen {
    ids: Vec<String>,
    data: Vec<String>,
}

impl Seen {
    async fn by(client: &mut EventSource, mut each: impl FnMut(usize)) -> Self {
        let mut seen = Self { ids: Vec::new(), data: Vec::new() };
        let mut last_words = None;
        while let Some(step) = client.next().await {
            match step {
                Ok(Event::Open) => {}
                Ok(Event::Message(message)) => {
                    seen.ids.push(message.id);
                    seen.data.push(message.data);
                    each(seen.ids.len());
                }
                Err(error) => last_words = Some(error),
            }
        }
        match last_words {
            Some(Error::InvalidStatusCode(status, _)) => assert_eq!(status, 204, "why it stopped"),
            other => panic!("the client did not stop by a status: {other:?}"),
        }
        seen
    }

    /// All the events are of one run, each once and in order.
    fn check(&self, seed: u64) {
        let (run, _) = self.ids[0].rsplit_once('-').unwrap();
        let expected = (1..=EVENTS).map(|seq| format!("{run}-{seq}"));
        assert!(expected.eq(self.ids.iter().cloned()), "seed {seed}: {:?}", self.ids);
    }
}

/// A network between a client and a host, in which every connection breaks off after a random number of bytes.
#[derive(Clone)]
struct Proxy {
    address: SocketAddr,
    host: Arc<Mutex<SocketAddr>>,
    /// The first response's status of each connection on which one came through.
    statuses: Arc<Mutex<Vec<u16>>>,
}

impl Proxy {
    async fn start(host: &Started, seed: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = Arc::new(Mutex::new(address_of(host)));
        let proxy = Self { address, host, statuses: Arc::default() };
        let serving = proxy.clone();
        let mut rng = Rng::with_seed(seed);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                // Some break in the head, and most let a number of events through.
                let bytes = rng.u64(1..4000);
                let proxy = serving.clone();
                tokio::spawn(async move { proxy.pass(client, bytes).await });
            }
        });
        proxy
    }

    /// Passes the request on, and this many bytes of what comes back.
    async fn pass(&self, mut client: TcpStream, bytes: u64) -> io::Result<()> {
        let host = *self.host.lock().unwrap();
        let mut host = TcpStream::connect(host).await?;
        let (mut from_host, mut to_host) = host.split();
        let (mut from_client, mut to_client) = client.split();
        let requests = tokio::io::copy(&mut from_client, &mut to_host);
        let responses = async {
            let mut responses = (&mut from_host).take(bytes);
            let mut start = *b"HTTP/1.1 200";
            responses.read_exact(&mut start).await?;
            to_client.write_all(&start).await?;
            let status =
                std::str::from_utf8(&start[9..]).ok().and_then(|status| status.parse().ok());
            self.statuses.lock().unwrap().push(status.expect("a response starts with its status"));
            tokio::io::copy(&mut responses, &mut to_client).await
        };
        tokio::select! {
            passed = requests => passed,
            passed = responses => passed,
        }
        .map(drop)
    }

    fn redirect(&self, host: &Started) {
        *self.host.lock().unwrap() = address_of(host);
    }

    fn client(&self, path: &str) -> EventSource {
        let mut client = EventSource::get(format!("http://{}/agents/{path}", self.address));
        client.set_retry_policy(Box::new(retry::Constant::new(Duration::from_millis(1), None)));
        client
    }

    /// The network broke often, and the client met nothing but streams before it was told that there is no more.
    fn check(&self) {
        let statuses = self.statuses.lock().unwrap();
        let (last, others) = statuses.split_last().unwrap();
        assert!(others.len() > 10, "the network never broke: {statuses:?}");
        assert!(others.iter().all(|status| *status == 200), "{statuses:?}");
        // The last stream may have come to its end on the connection that then said so.
        assert!([200, 204].contains(last), "{statuses:?}");
    }
}

fn address_of(host: &Started) -> SocketAddr {
    host.url.strip_prefix("http://").unwrap().parse().unwrap()
}
