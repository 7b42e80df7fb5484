//! A disk in memory for a host in process: it shows what is done to it, fails when told to, and says what a crash
//! would leave of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use bureau::journal::{Backend, StorageBackend};

/// The disk. Clones are the same one.
#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// What a read shows.
    bytes: Vec<u8>,
    /// What a crash would leave if it lost all that is not synced.
    durable: Vec<u8>,
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

/// What changes a disk.
#[derive(Clone)]
pub enum Change {
    Write { at: usize, data: Vec<u8> },
    SetLen(usize),
    Sync,
}

impl Change {
    /// Makes the change to these bytes.
    pub fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write { at, data } => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[*at..end].copy_from_slice(data);
            }
            Self::SetLen(len) => bytes.resize(*len, 0),
            Self::Sync => {}
        }
    }
}

impl Disk {
    /// A disk that holds this.
    pub fn of(bytes: Vec<u8>) -> Self {
        let disk = Self::default();
        disk.state().durable.clone_from(&bytes);
        disk.state().bytes = bytes;
        disk
    }

    /// What a journal is kept on.
    pub fn backend(&self) -> Backend {
        let disk = self.clone();
        Backend::new(move || Ok(disk.clone()))
    }

    /// Shows every change before it is made or fails, from now on, and returns what the disk holds now.
    pub fn observe(&self, observer: impl FnMut(&Change) + Send + 'static) -> Vec<u8> {
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
        match change {
            Change::Sync => unsynced.drain(..).for_each(|change| change.apply(durable)),
            change => unsynced.push(change),
        }
        Ok(())
    }
}

impl std::fmt::Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Disk").finish_non_exhaustive()
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state().bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let state = self.state();
        let bytes = state.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Change::SetLen(len as usize))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.change(Change::Sync)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.change(Change::Write { at: offset as usize, data: data.to_vec() })
    }
}
