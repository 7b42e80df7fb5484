//! A model provider that says what a test has it say, byte by byte.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// How a request is answered.
pub enum Script {
    /// With a status, header fields and a body, at once.
    Refuse(u16, &'static str, String),
    /// With an event stream: these chunks, each written by itself, and how it ends.
    Stream(Vec<Vec<u8>>, End),
    /// Not at all: the connection is closed.
    Close,
}

/// How an event stream ends.
pub enum End {
    /// As HTTP says.
    Whole,
    /// By closing the connection.
    Cut,
    /// As HTTP says, with this before it, once the test lets it go.
    Held(oneshot::Receiver<()>, Vec<u8>),
    /// Not: nothing more is said, until the client closes the connection.
    Stall,
}

/// The provider. It is gone with the test's runtime.
pub struct Provider {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Value>>>,
    /// Says that a stalled connection was closed by the client.
    pub left: mpsc::UnboundedReceiver<()>,
}

impl Provider {
    /// Answers requests in order, one script for each.
    pub async fn start(scripts: impl IntoIterator<Item = Script>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let scripts: Arc<Mutex<VecDeque<Script>>> =
            Arc::new(Mutex::new(scripts.into_iter().collect()));
        let asked = Arc::<Mutex<Vec<Value>>>::default();
        let (leaving, left) = mpsc::unbounded_channel();
        let seen = asked.clone();
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (scripts, seen, leaving) = (scripts.clone(), seen.clone(), leaving.clone());
                // A client that closes the connection ends this too.
                tokio::spawn(async move { serve(connection, &scripts, &seen, &leaving).await });
            }
        });
        Self { address, asked, left }
    }

    /// The configuration of the agent `chat` that asks it.
    pub fn config(&self) -> String {
        let url = format!("http://{}", self.address);
        format!(
            "[agents.chat]\nallow_hosts = ['{url}']\nconfig = {{ base_url = '{url}/v1', model = 'small' }}"
        )
    }

    /// The documents that came.
    pub fn asked(&self) -> Vec<Value> {
        self.asked.lock().unwrap().clone()
    }
}

async fn serve(
    mut connection: TcpStream,
    scripts: &Mutex<VecDeque<Script>>,
    asked: &Mutex<Vec<Value>>,
    left: &mpsc::UnboundedSender<()>,
) -> Option<()> {
    connection.set_nodelay(true).ok()?;
    loop {
        let body = request(&mut connection).await?;
        asked.lock().unwrap().push(serde_json::from_slice(&body).expect("it is JSON"));
        let script = scripts.lock().unwrap().pop_front().expect("no more requests are expected");
        match script {
            Script::Close => return None,
            Script::Refuse(status, fields, body) => {
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status} x\r\ncontent-length: {length}\r\n{fields}\r\n");
                connection.write_all((head + &body).as_bytes()).await.ok()?;
            }
            Script::Stream(chunks, end) => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n";
                connection.write_all(head.as_bytes()).await.ok()?;
                for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                    connection.write_all(&frame(chunk)).await.ok()?;
                }
                match end {
                    End::Whole => connection.write_all(b"0\r\n\r\n").await.ok()?,
                    End::Held(release, rest) => {
                        release.await.ok()?;
                        connection.write_all(&frame(&rest)).await.ok()?;
                        connection.write_all(b"0\r\n\r\n").await.ok()?;
                    }
                    End::Cut => return None,
                    End::Stall => {
                        while connection.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                        left.send(()).ok()?;
                        return None;
                    }
                }
            }
        }
    }
}

/// A chunk as HTTP/1.1 frames it.
fn frame(chunk: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat()
}

/// The body of the next request.
async fn request(connection: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
            let length = head.split("content-length: ").nth(1).expect("it has a body");
            let length: usize = length.split("\r\n").next()?.parse().ok()?;
            if bytes.len() >= end + 4 + length {
                return Some(bytes[end + 4..end + 4 + length].to_vec());
            }
        }
        if connection.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

/// An event of the protocol.
pub fn chunk(delta: Value, finish: Option<&str>) -> String {
    let choice = json!({ "index": 0, "delta": delta, "finish_reason": finish });
    format!("data: {}\n\n", json!({ "choices": [choice] }))
}

/// An answer of these words, whole.
pub fn words(words: &[&str]) -> String {
    let mut wire: String =
        words.iter().map(|word| chunk(json!({ "content": word }), None)).collect();
    wire += &chunk(json!({}), Some("stop"));
    let usage = json!({ "prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3 });
    wire += &format!("data: {}\n\ndata: [DONE]\n\n", json!({ "choices": [], "usage": usage }));
    wire
}
