//! The native server: what hyper does without a host, as plainly as it is written by hand.
//!
//! It answers the same requests with the same bytes, on a runtime with as many workers and a listener with the same backlog
//! as the host's. There is no sandbox, no instance and no journal: events come from memory, rendered once per kind, and
//! one frame of the body each, as a server writes that sends them when they happen. A client that comes back gets the rest of
//! its events from there, or joins the run that its path began last. The one thing the server does make durable is `/state`: a log that writes all that has come in during the sync before, and syncs once.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use bureau::http::server::bind;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _};
use http::header::{HeaderMap, HeaderValue};
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{Either, Full, StreamBody};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

/// A run's id and a module's digest, as the host sends them: the same bytes.
const RUN: &str = "01J00000000000000000000000";
const MODULE: &str = "0000000000000000000000000000000000000000000000000000000000000000";

const GREETING: &[u8] = br#"{"status":"ok","message":"a small reply of some bytes"}"#;

/// A state as the agent under load sets it, with a key.
const STATE: &[u8] = b"load/instance-00\n{\"visits\":1000,\"note\":\"a small document\"}\n";

/// Serves until the process is ended.
pub fn serve(directory: &Path) -> anyhow::Result<()> {
    let log = Log::start(&directory.join("log-of-states"))?;
    tokio::runtime::Runtime::new()?.block_on(async {
        let listener = bind(([127, 0, 0, 1], 0).into())?;
        println!("native: ready on http://{}", listener.local_addr()?);
        let server = Arc::new(Server { log, rendered: Mutex::default(), shared: Mutex::default() });
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            let server = server.clone();
            let service = service_fn(move |request| server.clone().answer(request));
            tokio::spawn(async move {
                // A client that leaves is no concern of a server.
                let _ = http1::Builder::new().serve_connection(TokioIo::new(socket), service).await;
            });
        }
    })
}

type Body = Either<Full<Bytes>, StreamBody<BoxStream<'static, Result<Frame<Bytes>, Infallible>>>>;

struct Server {
    log: Log,
    /// The events of a run, by how many they are and their size. They are never freed, so sharing them costs nothing.
    rendered: Mutex<HashMap<(u64, usize), &'static [Bytes]>>,
    /// The runs that many read, by the path that began them.
    shared: Mutex<HashMap<String, broadcast::WeakSender<Bytes>>>,
}

/// Events that a reader may be behind in a run that many read.
const BEHIND: usize = 1024;

impl Server {
    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, Infallible> {
        let path = request.uri().path();
        Ok(match path.rsplit('/').next().unwrap_or_default() {
            "plain" => greeting(),
            "state" => match self.log.append(STATE.into()).await {
                Ok(()) => greeting(),
                Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
            },
            "hold" => match Options::parse(request.uri().query().unwrap_or_default()) {
                Some(options) => events(heartbeats(options.heartbeat)),
                None => status(StatusCode::BAD_REQUEST),
            },
            "events" => match Options::parse(request.uri().query().unwrap_or_default()) {
                Some(options) if options.delay.is_zero() => {
                    let seen = seen(request.headers()).unwrap_or(0);
                    events(stream::iter(self.events(&options).skip(seen)))
                }
                Some(options) if options.is_shared => match seen(request.headers()) {
                    Some(_) => match self.join(path) {
                        Some(run) => events(run),
                        None => status(StatusCode::NOT_FOUND),
                    },
                    None => events(self.begin(path, options)),
                },
                Some(options) => events(paced(options)),
                None => status(StatusCode::BAD_REQUEST),
            },
            _ => status(StatusCode::NOT_FOUND),
        })
    }

    /// Begins a run that others may join for as long as someone reads it.
    fn begin(&self, path: &str, options: Options) -> impl stream::Stream<Item = Bytes> + use<> {
        let (sender, receiver) = broadcast::channel(BEHIND);
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        shared.insert(path.to_owned(), sender.downgrade());
        tokio::spawn(async move {
            let mut events = pin!(paced(options));
            while let Some(event) = events.next().await {
                if sender.send(event).is_err() {
                    break;
                }
            }
        });
        received(receiver)
    }

    /// Joins the run that this path began last, if it goes on.
    fn join(&self, path: &str) -> Option<impl stream::Stream<Item = Bytes> + use<>> {
        let shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        Some(received(shared.get(path)?.upgrade()?.subscribe()))
    }

    /// As many events as asked for, as fast as they are taken.
    fn events(&self, &Options { n, size, .. }: &Options) -> impl Iterator<Item = Bytes> + 'static {
        let mut rendered = self.rendered.lock().unwrap_or_else(PoisonError::into_inner);
        let run = *rendered.entry((n, size)).or_insert_with(|| {
            let data = ".".repeat(size);
            let events = (1..=n).map(|seq| Bytes::from_static(frame(seq, &data).leak()));
            events.collect::<Vec<_>>().leak()
        });
        run.iter().cloned()
    }
}

/// What is asked of a stream: `n=N&size=S&delay=MS`, with `history=..` if others may join it, or `heartbeat=MS`.
#[derive(Default)]
struct Options {
    n: u64,
    size: usize,
    delay: Duration,
    is_shared: bool,
    heartbeat: Duration,
}

impl Options {
    fn parse(query: &str) -> Option<Self> {
        let mut options = Self::default();
        let milliseconds = |value: &str| value.parse().map(Duration::from_millis).ok();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "n" => options.n = value.parse().ok()?,
                "size" => options.size = value.parse().ok()?,
                "delay" => options.delay = milliseconds(value)?,
                "history" => options.is_shared = true,
                "heartbeat" => options.heartbeat = milliseconds(value)?,
                _ => return None,
            }
        }
        Some(options)
    }
}

/// How many events a client has seen, if it comes back.
fn seen(headers: &HeaderMap) -> Option<usize> {
    headers.get("last-event-id")?.to_str().ok()?.rsplit('-').next()?.parse().ok()
}

/// What comes through a channel.
fn received(receiver: broadcast::Receiver<Bytes>) -> impl stream::Stream<Item = Bytes> {
    stream::unfold(receiver, async |mut receiver| Some((receiver.recv().await.ok()?, receiver)))
}

/// Comments, and never an event.
fn heartbeats(every: Duration) -> impl stream::Stream<Item = Bytes> {
    stream::unfold((), move |()| async move {
        tokio::time::sleep(every).await;
        Some((Bytes::from_static(b":\n"), ()))
    })
}

/// Events that say when they were made, one each `delay` from the first on.
fn paced(Options { n, size, delay, .. }: Options) -> impl stream::Stream<Item = Bytes> {
    let first = Instant::now();
    stream::iter(0..n as u32).then(move |before| async move {
        tokio::time::sleep_until(first + delay * before).await;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let data = format!("{:.<size$}", since.as_nanos());
        frame(u64::from(before) + 1, &data).into()
    })
}

/// An event on the wire, as the host writes it.
fn frame(seq: u64, data: &str) -> Vec<u8> {
    format!("id: {RUN}-{seq}\ndata: {data}\n\n").into_bytes()
}

fn greeting() -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::new(Bytes::from_static(GREETING))));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    identify(response.headers_mut());
    response
}

fn events(events: impl stream::Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    let opening = Bytes::from_static(b":\nretry: 2000\n");
    let frames = stream::iter([opening]).chain(events).map(|event| Ok(Frame::data(event)));
    let mut response = Response::new(Either::Right(StreamBody::new(frames.boxed())));
    let headers = response.headers_mut();
    headers.insert("content-type", HeaderValue::from_static("text/event-stream"));
    headers.insert("cache-control", HeaderValue::from_static("no-cache, no-transform"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    headers.insert("x-content-type-options", HeaderValue::from_static("nosniff"));
    identify(headers);
    response
}

fn identify(headers: &mut HeaderMap) {
    headers.insert("bureau-run", HeaderValue::from_static(RUN));
    headers.insert("bureau-module", HeaderValue::from_static(MODULE));
}

fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Either::Left(Full::default()));
    *response.status_mut() = status;
    response
}

/// A log that shares a sync among all records that came in during the one before. Its file is written once beforehand
/// and goes round, so that a sync has no new blocks or length to make durable.
struct Log(mpsc::UnboundedSender<Record>);

struct Record {
    bytes: Bytes,
    durable: oneshot::Sender<()>,
}

/// Records of one sync at most.
const BATCH: usize = 4096;

/// Bytes of the log's file; many batches fit.
const LOG: usize = 16 << 20;

impl Log {
    fn start(path: &Path) -> anyhow::Result<Self> {
        fs::write(path, vec![1; LOG]).with_context(|| format!("cannot make {}", path.display()))?;
        let file = File::options().write(true).open(path)?;
        file.sync_all()?;
        let (sender, mut records) = mpsc::unbounded_channel::<Record>();
        std::thread::spawn(move || -> std::io::Result<()> {
            let (mut batch, mut bytes, mut at) = (Vec::new(), Vec::new(), 0);
            while records.blocking_recv_many(&mut batch, BATCH) > 0 {
                bytes.clear();
                batch.iter().for_each(|record| bytes.extend_from_slice(&record.bytes));
                if at + bytes.len() > LOG {
                    at = 0;
                }
                file.write_all_at(&bytes, at as u64)?;
                file.sync_data()?;
                at += bytes.len();
                for record in batch.drain(..) {
                    // Whoever waited may have gone.
                    let _ = record.durable.send(());
                }
            }
            Ok(())
        });
        Ok(Self(sender))
    }

    /// Returns when the record is durable. It never will be once the log has failed.
    async fn append(&self, bytes: Bytes) -> Result<(), oneshot::error::RecvError> {
        let (durable, synced) = oneshot::channel();
        // If the log has failed, the record goes and its sender with it.
        let _ = self.0.send(Record { bytes, durable });
        synced.await
    }
}
