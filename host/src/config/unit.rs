//! How a limit is written in the file: the unit of its value, and what it may be.
//!
//! A value that is out of its unit's range is refused where it is read, so that the message names its place.

use std::fmt;
use std::marker::PhantomData;
use std::time::Duration;

use serde::de::{Deserialize, Deserializer, Error};

/// Reads and prints a value of type `T`.
pub(super) trait Unit<T> {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<T, D::Error>;

    /// As it would be written in the file. Nothing stands for what is left out there.
    fn print(value: &T) -> Option<String>;
}

/// A value as it was written, of this unit.
pub(super) struct Written<U, T>(pub(super) T, PhantomData<U>);

impl<'de, U: Unit<T>, T> Deserialize<'de> for Written<U, T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        U::read(from).map(|value| Self(value, PhantomData))
    }
}

impl<U, T: fmt::Debug> fmt::Debug for Written<U, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What need not be limited.
impl<U: Unit<T>, T> Unit<Option<T>> for U {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
        U::read(from).map(Some)
    }

    fn print(value: &Option<T>) -> Option<String> {
        value.as_ref().and_then(U::print)
    }
}

/// A whole number of things, at least one.
pub(super) struct Count;

impl<T: TryFrom<u64> + fmt::Display> Unit<T> for Count
where
    T: Number,
{
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        positive(u64::deserialize(from)?)
    }

    fn print(value: &T) -> Option<String> {
        Some(value.to_string())
    }
}

/// A number that is a value of its own: not what may be left out.
pub(super) trait Number {}

impl Number for u32 {}
impl Number for u64 {}
impl Number for usize {}

fn positive<T: TryFrom<u64>, E: Error>(number: u64) -> Result<T, E> {
    if number == 0 {
        return Err(E::custom("must be more than 0"));
    }
    T::try_from(number).map_err(|_| E::custom("is too large"))
}

/// A number of bytes, at least one.
pub(super) struct Size;

impl<T: TryFrom<u64> + Copy + TryInto<u64>> Unit<T> for Size
where
    T: Number,
{
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        positive(size(from)?)
    }

    fn print(value: &T) -> Option<String> {
        Some(print_size(*value))
    }
}

/// A number of bytes, or none.
pub(super) struct SizeOrZero;

impl<T: TryFrom<u64> + Copy + TryInto<u64>> Unit<T> for SizeOrZero
where
    T: Number,
{
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
        T::try_from(size(from)?).map_err(|_| D::Error::custom("is too large"))
    }

    fn print(value: &T) -> Option<String> {
        Some(print_size(*value))
    }
}

/// A time of at least a millisecond, which is what timers can do.
pub(super) struct Span;

impl Unit<Duration> for Span {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        let span = span(from)?;
        match span.as_millis() {
            0 => Err(D::Error::custom("must be at least 1ms")),
            _ => Ok(span),
        }
    }

    fn print(value: &Duration) -> Option<String> {
        Some(print_span(*value))
    }
}

/// A time, or none.
pub(super) struct SpanOrZero;

impl Unit<Duration> for SpanOrZero {
    fn read<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        span(from)
    }

    fn print(value: &Duration) -> Option<String> {
        Some(print_span(*value))
    }
}

fn span<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(from)?;
    humantime::parse_duration(&text).map_err(|error| {
        D::Error::custom(format!("{text:?} is not a duration such as \"15s\": {error}"))
    })
}

pub(super) fn print_span(span: Duration) -> String {
    format!("\"{}\"", humantime::format_duration(span))
}

fn size<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    #[derive(serde::Deserialize)]
    #[serde(untagged, expecting = "expected a size: whole bytes, or text such as \"64 KiB\"")]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    let bytes = match Size::deserialize(from)? {
        Size::Bytes(bytes) => Some(bytes),
        Size::Text(text) => parse_size(&text),
    };
    bytes
        .ok_or_else(|| D::Error::custom("expected a size: whole bytes, or text such as \"64 KiB\""))
}

/// The units of sizes, largest first, and how far each shifts.
const SIZES: [(&str, u32); 4] = [("GiB", 30), ("MiB", 20), ("KiB", 10), ("B", 0)];

pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, shift) = SIZES.into_iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(1 << shift)
}

fn print_size<T: TryInto<u64>>(bytes: T) -> String {
    let bytes = bytes.try_into().unwrap_or(u64::MAX);
    let whole = |(_, shift): &(&str, u32)| bytes != 0 && bytes.trailing_zeros() >= *shift;
    match SIZES.into_iter().find(whole) {
        Some((name, shift)) => format!("\"{} {name}\"", bytes >> shift),
        None => "\"0 B\"".into(),
    }
}
