//! What is fuzzed, for the targets in `fuzz/`: what may come from anyone or from a file goes in as bytes, and comes out as a value or an
//! error.
//!
//! **Problem.** A parser is wrong where nobody thought of looking.
//!
//! **Mechanism.** Each function takes any bytes, and panics where a promise does not hold. A fuzzer looks for such bytes for as
//! long as it is let, see `fuzz/README.md`; the tests here go through the corpus in `fuzz/corpus` and through mutations of
//! it that a seed makes, the same each time.
//!
//! **Limits.** Modules are loaded, not run. **Cost.** Ordinary builds have nothing of it.

use std::convert::Infallible;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, stream};
use http::Method;
use http::header::{ACCEPT, HeaderMap, HeaderValue};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sse_stream::SseStream;

use crate::config::{Config, Overrides};
use crate::event;
use crate::http::{accept::Accept, route, sse};
use crate::id::{AgentName, Cursor, Digest, RunId, Seq};
use crate::journal::{self, Event, NotResumable};
use crate::wasm::{Engine, Granted, Module};

/// A cursor, a run, an agent or a digest has one spelling.
pub fn id(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let spellings = [
        text.parse::<Cursor>().map(|cursor| cursor.to_string()).ok(),
        text.parse::<RunId>().map(|run| run.to_string()).ok(),
        text.parse::<AgentName>().map(|agent| agent.to_string()).ok(),
        text.parse::<Digest>().map(|digest| digest.to_string()).ok(),
    ];
    assert!(spellings.iter().flatten().all(|spelling| spelling == text));
}

/// A target is a route or a problem; what names an instance, written anew, names the same one and leaves the rest as it was. An
/// `Accept` of any bytes is read too.
pub fn route(input: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(input) {
        let accept = Accept::of(&HeaderMap::from_iter([(ACCEPT, value)]));
        assert!(accept.is_satisfiable() || !accept.names_events());
    }
    let Ok(target) = str::from_utf8(input) else { return };
    for method in [Method::GET, Method::PUT, Method::POST, Method::DELETE] {
        let _ = route::parse_admin(&method, target);
    }
    let parse = |target: &str| route::parse(&Method::GET, target);
    let Ok(route) = parse(target) else { return };
    let route::Route::Agent { instance, path } = &route else { return };
    assert!(target.ends_with(path));
    let name = utf8_percent_encode(instance.name(), NON_ALPHANUMERIC);
    let again = format!("/agents/{}/{name}{path}", instance.agent());
    assert_eq!(parse(&again), Ok(route));
}

/// What the host lets an agent emit reaches a client as it was, however the bytes are cut, and so does an id that could not be
/// resumed. The first line is the event's name, the second its id, the rest its data.
pub fn sse(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (name, rest) = text.split_once('\n').unwrap_or((text, ""));
    let (id, data) = rest.split_once('\n').unwrap_or((rest, ""));
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (name, id) = (given(name), given(id));
    if event::check(name.as_deref(), id.as_deref()).is_err() {
        return;
    }
    let run = RunId::from_u128(7);
    let event = Event::new(Seq(3), name.clone(), id.clone(), data.into());
    let expected = Seen {
        name: name.unwrap_or("message".into()),
        id: id.unwrap_or(Cursor { run, seq: Seq(3) }.to_string()),
        data: data.replace("\r\n", "\n").replace('\r', "\n"),
    };
    let begin = sse::preamble(Duration::from_secs(2));
    let reset = sse::reset(run, text, NotResumable::Unknown);
    let wire = [&begin[..], &sse::frame(run, &event), &sse::heartbeat(), &reset].concat();
    for size in [1, 7, wire.len()] {
        let seen = seen(&wire, size);
        let [first, second] = &seen[..] else { panic!("two events came as {seen:?}") };
        assert_eq!(*first, expected);
        assert_eq!(second.name, "reset");
        let reset: serde_json::Value = serde_json::from_str(&second.data).expect("it is JSON");
        assert_eq!(reset["id"], text);
    }
}

/// An event as a client has it.
#[derive(Debug, PartialEq)]
struct Seen {
    name: String,
    id: String,
    data: String,
}

/// What a parser that is not ours makes of these bytes when they come in chunks of this size.
fn seen(wire: &[u8], size: usize) -> Vec<Seen> {
    let chunks = wire.chunks(size).map(|chunk| Ok::<_, Infallible>(Bytes::copy_from_slice(chunk)));
    let events = SseStream::from_bytes_stream(stream::iter(chunks));
    let seen = events.filter_map(async |event| {
        let event = event.expect("an event stream is read");
        Some(Seen {
            name: event.event.unwrap_or("message".into()),
            id: event.id.unwrap_or_default(),
            data: event.data?,
        })
    });
    seen.collect().now_or_never().expect("all of it is there")
}

/// A file is a configuration or an error, and a configuration that is printed is read as the same.
pub fn config(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let file = Path::new("bureau.toml");
    let Ok(config) = Config::parse(text, file, Overrides::default()) else { return };
    let printed = config.print();
    // What is secret is not printed, and callers' tokens cannot be given beside the file.
    if printed.contains("# tokens: set") {
        return;
    }
    let secret = Overrides { admin_token: config.admin_token.clone(), ..Overrides::default() };
    let again = Config::parse(&printed, file, secret).expect("what is printed is valid");
    assert_eq!(again, config);
}

/// Rows of the journal: see there.
pub fn row(input: &[u8]) {
    journal::fuzz_row(input);
}

/// The journal's log: see there.
pub fn log(input: &[u8]) {
    journal::fuzz_log(input);
}

/// Any bytes are a module or are refused, and a module has an export that every agent has.
pub fn module(input: &[u8]) {
    // Code is not kept, as there is no such directory.
    static ENGINE: LazyLock<Engine> = LazyLock::new(|| {
        Engine::new(4, 1 << 20, "/nonexistent".into()).expect("an engine can be made")
    });
    if input.len() > MODULE {
        return;
    }
    match Module::load(&ENGINE, input, &Granted::default()) {
        Ok(module) => assert!(module.shape().exports.iter().any(|name| name.contains("handler@"))),
        Err(refused) => assert!(!refused.to_string().is_empty()),
    }
}

/// Larger modules only take longer.
const MODULE: usize = 64 << 10;

#[cfg(test)]
mod tests;
