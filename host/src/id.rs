//! Names and numbers that cross module borders: parse and print, nothing else.
//!
//! Every value here is checked once, where it enters, and is valid from then on. A [`Cursor`] is what a
//! client sends back as `Last-Event-ID`, so its parser is total and its cost is bounded by
//! [`Cursor::MAX_LEN`]; whatever does not parse is simply not a cursor.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use ulid::Ulid;

/// An agent's name: `[a-z0-9]([a-z0-9-]*[a-z0-9])?`, at most 63 bytes, so that it also fits a DNS label.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AgentName(Arc<str>);

/// What is wrong with an agent's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not an agent name: it takes 1 to 63 of a-z, 0-9 and -, not starting or ending with -"
)]
pub struct InvalidAgentName(String);

impl AgentName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AgentName {
    type Err = InvalidAgentName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let valid = (1..=63).contains(&name.len())
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && !name.ends_with('-');
        if !valid {
            return Err(InvalidAgentName(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for AgentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which instance: an agent and a name of 1 to 256 bytes of UTF-8 without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct InstanceKey {
    agent: AgentName,
    name: Arc<str>,
}

/// What is wrong with an instance's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an instance name takes 1 to 256 bytes of UTF-8 without control characters, and {0}")]
pub struct InvalidInstanceName(&'static str);

impl InstanceKey {
    /// The longest name, in bytes after percent-decoding.
    pub const MAX_NAME_LEN: usize = 256;

    /// Names an instance of an agent.
    pub fn new(agent: AgentName, name: &str) -> Result<Self, InvalidInstanceName> {
        if name.is_empty() {
            return Err(InvalidInstanceName("this one is empty"));
        }
        if name.len() > Self::MAX_NAME_LEN {
            return Err(InvalidInstanceName("this one is longer"));
        }
        if name.chars().any(char::is_control) {
            return Err(InvalidInstanceName("this one has a control character"));
        }
        Ok(Self { agent, name: name.into() })
    }

    /// The agent.
    pub fn agent(&self) -> &AgentName {
        &self.agent
    }

    /// The instance's name within its agent.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for InstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.agent, self.name)
    }
}

/// A run's id, a ULID: ids sort by the millisecond in which the runs began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(Ulid);

impl RunId {
    /// Bytes of an id's text.
    pub const LEN: usize = ulid::ULID_LEN;

    /// A new id, unlike any other. It does not sort before one that this process has made in an earlier millisecond, also when the
    /// clock was set back since.
    pub fn generate() -> Self {
        static LATEST: AtomicU64 = AtomicU64::new(0);
        Self::generate_at(SystemTime::now(), &LATEST)
    }

    fn generate_at(clock: SystemTime, latest: &AtomicU64) -> Self {
        let drawn = Ulid::from_datetime(clock);
        let now = drawn.timestamp_ms();
        let begun = latest.fetch_max(now, Ordering::Relaxed).max(now);
        Self(Ulid::from_parts(begun, drawn.random()))
    }

    /// The id as a number, which sorts as the id does.
    pub fn as_u128(self) -> u128 {
        self.0.0
    }

    /// The id of this number.
    pub fn from_u128(number: u128) -> Self {
        Self(Ulid(number))
    }

    /// When the run began, in milliseconds since 1970, as far as the clock was not set back since the host started.
    pub fn timestamp_ms(self) -> u64 {
        self.0.timestamp_ms()
    }
}

/// The text is not a ULID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run id is a ULID: 26 characters of Crockford's base 32")]
pub struct InvalidRunId;

impl FromStr for RunId {
    type Err = InvalidRunId;

    fn from_str(text: &str) -> Result<Self, InvalidRunId> {
        let ulid = Ulid::from_string(text).map_err(|_| InvalidRunId)?;
        let id = Self(ulid);
        // Only the canonical spelling counts: a second spelling of one id would be a second cursor for one event.
        if id.to_string() != text {
            return Err(InvalidRunId);
        }
        Ok(id)
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.array_to_str(&mut [0; Self::LEN]))
    }
}

impl fmt::Debug for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An event's number within its run: 1, 2, 3 ...; 0 stands before the first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first event.
    pub const ZERO: Self = Self(0);

    /// The number after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A position in a run, `<run-id>-<seq>`: all events up to and including `seq` have been seen.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Cursor {
    /// The run.
    pub run: RunId,
    /// The last event seen.
    pub seq: Seq,
}

/// The text is not a cursor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a cursor is <run-id>-<seq>, at most 64 bytes")]
pub struct InvalidCursor;

impl Cursor {
    /// No cursor is longer, in bytes.
    pub const MAX_LEN: usize = 64;
}

impl FromStr for Cursor {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        if text.len() > Self::MAX_LEN {
            return Err(InvalidCursor);
        }
        let (run, seq) = text.split_once('-').ok_or(InvalidCursor)?;
        let run = run.parse().map_err(|_| InvalidCursor)?;
        let canonical =
            seq.bytes().all(|byte| byte.is_ascii_digit()) && (seq == "0" || !seq.starts_with('0'));
        if !canonical {
            return Err(InvalidCursor);
        }
        let seq = seq.parse().map(Seq).map_err(|_| InvalidCursor)?;
        Ok(Self { run, seq })
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.run, self.seq)
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

/// A module's identity: the SHA-256 digest of its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// Bytes of a digest's text.
    pub const LEN: usize = 64;

    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The digest of these bytes one after the other.
    pub fn of_all(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        parts.iter().for_each(|part| hasher.update(part));
        Self(hasher.finalize().into())
    }

    /// The digest that these bytes are.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// The text is not a digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 characters of lower-case hexadecimal")]
pub struct InvalidDigest;

impl FromStr for Digest {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<Self, InvalidDigest> {
        let digit = |byte: u8| match byte {
            b'0'..=b'9' => Ok(byte - b'0'),
            b'a'..=b'f' => Ok(byte - b'a' + 10),
            _ => Err(InvalidDigest),
        };
        if text.len() != Self::LEN {
            return Err(InvalidDigest);
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; Self::LEN];
        for (pair, byte) in text.chunks_exact_mut(2).zip(self.0) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        f.write_str(str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn cursor() -> impl Strategy<Value = Cursor> {
        let run = any::<u128>().prop_map(RunId::from_u128);
        (run, any::<u64>()).prop_map(|(run, seq)| Cursor { run, seq: Seq(seq) })
    }

    /// Text that is nearly a cursor: one that was changed in one place, or put together from its parts.
    fn nearly() -> impl Strategy<Value = String> {
        let changed = (cursor(), any::<prop::sample::Index>(), any::<char>(), any::<bool>());
        let changed = changed.prop_map(|(cursor, at, char, insert)| {
            let mut text = cursor.to_string();
            let at = at.index(text.len());
            text.replace_range(at..at + usize::from(!insert), char.encode_utf8(&mut [0; 4]));
            text
        });
        let respelt =
            (cursor(), "[01+]{1,3}").prop_map(|(cursor, seq)| format!("{}-{seq}", cursor.run));
        prop_oneof![changed, respelt, "[0-9A-Za-z-]{0,70}"]
    }

    proptest! {
        #[test]
        fn cursors_round_trip(cursor in cursor()) {
            let text = cursor.to_string();
            prop_assert_eq!(text.parse(), Ok(cursor));
            prop_assert!(text.len() <= Cursor::MAX_LEN);
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'));
        }

        #[test]
        fn only_the_canonical_spelling_of_a_cursor_parses(text in prop_oneof![1 => any::<String>(), 4 => nearly()]) {
            if let Ok(cursor) = text.parse::<Cursor>() {
                prop_assert_eq!(cursor.to_string(), text);
            }
        }

        #[test]
        fn run_ids_sort_as_text_as_they_do_as_numbers(one in any::<u128>(), other in any::<u128>()) {
            let [one, other] = [one, other].map(RunId::from_u128);
            prop_assert_eq!(one.cmp(&other), one.to_string().cmp(&other.to_string()));
            prop_assert_eq!(RunId::from_u128(one.as_u128()), one);
        }

        #[test]
        fn digests_round_trip(bytes in any::<[u8; 32]>(), text in "[0-9a-fA-F]{63,65}") {
            let digest = Digest(bytes);
            prop_assert_eq!(digest.to_string().parse(), Ok(digest));
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }
    }

    #[test]
    fn run_ids_keep_their_order_and_differ_when_the_clock_is_set_back() {
        let latest = AtomicU64::new(0);
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let before = SystemTime::UNIX_EPOCH - Duration::from_secs(1);
        let clocks = [at(10), at(20), at(5), at(0), before, at(20), at(21)];
        let ids = clocks.map(|clock| RunId::generate_at(clock, &latest));
        let times = ids.map(|id| id.timestamp_ms() / 1000);
        assert_eq!(times, [10, 20, 20, 20, 20, 20, 21]);
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len());
    }

    #[test]
    fn what_is_nearly_a_cursor_is_none() {
        let run = "01ARZ3NDEKTSV4RRFFQ69G5FAV";
        assert!(format!("{run}-0").parse::<Cursor>().is_ok());
        assert!(format!("{run}-{}", u64::MAX).parse::<Cursor>().is_ok());
        let lower = run.to_lowercase();
        for text in [
            "".into(),
            "-".into(),
            run.into(),
            format!("{run}-"),
            format!("{run}-01"),
            format!("{run}-+1"),
            format!("{run}--1"),
            format!("{run}-1 "),
            format!("{run}-\u{661}"),
            format!("{run}-18446744073709551616"),
            format!("{run}-{}", "1".repeat(8 << 10)),
            format!("{lower}-1"),
            format!("8{}-1", &run[1..]),
            format!("I{}-1", &run[1..]),
        ] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text:?}");
        }
    }
}
