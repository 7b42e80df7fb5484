//! A server that agents send requests to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

type Body = UnsyncBoxBody<Bytes, Infallible>;

/// The server. It is gone with the test's runtime.
///
/// - `/echo` answers with the request as JSON.
/// - `/redirect?URL` sends to another place.
/// - `/drip` writes `one` at once and `two` when it is told to go on.
/// - `/never` does not answer.
/// - `/cut` promises more than it sends.
pub struct Upstream {
    pub address: SocketAddr,
    at: Arc<At>,
}

struct At {
    connections: AtomicUsize,
    seen: Mutex<Vec<Value>>,
    go_on: Semaphore,
}

impl Upstream {
    /// Answers without TLS.
    pub async fn start() -> Self {
        Self::with(None).await
    }

    /// Answers by TLS, in one of the protocols that the configuration names.
    pub async fn start_tls(config: ServerConfig) -> Self {
        Self::with(Some(TlsAcceptor::from(Arc::new(config)))).await
    }

    async fn with(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, at) = (listener.local_addr().unwrap(), Arc::new(At::new()));
        let serving = at.clone();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.expect("the listener is ours");
                serving.connections.fetch_add(1, Ordering::SeqCst);
                let (at, tls) = (serving.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, false, at).await,
                        // Who does not trust the certificate leaves here.
                        Some(tls) => {
                            let Ok(stream) = tls.accept(stream).await else { return };
                            let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                            serve(stream, is_h2, at).await;
                        }
                    }
                });
            }
        });
        Self { address, at }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// A URL here.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// How often a connection was made.
    pub fn connections(&self) -> usize {
        self.at.connections.load(Ordering::SeqCst)
    }

    /// The requests so far.
    pub fn seen(&self) -> Vec<Value> {
        self.at.seen.lock().unwrap().clone()
    }

    /// Lets one `/drip` go on.
    pub fn go_on(&self) {
        self.at.go_on.add_permits(1);
    }
}

async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    is_h2: bool,
    at: Arc<At>,
) {
    let answer = service_fn(move |request| {
        let at = at.clone();
        async move { Ok::<_, Infallible>(at.answer(request).await) }
    });
    let stream = TokioIo::new(stream);
    // A client that goes away is none of a test's business.
    let _ = match is_h2 {
        true => {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            server.serve_connection(stream, answer).await
        }
        false => hyper::server::conn::http1::Builder::new().serve_connection(stream, answer).await,
    };
}

impl At {
    fn new() -> Self {
        Self { connections: AtomicUsize::new(0), seen: Mutex::default(), go_on: Semaphore::new(0) }
    }

    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let fields: Vec<_> = head
            .headers
            .iter()
            .map(|(name, value)| (name.as_str(), String::from_utf8_lossy(value.as_bytes())))
            .collect();
        let seen = json!({
            "version": format!("{:?}", head.version),
            "method": head.method.as_str(),
            "authority": head.uri.authority().map(|authority| authority.as_str()),
            "path": head.uri.path(),
            "headers": fields,
            "body": String::from_utf8_lossy(&body),
        });
        self.seen.lock().unwrap().push(seen.clone());
        match head.uri.path() {
            "/echo" => Response::new(full(seen.to_string())),
            "/redirect" => {
                let to = head.uri.query().unwrap_or_default();
                Response::builder().status(302).header("location", to).body(full("")).unwrap()
            }
            "/drip" => {
                let two = async move {
                    self.go_on.acquire().await.expect("it is never closed").forget();
                    "two\n"
                };
                let pieces: [Pin<Box<dyn Future<Output = &str> + Send>>; 2] =
                    [Box::pin(async { "one\n" }), Box::pin(two)];
                let pieces = stream::unfold(pieces.into_iter(), async |mut pieces| {
                    let piece = pieces.next()?.await;
                    Some((Ok(Frame::data(Bytes::from(piece))), pieces))
                });
                Response::new(StreamBody::new(pieces).boxed_unsync())
            }
            "/never" => std::future::pending().await,
            "/cut" => {
                // Of no length that is known, or hyper would not take the wrong one; and what there is, is sent before the end.
                let part = stream::unfold(Some("part"), async |part| match part {
                    Some(part) => Some((Ok(Frame::data(Bytes::from(part))), None)),
                    None => {
                        tokio::task::yield_now().await;
                        None
                    }
                });
                let part = StreamBody::new(part).boxed_unsync();
                Response::builder().header("content-length", "5").body(part).unwrap()
            }
            _ => Response::builder().status(404).body(full("")).unwrap(),
        }
    }
}

fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}
