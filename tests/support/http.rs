//! HTTP where a client library would be in the way: connections by hand, and problems in a line.

use reqwest::Response;
use reqwest::header::HeaderMap;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The value of a header field, empty when there is none.
pub fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).map_or("", |value| value.to_str().unwrap())
}

/// A problem document as `404 unknown-agent host`: its status, its code and its source.
pub async fn problem(response: Response) -> String {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json", "{status}");
    let document: Value = response.json().await.expect("a problem is JSON");
    assert_eq!(document["status"], status, "{document}");
    for member in ["type", "title", "detail"] {
        assert!(document[member].is_string(), "{document}");
    }
    let text = |member: &str| document[member].as_str().unwrap_or_default().to_owned();
    format!("{status} {} {}", text("code"), text("source"))
}

/// A connection to a host, byte by byte.
pub struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Connects to the host of this URL.
    pub async fn to(url: &str) -> Self {
        Self::with(url, TcpSocket::new_v4().unwrap()).await
    }

    /// Connects from this address of the machine.
    pub async fn from(address: [u8; 4], url: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((address, 0).into()).unwrap();
        Self::with(url, socket).await
    }

    /// Connects with little room for what is not read.
    pub async fn narrow(url: &str) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        Self::with(url, socket).await
    }

    async fn with(url: &str, socket: TcpSocket) -> Self {
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        let stream = socket.connect(address).await.expect("the host listens");
        Self { stream, read: Vec::new() }
    }

    /// Sends these bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.expect("the host reads");
    }

    /// Sends these bytes to a host that may have heard enough.
    pub async fn offer(&mut self, bytes: impl AsRef<[u8]>) -> std::io::Result<()> {
        self.stream.write_all(bytes.as_ref()).await
    }

    /// Breaks the connection.
    pub fn reset(self) {
        self.stream.set_zero_linger().unwrap();
    }

    /// Sends nothing more.
    pub async fn finish(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads at most this many bytes; 0 at the end.
    pub async fn read(&mut self, most: usize) -> usize {
        let mut bytes = vec![0; most];
        // A connection that breaks has ended as well.
        let count = self.stream.read(&mut bytes).await.unwrap_or(0);
        self.read.extend_from_slice(&bytes[..count]);
        count
    }

    /// All that was read so far.
    pub fn bytes(&self) -> &[u8] {
        &self.read
    }

    /// All that was read so far, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.read).into_owned()
    }

    /// Reads until this is there, and returns all that was read so far.
    pub async fn until(&mut self, what: &str) -> String {
        while !self.text().contains(what) {
            assert_ne!(self.read(4096).await, 0, "it ended before {what:?}: {}", self.text());
        }
        self.text()
    }

    /// Reads until the host closes the connection, and returns all that was ever read.
    pub async fn rest(mut self) -> String {
        while self.read(64 << 10).await > 0 {}
        self.text()
    }

    /// Waits until the host has read all that was sent.
    pub async fn taken(&self) {
        let port = |address: std::net::SocketAddr| format!(":{:04X}", address.port());
        let theirs = port(self.stream.peer_addr().unwrap());
        let ours = port(self.stream.local_addr().unwrap());
        loop {
            let sockets = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let mut sockets =
                sockets.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
            let socket = sockets.find(|of| of[1].ends_with(&theirs) && of[2].ends_with(&ours));
            let queues = socket.expect("the connection is open")[4];
            if queues.ends_with(":00000000") {
                return;
            }
            // Only the kernel knows, and it wakes no one for it.
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}
