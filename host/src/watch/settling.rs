//! When a file that changes is whole, as far as the signs of change tell.
//!
//! **Problem.** Signs of one change come one by one, and none of them is known to be the last.
//!
//! **Mechanism.** Each file that changes is in one of two states:
//!
//! ```text
//!            created, written                    closed, renamed to or from, removed
//!   (quiet) ------------------> being written ---------------------------------------> whole
//!      ^                            |    ^                                             |   |
//!      |                            |    +---------------- written --------------------+   |
//!      +-- quiet for UNCLOSED ------+                                                      |
//!      +-- quiet for QUIET ----------------------------------------------------------------+
//! ```
//!
//! What becomes quiet is settled, each file for itself or all together. No input or output here: signs and times are given.
//!
//! **Limits.** A file that is never quiet is never settled. **Cost.** A few hundred bytes for each file that is not settled.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a file must be unchanged: writes, and renames, that come closer together are one change.
pub(super) const QUIET: Duration = Duration::from_millis(150);

/// How long a file that was written and not closed must be unchanged. Where closing is told this is for what changes without
/// being opened, as on some network file systems, and longer than a copy is likely to pause.
pub(super) const UNCLOSED: Duration =
    if cfg!(target_os = "linux") { Duration::from_secs(30) } else { Duration::from_secs(2) };

/// What a notice says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// Someone writes to it, and may go on to.
    Written,
    /// Nobody does: it was closed, or replaced as a whole, or is gone.
    Whole,
    /// It may have changed, and who writes to it is not known.
    Touched,
}

/// Files that have changed and are not settled.
pub(super) struct Settling {
    files: BTreeMap<PathBuf, Unsettled>,
    /// Whether none is settled before all are.
    together: bool,
}

struct Unsettled {
    /// When it last changed.
    last: Instant,
    being_written: bool,
}

impl Unsettled {
    /// When it is settled, if nothing more happens.
    fn due(&self) -> Instant {
        self.last + if self.being_written { UNCLOSED } else { QUIET }
    }
}

impl Settling {
    /// Nothing has changed yet.
    pub(super) fn new(together: bool) -> Self {
        Self { files: BTreeMap::new(), together }
    }

    /// Takes note of a sign of change.
    pub(super) fn saw(&mut self, file: PathBuf, sign: Sign, now: Instant) {
        let unsettled = self.files.entry(file);
        let unsettled = unsettled.or_insert(Unsettled { last: now, being_written: false });
        unsettled.last = now;
        unsettled.being_written = match sign {
            Sign::Written => true,
            Sign::Whole => false,
            Sign::Touched => unsettled.being_written,
        };
    }

    /// Whether a file has changed and is not settled.
    pub(super) fn has(&self, file: &Path) -> bool {
        self.files.contains_key(file)
    }

    /// Takes out what is settled now.
    pub(super) fn settled(&mut self, now: Instant) -> Vec<PathBuf> {
        if self.together && self.look().is_some_and(|due| due > now) {
            return Vec::new();
        }
        let settled = self.files.extract_if(.., |_, unsettled| unsettled.due() <= now);
        settled.map(|(file, _)| file).collect()
    }

    /// When the next is settled, if nothing more happens.
    pub(super) fn look(&self) -> Option<Instant> {
        let dues = self.files.values().map(Unsettled::due);
        if self.together { dues.max() } else { dues.min() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Scope;
    use super::*;

    /// A machine on a clock of its own.
    struct Fed {
        settling: Settling,
        now: Instant,
    }

    impl Fed {
        fn new(scope: Scope) -> Self {
            Self { settling: Settling::new(scope == Scope::Tree), now: Instant::now() }
        }

        fn saw(&mut self, file: &str, sign: Sign) {
            self.settling.saw(file.into(), sign, self.now);
        }

        /// What is settled after this time, and when to look again from then.
        fn after(&mut self, time: Duration) -> (Vec<PathBuf>, Option<Duration>) {
            self.now += time;
            let settled = self.settling.settled(self.now);
            (settled, self.settling.look().map(|look| look - self.now))
        }
    }

    fn only(file: &str) -> (Vec<PathBuf>, Option<Duration>) {
        (vec![file.into()], None)
    }

    #[test]
    fn a_file_that_is_held_open_is_not_settled_however_long_its_writer_pauses() {
        let mut fed = Fed::new(Scope::Folder);
        for _ in 0..5 {
            fed.saw("a", Sign::Written);
            assert_eq!(fed.after(QUIET * 2), (vec![], Some(UNCLOSED - QUIET * 2)));
        }
        fed.saw("a", Sign::Whole);
        assert_eq!(fed.after(QUIET / 2), (vec![], Some(QUIET / 2)));
        assert_eq!(fed.after(QUIET / 2), only("a"));
        assert_eq!(fed.after(QUIET), (vec![], None), "it is told once");
    }

    #[test]
    fn a_file_that_no_one_is_said_to_have_closed_is_settled_after_a_longer_time() {
        let mut fed = Fed::new(Scope::Folder);
        fed.saw("a", Sign::Written);
        assert_eq!(fed.after(UNCLOSED), only("a"));
    }

    #[test]
    fn a_burst_is_one_change() {
        let mut fed = Fed::new(Scope::Folder);
        for _ in 0..20 {
            fed.saw("a", Sign::Written);
            fed.saw("a", Sign::Whole);
            assert_eq!(fed.after(QUIET / 2).0, Vec::<PathBuf>::new());
        }
        assert_eq!(fed.after(QUIET / 2), only("a"));
    }

    #[test]
    fn what_is_merely_touched_is_waited_for_as_before() {
        let mut fed = Fed::new(Scope::Folder);
        fed.saw("a", Sign::Touched);
        assert_eq!(fed.after(QUIET), only("a"));
        fed.saw("a", Sign::Written);
        fed.saw("a", Sign::Touched);
        assert_eq!(fed.after(QUIET), (vec![], Some(UNCLOSED - QUIET)));
    }

    #[test]
    fn a_file_holds_up_others_only_in_a_tree() {
        for (scope, first) in [(Scope::Folder, vec!["b".into()]), (Scope::Tree, vec![])] {
            let mut fed = Fed::new(scope);
            fed.saw("a", Sign::Written);
            fed.saw("b", Sign::Whole);
            assert_eq!(fed.after(QUIET).0, first);
            fed.saw("a", Sign::Whole);
            let rest: Vec<PathBuf> = ["a", "b"]
                .map(PathBuf::from)
                .into_iter()
                .filter(|file| !first.contains(file))
                .collect();
            assert_eq!(fed.after(QUIET), (rest, None));
        }
    }
}
