//! What things cost, as counted work: allocations, memory that is held, commits, bytes on disk. Each ceiling is what was measured when it
//! was set, so that who makes something cost more sees it here. How long things take is the benchmarks' affair.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::{Disk, InProcess, Kind, allocations, held};

/// A client that allocates nothing once it is connected.
struct Client {
    connection: TcpStream,
    answer: Vec<u8>,
}

impl Client {
    async fn to(host: &InProcess) -> Self {
        let address = host.url.strip_prefix("http://").unwrap();
        let connection = TcpStream::connect(address).await.unwrap();
        Self { connection, answer: vec![0; 64 << 10] }
    }

    async fn send(&mut self, request: &str) {
        self.connection.write_all(request.as_bytes()).await.unwrap();
    }

    async fn read(&mut self) -> &[u8] {
        let count = self.connection.read(&mut self.answer).await.unwrap();
        &self.answer[..count]
    }
}

/// Allocations of one call of `path`, asked for again and again on one connection, once everything is warm.
async fn allocations_per_request(host: &InProcess, path: &str) -> u64 {
    const REQUESTS: u64 = 100;
    let mut client = Client::to(host).await;
    let request = format!("GET /agents/{path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let mut before = 0;
    for sent in 0..2 * REQUESTS {
        if sent == REQUESTS {
            before = allocations();
        }
        client.send(&request).await;
        let answer = client.read().await;
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        assert!(answer.ends_with(b"}"), "it came as a whole");
    }
    (allocations() - before) / REQUESTS
}

#[tokio::test]
async fn allocations_per_reply() {
    let host = InProcess::serving(&["load"], &Disk::default(), |_| {}).await;
    let plain = allocations_per_request(&host, "load/one/plain").await;
    assert!(plain <= 33, "{plain} for a plain reply");
    let state = allocations_per_request(&host, "load/one/state").await;
    // With those of its commit, for which there is nobody to wait.
    assert!(state <= 43, "{state} for a reply that writes state");
    host.stop().await;
}

#[tokio::test]
async fn memory_of_a_stream_on_which_nothing_happens() {
    const STREAMS: usize = 100;
    let host = InProcess::serving(&["load"], &Disk::default(), |_| {}).await;
    let address = host.url.strip_prefix("http://").unwrap();
    let request = "GET /agents/load/one/hold HTTP/1.1\r\nhost: localhost\r\n\r\n";
    let mut streams = Vec::with_capacity(2 * STREAMS);
    let mut before = 0;
    for opened in 0..2 * STREAMS {
        if opened == STREAMS {
            before = held();
        }
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = [0; 1 << 10];
        let mut count = 0;
        while !answer[..count].ends_with(b"retry: 2000\n\r\n") {
            count += stream.read(&mut answer[count..]).await.unwrap();
        }
        streams.push(stream);
    }
    let each = (held() - before) / STREAMS as i64;
    // 24,076 where the journal's writer commits all of it, and up to some hundred more by what this thread commits in its place, which depends on
    // how quick the disk is.
    assert!(each <= 24_250, "{each} bytes of a stream, of which hyper's buffers are 16 KiB");
    host.stop().await;
}

/// What the events of a run cost.
#[derive(Debug)]
struct Cost {
    commits: u64,
    /// Of the thread that everything is on but the journal's writer and its settler.
    allocations: u64,
    /// Bytes that went to the disk.
    written: u64,
}

/// The cost of a run of `events` events of 64 bytes.
async fn cost(events: u64, query: &str) -> Cost {
    let disk = Disk::default();
    let host = InProcess::serving(&["load"], &disk, |_| {}).await;
    // Another run first, so that everything is warm.
    host.stream("load/one/events?n=10&size=64").await.rest().await;
    let written = Arc::new(AtomicU64::new(0));
    let counter = written.clone();
    disk.observe(move |change| {
        if let Kind::Write { data, .. } = &change.kind {
            counter.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
    });
    let commits = host.metrics().await["commits_total"];
    let mut client = Client::to(&host).await;
    let before = allocations();
    let path = format!("/agents/load/one/events?n={events}&size=64{query}");
    client.send(&format!("GET {path} HTTP/1.0\r\n\r\n")).await;
    let mut lines = 0;
    loop {
        let bytes = client.read().await;
        if bytes.is_empty() {
            break;
        }
        lines += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
    }
    let allocations = allocations() - before;
    assert!(lines >= 3 * events, "an event is three lines, and {events} of them had {lines}");
    let commits = host.metrics().await["commits_total"] - commits;
    host.stop().await;
    Cost { commits, allocations, written: written.load(Ordering::Relaxed) }
}

#[tokio::test]
async fn events_of_a_guest_that_does_not_wait_share_a_commit() {
    const EVENTS: u64 = 10_000;
    let cost = cost(EVENTS, "").await;
    // One more if retention had not yet looked whether it has anything to do.
    assert!(cost.commits <= 2, "{cost:?}");
    assert!(cost.allocations <= 4 * EVENTS + 200, "{cost:?}");
    assert!(cost.written <= 64 * EVENTS * 16 / 5, "{cost:?}");
}

#[tokio::test]
async fn an_event_on_its_own_is_one_commit() {
    const EVENTS: u64 = 300;
    let cost = cost(EVENTS, "&delay=1").await;
    // Also the end, which comes after the last pause, and retention's look.
    assert!(cost.commits <= EVENTS + 2, "{cost:?}");
    assert!(cost.allocations <= 23 * EVENTS, "{cost:?}");
    assert!(cost.written <= 4_720 * EVENTS, "{cost:?}");
}
