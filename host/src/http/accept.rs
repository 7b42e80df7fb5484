//! What a client says that it takes, by `Accept`.
//!
//! Whether an agent will answer with a document or with events is known only once it runs, so a request is
//! refused beforehand only when it takes neither. Events come in the [format](Format) that the client weighs highest, and
//! among equals in the one that the agent wishes. A header that cannot be read counts as none: the field is a
//! wish, and most clients that send a strange one can read what they get.

use http::header::{ACCEPT, HeaderMap};

use crate::format::Format;

/// What a client takes, as far as the host needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// The formats that it takes most gladly, a bit each.
    best: u8,
    documents: bool,
    names_events: bool,
}

impl Accept {
    /// A client that takes anything.
    pub const ANY: Self =
        Self { best: (1 << Format::ALL.len()) - 1, documents: true, names_events: false };

    /// What the client of these headers takes.
    pub fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<_> =
            values.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
        if ranges.is_empty() {
            return Self::ANY;
        }
        // The most specific range that matches decides, so that `*/*` does not bring back what `q=0` excludes.
        let decides = |format: Format| {
            let matching = ranges.iter().filter(|range| range.matches(format));
            matching.max_by_key(|range| range.specificity())
        };
        let (mut best, mut weight) = (0, 0.0);
        for format in Format::ALL {
            let Some(range) = decides(format).filter(|range| range.weight > 0.0) else { continue };
            if range.weight > weight {
                (best, weight) = (0, range.weight);
            }
            if range.weight >= weight {
                best |= bit(format);
            }
        }
        let text_or_application = |range: &Range<'_>| {
            range.weight > 0.0
                && ["*", "text", "application"]
                    .iter()
                    .any(|kind| range.kind.eq_ignore_ascii_case(kind))
        };
        let events = decides(Format::Events).filter(|range| range.weight > 0.0);
        Self {
            best,
            documents: ranges.iter().any(text_or_application),
            names_events: events.is_some_and(|range| range.specificity() >= 2),
        }
    }

    /// Whether there is any answer that the client takes: an event stream, or some document of type `text/*` or
    /// `application/*`, which is what an agent may have on offer.
    pub fn is_satisfiable(self) -> bool {
        self.best != 0 || self.documents
    }

    /// Whether the client asks for an event stream by name, as a browser's `EventSource` does.
    pub fn names_events(self) -> bool {
        self.names_events
    }

    /// The format of events for a client that takes this, of an agent with this wish. One who takes none, and waits for a
    /// document, gets events nevertheless: the run has begun.
    pub fn format(self, wish: Option<Format>) -> Format {
        // Both are event streams, and who names one without more means the plain one.
        let wish = wish.filter(|wish| !(self.names_events && *wish == Format::UiMessages));
        let taken = |format: &Format| self.best & bit(*format) != 0;
        let first = || Format::ALL.into_iter().find(taken);
        wish.filter(taken).or_else(first).unwrap_or(Format::Events)
    }
}

fn bit(format: Format) -> u8 {
    1 << format as u8
}

/// One media range.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// Whether it is one of UI message streams, which have the type of event streams.
    ui_messages: bool,
    weight: f32,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        if kind.is_empty() || subtype.is_empty() || (kind == "*" && subtype != "*") {
            return None;
        }
        let (mut weight, mut ui_messages) = (1.0, false);
        for (name, value) in parts.filter_map(|part| part.split_once('=')) {
            if name.eq_ignore_ascii_case("q") {
                weight = value.parse().unwrap_or(1.0);
            } else if name.eq_ignore_ascii_case("protocol") {
                ui_messages = value.trim_matches('"').eq_ignore_ascii_case("ui-message-stream");
            }
        }
        Some(Self { kind, subtype, ui_messages, weight })
    }

    fn matches(&self, format: Format) -> bool {
        let (kind, subtype) = match format {
            Format::Events | Format::UiMessages => ("text", "event-stream"),
            Format::Text => ("text", "plain"),
            Format::Lines => ("application", "x-ndjson"),
            Format::Document => ("application", "json"),
        };
        let is = |range: &str, of: &str| range == "*" || range.eq_ignore_ascii_case(of);
        let narrowed = self.ui_messages && format != Format::UiMessages;
        is(self.kind, kind) && is(self.subtype, subtype) && !narrowed
    }

    fn specificity(&self) -> u8 {
        u8::from(self.kind != "*") + u8::from(self.subtype != "*") + u8::from(self.ui_messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(values: &[&str]) -> Accept {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(ACCEPT, value.parse().unwrap());
        }
        Accept::of(&headers)
    }

    #[test]
    fn absent_or_any_takes_everything_and_names_nothing() {
        for values in [
            &[][..],
            &["*/*"],
            &[""],
            &["garbage"],
            &["text, */html, /x"],
            &["text/html", "*/*;q=0.1"],
        ] {
            assert_eq!(accept(values), Accept::ANY, "{values:?}");
        }
    }

    #[test]
    fn event_stream_by_name() {
        let named = [
            "text/event-stream",
            "TEXT/Event-Stream",
            "text/html, text/event-stream;q=0.001",
            "text/event-stream; charset=utf-8; q=1",
            "*/*;q=0, text/event-stream",
        ];
        for value in named {
            assert!(accept(&[value]).names_events(), "{value}");
            assert!(accept(&[value]).is_satisfiable(), "{value}");
        }
        for value in [
            "text/*",
            "*/*",
            "text/event-stream;q=0",
            "text/event-stream;q=0.000, */*",
            "text/event-streams",
        ] {
            assert!(!accept(&[value]).names_events(), "{value}");
        }
        assert!(accept(&["text/html", "text/event-stream"]).names_events());
    }

    #[test]
    fn an_explicit_accept_that_excludes_everything_on_offer_is_not_satisfiable() {
        for value in [
            "image/png",
            "image/*, video/mp4",
            "text/event-stream;q=0",
            "*/*;q=0",
            "text/*;q=0, image/*",
        ] {
            assert!(!accept(&[value]).is_satisfiable(), "{value}");
        }
        for value in [
            "application/json",
            "text/event-stream;q=0, text/html",
            "image/png, */*;q=0.1",
            "Application/x",
        ] {
            assert!(accept(&[value]).is_satisfiable(), "{value}");
        }
    }

    #[test]
    fn the_format_is_the_one_that_weighs_most_and_among_equals_the_agents() {
        use Format::{Document, Events, Lines, Text, UiMessages};
        let cases = [
            ("*/*", None, Events),
            ("*/*", Some(Text), Text),
            ("*/*", Some(UiMessages), UiMessages),
            ("text/plain", None, Text),
            ("text/plain", Some(Lines), Text),
            ("text/*", Some(Text), Text),
            ("text/*", Some(Document), Events),
            ("application/x-ndjson", None, Lines),
            ("application/json", None, Document),
            ("application/*", Some(Document), Document),
            ("application/json, text/plain, */*", None, Events),
            ("application/json;q=0.9, text/plain;q=0.8", None, Document),
            ("text/event-stream;q=0.1, application/x-ndjson;q=0.2", None, Lines),
            ("text/event-stream", Some(UiMessages), Events),
            ("text/event-stream; protocol=ui-message-stream", None, UiMessages),
            ("text/event-stream; protocol=\"UI-message-stream\"", Some(Events), UiMessages),
            ("text/event-stream; protocol=other", None, Events),
            ("*/*;q=0.1, text/event-stream;protocol=ui-message-stream", None, UiMessages),
            ("text/html", None, Events),
        ];
        for (value, wish, format) in cases {
            assert_eq!(accept(&[value]).format(wish), format, "{value} {wish:?}");
        }
    }
}
