//! What a client says that it takes, by `Accept`.
//!
//! Whether an agent will answer with a document or with events is known only once it runs, so a request is
//! refused beforehand only when it takes neither. A header that cannot be read counts as none: the field is a
//! wish, and most clients that send a strange one can read what they get.

use http::header::{ACCEPT, HeaderMap};

/// What a client takes, as far as the host needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    events: bool,
    documents: bool,
    names_events: bool,
}

impl Accept {
    /// A client that takes anything.
    pub const ANY: Self = Self { events: true, documents: true, names_events: false };

    /// What the client of these headers takes.
    pub fn of(headers: &HeaderMap) -> Self {
        let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let ranges: Vec<_> =
            values.flat_map(|value| value.split(',')).filter_map(Range::parse).collect();
        if ranges.is_empty() {
            return Self::ANY;
        }
        // The most specific range that matches decides, so that `*/*` does not bring back what `q=0` excludes.
        let decides = ranges
            .iter()
            .filter(|range| range.matches_events())
            .max_by_key(|range| range.specificity());
        let text_or_application = |range: &Range<'_>| {
            range.taken
                && ["*", "text", "application"]
                    .iter()
                    .any(|kind| range.kind.eq_ignore_ascii_case(kind))
        };
        Self {
            events: decides.is_some_and(|range| range.taken),
            documents: ranges.iter().any(text_or_application),
            names_events: decides.is_some_and(|range| range.taken && range.specificity() == 2),
        }
    }

    /// Whether there is any answer that the client takes: an event stream, or some document of type `text/*` or
    /// `application/*`, which is what an agent may have on offer.
    pub fn is_satisfiable(self) -> bool {
        self.events || self.documents
    }

    /// Whether the client asks for an event stream by name, as a browser's `EventSource` does.
    pub fn names_events(self) -> bool {
        self.names_events
    }
}

/// One media range.
struct Range<'a> {
    kind: &'a str,
    subtype: &'a str,
    /// Whether its weight is above zero.
    taken: bool,
}

impl<'a> Range<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let (kind, subtype) = parts.next()?.split_once('/')?;
        if kind.is_empty() || subtype.is_empty() || (kind == "*" && subtype != "*") {
            return None;
        }
        let weight =
            parts.find_map(|part| part.strip_prefix("q=").or_else(|| part.strip_prefix("Q=")));
        let taken =
            weight.and_then(|weight| weight.parse::<f32>().ok()).is_none_or(|weight| weight > 0.0);
        Some(Self { kind, subtype, taken })
    }

    fn matches_events(&self) -> bool {
        let kind = self.kind == "*" || self.kind.eq_ignore_ascii_case("text");
        let subtype = self.subtype == "*" || self.subtype.eq_ignore_ascii_case("event-stream");
        kind && subtype
    }

    fn specificity(&self) -> u8 {
        u8::from(self.kind != "*") + u8::from(self.subtype != "*")
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
}
