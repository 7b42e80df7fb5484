use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::PathBuf;

use fastrand::Rng;

use super::*;

type Target = fn(&[u8]);

/// Each target, with how many mutations of each seed are tried.
const TARGETS: [(&str, Target, usize); 7] = [
    ("id", id, 30_000),
    ("route", route, 30_000),
    ("sse", sse, 10_000),
    ("config", config, 3000),
    ("row", row, 30_000),
    ("log", log, 3000),
    ("module", module, 500),
];

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

fn stems(directory: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(fuzz().join(directory)).unwrap();
    let stem = |path: PathBuf| path.file_stem().and_then(OsStr::to_str).unwrap().to_owned();
    entries.map(|entry| stem(entry.unwrap().path())).collect()
}

/// The seeds of a target, in an order that does not change.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = fs::read_dir(fuzz().join("corpus").join(target)).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read(path).unwrap())).collect()
}

/// Says which bytes it was, when a target panics.
struct Tried<'a> {
    seed: &'a Path,
    input: &'a [u8],
}

impl Drop for Tried<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let (seed, input) = (self.seed.display(), self.input.escape_ascii());
            eprintln!("by a mutation of {seed}: \"{input}\"");
        }
    }
}

fn replay(target: &str) {
    let (_, try_out, mutations) = TARGETS.into_iter().find(|(name, ..)| *name == target).unwrap();
    let corpus = corpus(target);
    assert!(!corpus.is_empty());
    let mut rng = Rng::with_seed(7);
    for (seed, bytes) in &corpus {
        for mutation in 0..=mutations {
            let mut input = bytes.clone();
            for _ in 0..mutation.min(1 + mutation % 4) {
                mutate(&mut input, &mut rng, &corpus);
            }
            let _tried = Tried { seed, input: &input };
            try_out(&input);
        }
    }
}

/// Changes the bytes in one place, as fuzzers do.
fn mutate(input: &mut Vec<u8>, rng: &mut Rng, corpus: &[(PathBuf, Vec<u8>)]) {
    let at = rng.usize(..=input.len());
    let to = rng.usize(at..=input.len().min(at + 16));
    match rng.u8(..6) {
        0 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
        1 if at < input.len() => input[at] = rng.u8(..),
        2 => drop(input.drain(at..to)),
        3 => input
            .splice(at..at, [0, b'\n', b'-', b'%', 0x7f, 0xff][rng.usize(..6)..].to_vec())
            .for_each(drop),
        4 => {
            let copy = input[at..to].to_vec();
            let place = rng.usize(..=input.len());
            input.splice(place..place, copy).for_each(drop);
        }
        _ => {
            let (_, other) = &corpus[rng.usize(..corpus.len())];
            input.truncate(at);
            input.extend_from_slice(&other[rng.usize(..=other.len())..]);
        }
    }
}

#[test]
fn each_target_has_a_corpus_and_a_program_and_there_are_no_others() {
    let targets = TARGETS.iter().map(|(name, ..)| (*name).to_owned()).collect();
    assert_eq!(stems("corpus"), targets);
    assert_eq!(stems("targets"), targets);
}

macro_rules! replayed {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            replay(stringify!($target));
        }
    )*};
}

mod corpus_and_mutations_of {
    use super::replay;

    replayed!(id route sse config row log module);
}
