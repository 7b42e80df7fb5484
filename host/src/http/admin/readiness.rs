//! Whether the host serves all that it was asked to.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the host still has to do before it serves all it was asked to.
#[derive(Default)]
pub struct Readiness(Mutex<State>);

#[derive(Default)]
struct State {
    loaded: bool,
    /// Why what could not be loaded could not, by what it is.
    failed: BTreeMap<String, String>,
}

impl Readiness {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something could not be loaded, and why.
    pub fn failed(&self, what: String, why: String) {
        self.state().failed.insert(what, why);
    }

    /// It is there now, or no longer wanted.
    pub fn mended(&self, what: &str) {
        self.state().failed.remove(what);
    }

    /// Everything was loaded, or has failed.
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
