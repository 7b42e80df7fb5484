//! A file that can be written to and stays as it is.
//!
//! **Problem.** To read a journal that a crash has left, redb has to repair it and the log has to be settled; who only looks may change
//! nothing.
//!
//! **Mechanism.** What is written is kept in memory, by pages, in front of the file, which is opened for reading. All locks are taken as shared
//! ones: several may look at the same time, and a host, whose lock is exclusive, keeps them out, as they do it.
//!
//! **Limits.** What is written must fit into memory. **Cost.** That, and a look-up for each page that is read.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::ops::{Bound, Range};
use std::sync::{Mutex, MutexGuard};

use ::redb::backends::FileBackend;
use ::redb::{BackendError, StorageBackend};

use super::super::lock;

const PAGE: usize = 4 << 10;

/// A file, and what would have become of it.
#[derive(Debug)]
pub(super) struct Overlay {
    file: FileBackend,
    changes: Mutex<Changes>,
}

#[derive(Debug)]
struct Changes {
    length: u64,
    /// What of the file was never cut off.
    kept: u64,
    pages: HashMap<u64, Box<[u8]>>,
}

type Locked = Result<bool, BackendError>;

impl Overlay {
    /// An overlay of a file that is open for reading.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        let changes = Changes { length, kept: length, pages: HashMap::new() };
        let file = FileBackend::new(file).map_err(io::Error::other)?;
        Ok(Self { file, changes: Mutex::new(changes) })
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        lock(&self.changes)
    }

    /// The page, as the file has it.
    fn below(&self, kept: u64, page: u64) -> io::Result<Box<[u8]>> {
        let mut bytes = vec![0; PAGE].into_boxed_slice();
        let begin = page * PAGE as u64;
        let count = kept.saturating_sub(begin).min(PAGE as u64) as usize;
        self.file.read(begin, &mut bytes[..count])?;
        Ok(bytes)
    }
}

/// The pages that so many bytes from here on lie in, each with the part of it and the part of them that are the same.
fn parts(offset: u64, count: usize) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == count {
            return None;
        }
        let at = offset + done as u64;
        let begin = (at % PAGE as u64) as usize;
        let size = (PAGE - begin).min(count - done);
        let of_all = done..done + size;
        done += size;
        Some((at / PAGE as u64, begin..begin + size, of_all))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.changes().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let changes = self.changes();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > changes.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if changes.pages.is_empty() && changes.length == changes.kept {
            return self.file.read(offset, out);
        }
        for (page, of_page, of_out) in parts(offset, out.len()) {
            match changes.pages.get(&page) {
                Some(bytes) => out[of_out].copy_from_slice(&bytes[of_page]),
                None => out[of_out].copy_from_slice(&self.below(changes.kept, page)?[of_page]),
            }
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let changes = &mut *self.changes();
        changes.length = length;
        changes.kept = changes.kept.min(length);
        let (last, cut) = (length / PAGE as u64, (length % PAGE as u64) as usize);
        changes.pages.retain(|page, _| *page < last || (*page == last && cut > 0));
        if let Some(page) = changes.pages.get_mut(&last) {
            page[cut..].fill(0);
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let changes = &mut *self.changes();
        changes.length = changes.length.max(offset + data.len() as u64);
        for (page, of_page, of_data) in parts(offset, data.len()) {
            if !changes.pages.contains_key(&page) {
                changes.pages.insert(page, self.below(changes.kept, page)?);
            }
            if let Some(bytes) = changes.pages.get_mut(&page) {
                bytes[of_page].copy_from_slice(&data[of_data]);
            }
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.file.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Locked {
        self.file.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Change {
        Write(usize, Vec<u8>),
        SetLen(usize),
    }

    fn change() -> impl Strategy<Value = Change> {
        let write = (0..40_000usize, any::<u8>(), 1..9000usize);
        let write = write.prop_map(|(at, byte, size)| Change::Write(at, vec![byte; size]));
        prop_oneof![3 => write, 1 => (0..50_000usize).prop_map(Change::SetLen)]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_reads_as_what_was_written_and_the_file_stays(
            length in 0..30_000usize,
            changes in prop::collection::vec(change(), 0..20),
        ) {
            let file = tempfile::NamedTempFile::new().unwrap();
            let there: Vec<u8> = (0..length).map(|at| at as u8 | 1).collect();
            std::fs::write(file.path(), &there).unwrap();
            let overlay = Overlay::new(File::open(file.path()).unwrap()).unwrap();
            let mut expected = there.clone();
            for change in changes {
                match change {
                    Change::Write(at, bytes) => {
                        overlay.write(at as u64, &bytes).unwrap();
                        let end = at + bytes.len();
                        expected.resize(expected.len().max(end), 0);
                        expected[at..end].copy_from_slice(&bytes);
                    }
                    Change::SetLen(length) => {
                        overlay.set_len(length as u64).unwrap();
                        expected.resize(length, 0);
                    }
                }
                let mut read = vec![0; overlay.len().unwrap() as usize];
                overlay.read(0, &mut read).unwrap();
                prop_assert!(read == expected);
                prop_assert!(overlay.read(1, &mut read).is_err() || read.is_empty());
            }
            prop_assert!(std::fs::read(file.path()).unwrap() == there);
        }
    }
}
