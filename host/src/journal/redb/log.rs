//! The log: where a batch becomes durable, with one write and one sync.
//!
//! **Problem.** A commit of a tree writes a path of pages for each place that it touches, some thirty kilobytes and as
//! many microseconds of work, though what it has to make durable may be a word. A disk is fastest when a few bytes
//! follow the last ones, in a file whose blocks and length stay as they are.
//!
//! **Mechanism.** The file is a page that says whose log it is, and two halves that are filled by turns. A batch is a *record*:
//! `checksum u32, length u32, epoch u64, number u64`, then its bytes; records follow each other without a gap, and each write begins at a
//! page and ends at one, so that nothing need be read for it. When a record has no room, the log goes on in
//! the other half, whose records must all have been settled by then. The tables say which number was settled last, and
//! which epoch this is: a new one each time that the log is opened, by which time all that it had is in the
//! tables. So what a half still has from before, or what a failed write has left, is never taken for a record.
//!
//! ```text
//!   | whose | 4 5 6 (2 3)          | 1 2 3               |
//!   |  log  | being filled         | being settled       |
//! ```
//!
//! **Limits.** A record is at most a half. Opening reads what was not settled, at most both.
//!
//! **Cost.** Whole pages: at least one per record. New blocks are filled with zeros first, a stretch at a time, once in the file's life.

use std::io;

use ::redb::StorageBackend;
use memchr::memmem::Finder;

/// What is written at once, and the unit of all places.
pub(super) const PAGE: usize = 4 << 10;

/// By how much the file grows.
const STRETCH: usize = if cfg!(test) { 2 * PAGE } else { 256 << 10 };

const MAGIC: &[u8; 16] = b"bureau's log\0\0\0\x01";

/// What comes before a record's bytes.
const HEAD: usize = 4 + 4 + 8 + 8;

/// Where a head has the epoch and the number.
const EPOCH: usize = 8;
const NUMBER: usize = 16;

/// How much of the log is looked through at once.
const WINDOW: usize = if cfg!(test) { 100 } else { 64 << 10 };

/// The log.
#[derive(Debug)]
pub(super) struct Log {
    storage: Box<dyn StorageBackend>,
    /// The size of a half.
    half: usize,
    epoch: u64,
    /// Which half is being filled, and how much of it is.
    filling: usize,
    filled: usize,
    /// The number of the last record.
    last: u64,
    /// What the last page has, and room for a write.
    write: Vec<u8>,
    /// The bytes of the file that were written once.
    length: usize,
}

/// Which records the log has that the tables do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The size of a half.
    pub(super) half: usize,
    pub(super) epoch: u64,
    /// The last record that was settled.
    pub(super) settled: u64,
}

/// The log is not that of these tables.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign;

impl Log {
    /// Makes a log with this mark on it. What there may be of another one goes.
    pub(super) fn create(storage: Box<dyn StorageBackend>, mark: u64) -> io::Result<Self> {
        storage.set_len(0)?;
        let mut page = MAGIC.to_vec();
        page.extend(mark.to_le_bytes());
        page.resize(PAGE, 0);
        storage.write(0, &page)?;
        storage.sync_data()?;
        Ok(Self::new(storage, PAGE))
    }

    /// Opens the log that has this mark.
    pub(super) fn open(
        storage: Box<dyn StorageBackend>,
        mark: u64,
    ) -> io::Result<Result<Self, Foreign>> {
        let length = usize::try_from(storage.len()?).map_err(io::Error::other)?;
        let log = Self::new(storage, length);
        let mut begins = [0; MAGIC.len() + 8];
        if length < PAGE {
            return Ok(Err(Foreign));
        }
        log.storage.read(0, &mut begins)?;
        let is_this = begins[..] == [&MAGIC[..], &mark.to_le_bytes()].concat();
        Ok(if is_this { Ok(log) } else { Err(Foreign) })
    }

    fn new(storage: Box<dyn StorageBackend>, length: usize) -> Self {
        // A stretch that a crash cut off may end anywhere.
        let length = length - length % PAGE;
        let (filling, filled, last, write) = (0, 0, 0, Vec::new());
        Self { storage, half: 0, epoch: 0, filling, filled, last, write, length }
    }

    /// Hands on the records that are to be settled, in order.
    pub(super) fn replay<E: From<io::Error>>(
        &self,
        place: Place,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut number = place.settled + 1;
        // The older half is the one that begins with the next number. What comes after it is in the other one.
        for half in [0, 1, 0] {
            let mut at = PAGE + half * place.half;
            let end = at + place.half;
            while let Some(record) = self.record(place.epoch, number, at, end)? {
                each(&record)?;
                at += HEAD + record.len();
                number += 1;
            }
        }
        Ok(())
    }

    /// A record of the same epoch beyond this one, of which [`Self::replay`] came to none: each is synced before the next one
    /// is written, so there is one only where one before it was lost.
    pub(super) fn beyond(&self, place: Place, last: u64) -> io::Result<Option<u64>> {
        let epoch = place.epoch.to_le_bytes();
        let epoch = Finder::new(&epoch);
        let mut window = vec![0; WINDOW.min(place.half)];
        for half in [0, 1] {
            let mut at = PAGE + half * place.half;
            let end = (at + place.half).min(self.length);
            while at + HEAD <= end {
                let bytes = &mut window[..WINDOW.min(end - at)];
                self.storage.read(at as u64, bytes)?;
                let mut from = EPOCH;
                while let Some(found) = epoch.find(&bytes[from..]) {
                    let head = from + found - EPOCH;
                    let Some((_, number)) = bytes[head..].split_at_checked(NUMBER) else { break };
                    let Some(number) = number.first_chunk() else { break };
                    let number = u64::from_le_bytes(*number);
                    if number > last && self.record(place.epoch, number, at + head, end)?.is_some()
                    {
                        return Ok(Some(number));
                    }
                    from += found + 1;
                }
                // A head that this one has only the beginning of is all in the next one.
                at += bytes.len() + 1 - HEAD;
            }
        }
        Ok(None)
    }

    /// The bytes of the record of this number, if it is here and whole.
    fn record(
        &self,
        epoch: u64,
        number: u64,
        at: usize,
        end: usize,
    ) -> io::Result<Option<Vec<u8>>> {
        let end = end.min(self.length);
        let mut head = [0; HEAD];
        if at + HEAD > end {
            return Ok(None);
        }
        self.storage.read(at as u64, &mut head)?;
        let [a, b, c, d, rest @ ..] = head;
        let [e, f, g, h, ..] = rest;
        let length = u32::from_le_bytes([e, f, g, h]) as usize;
        let is_this = rest[4..12] == epoch.to_le_bytes() && rest[12..] == number.to_le_bytes();
        if !is_this || length > end - at - HEAD {
            return Ok(None);
        }
        let mut bytes = vec![0; length];
        self.storage.read((at + HEAD) as u64, &mut bytes)?;
        let is_whole = u32::from_le_bytes([a, b, c, d]) == checksum(&rest, &bytes);
        Ok(is_whole.then_some(bytes))
    }

    /// Begins anew, when the tables say that nothing of it is needed any more.
    pub(super) fn begin(&mut self, Place { half, epoch, settled }: Place) {
        (self.half, self.epoch, self.last) = (half, epoch, settled);
        (self.filling, self.filled) = (0, 0);
        self.write.clear();
    }

    /// The number of the last record.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// Whether a record of so many bytes fits into what is left of the half.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        HEAD + bytes <= self.half - self.filled
    }

    /// Goes on in the other half, all of which has been settled.
    pub(super) fn turn(&mut self) {
        self.filling = 1 - self.filling;
        self.filled = 0;
        self.write.clear();
    }

    /// Makes a record durable, for which there is room. After an error the log is of no use before it is opened again.
    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let number = self.last + 1;
        let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
        let mut rest = [0; HEAD - 4];
        rest[..4].copy_from_slice(&length.to_le_bytes());
        rest[4..12].copy_from_slice(&self.epoch.to_le_bytes());
        rest[12..].copy_from_slice(&number.to_le_bytes());
        let before = self.write.len();
        let start = PAGE + self.filling * self.half + self.filled - before;
        self.write.extend(checksum(&rest, bytes).to_le_bytes());
        self.write.extend(rest);
        self.write.extend_from_slice(bytes);
        let after = self.write.len();
        self.write.resize(after.next_multiple_of(PAGE), 0);

        let end = start + self.write.len();
        if end > self.length {
            let zeros = vec![0; (end - self.length).next_multiple_of(STRETCH)];
            self.storage.write(self.length as u64, &zeros)?;
            self.length += zeros.len();
        }
        self.storage.write(start as u64, &self.write)?;
        self.storage.sync_data()?;

        self.filled += after - before;
        self.last = number;
        self.write.truncate(after);
        self.write.drain(..after - after % PAGE);
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        if let Err(error) = self.storage.close() {
            tracing::warn!(%error, "the log did not close");
        }
    }
}

fn checksum(rest: &[u8], bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(rest);
    hasher.update(bytes);
    hasher.finalize()
}

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(test)]
mod tests;
