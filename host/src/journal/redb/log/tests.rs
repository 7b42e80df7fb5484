use proptest::prelude::*;

use super::super::super::testing::*;
use super::super::JournalFile;
use super::*;

const MARK: u64 = 7;
const HALF: usize = 3 * PAGE;

fn file(disk: &Disk) -> Box<dyn StorageBackend> {
    Box::new(disk.hold(JournalFile::Log).unwrap())
}

/// The bytes of the log's file.
fn bytes(disk: &Disk) -> Vec<u8> {
    disk.durable()[JournalFile::Log as usize].clone()
}

fn holding(bytes: Vec<u8>) -> Disk {
    Disk::of([Vec::new(), bytes])
}

fn opened(disk: &Disk) -> Log {
    Log::open(file(disk), MARK).unwrap().unwrap()
}

#[derive(Debug)]
struct Failed(#[expect(dead_code, reason = "for who reads the test's failure")] io::Error);

impl From<io::Error> for Failed {
    fn from(error: io::Error) -> Self {
        Self(error)
    }
}

fn replayed(log: &Log, place: Place) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    let replayed: Result<(), Failed> = log.replay(place, |record| {
        records.push(record.to_vec());
        Ok(())
    });
    replayed.unwrap();
    records
}

fn place(epoch: u64, settled: u64) -> Place {
    Place { half: HALF, epoch, settled }
}

fn begun(disk: &Disk) -> Log {
    let mut log = Log::create(file(disk), MARK).unwrap();
    log.begin(place(1, 0));
    log
}

#[test]
fn a_log_with_another_mark_or_none_is_not_opened() {
    let disk = Disk::default();
    assert_eq!(Log::open(file(&disk), MARK).unwrap().map(drop), Err(Foreign));
    drop(begun(&disk));
    assert_eq!(Log::open(file(&disk), MARK + 1).unwrap().map(drop), Err(Foreign));
    assert!(replayed(&opened(&disk), place(1, 0)).is_empty());
}

#[test]
fn a_record_that_is_not_whole_is_none_and_those_before_it_stay() {
    let disk = Disk::default();
    let mut log = begun(&disk);
    log.append(b"one").unwrap();
    log.append(b"two").unwrap();
    let before = bytes(&disk);
    log.append(&[3; 5000]).unwrap();
    let whole = bytes(&disk);
    assert_eq!(replayed(&opened(&holding(whole.clone())), place(1, 0)).len(), 3);
    let first = before.iter().zip(&whole).position(|(before, after)| before != after).unwrap();
    let last = whole.iter().rposition(|byte| *byte == 3).unwrap();
    for at in first..=last {
        // A byte that was not written, all that comes after it, and one that came out wrong.
        let mut image = whole.clone();
        image[at] = !image[at];
        let cut = [&whole[..at], &vec![0; whole.len() - at]].concat();
        for image in [image, cut] {
            let records = replayed(&opened(&holding(image)), place(1, 0));
            assert_eq!(records, [b"one", b"two"], "{at}");
        }
    }
}

#[test]
fn what_an_earlier_epoch_or_a_failed_write_left_is_never_a_record() {
    let disk = Disk::default();
    let mut log = begun(&disk);
    // They end where a page does, so that a new one leaves the next old one as it is.
    let [old, new] = [b'o', b'n'].map(|byte| vec![byte; PAGE - HEAD]);
    for _ in 0..3 {
        log.append(&old).unwrap();
    }
    drop(log);
    let mut log = opened(&disk);
    assert_eq!(replayed(&log, place(1, 0)).len(), 3);
    assert!(replayed(&log, place(1, 1)).is_empty(), "only whole halves are settled");
    log.begin(place(2, 0));
    assert!(replayed(&log, place(2, 0)).is_empty());
    log.append(&new).unwrap();
    assert_eq!(replayed(&log, place(2, 0)), [new]);
    // The rest of the old ones is where it was.
    assert!(log.record(1, 2, 2 * PAGE, 3 * PAGE).unwrap().is_some());
}

#[test]
fn a_new_log_has_nothing_of_one_that_was_there_before() {
    let disk = Disk::default();
    let mut log = begun(&disk);
    log.append(b"one").unwrap();
    drop(log);
    drop(begun(&disk));
    assert!(replayed(&opened(&disk), place(1, 0)).is_empty());
}

proptest! {
    #[test]
    fn a_record_beyond_one_that_was_lost_is_found_wherever_it_lies(
        before in proptest::collection::vec((0..200_usize, any::<u8>()), 0..6),
        epoch in prop_oneof![1..5_u64, Just(256), Just(1 << 16 | 1), any::<u64>()],
        size in 0..3000_usize,
        turns: bool,
    ) {
        let disk = Disk::default();
        let mut log = Log::create(file(&disk), MARK).unwrap();
        let here = place(epoch, 0);
        log.begin(here);
        for (size, byte) in before {
            log.append(&vec![byte; size]).unwrap();
        }
        let last = log.last();
        prop_assert_eq!(log.beyond(here, last).unwrap(), None);
        // The lost one, which nobody comes to, and what was written after it.
        log.append(&vec![0; size]).unwrap();
        if turns {
            log.turn();
        }
        log.append(b"beyond").unwrap();
        drop(log);
        let log = opened(&disk);
        let found = log.beyond(here, last + 1).unwrap();
        prop_assert_eq!(found, Some(last + 2));
        let found = log.beyond(Place { epoch: epoch ^ 1, ..here }, 0).unwrap();
        prop_assert_eq!(found, None);
    }

    #[test]
    fn what_is_not_settled_is_replayed_through_both_halves(
        steps in proptest::collection::vec((0..6000_usize, any::<u8>(), 0..8_u8), 1..60),
    ) {
        let disk = Disk::default();
        let mut log = begun(&disk);
        let mut here = place(1, 0);
        // The records of the half that is to be settled, and of the one that is filled.
        let mut kept: [Vec<Vec<u8>>; 2] = Default::default();
        for (size, byte, fate) in steps {
            let record = vec![byte; size];
            if !log.has_room(size) || fate == 0 {
                here.settled = log.last() - kept[1].len() as u64;
                kept = [std::mem::take(&mut kept[1]), Vec::new()];
                log.turn();
            }
            log.append(&record).unwrap();
            kept[1].push(record);
            let both = kept.concat();
            let survivor = holding(bytes(&disk));
            prop_assert_eq!(&replayed(&opened(&survivor), here), &both);
            prop_assert!(bytes(&disk).len() <= PAGE + 2 * HALF + STRETCH);
            if fate == 1 {
                drop(log);
                log = opened(&disk);
                prop_assert_eq!(&replayed(&log, here), &both);
                here = place(here.epoch + 1, 0);
                log.begin(here);
                kept = Default::default();
            }
        }
    }
}
