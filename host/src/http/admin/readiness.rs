//! Whether the host serves all that it was asked to.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the host still has to do before it serves all it was asked to.
#[derive(Default)]
pub struct Readiness(Mutex<State>);

#[derive(Default)]
struct State {
    loaded: bool,
    /// Why files could not be loaded.
    failed: BTreeMap<PathBuf, String>,
}

impl Readiness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An agent's file could not be loaded. Only at the start does that keep the host from being ready: later there is
    /// nothing missing that it was ready with.
    pub fn failed(&self, file: &Path, why: String) {
        let mut state = self.state();
        if !state.loaded || state.failed.contains_key(file) {
            state.failed.insert(file.to_owned(), why);
        }
    }

    /// An agent's file was loaded, or is gone.
    pub fn mended(&self, file: &Path) {
        self.state().failed.remove(file);
    }

    /// Every agent was loaded, or has failed.
    pub fn loaded(&self) {
        self.state().loaded = true;
    }

    /// What is missing, in a line, if anything is.
    pub(super) fn missing(&self) -> Option<String> {
        let state = self.state();
        if !state.loaded {
            return Some("agents are being compiled".into());
        }
        let failed: Vec<_> = state.failed.values().map(String::as_str).collect();
        (!failed.is_empty()).then(|| format!("not loaded: {}", failed.join("; ")))
    }
}
