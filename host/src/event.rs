//! What may be framed as an event, checked where a guest emits it.
//!
//! An event's name and id become fields of a line-oriented format, and its id comes back in a header. A line
//! break in either would let a guest write fields of its own, and an id that no header can carry, or that
//! reads as a cursor, could not be resumed. So both are checked before the journal sees them; data needs no
//! check, since framing splits it. The cost is one pass over the name and the id.

use crate::id::Cursor;

/// The longest id that an agent may give an event, in bytes. Browsers send longer ones only after a CORS preflight.
pub const MAX_ID_LEN: usize = 128;

/// Why an event cannot be framed. The message is for the agent's author.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEvent {
    #[error("an event's name cannot have CR, LF or NUL")]
    Name,
    #[error("an event's id takes 1 to {MAX_ID_LEN} visible ASCII characters, without spaces")]
    Id,
    #[error("an event's id cannot look like a cursor of the host's own, `<run-id>-<seq>`")]
    CursorId,
}

/// Checks the name and the id that a guest gives an event.
pub fn check(name: Option<&str>, id: Option<&str>) -> Result<(), InvalidEvent> {
    if name.is_some_and(|name| name.contains(['\r', '\n', '\0'])) {
        return Err(InvalidEvent::Name);
    }
    let Some(id) = id else { return Ok(()) };
    // A space at either end is lost in a header, and other bytes reach the server differently from each client.
    let carried = id.bytes().all(|byte| byte.is_ascii_graphic());
    if id.is_empty() || id.len() > MAX_ID_LEN || !carried {
        return Err(InvalidEvent::Id);
    }
    if id.parse::<Cursor>().is_ok() {
        return Err(InvalidEvent::CursorId);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::{RunId, Seq};

    #[test]
    fn cr_lf_or_nul_in_id_or_event_name_is_refused() {
        for bad in ["a\rb", "a\nb", "a\r\nb", "a\0b", "\n"] {
            assert_eq!(check(Some(bad), None), Err(InvalidEvent::Name), "{bad:?}");
            assert_eq!(check(None, Some(bad)), Err(InvalidEvent::Id), "{bad:?}");
        }
    }

    #[test]
    fn a_name_takes_anything_else() {
        for name in ["", " progress", "añb", "a:b", "\u{feff}x", "\u{2028}"] {
            assert_eq!(check(Some(name), None), Ok(()), "{name:?}");
        }
    }

    #[test]
    fn an_id_is_what_a_header_brings_back_unchanged() {
        let longest = "x".repeat(MAX_ID_LEN);
        for id in ["0", "order-17", "a:b,c;d=\"e\"", &longest] {
            assert_eq!(check(None, Some(id)), Ok(()), "{id:?}");
        }
        for id in ["", " a", "a b", "a\t", "é", "a\u{7f}", &"x".repeat(MAX_ID_LEN + 1)] {
            assert_eq!(check(None, Some(id)), Err(InvalidEvent::Id), "{id:?}");
        }
    }

    #[test]
    fn an_id_cannot_pass_for_a_cursor() {
        let cursor = Cursor { run: RunId::from_u128(7), seq: Seq(3) }.to_string();
        assert_eq!(check(None, Some(&cursor)), Err(InvalidEvent::CursorId));
        assert_eq!(check(None, Some(&format!("{cursor}-x"))), Ok(()));
    }
}
