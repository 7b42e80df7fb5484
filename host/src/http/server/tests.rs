use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::StatusCode;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2;
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::socket::PREFACE;
use super::*;
use crate::http::BodyError;
use crate::shutdown::Stage;

/// A test that would hang fails after this.
const FOREVER: Duration = Duration::from_secs(20);

struct TestServer {
    address: SocketAddr,
    shutdown: Shutdown,
    serving: tokio::task::JoinHandle<()>,
}

impl TestServer {
    fn start<S, F>(limits: HttpLimits, service: S) -> Self
    where
        S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::default();
        let serving = tokio::spawn({
            let shutdown = shutdown.clone();
            let connections = Connections::new(&limits);
            async move { serve(listener, service, &limits, connections, None, shutdown).await }
        });
        Self { address, shutdown, serving }
    }

    /// A server whose every answer is `ok`.
    fn ok(limits: HttpLimits) -> Self {
        Self::start(limits, |_| async { Response::new(Body::full("ok")) })
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// What the server says to these bytes until it closes the connection.
    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        rest(&mut stream).await
    }

    async fn http2(&self) -> http2::SendRequest<Empty<Bytes>> {
        let io = TokioIo::new(self.connect().await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

/// What comes until the connection is closed, however it is.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let read = timeout(FOREVER, stream.read_to_end(&mut bytes))
        .await
        .expect("the server closes the connection");
    drop(read);
    String::from_utf8(bytes).unwrap()
}

fn get(address: SocketAddr) -> Request<Empty<Bytes>> {
    Request::get(format!("http://{address}/")).body(Empty::new()).unwrap()
}

/// A body that gives what is sent until the sender is gone, and is itself told by `gone` when it is dropped.
struct Fed {
    chunks: mpsc::Receiver<Bytes>,
    _gone: oneshot::Sender<()>,
}

impl http_body::Body for Fed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, BodyError>>> {
        self.chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| Ok(http_body::Frame::data(chunk))))
    }
}

fn fed() -> (mpsc::Sender<Bytes>, oneshot::Receiver<()>, Body) {
    let (feed, chunks) = mpsc::channel(1);
    let (gone, told) = oneshot::channel();
    (feed, told, Body::Chunks(Fed { chunks, _gone: gone }.boxed_unsync()))
}

/// A service that answers once, with this body.
fn once(
    body: Body,
) -> impl Fn(Request<Incoming>) -> std::future::Ready<Response<Body>> + Clone + Send + 'static {
    let body = Arc::new(std::sync::Mutex::new(Some(body)));
    move |_| std::future::ready(Response::new(body.lock().unwrap().take().unwrap()))
}

const HELLO: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
const CLOSING: &str = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn http1_and_http2_are_served_on_one_port() {
    let server = TestServer::start(HttpLimits::default(), |request| async move {
        Response::new(Body::full(format!("{:?}", request.version())))
    });
    assert!(server.exchange(CLOSING).await.ends_with("\r\n\r\nHTTP/1.1"));
    let response = server.http2().await.send_request(get(server.address)).await.unwrap();
    assert_eq!(response.headers().get("connection"), None);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "HTTP/2.0");
}

#[tokio::test]
async fn head_has_headers_only() {
    let server = TestServer::ok(HttpLimits::default());
    let answer = server.exchange(&CLOSING.replace("GET", "HEAD")).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("content-length: 2\r\n"), "{answer}");
}

#[tokio::test]
async fn a_head_that_is_too_large_or_has_too_many_fields_is_refused() {
    let server = TestServer::ok(HttpLimits { header_bytes: 8192, ..HttpLimits::default() });
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "x".repeat(8192));
    assert!(server.exchange(&large).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "x: y\r\n".repeat(101));
    assert!(server.exchange(&many).await.starts_with("HTTP/1.1 431 "));

    let mut request = get(server.address);
    request.headers_mut().insert("x", "x".repeat(8192).parse().unwrap());
    let refused = server.http2().await.send_request(request).await;
    assert!(refused.is_err() || refused.is_ok_and(|response| response.status() == 431));
    // The server itself is unharmed.
    assert!(server.exchange(CLOSING).await.ends_with("ok"));
}

#[tokio::test]
async fn a_client_that_does_not_finish_its_head_is_cut() {
    let header_timeout = Duration::from_millis(20);
    let server = TestServer::ok(HttpLimits { header_timeout, ..HttpLimits::default() });
    // Nothing at all, half of the HTTP/2 preface, half a head, and nothing more after an answer.
    for start in ["", "PRI * HT", "GET / HTTP/1.1\r\nhos"] {
        assert_eq!(server.exchange(start).await, "", "{start:?}");
    }
    assert!(server.exchange(HELLO).await.ends_with("ok"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_and_its_body_dropped() {
    let (feed, gone, body) = fed();
    let limits = HttpLimits { write_stall: Duration::from_millis(20), ..HttpLimits::default() };
    let server = TestServer::start(limits, once(body));
    let mut stream = server.connect().await;
    stream.write_all(HELLO.as_bytes()).await.unwrap();
    let chunk = Bytes::from(vec![b'x'; 64 << 10]);
    // Until the kernel's buffers are full, hyper's are, and the deadline is over.
    let cut = async { while feed.send(chunk.clone()).await.is_ok() {} };
    timeout(FOREVER, cut).await.expect("the body is dropped");
    gone.await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn only_a_write_that_does_not_move_runs_into_the_deadline() {
    let limits = HttpLimits::default();
    let (client, mut far) = tokio::io::duplex(8);
    let patience = Patience { stall: limits.write_stall, drain: Stage::default() };
    let mut guarded = Guarded::new(client, Arc::new(patience));
    let start = Instant::now();
    guarded.write_all(&[0; 8]).await.unwrap();
    // A client that reads a little now and then, just in time, is slow but not stuck.
    let write = tokio::spawn(async move { guarded.write_all(&[0; 24]).await.map(|()| guarded) });
    for _ in 0..3 {
        tokio::time::sleep(limits.write_stall - Duration::from_secs(1)).await;
        far.read_exact(&mut [0; 8]).await.unwrap();
    }
    let mut guarded = write.await.unwrap().unwrap();
    assert!(start.elapsed() > limits.write_stall);

    let start = Instant::now();
    let error = guarded.write_all(&[0; 1]).await.unwrap_err();
    assert_eq!((error.kind(), start.elapsed()), (io::ErrorKind::TimedOut, limits.write_stall));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_its_last_answer_is_listened_to_for_a_while() {
    let shutdown = Shutdown::default();
    let patience = Patience { stall: Duration::MAX, drain: shutdown.drain.clone() };
    let patience = Arc::new(patience);
    let guarded = || {
        let (near, far) = tokio::io::duplex(64 << 10);
        (Guarded::new(near, patience.clone()), far)
    };
    // Until it goes, until it has said enough, and for as long as it may.
    let (mut near, mut far) = guarded();
    let close = tokio::spawn(async move { near.shutdown().await });
    far.write_all(&[0; 100_000]).await.unwrap();
    assert_eq!(far.read(&mut [0]).await.unwrap(), 0, "nothing more is said meanwhile");
    drop(far);
    close.await.unwrap().unwrap();

    let start = Instant::now();
    let (mut near, mut far) = guarded();
    let close = tokio::spawn(async move { near.shutdown().await });
    while far.write_all(&[0; 100_000]).await.is_ok() {}
    close.await.unwrap().unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);

    let (mut near, _far) = guarded();
    near.shutdown().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5));

    shutdown.drain.begin();
    let (mut near, _far) = guarded();
    near.shutdown().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(5), "not while the host drains");
}

#[tokio::test]
async fn a_short_request_is_not_taken_for_half_a_preface() {
    for (sent, version) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Some(Version::Http1)),
        (b"POST", Some(Version::Http1)),
        (b"PRI * HTTP/1.1", Some(Version::Http1)),
        (b"P", None),
        (&PREFACE[..23], None),
        (PREFACE, Some(Version::Http2)),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more", Some(Version::Http2)),
    ] {
        let (mut client, near) = tokio::io::duplex(64);
        let mut opened = Opened::new(near);
        client.write_all(sent).await.unwrap();
        let told = opened.open().now_or_never().map(Result::unwrap);
        assert_eq!(told, version, "{sent:?}");
        if told.is_some() {
            // All of it comes at once, however little room a first read has.
            let mut bytes = [0; 64];
            let few = opened.read(&mut bytes[..3]).await.unwrap();
            let rest = opened.read(&mut bytes[few..]).await.unwrap();
            assert_eq!(&bytes[..few + rest], sent);
        }
    }
}

#[tokio::test]
async fn a_client_that_says_half_a_preface_and_ends_is_let_go() {
    let server = TestServer::ok(HttpLimits::default());
    let mut stream = server.connect().await;
    stream.write_all(&PREFACE[..10]).await.unwrap();
    stream.shutdown().await.unwrap();
    rest(&mut stream).await;
}

#[tokio::test]
async fn a_handler_that_panics_is_a_500_and_nothing_else() {
    let server = TestServer::start(HttpLimits::default(), |request| {
        // One panic when called, one when polled.
        assert_ne!(request.uri().path(), "/now");
        async move {
            tokio::task::yield_now().await;
            assert_ne!(request.uri().path(), "/later");
            Response::new(Body::full("ok"))
        }
    });
    for path in ["/now", "/later"] {
        let answer = server.exchange(&CLOSING.replacen('/', path, 1)).await;
        assert!(
            answer.starts_with("HTTP/1.1 500 ") && answer.contains("\"code\":\"internal\""),
            "{answer}"
        );
    }
    let mut client = server.http2().await;
    let mut request = get(server.address);
    *request.uri_mut() = "http://a/later".parse().unwrap();
    assert_eq!(
        client.send_request(request).await.unwrap().status(),
        StatusCode::INTERNAL_SERVER_ERROR
    );
    assert_eq!(client.send_request(get(server.address)).await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn no_more_connections_than_the_limit_are_served_at_once() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let server = TestServer::start(HttpLimits { connections: 2, ..HttpLimits::default() }, {
        let most = most.clone();
        move |_| {
            let (now, most) = (now.clone(), most.clone());
            async move {
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                for _ in 0..100 {
                    tokio::task::yield_now().await;
                }
                now.fetch_sub(1, Ordering::SeqCst);
                Response::new(Body::full("ok"))
            }
        }
    });
    let answers = futures_util::future::join_all((0..16).map(|_| server.exchange(CLOSING))).await;
    assert!(answers.iter().all(|answer| answer.ends_with("ok")), "those past the limit waited");
    assert_eq!(most.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn http2_streams_are_limited_by_the_setting() {
    let server = TestServer::ok(HttpLimits { streams_per_connection: 3, ..HttpLimits::default() });
    let io = TokioIo::new(server.connect().await);
    let (mut client, mut connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::select! {
        response = client.send_request(get(server.address)) => assert_eq!(response.unwrap().status(), 200),
        ended = &mut connection => panic!("{ended:?}"),
    }
    assert_eq!(connection.current_max_send_streams(), 3);
}

#[tokio::test]
async fn draining_finishes_what_is_under_way_and_takes_nothing_new() {
    let (feed, _gone, body) = fed();
    // No deadline may close what the shutdown has to.
    let limits = HttpLimits { header_timeout: FOREVER * 2, ..HttpLimits::default() };
    let streaming = once(body);
    let server = TestServer::start(limits, move |request| match request.uri().path() {
        "/stream" => streaming(request),
        _ => std::future::ready(Response::new(Body::full("ok"))),
    });
    let mut idle = server.connect().await;
    idle.write_all(HELLO.as_bytes()).await.unwrap();
    idle.readable().await.unwrap();
    let mut busy = server.connect().await;
    busy.write_all(HELLO.replacen('/', "/stream", 1).as_bytes()).await.unwrap();
    feed.send("early".into()).await.unwrap();
    busy.readable().await.unwrap();

    server.shutdown.drain.begin();
    server.serving.await.unwrap();
    assert!(rest(&mut idle).await.ends_with("ok"));
    assert!(TcpStream::connect(server.address).await.is_err());
    feed.send("late".into()).await.unwrap();
    drop(feed);
    let answer = rest(&mut busy).await;
    assert!(
        answer.contains("early") && answer.contains("late") && answer.ends_with("0\r\n\r\n"),
        "{answer}"
    );
    assert!(server.shutdown.run_down(FOREVER).await, "no task is left");
}

#[tokio::test]
async fn forcing_drops_what_does_not_end() {
    for http2 in [false, true] {
        let (_feed, gone, body) = fed();
        let server = TestServer::start(HttpLimits::default(), once(body));
        let mut stream = server.connect().await;
        let mut client = server.http2().await;
        let answer = if http2 {
            Some(client.send_request(get(server.address)).await.unwrap())
        } else {
            stream.write_all(HELLO.as_bytes()).await.unwrap();
            stream.readable().await.unwrap();
            None
        };
        assert!(!server.shutdown.run_down(Duration::ZERO).await);
        timeout(FOREVER, server.shutdown.tasks.wait()).await.expect("no task is left");
        timeout(FOREVER, gone).await.expect("the body is dropped").unwrap_err();
        drop(answer);
    }
}

/// There are tens of thousands of them. hyper's part is most of it; with tokio's, it is a kilobyte, and the next larger block is a quarter more.
#[tokio::test]
async fn a_connection_is_small() {
    let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
    let limits = HttpLimits::default();
    let server = Arc::new(Server::new(&limits, None, Shutdown::default()));
    let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let connections = Connections::new(&limits);
    let place = connections.place(connections.room().await, stream.peer_addr().unwrap().ip());
    // As large as that which answers.
    let api = Arc::new(());
    let service = move |_| std::future::ready(Response::new(Body::full(format!("{api:?}"))));
    let connection = connection(server, stream, service, place.unwrap());
    let size = size_of_val(&connection);
    assert!(size <= 912, "{size}");
}
