//! The client: HTTP/1.1 as far as the benchmarks need it, for a fraction of what any server costs.
//!
//! All connections are futures on one thread, without a task each. A connection reads into one buffer, finds the head with hyper's
//! own parser, and hands bodies on as slices of the buffer. An answer that is none of `200` to `202` is an error: a
//! benchmark that measures refusals measures nothing.

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use bytes::{Buf as _, BytesMut};
use futures_util::future::try_join_all;
use memchr::memmem::Finder;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::coop::unconstrained;

use crate::measure::Latencies;

/// How much is read at a time at most.
const MAX_READ: usize = 256 << 10;

/// A connection, kept for as many requests as one likes.
pub struct Connection {
    socket: TcpStream,
    input: BytesMut,
    /// What the last read asked for; it grows for those who have more to say.
    read: usize,
}

/// How long a body is.
enum Length {
    Known(usize),
    /// What is not known beforehand is a stream, of this run. It comes in chunks, or as it is up to the connection's end.
    Stream(Box<str>, Chunk),
}

impl Connection {
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        Ok(Self { socket, input: BytesMut::new(), read: 2048 })
    }

    /// As many connections as asked for.
    pub async fn open_all(address: SocketAddr, count: usize) -> anyhow::Result<Vec<Self>> {
        let mut connections = Vec::with_capacity(count);
        for _ in 0..count {
            connections.push(Self::open(address).await.context("cannot connect")?);
        }
        Ok(connections)
    }

    pub async fn send(&mut self, request: &[u8]) -> io::Result<()> {
        self.socket.write_all(request).await
    }

    /// Reads an answer whose length is known.
    pub async fn reply(&mut self) -> anyhow::Result<()> {
        let length = self.body().await?;
        self.input.advance(length);
        Ok(())
    }

    /// Reads an answer whose length is known, and returns its body.
    pub async fn text(&mut self) -> anyhow::Result<String> {
        let length = self.body().await?;
        Ok(String::from_utf8(self.input.split_to(length).into())?)
    }

    /// Reads until a body is there as a whole, and returns its length.
    async fn body(&mut self) -> anyhow::Result<usize> {
        let Length::Known(length) = self.head().await? else {
            bail!("a stream came where a reply should");
        };
        while self.input.len() < length {
            self.fill().await?;
        }
        Ok(length)
    }

    /// Reads the head of an answer that is a stream.
    pub async fn stream(&mut self) -> anyhow::Result<Stream<'_>> {
        match self.head().await? {
            Length::Known(_) => bail!("a reply came where a stream should"),
            Length::Stream(run, chunk) => Ok(Stream {
                connection: self,
                run,
                chunk,
                event: Vec::new(),
                blank: Finder::new(b"\n\n"),
            }),
        }
    }

    async fn head(&mut self) -> anyhow::Result<Length> {
        loop {
            if let Some((head, length)) = parse(&self.input)? {
                self.input.advance(head);
                return Ok(length);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> anyhow::Result<()> {
        self.input.reserve(self.read);
        let read = self.socket.read_buf(&mut self.input).await?;
        ensure!(read > 0, "the server closed the connection");
        if read >= self.read {
            self.read = (2 * self.read).min(MAX_READ);
        }
        Ok(())
    }
}

/// How many bytes the head has and how long its body is, once all of it is there.
fn parse(input: &[u8]) -> anyhow::Result<Option<(usize, Length)>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = response.parse(input)? else {
        return Ok(None);
    };
    let status = response.code.unwrap_or_default();
    ensure!(
        matches!(status, 200..=202),
        "the answer is {status}: {}",
        String::from_utf8_lossy(input)
    );
    let value = |name: &str| -> anyhow::Result<Option<&str>> {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
        Ok(header.map(|header| str::from_utf8(header.value)).transpose()?)
    };
    let length = match value("content-length")? {
        Some(length) => Length::Known(length.parse()?),
        None => {
            let run = value("bureau-run")?.unwrap_or_default().into();
            let chunked = value("transfer-encoding")?.is_some();
            Length::Stream(run, if chunked { Chunk::Size } else { Chunk::Data(usize::MAX) })
        }
    };
    Ok(Some((head, length)))
}

/// The body of an event stream.
pub struct Stream<'a> {
    connection: &'a mut Connection,
    /// The run whose events these are.
    pub run: Box<str>,
    chunk: Chunk,
    /// The beginning of an event whose end has not come yet.
    event: Vec<u8>,
    blank: Finder<'static>,
}

/// Where in a chunked body the next byte is.
enum Chunk {
    /// Before a chunk's size, or the end of the line of the chunk before it.
    Size,
    /// In a chunk that has as many bytes left.
    Data(usize),
    /// Behind the last chunk.
    Last,
    End,
}

impl Stream<'_> {
    /// Hands on the events that have come, each as it is on the wire with what stands before it, then waits for
    /// more and hands them on too. False at the end of the stream.
    pub async fn next(&mut self, mut each: impl FnMut(&[u8])) -> anyhow::Result<bool> {
        if self.decode(&mut each)? {
            return Ok(false);
        }
        self.connection.fill().await?;
        Ok(!self.decode(&mut each)?)
    }

    /// Reads to the end, and returns how many events there were.
    pub async fn count(mut self) -> anyhow::Result<u64> {
        let mut count = 0;
        while self.next(|_| count += 1).await? {}
        Ok(count)
    }

    /// Takes all there is of the input. True at the end of the body.
    fn decode(&mut self, each: &mut impl FnMut(&[u8])) -> anyhow::Result<bool> {
        let input = &mut self.connection.input;
        loop {
            match self.chunk {
                Chunk::End => return Ok(true),
                Chunk::Data(left) => {
                    let here = left.min(input.len());
                    split(&self.blank, &mut self.event, &input[..here], each);
                    input.advance(here);
                    match left - here {
                        0 => self.chunk = Chunk::Size,
                        left => {
                            self.chunk = Chunk::Data(left);
                            return Ok(false);
                        }
                    }
                }
                Chunk::Size | Chunk::Last => {
                    let Some(end) = memchr::memchr(b'\n', input) else {
                        return Ok(false);
                    };
                    let line = str::from_utf8(&input[..end])?.trim_ascii_end();
                    match self.chunk {
                        Chunk::Last if line.is_empty() => self.chunk = Chunk::End,
                        Chunk::Size if !line.is_empty() => {
                            let size = usize::from_str_radix(line, 16)?;
                            self.chunk = if size == 0 { Chunk::Last } else { Chunk::Data(size) };
                        }
                        _ => {}
                    }
                    input.advance(end + 1);
                }
            }
        }
    }
}

/// Hands on each event that ends in `data`, and keeps what is left over.
fn split(blank: &Finder, begun: &mut Vec<u8>, mut data: &[u8], each: &mut impl FnMut(&[u8])) {
    while !begun.is_empty() {
        // The two line breaks that end an event may have come apart.
        let end = match begun.ends_with(b"\n") && data.starts_with(b"\n") {
            true => 1,
            false => match blank.find(data) {
                Some(at) => at + 2,
                None => break,
            },
        };
        begun.extend_from_slice(&data[..end]);
        data = &data[end..];
        each(begun);
        begun.clear();
    }
    if begun.is_empty() {
        while let Some(at) = blank.find(data) {
            each(&data[..at + 2]);
            data = &data[at + 2..];
        }
    }
    begun.extend_from_slice(data);
}

/// A request for this path, as it goes over the wire.
pub fn get(path: impl std::fmt::Display) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n").into_bytes()
}

/// A request for a stream of events, by a client that knows what it will get.
pub fn subscribe(path: impl std::fmt::Display) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\naccept: text/event-stream\r\n\r\n")
        .into_bytes()
}

/// A request, by a client that has seen the events up to this one, for those that follow.
pub fn resume(path: impl std::fmt::Display, cursor: impl std::fmt::Display) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nlast-event-id: {cursor}\r\n\r\n")
        .into_bytes()
}

/// A request to do this.
pub fn post(path: impl std::fmt::Display) -> Vec<u8> {
    publish(path, "")
}

/// A request to take this.
pub fn publish(path: impl std::fmt::Display, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Runs these to their end, on one thread and side by side.
pub async fn all<T>(
    futures: impl IntoIterator<Item = impl Future<Output = anyhow::Result<T>>>,
) -> anyhow::Result<Vec<T>> {
    // They are one task to the runtime, whose budget for a task is not meant for thousands of connections. They let others
    // run by themselves once each had its turn.
    unconstrained(try_join_all(futures)).await
}

/// What came of requests that were sent one after the other on each connection.
pub struct Replies {
    pub elapsed: Duration,
    pub latencies: Latencies,
}

impl Replies {
    /// Replies per second.
    pub fn rate(&self) -> f64 {
        self.latencies.count() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Sends requests on all of the connections for as long as this, each as soon as the one before it was answered.
/// `request` makes the next one of a connection.
pub async fn requests<R: AsRef<[u8]>>(
    connections: &mut [Connection],
    duration: Duration,
    request: impl Fn(usize) -> R,
) -> anyhow::Result<Replies> {
    let start = Instant::now();
    let end = start + duration;
    let one = async |(index, connection): (usize, &mut Connection)| {
        let mut latencies = Latencies::default();
        let mut now = start;
        while now < end {
            connection.send(request(index).as_ref()).await?;
            connection.reply().await?;
            let replied = Instant::now();
            latencies.add(replied - now);
            now = replied;
        }
        Ok(latencies)
    };
    let each = all(connections.iter_mut().enumerate().map(one)).await?;
    let elapsed = start.elapsed();
    let mut latencies = Latencies::default();
    each.into_iter().for_each(|mut one| latencies.append(&mut one));
    Ok(Replies { elapsed, latencies })
}
