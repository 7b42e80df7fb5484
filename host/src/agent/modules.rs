//! The modules that were deployed, as files.
//!
//! **Problem.** What was deployed must serve again after a restart, and a module that was deployed before must be there to go back to,
//! wherever its file came from.
//!
//! **Mechanism.** Each module is one file, named by its digest, in a directory of its own. It is written beside, synced and renamed, and only then may a
//! deployment name it; so one that is named is there, whole, and one that nobody names is what a crash has left.
//!
//! **Limits.** As many as deployments are kept. **Cost.** A write and two syncs for a module that is not there yet.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::id::Digest;
use crate::journal::Report;

/// A directory of modules.
pub(super) struct Modules {
    directory: PathBuf,
}

/// Notes which deployments have no module, or another one, in this directory.
pub fn check_modules(directory: &Path, report: &mut Report) {
    let modules = Modules::new(directory.to_owned());
    let mut faults = HashMap::new();
    for deployment in report.deployments.clone() {
        let Some(digest) = deployment.module else { continue };
        let fault = faults.entry(digest).or_insert_with(|| modules.fault(digest));
        if let Some(fault) = fault {
            let key = format!("{} {}", deployment.agent, deployment.generation);
            report.violation("deployments", key, fault.clone());
        }
    }
}

const EXTENSION: &str = "wasm";
const DRAFT: &str = "draft";

impl Modules {
    /// The modules in this directory, which exists. One host at a time has it.
    pub(super) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn file(&self, digest: Digest) -> PathBuf {
        self.directory.join(digest.to_string()).with_extension(EXTENSION)
    }

    /// Keeps a module. It is durable when this returns.
    pub(super) fn put(&self, digest: Digest, bytes: &[u8]) -> io::Result<()> {
        let file = self.file(digest);
        if fs::read(&file).is_ok_and(|there| there == bytes) {
            return Ok(());
        }
        let draft = file.with_extension(DRAFT);
        let write = || {
            let mut writing = File::create(&draft)?;
            writing.write_all(bytes)?;
            writing.sync_all()
        };
        if let Err(error) = write() {
            // A disk that is full needs the room.
            let _ = fs::remove_file(&draft);
            return Err(error);
        }
        fs::rename(&draft, &file)?;
        File::open(&self.directory)?.sync_all()
    }

    /// The bytes of a module, as they are.
    pub(super) fn get(&self, digest: Digest) -> io::Result<Vec<u8>> {
        fs::read(self.file(digest))
    }

    /// What is wrong with the file of a module, if something is.
    fn fault(&self, digest: Digest) -> Option<String> {
        match self.get(digest) {
            Ok(bytes) if Digest::of(&bytes) == digest => None,
            Ok(_) => Some(format!("the file of module {digest} has other bytes")),
            Err(error) => Some(format!("the file of module {digest} cannot be read: {error}")),
        }
    }

    /// Lets go of all modules but these, and returns those that went.
    pub(super) fn keep_only(&self, kept: &HashSet<Digest>) -> io::Result<Vec<Digest>> {
        let mut gone = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let Ok(digest) = stem.parse() else { continue };
            let is_module = path.extension().is_some_and(|extension| extension == EXTENSION);
            if is_module && kept.contains(&digest) {
                continue;
            }
            fs::remove_file(&path)?;
            if is_module {
                gone.push(digest);
            }
        }
        Ok(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_kept_whole_and_what_nobody_names_goes() {
        let directory = tempfile::tempdir().unwrap();
        let modules = Modules::new(directory.path().to_owned());
        let [one, two] = [b"one".as_slice(), b"two"].map(|bytes| (Digest::of(bytes), bytes));
        for (digest, bytes) in [one, two] {
            modules.put(digest, bytes).unwrap();
            modules.put(digest, bytes).unwrap();
            assert_eq!(modules.get(digest).unwrap(), bytes);
        }
        // What a crash leaves, and what is none of ours.
        let draft = modules.file(one.0).with_extension(DRAFT);
        fs::write(&draft, "o").unwrap();
        let foreign = directory.path().join("notes.txt");
        fs::write(&foreign, "").unwrap();

        assert_eq!(modules.keep_only(&[one.0].into()).unwrap(), [two.0]);
        assert_eq!(modules.get(one.0).unwrap(), one.1);
        assert_eq!(modules.get(two.0).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(!draft.exists() && foreign.exists());
    }

    #[test]
    fn a_module_that_lost_bytes_is_written_anew() {
        let directory = tempfile::tempdir().unwrap();
        let modules = Modules::new(directory.path().to_owned());
        let digest = Digest::of(b"module");
        modules.put(digest, b"module").unwrap();
        fs::write(modules.file(digest), "mod").unwrap();
        modules.put(digest, b"module").unwrap();
        assert_eq!(modules.get(digest).unwrap(), b"module");
    }
}
