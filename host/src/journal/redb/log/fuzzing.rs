//! What is fuzzed of the log.

use ::redb::backends::InMemoryBackend;

use super::super::super::codec::{Damaged, decode_batch};
use super::super::recent::Layer;
use super::*;

const MARK: u64 = 7;

/// Any bytes after the first page are records or none, and a log that is damaged in one place has the first of the
/// records that it was given, as they were. A byte says how large a half is, two where the damage is and one what it is; then come the
/// records, each after its length in two bytes.
pub(crate) fn log(input: &[u8]) {
    any_bytes(input).and_then(|()| damaged(input)).expect("memory takes every write");
}

/// A log whose file has these bytes after its first page.
fn having(bytes: &[u8]) -> io::Result<Log> {
    let storage = InMemoryBackend::new();
    storage.set_len((PAGE + bytes.len()) as u64)?;
    storage.write(0, MAGIC)?;
    storage.write(MAGIC.len() as u64, &MARK.to_le_bytes())?;
    storage.write(PAGE as u64, bytes)?;
    Ok(Log::open(Box::new(storage), MARK)?.expect("it has its mark"))
}

fn any_bytes(input: &[u8]) -> io::Result<()> {
    let (half, epoch, settled) = (PAGE, 1, 0);
    // A file is read up to its last whole page.
    let mut pages = input.to_vec();
    pages.resize(input.len().next_multiple_of(PAGE), 0);
    let log = having(&pages)?;
    for record in replayed(&log, Place { half, epoch, settled })? {
        let mut layer = Layer::default();
        let apply = |at_ms, instance: &_, op| layer.apply(at_ms, instance, op);
        let _: Result<(), Damaged> = decode_batch(&record, apply);
    }
    Ok(())
}

fn damaged(input: &[u8]) -> io::Result<()> {
    let Some(([pages, at @ .., damage], mut rest)) = input.split_first_chunk::<4>() else {
        return Ok(());
    };
    let place = Place { half: (1 + usize::from(pages % 4)) * PAGE, epoch: 1, settled: 0 };
    let mut log = having(&vec![0; 2 * place.half])?;
    log.begin(place);
    let mut written = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(after.len());
        let (record, after) = after.split_at(length);
        rest = after;
        if !log.has_room(length) && log.filling == 0 {
            log.turn();
        }
        if !log.has_room(length) {
            break;
        }
        log.append(record)?;
        written.push(record);
    }
    assert_eq!(replayed(&log, place)?, written);

    let at = PAGE + usize::from(u16::from_le_bytes(*at));
    if at < log.length {
        let mut byte = [0];
        log.storage.read(at as u64, &mut byte)?;
        log.storage.write(at as u64, &[byte[0] ^ damage])?;
    }
    let left = replayed(&log, place)?;
    assert!(written.starts_with(&left.iter().map(Vec::as_slice).collect::<Vec<_>>()));
    Ok(())
}

fn replayed(log: &Log, place: Place) -> io::Result<Vec<Vec<u8>>> {
    let mut records = Vec::new();
    log.replay(place, |record| {
        records.push(record.to_vec());
        Ok::<_, io::Error>(())
    })?;
    Ok(records)
}
