//! The atomic turn: a guest that writes state and emits side by side, killed at every point of what its host writes,
//! never shows one without the other.
//!
//! The host runs on a disk that is watched. Afterwards each moment of the disk's life is a crash: what was written by
//! then, and what may be left of it where the disk had not been asked to sync, is opened as a journal and compared with
//! itself and with what clients had seen at that moment.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use bureau::config::{Config, JournalLimits};
use bureau::id::{InstanceKey, RunId, Seq};
use bureau::journal::{Journal, Located, NotResumable, Options, Step};
use fastrand::Rng;
use futures_util::future::join_all;
use tokio::task::JoinSet;

use crate::support::{Change, Disk, Image, InProcess, Kind};

/// Instances at once, each with two runs that share its state.
const INSTANCES: usize = 3;

/// What each run counts.
const COUNT: u64 = 40;

/// How much is done to the disk; each change gives two crashes.
const CHANGES: usize = 2500;

/// What clients have seen: the number of events of each run.
type Seen = Arc<Mutex<Vec<u64>>>;

/// A run that clients have read.
struct Run {
    instance: InstanceKey,
    id: RunId,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn state_and_events_of_a_turn_never_part_wherever_the_host_is_killed() {
    let disk = Disk::default();
    // A log that goes round often, so that settling it is interrupted too.
    let small = |config: &mut Config| config.journal.log_bytes = 64 << 10;
    let host = InProcess::serving(&["probe"], &disk, small).await;
    let seen = Seen::default();
    let log = Arc::new(Mutex::new(Vec::new()));
    let empty = disk.observe({
        let (seen, log) = (seen.clone(), log.clone());
        move |change| log.lock().unwrap().push((change.clone(), seen.lock().unwrap().clone()))
    });
    let mut runs = Vec::new();
    while log.lock().unwrap().len() < CHANGES {
        assert!(runs.len() < 100 * INSTANCES, "the disk is written to");
        let begun = runs.len()..runs.len() + 2 * INSTANCES;
        seen.lock().unwrap().resize(begun.end, 0);
        runs.extend(join_all(begun.map(|run| count(&host, &seen, run))).await);
    }
    host.stop().await;

    let log = std::mem::take(&mut *log.lock().unwrap());
    let (runs, crashes) = (Arc::new(runs), 2 * log.len());
    let mut moments = Moments::new(empty);
    let mut checks = JoinSet::new();
    for (at, (change, seen)) in log.into_iter().enumerate() {
        // A crash just before this change: what had been seen by then had been seen without it.
        for image in [moments.written.clone(), moments.torn()] {
            if checks.len() == 4 {
                checks.join_next().await.unwrap().unwrap();
            }
            checks.spawn(check(at, image, runs.clone(), seen.clone()));
        }
        moments.pass(change);
    }
    checks.join_all().await;
    println!("{crashes} crashes in {} runs", runs.len());
}

/// Reads a run that counts, and notes each event when it is there.
async fn count(host: &InProcess, seen: &Seen, run: usize) -> Run {
    let name = format!("{}", run % INSTANCES);
    let mut stream = host.stream(&format!("probe/{name}/count?count={COUNT}&delay=1")).await;
    let id = stream.headers["bureau-run"].to_str().unwrap().parse().unwrap();
    while stream.next().await.is_some() {
        seen.lock().unwrap()[run] += 1;
    }
    assert_eq!(seen.lock().unwrap()[run], COUNT);
    Run { instance: InstanceKey::new("probe".parse().unwrap(), &name).unwrap(), id }
}

/// A disk at a moment of its life.
struct Moments {
    /// All that was written.
    written: Image,
    /// All of each file that was written when the disk was last asked to sync it.
    synced: Image,
    since: Vec<Change>,
    random: Rng,
}

impl Moments {
    fn new(image: Image) -> Self {
        Self { synced: image.clone(), written: image, since: Vec::new(), random: Rng::with_seed(7) }
    }

    fn pass(&mut self, change: Change) {
        change.apply(&mut self.written);
        match change.kind {
            Kind::Sync => change.settle(&mut self.since, &mut self.synced),
            _ => self.since.push(change),
        }
    }

    /// What a loss of power may leave. The disk writes in any order, so of what is not synced each change is there,
    /// or not, or in part: what redb asks of a disk is that it writes whole bytes and no others.
    fn torn(&mut self) -> Image {
        let Self { synced, since, random, .. } = self;
        let mut image = synced.clone();
        for change in since {
            match (&change.kind, random.u8(..4)) {
                (_, 0) => {}
                (Kind::Write { at, data }, 1) => {
                    let Range { start, end } = part(data.len(), random);
                    let kind = Kind::Write { at: at + start, data: data[start..end].to_vec() };
                    Change { file: change.file, kind }.apply(&mut image);
                }
                _ => change.apply(&mut image),
            }
        }
        image
    }
}

fn part(len: usize, random: &mut Rng) -> Range<usize> {
    let (one, other) = (random.usize(..=len), random.usize(..=len));
    one.min(other)..one.max(other)
}

/// Starts on what a crash has left, and compares state, events and what clients had.
async fn check(at: usize, image: Image, runs: Arc<Vec<Run>>, seen: Vec<u64>) {
    let limits = JournalLimits { cache_bytes: 1 << 20, ..JournalLimits::default() };
    let options = Options { file: "crashed.redb".into(), limits };
    let (journal, _) = Journal::open_on(Disk::of(image).backend(), options)
        .unwrap_or_else(|error| panic!("before change {at}: {error}"));
    let mut numbers = [const { Vec::new() }; INSTANCES];
    for (number, run) in runs.iter().enumerate() {
        let read = read(&journal, run).await;
        let had = seen.get(number).copied().unwrap_or(0);
        assert!(read.len() as u64 >= had, "before change {at}: {} of {had} events", read.len());
        numbers[number % INSTANCES].extend(read);
    }
    for (run, mut numbers) in runs.iter().zip(numbers) {
        numbers.sort_unstable();
        let state = journal.state(&run.instance).unwrap();
        let last: u64 = state.map_or(0, |state| state.parse().unwrap());
        // One state and two runs that count in it: each number is the event of one of them.
        assert!(numbers.iter().copied().eq(1..=last), "before change {at}: {numbers:?} of {last}");
    }
    journal.close().await;
}

/// The numbers that a run has counted, as far as the journal has them.
async fn read(journal: &Journal, run: &Run) -> Vec<u64> {
    let mut reader = match journal.locate(&run.instance, &format!("{}-0", run.id)).await.unwrap() {
        Located::At(reader) => reader,
        Located::Not(NotResumable::Unknown) => return Vec::new(),
        other => panic!("{other:?}"),
    };
    let mut numbers = Vec::new();
    while reader.cursor() < reader.tail().last() {
        let Step::Events(page) = reader.next().await else { panic!("there are more events") };
        for event in &*page {
            assert_eq!(event.seq, Seq(numbers.len() as u64 + 1));
            let number = event.data.strip_prefix("{\"n\":").and_then(|rest| rest.strip_suffix('}'));
            numbers.push(number.unwrap().parse().unwrap());
        }
    }
    assert!(numbers.is_sorted(), "{numbers:?}");
    numbers
}
