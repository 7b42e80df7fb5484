//! What a run answered, as it is kept for who asks again.
//!
//! **Problem.** Who repeats a request, because its answer was lost, is to get that answer and not another run; also after a crash.
//!
//! **Mechanism.** A run that is to keep its reply writes it in the turn that ends it. The bytes are JSON; a body has one
//! character for each byte.
//!
//! **Limits.** A body and a head of at most as many bytes as a stored value may have each; of a larger one, and of one that came bit by bit, it
//! is only kept that there was one. **Cost.** None for all other runs.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::wasm::run::{Answer, Head};

/// What a run answered. The names are the format; do not rename them.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeptReply {
    Response {
        status: u16,
        headers: Vec<(String, String)>,
        body: String,
    },
    /// The run emitted nothing.
    Nothing,
    /// It failed: the problem's document, which has no status.
    Failure(String),
    /// There was a body, and it is not kept.
    Lost,
}

impl KeptReply {
    /// What is kept of an answer, if it is no stream of events.
    pub(super) fn of(answer: &Answer, max_bytes: usize) -> Option<Self> {
        Some(match answer {
            Answer::Response(head, body) if head.size().max(body.len()) > max_bytes => Self::Lost,
            Answer::Response(Head { status, headers }, body) => Self::Response {
                status: *status,
                headers: headers.clone(),
                body: body.iter().copied().map(char::from).collect(),
            },
            Answer::Chunks(..) | Answer::Exchange(_) => Self::Lost,
            Answer::NoContent => Self::Nothing,
            Answer::Failed(fault) => Self::failure(fault),
            Answer::Events(..) => return None,
        })
    }

    fn failure(fault: &Fault) -> Self {
        Self::Failure(fault.json())
    }

    /// As it is written.
    pub(super) fn encode(&self) -> Bytes {
        serde_json::to_vec(self).expect("strings and numbers always serialize").into()
    }

    /// As it was written, if it was.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// The head and the body of a response.
    pub fn into_response(self) -> Option<(Head, Bytes)> {
        let Self::Response { status, headers, body } = self else { return None };
        let body = body.chars().map(|char| u8::try_from(char).ok()).collect::<Option<Vec<u8>>>()?;
        Some((Head { status, headers }, body.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        Head { status: 201, headers: vec![("x".into(), "\u{e9}".into())] }
    }

    #[test]
    fn a_response_comes_back_byte_for_byte() {
        let body = Bytes::from_iter(0..=255);
        let kept = KeptReply::of(&Answer::Response(head(), body.clone()), 256).unwrap();
        let (again, bytes) = KeptReply::decode(&kept.encode()).unwrap().into_response().unwrap();
        assert_eq!((again.status, again.headers, bytes), (201, head().headers, body));
    }

    #[test]
    fn what_is_too_large_is_only_known_to_have_been() {
        let answer = Answer::Response(head(), Bytes::from_static(b"xx"));
        assert_eq!(KeptReply::of(&answer, 1), Some(KeptReply::Lost));
        let answer = Answer::Response(head(), Bytes::new());
        assert_eq!(KeptReply::of(&answer, head().size() - 1), Some(KeptReply::Lost));
    }

    #[test]
    fn a_failure_keeps_its_code() {
        let kept = KeptReply::of(&Answer::Failed(Fault::AgentTrapped), 0).unwrap();
        let Some(KeptReply::Failure(json)) = KeptReply::decode(&kept.encode()) else { panic!() };
        assert!(json.contains("\"code\":\"agent-trapped\""), "{json}");
    }
}
