use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake};

use super::super::testing::*;
use super::super::{Reader, Step, Turn};
use super::*;

fn tail_alone(window: usize, backlog: usize) -> (Arc<Gauge>, Tail) {
    let gauge = Arc::new(Gauge::default());
    let limits = Limits { window, backlog };
    let tail = Tail::new(instance("a"), RunId::generate(), Seq::ZERO, limits, &gauge);
    (gauge, tail)
}

fn following(tail: &Tail, cursor: Seq, max_bytes: usize) -> Following {
    tail.following(cursor, max_bytes, &mut Seat::default(), Waker::noop())
}

#[test]
fn the_window_of_a_tail_is_bounded_and_contiguous() {
    let event = |seq| Arc::new(Event::new(Seq(seq), None, None, "x".repeat(36)));
    let (gauge, tail) = tail_alone(350, 0);
    for seq in 1..=10 {
        tail.publish(event(seq));
        assert!(gauge.now() <= 350);
    }
    assert!(matches!(following(&tail, Seq(6), 1000), Following::Stored));
    let Following::Events(events) = following(&tail, Seq(7), 1000) else {
        panic!("the newest events are there")
    };
    assert_eq!(seqs(&events), [8, 9, 10]);
    let Following::Events(events) = following(&tail, Seq(8), 1) else {
        panic!("one event is always given")
    };
    assert_eq!(seqs(&events), [9]);
    assert!(matches!(following(&tail, Seq(10), 1000), Following::Nothing));

    tail.publish(Arc::new(Event::new(Seq(11), None, None, "x".repeat(999))));
    assert_eq!(gauge.now(), 0);
    assert!(matches!(following(&tail, Seq(10), 1000), Following::Stored));
    tail.publish(event(12));
    assert!(matches!(following(&tail, Seq(10), 1000), Following::Stored));
    assert!(matches!(following(&tail, Seq(11), 1000), Following::Events(_)));
    drop(tail);
    assert_eq!((gauge.now(), gauge.peak()), (0, 300));
}

#[test]
fn the_backlog_is_bounded_but_never_shut_to_one_event() {
    let (_, tail) = tail_alone(0, 100);
    assert!(tail.reserve(1000));
    assert!(!tail.reserve(1));
    tail.release(1000);
    assert!(tail.reserve(60) && tail.reserve(40));
    assert!(!tail.reserve(1));
    let event = Event::new(Seq(1), None, None, String::new());
    tail.publish(Arc::new(event));
    assert!(tail.reserve(Event::OVERHEAD));
    assert!(!tail.reserve(1));
}

#[test]
fn readers_may_live_on_any_task() {
    fn assert_task<T: Send + 'static>(_: T) {}
    fn store(mut reader: Reader) {
        assert_task(async move { reader.next().await });
    }
    let _ = store;
    assert!(size_of::<Reader>() <= size_of::<[usize; 8]>());
}

#[tokio::test]
async fn a_batch_wakes_a_reader_once_and_one_that_has_gone_never() {
    struct Count(AtomicU64);
    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let journal = open(&Disk::default(), options());
    let lane = journal.lane(instance("a"));
    let tail = journal.tail(&instance("a"), RunId::generate());
    let count = Arc::new(Count(AtomicU64::new(0)));
    let waker = Waker::from(count.clone());
    let mut cx = Context::from_waker(&waker);
    let mut reader = journal.reader(tail.clone(), Seq::ZERO);
    let mut gone = journal.reader(tail.clone(), Seq::ZERO);
    // Polled again and again, as a body is for other reasons than events.
    for _ in 0..3 {
        assert!(reader.poll_next(&mut cx).is_pending());
        assert!(gone.poll_next(&mut cx).is_pending());
    }
    drop(gone);
    let mut turn = Turn(vec![start(&tail)]);
    turn.0.extend((1..=50).map(|seq| event(&tail, seq, "x")));
    lane.submit(turn).durable().await.unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 1);
    while let Poll::Ready(Step::Events(_)) = reader.poll_next(&mut cx) {}
    assert_eq!(reader.cursor(), Seq(50));
    lane.submit(Turn(vec![event(&tail, 51, "x")])).durable().await.unwrap();
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
}
