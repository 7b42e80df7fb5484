//! Which files are asked for, among all that change and all that are there.
//!
//! **Problem.** The operating system tells of more than is asked for, and says of a path that is gone no longer what it was.
//!
//! **Mechanism.** A path is a file of concern, or may be a directory, by its name and its place below a root. What is there is looked for by the same rule.
//!
//! **Limits.** Names that begin with `.`, and `target` directories, are passed over; links to directories are not followed. **Cost.** A comparison with each root; the reading of a
//! directory, and in a tree of those below it, for those who ask what is there.

use std::fs;
use std::path::{Path, PathBuf};

use super::Scope;

/// What of all that the operating system tells is asked for.
pub(super) struct Interest {
    pub(super) roots: Vec<PathBuf>,
    pub(super) scope: Scope,
    pub(super) endings: &'static [&'static str],
}

/// What a path can be, by its looks.
pub(super) enum Concern {
    File,
    /// A directory, or a file that is of no concern.
    Folder,
}

impl Interest {
    /// What a path is of what is asked for, if it is within.
    pub(super) fn concern(&self, path: &Path) -> Option<Concern> {
        let depth = if self.scope == Scope::Folder { 1 } else { usize::MAX };
        let is_within = |root: &PathBuf| {
            path.strip_prefix(root).is_ok_and(|within| {
                within.components().count() <= depth && !within.ancestors().any(is_hidden_or_output)
            })
        };
        if !self.roots.iter().any(is_within) {
            return None;
        }
        let ending = path.extension().unwrap_or_default();
        let is_file = self.endings.iter().any(|asked_for| ending == *asked_for);
        Some(if is_file { Concern::File } else { Concern::Folder })
    }

    /// The files at and below a path.
    pub(super) fn files(&self, path: &Path) -> Vec<PathBuf> {
        let mut files = Vec::new();
        let mut paths = vec![(path.to_owned(), path.is_dir())];
        while let Some((path, is_folder)) = paths.pop() {
            match self.concern(&path) {
                _ if is_folder => {
                    paths.extend(entries(&path).filter(|(path, _)| self.concern(path).is_some()))
                }
                // Also a link that leads nowhere: whoever loads it will say so.
                Some(Concern::File) => files.push(path),
                _ => {}
            }
            // Whatever is a directory within one is not in it.
            if self.scope == Scope::Folder {
                paths.retain(|(_, is_folder)| !is_folder);
            }
        }
        files
    }
}

/// What is in a directory, and whether it is one itself. Links to directories are not: they may lead around in circles.
pub(super) fn entries(folder: &Path) -> impl Iterator<Item = (PathBuf, bool)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let entries =
        entries.map(|entry| (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir())));
    entries.filter(|(path, _)| !is_hidden_or_output(path))
}

/// Whether a path is that of something hidden, as temporary files are, or of what a build puts out.
pub fn is_hidden_or_output(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name == "target"
}
