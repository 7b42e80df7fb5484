//! How commands say what they have to say: JSON for programs, lines and tables for people.
//!
//! What an agent has chosen (an event's name and data, an error's text) may hold bytes that a terminal obeys. In the form
//! for people they are shown as escapes; JSON has them escaped by its own rules. Whoever reads standard output may
//! leave, as `head` does, and then there is nothing more to say: that is [`ReaderLeft`], and no failure.

use std::borrow::Cow;
use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::{Duration, SystemTime};

use serde::Serialize;

use super::arguments::Form;

/// Whoever read standard output has left.
#[derive(Debug, thiserror::Error)]
#[error("no one reads the output any more")]
pub struct ReaderLeft;

/// Standard output, in one of the two forms.
pub struct Output {
    json: bool,
}

impl Output {
    /// Output in this form.
    pub fn new(form: Form) -> Self {
        Self { json: form.json }
    }

    /// Whether the output is for programs.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Says one thing: a document on a line of its own, or what `text` makes of it.
    pub fn say(
        &self,
        document: &impl Serialize,
        text: impl FnOnce() -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let mut said = if self.json { serde_json::to_string(document)? } else { text()? };
        if !said.ends_with('\n') {
            said.push('\n');
        }
        let mut stdout = io::stdout().lock();
        match stdout.write_all(said.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ReaderLeft.into()),
            written => Ok(written?),
        }
    }
}

/// A table of columns as wide as what is in them.
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these columns.
    pub fn new(columns: &[&str]) -> Self {
        Self { rows: vec![columns.iter().map(|&name| name.to_owned()).collect()] }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let cell = |cell: String| clean(&cell).replace('\n', "\\n");
        self.rows.push(cells.into_iter().map(cell).collect());
    }

    /// Adds a line below the last row.
    pub fn note(&mut self, text: &str) {
        // One cell, which is the last of its row, widens no column.
        self.rows.push(vec![format!("  {}", indent(text, "  "))]);
    }

    /// The table as text.
    pub fn text(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |at: usize| {
            let cells = self.rows.iter().filter(|row| row.len() > 1).filter_map(|row| row.get(at));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(&widths) {
                // Writing to a string cannot fail.
                let _ = write!(line, "{cell:width$}  ");
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text that a terminal shows and does not obey. Line breaks and tabs stay.
pub fn clean(text: &str) -> Cow<'_, str> {
    let obeyed = |c: char| c.is_control() && c != '\n' && c != '\t';
    if !text.contains(obeyed) {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if obeyed(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown.into()
}

/// Text whose lines after the first are indented.
pub fn indent(text: &str, by: &str) -> String {
    clean(text).replace('\n', &format!("\n{by}"))
}

/// The first characters of a digest, enough to tell it from others.
pub fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

/// How long ago a time is, in its largest unit.
pub fn age(time: &str, now: SystemTime) -> String {
    match humantime::parse_rfc3339(time) {
        // A clock that is ahead of this one's is not worth an error.
        Ok(then) => span(now.duration_since(then).unwrap_or_default()),
        Err(_) => time.to_owned(),
    }
}

/// A duration in its largest unit.
pub fn span(duration: Duration) -> String {
    match duration.as_secs() {
        0 => format!("{}ms", duration.as_millis()),
        seconds @ 1..60 => format!("{seconds}s"),
        seconds @ 60..3600 => format!("{}m", seconds / 60),
        seconds @ 3600..86400 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86400),
    }
}

/// A size in its largest unit.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    // Not 1024, as that is what rounding would make of a little less.
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_notes_widen_none() {
        let mut table = Table::new(&["NAME", "RUNS"]);
        table.row(["a-long-name".into(), "1".into()]);
        table.note("why it is\nso");
        table.row(["é".into(), "1000000".into()]);
        let shown = "\
NAME         RUNS
a-long-name  1
  why it is
  so
é            1000000
";
        assert_eq!(table.text(), shown);
    }

    #[test]
    fn a_terminal_obeys_nothing_that_an_agent_says() {
        assert_eq!(
            clean("\u{1b}]0;owned\u{7}\r\u{9b}2J\u{7f}"),
            "\\u{1b}]0;owned\\u{7}\\r\\u{9b}2J\\u{7f}"
        );
        assert_eq!(clean("a\tb\né"), "a\tb\né");
        let mut table = Table::new(&["NAME", "SOURCE"]);
        table.row(["a\u{1b}[2J".into(), "b".into()]);
        table.note("c\u{1b}[2J");
        assert!(!table.text().contains('\u{1b}'));
    }

    #[test]
    fn ages_and_sizes_have_one_unit() {
        let now = humantime::parse_rfc3339("2026-11-25T02:51:21.123Z").unwrap();
        for (time, shown) in [
            ("2026-11-25T02:51:21.000Z", "123ms"),
            ("2026-11-25T02:51:20.000Z", "1s"),
            ("2026-11-25T02:50:20.123Z", "1m"),
            ("2026-11-25T01:51:21.123Z", "1h"),
            ("2026-11-22T02:51:21.123Z", "3d"),
            ("2026-11-25T02:51:22.000Z", "0ms"),
            ("yesterday", "yesterday"),
        ] {
            assert_eq!(age(time, now), shown);
        }
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (5 << 30, "5.0 GiB"),
            (u64::MAX, "16777216.0 TiB"),
        ] {
            assert_eq!(size(bytes), shown);
        }
        assert_eq!((short(&"ab".repeat(32)), short("ab")), ("abababababab", "ab"));
    }
}
