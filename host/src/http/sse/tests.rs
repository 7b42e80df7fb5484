use std::convert::Infallible;

use eventsource_stream::Eventsource as _;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http_body_util::BodyExt as _;
use proptest::prelude::*;

use super::*;
use crate::config::JournalLimits;
use crate::id::{Digest, InstanceKey};
use crate::journal::{Journal, Lane, Options, Outcome, RunState, Tail, Turn, Write};
use crate::shutdown::Stage;

const PACE: Pace = Pace { heartbeat: Duration::from_secs(15), retry: Duration::from_secs(2) };

fn run() -> RunId {
    RunId::from_u128(7)
}

fn event(seq: u64, data: &str) -> Event {
    Event::new(Seq(seq), None, None, data.into())
}

fn text(bytes: Bytes) -> String {
    String::from_utf8(bytes.into()).unwrap()
}

/// What a client has of a stream: id, type and data of each event.
type Seen = Vec<(String, String, String)>;

fn chunks(wire: &[u8], size: usize) -> impl futures_util::Stream<Item = Result<Bytes, Infallible>> {
    stream::iter(
        wire.chunks(size).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect::<Vec<_>>(),
    )
}

/// What the parser of the crate `eventsource-stream` makes of it.
fn parse(wire: &[u8], size: usize) -> Seen {
    let events = chunks(wire, size).eventsource().map(|event| event.unwrap());
    events
        .map(|event| (event.id, event.event, event.data))
        .collect::<Seen>()
        .now_or_never()
        .unwrap()
}

/// What the parser of the crate `sse-stream` makes of it.
fn parse_otherwise(wire: &[u8], size: usize) -> Seen {
    let events =
        sse_stream::SseStream::from_bytes_stream(chunks(wire, size)).map(|event| event.unwrap());
    let seen = events.filter_map(async |event| {
        let name = event.event.filter(|name| !name.is_empty());
        Some((event.id.unwrap_or_default(), name.unwrap_or("message".into()), event.data?))
    });
    seen.collect::<Seen>().now_or_never().unwrap()
}

/// The data that a client gets back of an event of this data.
fn through(data: &str) -> String {
    let seen = parse(&frame(run(), &event(1, data)), usize::MAX);
    let [(_, _, data)] = seen.try_into().unwrap();
    data
}

#[test]
fn data_with_several_lines_is_one_data_line_each() {
    let wire = text(frame(run(), &event(3, "a\nb\n\nc\n")));
    assert_eq!(
        wire,
        "id: 00000000000000000000000007-3\ndata: a\ndata: b\ndata:\ndata: c\ndata:\n\n"
    );
    assert_eq!(through("a\nb\n\nc\n"), "a\nb\n\nc\n");
}

#[test]
fn lf_cr_and_crlf_in_data_are_one_break_each() {
    let split = |data| lines(data).collect::<Vec<_>>();
    assert_eq!(split("a\nb\rc\r\nd"), ["a", "b", "c", "d"]);
    assert_eq!(split("\r\r\n\n"), ["", "", "", ""]);
    assert_eq!(split("a\n\rb"), ["a", "", "b"]);
    assert_eq!(split("a\r"), ["a", ""]);
    assert_eq!(
        through("a\rid: 9\r\n\r\nb"),
        "a\nid: 9\n\nb",
        "nothing in the data becomes a field"
    );
}

#[test]
fn leading_space_in_data_is_kept() {
    assert_eq!(through("  a\n b"), "  a\n b");
}

#[test]
fn byte_order_mark_inside_data_is_fine_and_never_first_on_the_wire() {
    let mut wire = BytesMut::from(preamble(PACE.retry));
    wire.extend_from_slice(&frame(run(), &event(1, "\u{feff}a")));
    assert!(wire.starts_with(b":"));
    assert_eq!(parse(&wire, 1)[0].2, "\u{feff}a");
}

#[test]
fn empty_data_is_written_and_the_event_arrives() {
    let wire = frame(run(), &event(1, ""));
    assert_eq!(text(wire.clone()), "id: 00000000000000000000000007-1\ndata:\n\n");
    assert_eq!(parse_otherwise(&wire, usize::MAX)[0].2, "");
}

#[test]
fn id_is_on_every_event_and_is_the_agents_own_if_it_has_one() {
    let own = Event::new(Seq(2), Some("progress".into()), Some("order-17".into()), "x".into());
    assert_eq!(text(frame(run(), &own)), "id: order-17\nevent: progress\ndata: x\n\n");
    let page = [Arc::new(event(1, "a")), Arc::new(own), Arc::new(event(3, "b"))];
    let ids: Vec<_> =
        parse(&framed(run(), &page), usize::MAX).into_iter().map(|(id, ..)| id).collect();
    let cursor = |seq| Cursor { run: run(), seq: Seq(seq) }.to_string();
    assert_eq!(ids, [cursor(1), "order-17".into(), cursor(3)]);
}

#[test]
fn id_only_block_is_never_sent() {
    for (name, id, data) in
        [(None, Some("own"), ""), (Some("named"), Some("own"), ""), (None, None, "")]
    {
        let event = Event::new(Seq(1), name.map(Into::into), id.map(Into::into), data.into());
        let wire = text(frame(run(), &event));
        assert!(wire.ends_with("\ndata:\n\n"), "{wire:?}");
    }
}

#[test]
fn retry_is_ascii_digits_once_at_the_start() {
    for (retry, wire) in [(1, ":\nretry: 1\n"), (86_400_000, ":\nretry: 86400000\n")] {
        assert_eq!(text(preamble(Duration::from_millis(retry))), wire);
    }
}

#[test]
fn an_empty_name_is_none() {
    let unnamed = Event::new(Seq(1), Some(String::new()), None, "x".into());
    assert_eq!(frame(run(), &unnamed), frame(run(), &event(1, "x")));
}

#[test]
fn u2028_u0085_vt_and_ff_in_data_pass_unsplit() {
    let data = "a\u{2028}b\u{2029}c\u{85}d\u{b}e\u{c}f\0g";
    assert_eq!(through(data), data);
    assert_eq!(lines(data).count(), 1);
}

#[test]
fn very_large_event_arrives_whole_when_read_one_byte_at_a_time() {
    let data = "line of text\r\n".repeat((1 << 20) / 14);
    let wire = frame(run(), &event(1, &data));
    let [(_, _, arrived)] = parse_otherwise(&wire, 1).try_into().unwrap();
    assert_eq!(arrived, data.replace("\r\n", "\n"));
}

#[test]
fn truncated_tail_is_no_event() {
    let wire = frame(run(), &Event::new(Seq(1), Some("n".into()), None, "a\nb".into()));
    for end in 0..wire.len() {
        assert_eq!(parse(&wire[..end], usize::MAX), [], "{end} bytes");
    }
}

#[test]
fn a_frame_fits_what_was_reserved_for_it() {
    for data in ["", "a", "\r\n\r\n\r\n", "a\nb\rc"] {
        for id in [None, Some("own".to_owned())] {
            let event = Event::new(Seq(u64::MAX), Some("name".into()), id, data.into());
            let (framed, reserved) = (frame(run(), &event).len(), frame_len(&event));
            assert!((framed..=framed + 64).contains(&reserved), "{data:?}: {framed} of {reserved}");
        }
    }
}

#[test]
fn reset_says_which_id_and_why_and_stands_before_the_first_event() {
    let wire = reset(run(), "a\"\r\nid: x", NotResumable::Expired);
    let [(id, name, data)] = parse(&wire, usize::MAX).try_into().unwrap();
    assert_eq!(id.parse(), Ok(Cursor { run: run(), seq: Seq::ZERO }));
    assert_eq!((&*name, &*data), ("reset", r#"{"id":"a\"\r\nid: x","reason":"expired"}"#));
}

#[test]
fn headers() {
    let mut headers = HeaderMap::new();
    insert_headers(&mut headers);
    let mut all: Vec<_> =
        headers.iter().map(|(name, value)| (name.as_str(), value.to_str().unwrap())).collect();
    all.sort_unstable();
    assert_eq!(
        all,
        [
            ("cache-control", "no-cache, no-transform"),
            ("content-type", "text/event-stream"),
            ("x-accel-buffering", "no"),
            ("x-content-type-options", "nosniff"),
        ],
    );
}

fn any_event() -> impl Strategy<Value = (Option<String>, Option<String>, String)> {
    let name = proptest::option::of("[^\r\n\0]{0,12}");
    let id = proptest::option::of("[!-~]{1,20}");
    // Mostly what framing could trip over.
    let piece = prop_oneof![
        Just("\r".to_owned()),
        Just("\n".to_owned()),
        Just("\r\n".to_owned()),
        Just(" ".to_owned()),
        Just(":".to_owned()),
        Just("\u{feff}".to_owned()),
        Just("data: x".to_owned()),
        any::<String>(),
    ];
    (name, id, proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()))
}

proptest! {
    #[test]
    fn round_trip_through_any_parser_rechunked_at_every_byte(
        events in proptest::collection::vec(any_event(), 0..6),
        heartbeats in proptest::collection::vec(any::<bool>(), 6),
        size in 1usize..40,
    ) {
        let mut wire = BytesMut::from(preamble(PACE.retry));
        let mut sent = Seen::new();
        for (index, (name, id, data)) in events.into_iter().enumerate() {
            let seq = Seq(index as u64 + 1);
            let event = Event::new(seq, name, id, data);
            wire.extend_from_slice(&frame(run(), &event));
            if heartbeats[index] {
                wire.extend_from_slice(&HEARTBEAT);
            }
            let cursor = || Cursor { run: run(), seq }.to_string();
            let name = event.name.as_deref().filter(|name| !name.is_empty());
            sent.push((
                event.id.as_deref().map_or_else(cursor, str::to_owned),
                name.unwrap_or("message").to_owned(),
                event.data.replace("\r\n", "\n").replace('\r', "\n"),
            ));
        }
        for size in [1, size, usize::MAX] {
            prop_assert_eq!(&parse(&wire, size), &sent);
            prop_assert_eq!(&parse_otherwise(&wire, size), &sent);
        }
    }
}

/// A run in a journal of its own.
struct TestRun {
    journal: Journal,
    lane: Arc<Lane>,
    tail: Arc<Tail>,
    drain: Stage,
    next: Seq,
    _dir: tempfile::TempDir,
}

impl TestRun {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options =
            Options { file: dir.path().join("journal"), limits: JournalLimits::default() };
        let (journal, _) = Journal::open(options).unwrap();
        let key = InstanceKey::new("agent".parse().unwrap(), "demo").unwrap();
        let tail = journal.tail(&key, run());
        let lane = journal.lane(key);
        let drain = Stage::default();
        let this = Self { journal, lane, tail, drain, next: Seq(1), _dir: dir };
        let start =
            Write::Start { tail: this.tail.clone(), module: Digest::of(b""), request: None };
        this.write(vec![start]).await;
        this
    }

    async fn write(&self, writes: Vec<Write>) {
        self.lane.submit(Turn(writes)).durable().await.unwrap();
    }

    /// Emits events in one turn, durable when this returns.
    async fn emit<const N: usize>(&mut self, data: [&str; N]) {
        let writes = data.map(|data| {
            let event = Arc::new(event(self.next.0, data));
            self.next = self.next.next();
            assert!(self.tail.reserve(event.size()));
            Write::Event { tail: self.tail.clone(), event }
        });
        self.write(writes.into()).await;
    }

    async fn end(&self) {
        let outcome = Outcome { state: RunState::Finished, code: None };
        self.write(vec![Write::End { tail: self.tail.clone(), outcome }]).await;
    }

    fn body(&self, reset: Option<Bytes>) -> Pin<Box<EventsBody>> {
        let reader = self.journal.reader(self.tail.clone(), Seq::ZERO);
        Box::pin(EventsBody::new(reader, reset, PACE, self.drain.begun()))
    }
}

/// The next frame, which is there or comes.
async fn next(body: &mut Pin<Box<EventsBody>>) -> Option<String> {
    let frame = body.frame().await?.unwrap();
    Some(text(frame.into_data().unwrap()))
}

#[tokio::test]
async fn first_byte_is_there_before_the_first_event_with_one_retry() {
    let run = TestRun::start().await;
    let mut body = run.body(None);
    let first = body.frame().now_or_never().expect("it waits for nothing");
    assert_eq!(text(first.unwrap().unwrap().into_data().unwrap()), ":\nretry: 2000\n");
    assert!(body.frame().now_or_never().is_none(), "nothing else is there yet");
}

#[tokio::test]
async fn events_then_the_end() {
    let mut run = TestRun::start().await;
    run.emit(["a", "b"]).await;
    let mut body = run.body(Some(reset(super::tests::run(), "x", NotResumable::Unknown)));
    let opening = next(&mut body).await.unwrap();
    assert!(
        opening.starts_with(":\nretry: 2000\nid: ") && opening.contains("event: reset\n"),
        "{opening}"
    );
    let cursor = |seq| Cursor { run: super::tests::run(), seq: Seq(seq) };
    let page = format!("id: {}\ndata: a\n\nid: {}\ndata: b\n\n", cursor(1), cursor(2));
    assert_eq!(next(&mut body).await.unwrap(), page);
    run.emit(["c"]).await;
    run.end().await;
    assert_eq!(next(&mut body).await.unwrap(), format!("id: {}\ndata: c\n\n", cursor(3)));
    assert_eq!(next(&mut body).await, None);
    assert!(http_body::Body::is_end_stream(&*body));
}

#[tokio::test]
async fn a_live_event_is_framed_once_for_all_its_readers() {
    let mut run = TestRun::start().await;
    let mut bodies = [run.body(None), run.body(None)];
    for body in &mut bodies {
        next(body).await.unwrap();
    }
    run.emit(["a"]).await;
    let mut frames = Vec::new();
    for body in &mut bodies {
        frames.push(body.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    assert_eq!(frames[0].as_ptr(), frames[1].as_ptr());
}

#[tokio::test(start_paused = true)]
async fn heartbeat_is_a_comment_without_a_blank_line_15_s_after_the_last_byte() {
    let mut run = TestRun::start().await;
    let mut body = run.body(None);
    next(&mut body).await.unwrap();
    let mut last = Instant::now();
    for _ in 0..3 {
        assert_eq!(next(&mut body).await.unwrap(), ":\n");
        assert_eq!(last.elapsed(), PACE.heartbeat);
        last = Instant::now();
    }
    tokio::time::advance(PACE.heartbeat / 2).await;
    run.emit(["a"]).await;
    assert!(next(&mut body).await.unwrap().contains("data: a\n"));
    let last = Instant::now();
    assert_eq!(next(&mut body).await.unwrap(), ":\n");
    assert_eq!(last.elapsed(), PACE.heartbeat, "an event puts the heartbeat off");
}

#[tokio::test]
async fn draining_ends_a_stream_with_retry_after_a_whole_event() {
    let mut run = TestRun::start().await;
    run.emit(["a"]).await;
    let mut body = run.body(None);
    next(&mut body).await.unwrap();
    assert!(next(&mut body).await.unwrap().ends_with("data: a\n\n"));
    let waiting = tokio::spawn(async move { (next(&mut body).await, next(&mut body).await) });
    run.drain.begin();
    assert_eq!(waiting.await.unwrap(), (Some("retry: 2000\n".into()), None));
}

#[tokio::test]
async fn a_journal_that_is_gone_breaks_the_stream_instead_of_ending_it() {
    let run = TestRun::start().await;
    let mut body = run.body(None);
    next(&mut body).await.unwrap();
    run.journal.close().await;
    let broken = body.frame().await.unwrap();
    assert!(broken.is_err(), "a clean end would tell the client that the run is over");
    assert!(body.frame().await.is_none());
}

#[test]
fn an_idle_stream_is_small() {
    let body = size_of::<EventsBody>();
    // Ten thousand idle streams hold less than 5 MB in their bodies.
    assert!(body <= 500, "{body} bytes");
}
