//! The floors of the host: `main -> http -> agent -> wasm -> journal -> base`. Each knows only those to its right, and
//! what a floor is built on stays in it.
//!
//! The sources are read as tokens, without comments and what is in quotes, and what they name is held against the rules.
//! Unit tests are sources like all others: one that needs a floor above its own is in the wrong place.

use std::fs;
use std::path::{Path, PathBuf};

/// The floors, the lowest last.
const FLOORS: [&str; 6] = ["main", "http", "agent", "wasm", "journal", "base"];

/// What only some places may name: a crate, and the beginnings of their paths.
const OWNED: [(&str, &[&str]); 4] = [
    // One for those who ask, one for whom agents ask.
    ("hyper", &["http/", "fetch/"]),
    ("wasmtime", &["wasm/"]),
    ("redb", &["journal/redb"]),
    ("reqwest", &["cli/"]),
];

#[test]
fn no_file_names_a_floor_above_its_own() {
    let mut wrong = Vec::new();
    for source in sources() {
        let own = floor(source.module());
        for named in source.names() {
            let above = match &named.what {
                What::OfRoot(module) => floor(module) < own,
                What::RootBySuper => true,
                What::Other(_) => false,
            };
            if above {
                wrong.push(format!("{}:{}: {:?}", source.file, named.line, named.what));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_file_names_a_crate_that_another_floor_is_built_on() {
    let mut wrong = Vec::new();
    let mut used = [false; OWNED.len()];
    for source in sources() {
        for named in source.names() {
            let What::Other(name) = named.what else { continue };
            // Its companions as well: `hyper_util`, `wasmtime_wasi`.
            let of_crate = |(of, _): &(&str, _)| name.split('_').next() == Some(of);
            let Some(which) = OWNED.iter().position(of_crate) else { continue };
            used[which] = true;
            if !OWNED[which].1.iter().any(|place| source.file.starts_with(place)) {
                wrong.push(format!("{}:{}: {name}", source.file, named.line));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(used, [true; OWNED.len()], "a rule about a crate that no one names is out of date");
}

#[test]
fn unsafe_code_is_in_one_place() {
    let mut places = Vec::new();
    for source in sources() {
        let found = source.tokens.iter().filter(|token| token.text == "unsafe");
        places.extend(found.map(|_| source.file.clone()));
    }
    assert_eq!(places, ["wasm/module.rs"]);
}

#[test]
fn the_rules_see_through_whatever_a_source_may_look_like() {
    let source = Source::parse(
        "journal/redb.rs",
        r####"
        //! crate::no in a comment, /* and "half a string
        /* outer /* crate::no */ crate::no */
        const A: &str = "crate::no \" crate::no";
        const B: &str = r##"crate::no "# "##;
        const C: [u8; 5] = [b'"', b'\'', b'{', '\u{7b}' as u8, b"crate::no"[0]];
        fn life<'hyper>(_: &'hyper str) {}
        use crate::{agent::{self, Deep as deep}, wasm::run};
        use ::redb::Builder;
        use super::super::http;
        mod inner { use super::super::writer; mod inmost { use super::super::super::super::http; } }
        use self::redb::tests;
        mod hyper;
        fn f() { crate :: dev::f(b'"', self.wasmtime.redb::<A>()); wasmtime_wasi::f() }
        pub(crate) fn g() { Vec::<A>::hyper(); super::hyper::f() }
        "####,
    );
    let names = source.names();
    let of_root = names.iter().filter_map(|named| match &named.what {
        What::OfRoot(module) => Some(module.as_str()),
        What::RootBySuper => Some("super"),
        What::Other(_) => None,
    });
    assert_eq!(of_root.collect::<Vec<_>>(), ["agent", "wasm", "super", "super", "dev"]);
    let others = |name: &str| names.iter().any(|named| named.what == What::Other(name.into()));
    assert!(others("redb") && others("wasmtime_wasi"));
    assert!(!others("no") && !others("hyper") && !others("wasmtime"));
    let last = names.last().unwrap();
    assert_eq!((last.line, &last.what), (15, &What::Other("A".into())));
}

/// The place of a module, of the crate's root, in [`FLOORS`].
fn floor(module: &str) -> usize {
    let name = match module {
        "lib" | "main" | "allocator" | "cli" | "host" | "agents_dir" | "dev" | "watch"
        | "fuzzing" | "Host" => "main",
        "config" | "event" | "fault" | "fetch" | "format" | "id" | "shutdown" => "base",
        name => name,
    };
    let floor = FLOORS.iter().position(|floor| *floor == name);
    floor.unwrap_or_else(|| panic!("which floor is {module} of?"))
}

/// A file of the host.
struct Source {
    /// Its place under `host/src`.
    file: String,
    tokens: Vec<Token>,
}

struct Token {
    text: String,
    line: usize,
}

/// Something that a source names by a path.
struct Named {
    what: What,
    line: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum What {
    /// By `crate::`, a module of the crate's root.
    OfRoot(String),
    /// The crate's root, by more `super` than it should take: floors are named by `crate::`.
    RootBySuper,
    /// By any other path, its first step: another crate, or what is in scope.
    Other(String),
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    gather(&root, &mut files);
    let sources: Vec<_> = files
        .iter()
        .map(|file| {
            let text = fs::read_to_string(file).unwrap();
            let place = file.strip_prefix(&root).unwrap().to_str().unwrap().replace('\\', "/");
            Source::parse(&place, &text)
        })
        .collect();
    assert!(sources.iter().any(|source| source.file == "main.rs"), "these are the host's sources");
    sources
}

fn gather(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            gather(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

impl Source {
    fn parse(file: &str, text: &str) -> Self {
        Self { file: file.into(), tokens: tokens(text) }
    }

    /// The module of the crate's root that the file is or is in.
    fn module(&self) -> &str {
        self.file.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    fn text(&self, at: usize) -> &str {
        self.tokens.get(at).map_or("", |token| &token.text)
    }

    /// All that the file names.
    fn names(&self) -> Vec<Named> {
        let mut names = Vec::new();
        let mut depth = self.file.trim_end_matches("/mod.rs").split('/').count();
        // For each open brace, whether it is that of a module.
        let mut braces = Vec::new();
        for (at, token) in self.tokens.iter().enumerate() {
            let before = |back: usize| at.checked_sub(back).map_or("", |at| self.text(at));
            let mut add = |what| names.push(Named { what, line: token.line });
            match token.text.as_str() {
                "{" => {
                    braces.push(before(2) == "mod");
                    depth += usize::from(before(2) == "mod");
                }
                "}" => depth -= usize::from(braces.pop().unwrap_or(false)),
                "crate" if self.text(at + 1) == "::" => {
                    self.first_steps(at + 2).into_iter().for_each(|name| add(What::OfRoot(name)));
                }
                "super" if before(1) != "::" => {
                    let up = (at..).step_by(2).take_while(|at| self.text(*at) == "super").count();
                    if up >= depth {
                        add(What::RootBySuper);
                    }
                }
                name if is_name(name) => {
                    // `use ::redb` starts a path, `self::redb` and `<T>::redb` do not.
                    let is_step = is_name(before(2)) && !BEFORE_PATHS.contains(&before(2));
                    let goes_on = before(1) == "::" && (is_step || before(2) == ">");
                    if !goes_on && !matches!(before(1), "." | "mod" | "'") {
                        add(What::Other(name.to_owned()));
                    }
                }
                _ => {}
            }
        }
        names
    }

    /// The first steps of what follows a `::`: one, or those of a group.
    fn first_steps(&self, at: usize) -> Vec<String> {
        if self.text(at) != "{" {
            return vec![self.text(at).to_owned()];
        }
        let mut steps = Vec::new();
        let mut open = 0;
        for at in at..self.tokens.len() {
            match self.text(at) {
                "{" => open += 1,
                "}" => open -= 1,
                _ => {}
            }
            match (open, self.text(at)) {
                (0, _) => break,
                (1, "{" | ",") if self.text(at + 1) != "}" => {
                    steps.push(self.text(at + 1).to_owned())
                }
                _ => {}
            }
        }
        steps
    }
}

/// Keywords that a path may follow.
const BEFORE_PATHS: [&str; 8] = ["as", "dyn", "for", "impl", "in", "mut", "return", "use"];

fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_alphanumeric() || first == '_')
}

/// The words and signs of a source, without comments and what is in quotes.
fn tokens(text: &str) -> Vec<Token> {
    let mut tokens = Vec::new();
    let (mut rest, mut line) = (text, 1);
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let quoted = quoted(rest);
        let (length, is_token) = if rest.starts_with("//") {
            (rest.find('\n').unwrap_or(rest.len()), false)
        } else if rest.starts_with("/*") {
            (comment(rest), false)
        } else if quoted > 0 {
            (quoted, false)
        } else if word > 0 {
            (word, true)
        } else if rest.starts_with("::") {
            (2, true)
        } else {
            (first.len_utf8(), !first.is_whitespace())
        };
        if is_token {
            tokens.push(Token { text: rest[..length].to_owned(), line });
        }
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    tokens
}

/// The length of the comment that starts here. Comments nest.
fn comment(text: &str) -> usize {
    let mut open = 0;
    for (at, _) in text.char_indices() {
        if text[at..].starts_with("/*") {
            open += 1;
        } else if at > 0 && text[..at + 1].ends_with("*/") {
            open -= 1;
            if open == 0 {
                return at + 1;
            }
        }
    }
    text.len()
}

/// The length of the string or character that starts here, 0 if none does.
fn quoted(text: &str) -> usize {
    let body = text.trim_start_matches(['b', 'c', 'r']);
    let prefix = text.len() - body.len();
    let hashes = body.len() - body.trim_start_matches('#').len();
    if prefix > 2 || (hashes > 0 && !text[..prefix].ends_with('r')) {
        return 0;
    }
    let opened = &body[hashes..];
    if text[..prefix].ends_with('r') && opened.starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let length = opened[1..].find(&end).map_or(opened.len(), |at| 1 + at + end.len());
        return prefix + hashes + length;
    }
    let Some(quote) = opened.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        return 0;
    };
    let mut escaped = false;
    for (at, c) in opened.char_indices().skip(1) {
        // `'a` without its second quote is a lifetime.
        if quote == '\'' && at > 1 && !opened[1..].starts_with('\\') && c != '\'' {
            return 0;
        }
        if c == quote && !escaped {
            return prefix + at + 1;
        }
        escaped = c == '\\' && !escaped;
    }
    0
}
