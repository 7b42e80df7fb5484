//! The writer's place, on a journal whose writer does not run: what it would do, and when, is the test's to say.

use std::sync::mpsc;

use super::super::Turn;
use super::super::attend;
use super::super::lane::Lane;
use super::super::queue::Queue;
use super::super::testing::{Disk, instance, options};
use super::*;

/// A journal without threads, and a lane of it. Also what its settler would be told.
fn without_threads(disk: &Disk) -> (Arc<Shared>, Arc<Lane>, Receiver<()>) {
    let (settler, told) = mpsc::sync_channel(1);
    let (shared, _) = Shared::open(disk.backend(), &options(), settler).unwrap();
    let lane = Lane::new(instance("a"), Arc::clone(&shared));
    (shared, lane, told)
}

fn state(text: &str) -> Turn {
    Turn(vec![Write::State(Some(text.into()))])
}

/// As a writer that was woken.
fn write(shared: &Shared) {
    let batch = shared.queue.take(IDLE).unwrap();
    commit(shared, &batch).unwrap();
    publish(shared, batch);
}

#[test]
fn nobody_takes_the_place_of_a_writer_that_has_committed_their_turns_meanwhile() {
    let (shared, lane, told) = without_threads(&Disk::default());
    shared.queue.be_calm();
    shared.queue.leave_to_others();
    attend::attend(&shared, || {
        lane.submit(state("1"));
        // Woken by others.
        write(&shared);
        shared.queue.leave_to_others();
    });
    assert!(lane.latest().is_durable());
    assert!(told.try_recv().is_err(), "a log that is not full has been settled");
}

#[test]
fn nobody_takes_the_place_of_a_writer_that_is_about_to_end() {
    let (shared, lane, _told) = without_threads(&Disk::default());
    shared.queue.be_calm();
    shared.queue.leave_to_others();
    attend::attend(&shared, || {
        lane.submit(state("1"));
        shared.queue.close();
    });
    assert!(!lane.latest().is_durable());
    write(&shared);
    assert!(lane.latest().is_durable());
    assert!(shared.queue.take(IDLE).is_none());
}

/// How many batches in a row others commit before one is left to the writer. The queue then has that one.
fn in_a_row(queue: &Queue, lane: &Arc<Lane>) -> usize {
    let stood_in = (0..100).take_while(|_| {
        lane.submit(state("1"));
        queue.leave_to_others();
        let batch = queue.take_over();
        if batch.is_some() {
            queue.committed(true);
            queue.give_back(Vec::new());
        }
        batch.is_some()
    });
    stood_in.count()
}

#[test]
fn the_writer_has_its_turn_and_sees_whether_more_come_meanwhile() {
    let (shared, lane, _told) = without_threads(&Disk::default());
    let queue = &shared.queue;
    queue.be_calm();
    for _ in 0..2 {
        assert_eq!(in_a_row(queue, &lane), 8);
        assert_eq!(queue.take(IDLE).unwrap().len(), 1);
        queue.committed(true);
    }
    queue.committed(false);
    for _ in 0..16 {
        assert_eq!(in_a_row(queue, &lane), 0, "one small batch says little");
        assert_eq!(queue.take(IDLE).unwrap().len(), 1);
        queue.committed(true);
    }
    assert_eq!(in_a_row(queue, &lane), 8);
}

#[test]
fn a_writer_that_panics_does_not_end_before_who_has_its_place() {
    let disk = Disk::default();
    let (shared, lane, _told) = without_threads(&disk);
    lane.submit(state("1"));
    shared.queue.be_calm();
    shared.queue.leave_to_others();
    let batch = shared.queue.take_over().unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let _departure = Departure { shared: &shared, reason: None };
            panic!("a mistake");
        });
        while !shared.queue.is_closed() {
            thread::yield_now();
        }
        // One that does not wait is soon at its end.
        for _ in 0..1000 {
            thread::yield_now();
        }
        assert!(!writer.is_finished());
        commit_once(&shared, &batch, SystemTime::now()).unwrap();
        publish(&shared, batch);
        shared.queue.give_back(Vec::new());
        assert!(writer.join().is_err());
    });
    assert!(lane.latest().is_durable());
    assert_eq!(*shared.health.borrow(), Health::Dead(PANICKED.into()));
    let (shared, ..) = without_threads(&disk);
    assert_eq!(shared.store.state(&instance("a")).unwrap().as_deref(), Some("1"));
}
