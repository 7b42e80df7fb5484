//! Files that change, told once they are whole.
//!
//! **Problem.** A file that is being copied is half a file, an editor replaces a file by renaming another over it, and a
//! build tool writes the same one ten times. Whoever acts on each notice of the operating system loads halves.
//!
//! **Mechanism.** The operating system's notices are signs of change, and a file that has been [quiet](settling) for long enough after them is
//! told, as changed or as removed by whether it is there *then*: so a file that is moved away and
//! written anew is one change, and a name that came and went is none. Linux tells when a file that was open for
//! writing is closed, so that a copy that pauses is waited for. Notices are taken as they come,
//! so that nothing queues while whoever watches is busy. After notices were
//! lost, and in a directory that is new, everything is looked at again.
//!
//! **Limits.** Where closing is not told, on macOS and Windows, each written file is waited for until [`UNCLOSED`](settling::UNCLOSED), and a
//! copy that pauses longer is told half; so is one that was under way in a directory before it was watched, and everywhere one
//! that closes the file after each piece and then pauses. A file that is never quiet is never told. A symbolic link is told when it is itself replaced, not when the file behind it
//! changes. On Linux a root that is removed and made again, or is a link that points elsewhere now, is watched anew; on
//! other systems only the removal is told. Names that begin with `.`, and `target` directories, are not looked at.
//!
//! **Cost.** On Linux a watch of the kernel for each directory and for the one that each root is in; a few hundred bytes for
//! each known file, and for each that is not settled. Directories that come are read on the task that waits.

mod interest;
mod settling;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::Context as _;
use notify::event::{AccessKind, AccessMode, CreateKind, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _, WatcherKind};
use tokio::sync::Notify;

pub use self::interest::is_hidden_or_output;
use self::interest::{Concern, Interest, entries};
use self::settling::{Settling, Sign};

/// Which files are watched, and whether they are told one by one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Those in a directory, each for itself: one that is slow to be written holds up no other.
    Folder,
    /// Those in a directory and all below it, together: none is told while another is not settled.
    Tree,
}

/// Files that are whole again.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// What is there, and is new or may be different.
    pub changed: BTreeSet<PathBuf>,
    /// What was there.
    pub removed: BTreeSet<PathBuf>,
}

impl Changes {
    /// Whether nothing changed.
    fn is_empty(&self) -> bool {
        self.changed.is_empty() && self.removed.is_empty()
    }

    /// What is there and what was.
    pub fn all(&self) -> impl Iterator<Item = &PathBuf> {
        self.changed.iter().chain(&self.removed)
    }
}

/// A watch on files. Dropping it ends it.
pub struct Watch {
    watcher: RecommendedWatcher,
    shared: Arc<Shared>,
    known: BTreeSet<PathBuf>,
}

impl Watch {
    /// Watches the files with these endings in, or below, directories. A path may also be that of one file.
    pub fn of(
        paths: &[PathBuf],
        scope: Scope,
        endings: &'static [&'static str],
    ) -> anyhow::Result<Self> {
        let roots: Result<Vec<_>, _> = paths.iter().map(std::path::absolute).collect();
        let roots = roots.context("cannot tell which directory is the current one")?;
        let interest = Interest { roots, scope, endings };
        let settling = Settling::new(scope == Scope::Tree);
        let seen = Mutex::new(Seen { settling, folders: BTreeSet::new(), lost: false });
        let shared = Arc::new(Shared { interest, seen, woken: Notify::new() });
        let seeing = shared.clone();
        let watcher = notify::recommended_watcher(move |event| seeing.saw(event));
        let watcher = watcher.context(
            "cannot watch files; on Linux fs.inotify.max_user_instances bounds how many may",
        )?;
        let mut watch = Self { watcher, shared, known: BTreeSet::new() };
        for root in watch.shared.interest.roots.clone() {
            watch.add_root(&root)?;
            // After the watch began, so that no file falls between.
            watch.known.extend(watch.shared.interest.files(&root));
        }
        Ok(watch)
    }

    /// The files that were there at the beginning, and those that were told since.
    pub fn known(&self) -> &BTreeSet<PathBuf> {
        &self.known
    }

    /// Whether a file is changing again, and will be told later.
    pub fn is_changing(&self, file: &Path) -> bool {
        self.shared.seen().settling.has(file)
    }

    /// Waits until files have changed and are whole. It loses nothing when it is dropped.
    pub async fn next(&mut self) -> Changes {
        loop {
            self.look_again();
            let (settled, look) = {
                let settling = &mut self.shared.seen().settling;
                (settling.settled(Instant::now()), settling.look())
            };
            let changes = self.changes(settled);
            if !changes.is_empty() {
                return changes;
            }
            let woken = self.shared.woken.notified();
            match look {
                // Either way there is something to look at.
                Some(moment) => drop(tokio::time::timeout_at(moment.into(), woken).await),
                None => woken.await,
            }
        }
    }

    /// What became of files that are settled.
    fn changes(&mut self, settled: Vec<PathBuf>) -> Changes {
        let mut changes = Changes::default();
        for file in settled {
            match fs::metadata(&file) {
                Ok(there) if there.is_dir() => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    if self.known.remove(&file) {
                        changes.removed.insert(file);
                    }
                }
                // What cannot be looked at is told: whoever reads it will say why it cannot be.
                Ok(_) | Err(_) => {
                    self.known.insert(file.clone());
                    changes.changed.insert(file);
                }
            }
        }
        changes
    }

    /// Watches directories that came, and takes for touched what is in them and what was in those that went.
    fn look_again(&mut self) {
        let (mut folders, lost) = {
            let mut seen = self.shared.seen();
            (std::mem::take(&mut seen.folders), std::mem::take(&mut seen.lost))
        };
        let shared = self.shared.clone();
        let Interest { roots, .. } = &shared.interest;
        if lost {
            folders = roots.iter().cloned().collect();
        }
        let mut touched = BTreeSet::new();
        for folder in folders {
            let is_root = roots.contains(&folder);
            let watched = match (is_root, folder.is_dir()) {
                (true, true) => {
                    // What it watches may be what the name stood for before; nothing, if it was removed.
                    drop(self.watcher.unwatch(&folder));
                    self.add_root(&folder)
                }
                (true, false) if !folder.exists() => Err(anyhow::anyhow!(
                    "{} is gone; what was loaded from it serves on",
                    folder.display()
                )),
                (false, true) => self.watch_below(&folder),
                (_, false) => Ok(()),
            };
            if let Err(error) = watched {
                tracing::error!("{error:#}");
            }
            // After the watch began, so that no file falls between.
            touched.extend(shared.interest.files(&folder));
            touched.extend(self.known.iter().filter(|file| file.starts_with(&folder)).cloned());
        }
        let (mut seen, now) = (shared.seen(), Instant::now());
        for file in touched {
            seen.settling.saw(file, Sign::Touched, now);
        }
    }

    fn add_root(&mut self, root: &Path) -> anyhow::Result<()> {
        let around = root.parent().filter(|_| is_told_exactly() || !root.is_dir());
        if root.is_dir() {
            self.watch_below(root)?;
            // To see it replaced. Not all may read what it is in.
            if let Some(around) = around {
                drop(self.watcher.watch(around, RecursiveMode::NonRecursive));
            }
            return Ok(());
        }
        // What is watched is a file, not a name; a name is watched in its directory.
        let around = around.unwrap_or(root);
        let watched = self.watcher.watch(around, RecursiveMode::NonRecursive);
        watched.with_context(|| cannot_watch(around))
    }

    /// Watches a directory and, in a tree, those below it.
    fn watch_below(&mut self, folder: &Path) -> anyhow::Result<()> {
        let tree = self.shared.interest.scope == Scope::Tree;
        if !is_told_exactly() {
            let mode = if tree { RecursiveMode::Recursive } else { RecursiveMode::NonRecursive };
            return self.watcher.watch(folder, mode).with_context(|| cannot_watch(folder));
        }
        // One by one, where each costs: a build's output has thousands that need not be watched.
        let mut folders = vec![folder.to_owned()];
        while let Some(next) = folders.pop() {
            match self.watcher.watch(&next, RecursiveMode::NonRecursive) {
                // One that is gone already has nothing to watch.
                Err(_) if next != folder && !next.exists() => continue,
                watched => watched.with_context(|| cannot_watch(&next))?,
            }
            if tree {
                folders.extend(
                    entries(&next).filter(|(_, is_folder)| *is_folder).map(|(path, _)| path),
                );
            }
        }
        Ok(())
    }
}

/// Whether directories are watched one by one, by their names, and closing is told.
fn is_told_exactly() -> bool {
    RecommendedWatcher::kind() == WatcherKind::Inotify
}

fn cannot_watch(path: &Path) -> String {
    format!(
        "cannot watch {}; on Linux fs.inotify.max_user_watches bounds how many directories can be",
        path.display()
    )
}

/// What the thread that hears of changes and the task that waits for them have in common.
struct Shared {
    interest: Interest,
    seen: Mutex<Seen>,
    woken: Notify,
}

struct Seen {
    settling: Settling,
    /// What may be a directory, and came or went.
    folders: BTreeSet<PathBuf>,
    /// Whether there were changes of which nothing is known.
    lost: bool,
}

impl Shared {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of what the operating system tells.
    fn saw(&self, event: notify::Result<notify::Event>) {
        match event {
            Ok(event) if !event.need_rescan() => self.saw_change(event),
            Ok(_) => {
                tracing::warn!(
                    "more files changed than could be followed; all are looked at again"
                );
                self.lose();
            }
            Err(error) => {
                tracing::warn!(%error, "changes of files were lost; all are looked at again");
                self.lose();
            }
        }
    }

    fn lose(&self) {
        self.seen().lost = true;
        self.woken.notify_one();
    }

    fn saw_change(&self, event: notify::Event) {
        let Some(sign) = sign_of(&event) else { return };
        let names = !matches!(
            event.kind,
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Metadata(_)) | EventKind::Access(_)
        );
        let now = Instant::now();
        for path in event.paths {
            match self.interest.concern(&path) {
                Some(Concern::File) => self.seen().settling.saw(path, sign, now),
                Some(Concern::Folder) if names => {
                    self.seen().folders.insert(path);
                }
                Some(Concern::Folder) | None => continue,
            }
            self.woken.notify_one();
        }
    }
}

/// What a notice says of its files.
fn sign_of(event: &notify::Event) -> Option<Sign> {
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Sign::Whole),
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Name(_)) | EventKind::Remove(_) => Some(Sign::Whole),
        EventKind::Modify(ModifyKind::Metadata(_)) => Some(Sign::Touched),
        // What has another name already is not written through the new one, and nobody will close it.
        EventKind::Create(CreateKind::File | CreateKind::Any)
            if event.paths.iter().all(|path| is_link(path)) =>
        {
            Some(Sign::Whole)
        }
        EventKind::Create(_) | EventKind::Modify(_) | EventKind::Any | EventKind::Other => {
            Some(Sign::Written)
        }
    }
}

/// Whether this is a symbolic link, or one of several names of a file.
fn is_link(path: &Path) -> bool {
    let Ok(there) = fs::symlink_metadata(path) else { return false };
    #[cfg(unix)]
    let names = std::os::unix::fs::MetadataExt::nlink(&there);
    #[cfg(not(unix))]
    let names = 1;
    there.is_symlink() || (there.is_file() && names > 1)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn one_more_name_of_a_file_is_whole_at_once_since_no_one_will_close_it() {
        let directory = tempfile::tempdir().unwrap();
        let [file, hard, symbolic] =
            ["file", "hard", "symbolic"].map(|name| directory.path().join(name));
        let created = |path: &Path| {
            let event = notify::Event::new(EventKind::Create(CreateKind::File));
            sign_of(&event.add_path(path.to_owned()))
        };
        fs::write(&file, "").unwrap();
        assert_eq!(created(&file), Some(Sign::Written));
        std::os::unix::fs::symlink(&file, &symbolic).unwrap();
        assert_eq!(created(&symbolic), Some(Sign::Whole));
        fs::hard_link(&file, &hard).unwrap();
        assert_eq!(created(&hard), Some(Sign::Whole));
    }

    fn changed(file: PathBuf) -> Changes {
        Changes { changed: BTreeSet::from([file]), removed: BTreeSet::new() }
    }

    /// What is told next. A watch that says nothing for long will not: the test fails instead of hanging.
    async fn told(watch: &mut Watch) -> Changes {
        let next = tokio::time::timeout(Duration::from_secs(60), watch.next()).await;
        next.expect("a change is told")
    }

    #[tokio::test]
    async fn a_file_is_told_in_directories_that_came_with_it_and_after_they_were_moved_away() {
        let directory = tempfile::tempdir().unwrap();
        let [root, aside] = ["root", "aside"].map(|name| directory.path().join(name));
        fs::create_dir_all(&root).unwrap();
        let mut watch = Watch::of(std::slice::from_ref(&root), Scope::Tree, &["rs"]).unwrap();
        fs::create_dir_all(aside.join("deep/target")).unwrap();
        fs::write(aside.join("deep/target/out.rs"), "").unwrap();
        fs::write(aside.join("deep/notes.md"), "").unwrap();
        fs::write(aside.join("deep/lib.rs"), "").unwrap();
        let file = root.join("new/deep/lib.rs");
        fs::rename(&aside, root.join("new")).unwrap();
        assert_eq!(told(&mut watch).await, changed(file.clone()));
        fs::write(&file, "other").unwrap();
        assert_eq!(told(&mut watch).await, changed(file.clone()));
        fs::rename(root.join("new"), &aside).unwrap();
        let removed = BTreeSet::from([file]);
        assert_eq!(told(&mut watch).await, Changes { changed: BTreeSet::new(), removed });
        assert!(watch.known().is_empty());
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn a_root_is_watched_by_its_name_whatever_that_stands_for() {
        let directory = tempfile::tempdir().unwrap();
        let [root, first, second, link] =
            ["root", "first", "second", "link"].map(|name| directory.path().join(name));
        for release in [&first, &second] {
            fs::create_dir(release).unwrap();
            fs::write(release.join("a.wasm"), "").unwrap();
        }
        std::os::unix::fs::symlink(&first, &root).unwrap();
        let file = root.join("a.wasm");
        let mut watch = Watch::of(std::slice::from_ref(&root), Scope::Folder, &["wasm"]).unwrap();
        assert_eq!(watch.known(), &BTreeSet::from([file.clone()]));
        std::os::unix::fs::symlink(&second, &link).unwrap();
        fs::rename(&link, &root).unwrap();
        assert_eq!(told(&mut watch).await, changed(file.clone()));
        fs::write(second.join("a.wasm"), "other").unwrap();
        assert_eq!(told(&mut watch).await, changed(file.clone()), "the new one is watched");
        fs::remove_file(&root).unwrap();
        let removed = BTreeSet::from([file.clone()]);
        assert_eq!(told(&mut watch).await, Changes { changed: BTreeSet::new(), removed });
        fs::create_dir(&root).unwrap();
        fs::write(&file, "again").unwrap();
        assert_eq!(told(&mut watch).await, changed(file));
    }

    #[tokio::test]
    async fn one_file_is_watched_by_its_name() {
        let directory = tempfile::tempdir().unwrap();
        let [file, temporary, other] =
            ["a.wasm", "b.wasm", "c.wasm"].map(|name| directory.path().join(name));
        fs::write(&file, "").unwrap();
        let mut watch = Watch::of(std::slice::from_ref(&file), Scope::Tree, &["wasm"]).unwrap();
        for _ in 0..2 {
            fs::write(&other, "").unwrap();
            fs::write(&temporary, "").unwrap();
            fs::rename(&temporary, &file).unwrap();
            assert_eq!(told(&mut watch).await, changed(file.clone()));
        }
    }

    #[tokio::test]
    async fn after_lost_notices_all_is_looked_at_again_and_what_is_gone_is_known() {
        let directory = tempfile::tempdir().unwrap();
        let [gone, there] = ["gone.wasm", "there.wasm"].map(|name| directory.path().join(name));
        let mut watch = {
            let root = directory.path().to_owned();
            fs::write(&gone, "").unwrap();
            Watch::of(&[root], Scope::Folder, &["wasm"]).unwrap()
        };
        // Without its watch it hears of nothing, as when the kernel's queue overflows.
        watch.watcher.unwatch(directory.path()).unwrap();
        fs::remove_file(&gone).unwrap();
        fs::write(&there, "").unwrap();
        let rescan = notify::Event::new(EventKind::Other).set_flag(notify::event::Flag::Rescan);
        watch.shared.saw(Ok(rescan));
        let (changed, removed) = (BTreeSet::from([there]), BTreeSet::from([gone]));
        assert_eq!(told(&mut watch).await, Changes { changed, removed });
    }
}
