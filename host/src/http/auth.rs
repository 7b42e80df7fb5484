//! Who may call which agent.
//!
//! **Problem.** A request that must not pass reaches neither the agent nor what its runs have emitted, and costs no
//! more than its head; and an agent that is told who calls must not be told it by the caller.
//!
//! **Mechanism.** Each agent has one [`Auth`]. Tokens are compared, and `Authorization` goes no further. A [`Hook`] is an agent
//! that is called first: its instance of the asked agent's name gets the request's method and header fields without a body, as
//! one for `/agents/{agent}/{instance}...` in one spelling, however the client spelt it. A 2xx lets the request pass, with the
//! answer's `bureau-identity-*` fields; any other response is the client's answer. Events, an error, a trap, silence and a
//! hook that is not there are all [`Problem::AuthUnavailable`]: nothing passes by failure. Fields that look like
//! [`IDENTITY`], also with `_` for `-`, are never taken from a client, whatever the agent's rule is.
//!
//! **Limits.** The hook's timeout, and those of an instance for the requests of one agent at once. Verdicts are not kept: each
//! request is asked about. Cross-origin preflights carry no credentials and are answered before.
//!
//! **Cost.** Without a rule a lookup and a glance at each field's name; a hash per request and a comparison per token; a call per
//! request.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{
    AUTHORIZATION, CONTENT_LENGTH, EXPECT, HeaderMap, HeaderName, TRANSFER_ENCODING,
};
use http::{Method, Response};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use super::Body;
use super::answer::{chunked, exchanged, first_act, identify, respond};
use super::api::Api;
use super::asked::text_of;
use super::bearer;
use super::problem::Problem;
use crate::agent::Directory;
use crate::config::{Auth, Hook};
use crate::fault::Fault;
use crate::id::{InstanceKey, RunId};
use crate::wasm::{Answer, Origin, Request, RequestHead};

/// What the names of fields begin with that say who calls.
const IDENTITY: &str = "bureau-identity-";

/// The hook's instance for agents that are not served: no agent has this name, and a client must not make up instances.
const NOBODY: &str = "-";

/// What stands for itself in an instance's name.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a hook said.
pub(super) enum Verdict {
    Allowed,
    Denied(Box<Response<Body>>),
}

/// Checks what can be checked by the head alone, and says who else is to be asked.
pub(super) fn check(auth: &Auth, headers: &HeaderMap) -> Result<Option<Arc<Hook>>, Problem> {
    match auth {
        Auth::Open => Ok(None),
        Auth::Tokens(tokens) => bearer::check(headers, tokens).map(|()| None),
        Auth::Hook(hook) => Ok(Some(hook.clone())),
        Auth::Closed => Err(Fault::UnknownAgent.into()),
    }
}

/// Whether a client's field of this name reaches the agent.
pub(super) fn passes(auth: &Auth, name: &HeaderName) -> bool {
    let taken = name == AUTHORIZATION && matches!(auth, Auth::Tokens(_));
    !taken && !is_identity(name.as_str())
}

/// Whether the name, in lower case, is one of those that say who calls, or one that some program takes for such.
fn is_identity(name: &str) -> bool {
    let mut bytes = name.bytes().map(|byte| if byte == b'_' { b'-' } else { byte });
    IDENTITY.bytes().all(|byte| bytes.next() == Some(byte))
}

/// Asks a hook whether a request for this path of an instance may pass, and puts what it says of the caller into the request's
/// head.
pub(super) async fn ask(
    api: &Api,
    hook: &Hook,
    asked: &InstanceKey,
    method: &Method,
    path: &str,
    head: &mut RequestHead,
) -> Result<Verdict, Problem> {
    let unavailable = |why: &str| {
        tracing::warn!(hook = %hook.agent, instance = %asked, "no request passes: {why}");
        Problem::AuthUnavailable
    };
    let failed = |fault: Fault| match fault {
        // What the hook says to the client.
        Fault::BadRequest(_) => fault.into(),
        fault => unavailable(&fault.facts().detail),
    };
    let Some(deployed) = api.registry.current(&hook.agent) else {
        return Err(unavailable("the hook is not served"));
    };
    let agent = asked.agent();
    let served = api.registry.current(agent).is_some();
    let name = if served { agent.as_str() } else { NOBODY };
    let instance =
        InstanceKey::new(hook.agent.clone(), name).map_err(|_| Problem::AuthUnavailable)?;
    let (request, question) = question(asked, method, path, head);
    // Not kept: after a start no client waits for it.
    let origin = Origin { head: question, ..Origin::default() };
    let (run, answered) = api.start(&instance, &deployed, request, None, origin).map_err(failed)?;
    let mut asking = Asking { directory: &api.directory, run: Some(run) };
    let answered = timeout(hook.timeout, first_act(answered)).await;
    let (answer, module) =
        answered.map_err(|_| unavailable("the hook takes too long"))?.map_err(failed)?;
    let response = match answer {
        Answer::Response(head, body) => respond(head, Body::full(body)),
        Answer::Chunks(head, chunks) => respond(head, chunked(chunks)),
        Answer::Exchange(response) => Ok(exchanged(*response)),
        Answer::Failed(fault) => Err(fault),
        Answer::Events(..) | Answer::NoContent => {
            return Err(unavailable("the hook answers with events, not with a response"));
        }
    };
    asking.run = None;
    let mut response = response.map_err(failed)?;
    if !response.status().is_success() {
        identify(&mut response, run, module);
        return Ok(Verdict::Denied(Box::new(response)));
    }
    for (name, value) in response.headers() {
        if name.as_str().starts_with(IDENTITY) {
            head.push(name.as_str(), &text_of(value));
        }
    }
    Ok(Verdict::Allowed)
}

/// What a hook is asked about a request.
fn question(
    asked: &InstanceKey,
    method: &Method,
    path: &str,
    head: &RequestHead,
) -> (Request, RequestHead) {
    let instance = utf8_percent_encode(asked.name(), PLAIN);
    let target = format!("/agents/{}/{instance}{path}", asked.agent());
    // The body is not there, so nothing may say how it comes.
    let of_body = [CONTENT_LENGTH, TRANSFER_ENCODING, EXPECT];
    let fields = || {
        let fields = head.fields().filter(|(name, _)| !of_body.iter().any(|of| of == name));
        fields.map(|(name, value)| (name, value.into()))
    };
    let head = RequestHead::new(&target, fields);
    let method = method.as_str().to_owned();
    (Request { method, path: target, body: Bytes::new() }, head)
}

/// A hook's run that is waited for: it is cancelled when nobody does any more.
struct Asking<'a> {
    directory: &'a Directory,
    run: Option<RunId>,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        if let Some(run) = self.run {
            self.directory.cancel(run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_any_program_could_take_for_an_identity_is_one() {
        for name in ["bureau-identity-user", "bureau_identity_user", "bureau-identity-"] {
            assert!(is_identity(name), "{name}");
        }
        for name in ["bureau-identity", "bureau-identify-user", "x-bureau-identity-user", "bureau"]
        {
            assert!(!is_identity(name), "{name}");
        }
    }
}
