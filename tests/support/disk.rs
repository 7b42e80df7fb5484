//! A disk in memory for a host in process: it shows what is done to it, fails when told to, and says what a crash
//! would leave of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bureau::journal::{Backend, JournalFile, StorageBackend};

/// The bytes of both files of a journal.
pub type Image = [Vec<u8>; 2];

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What a read shows.
    bytes: Image,
    /// What a crash would leave if it lost all that is not synced.
    durable: Image,
    unsynced: Vec<Change>,
    fault: Option<Fault>,
    observer: Option<Observer>,
}

type Observer = Box<dyn FnMut(&Change) + Send>;

/// What fails.
#[derive(Clone, Copy)]
pub struct Fault {
    /// Changes that still succeed.
    pub after: usize,
    /// Whether the first failure takes with it what is not synced, as a device that was reset does.
    pub forgets: bool,
}

/// A file of the disk.
#[derive(Debug)]
struct DiskFile {
    disk: Disk,
    file: JournalFile,
}

/// What changes a file of a disk.
#[derive(Clone)]
pub struct Change {
    pub file: JournalFile,
    pub kind: Kind,
}

#[derive(Clone)]
pub enum Kind {
    Write { at: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

impl Change {
    /// Makes the change to these bytes.
    pub fn apply(&self, image: &mut Image) {
        let bytes = &mut image[self.file as usize];
        match &self.kind {
            Kind::Write { at, data } => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
            Kind::SetLen(len) => bytes.resize(*len, 0),
            Kind::Sync => {}
        }
    }

    /// Makes those of the changes to these bytes that this one, a sync, has made durable, and keeps the others.
    pub fn settle(&self, unsynced: &mut Vec<Change>, durable: &mut Image) {
        unsynced.retain(|change| {
            let synced = change.file == self.file;
            if synced {
                change.apply(durable);
            }
            !synced
        });
    }
}

impl Disk {
    /// A disk that holds this.
    pub fn of(bytes: Image) -> Self {
        let disk = Self::default();
        disk.state().durable.clone_from(&bytes);
        disk.state().bytes = bytes;
        disk
    }

    /// What a journal is kept on.
    pub fn backend(&self) -> Backend {
        let disk = self.clone();
        Backend::new(move |file| Ok(DiskFile { disk: disk.clone(), file }))
    }

    /// Shows every change before it is made or fails, from now on, and returns what the disk holds now.
    pub fn observe(&self, observer: impl FnMut(&Change) + Send + 'static) -> Image {
        let mut state = self.state();
        state.observer = Some(Box::new(observer));
        state.bytes.clone()
    }

    /// A disk as it would be after a crash that loses all that is not synced.
    pub fn survivor(&self) -> Self {
        Self::of(self.state().durable.clone())
    }

    /// Makes changes fail until the disk is healed.
    pub fn fail(&self, fault: Fault) {
        self.state().fault = Some(fault);
    }

    /// Makes changes succeed again.
    pub fn heal(&self) {
        self.state().fault = None;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("nothing panics while it holds the lock")
    }

    fn change(&self, change: Change) -> io::Result<()> {
        let State { bytes, durable, unsynced, fault, observer } = &mut *self.state();
        if let Some(observer) = observer {
            observer(&change);
        }
        match fault {
            None => {}
            Some(Fault { after: 0, forgets }) => {
                if std::mem::take(forgets) {
                    unsynced.clear();
                    bytes.clone_from(durable);
                }
                return Err(io::Error::other("the disk is on fire"));
            }
            Some(Fault { after, .. }) => *after -= 1,
        }
        change.apply(bytes);
        match change.kind {
            Kind::Sync => change.settle(unsynced, durable),
            _ => unsynced.push(change),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl DiskFile {
    fn change(&self, kind: Kind) -> io::Result<()> {
        self.disk.change(Change { file: self.file, kind })
    }
}

impl StorageBackend for DiskFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.state().bytes[self.file as usize].len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let state = self.disk.state();
        let bytes = state.bytes[self.file as usize].get(at..at + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Kind::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Kind::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Kind::Write { at: offset as usize, data: data.to_vec() })
    }
}
