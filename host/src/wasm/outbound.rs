//! Requests of a guest to others, from `wasi:http` to the agent's [client](crate::fetch::Client).
//!
//! **Problem.** A guest is told what went wrong in the words of `wasi:http`, and must not learn more from them than it may know. An operator
//! wants to hear of what an agent is refused, and what would have to be granted, and not a thousand times.
//!
//! **Mechanism.** The hooks of wasmtime's implementation, which are the same for 0.3 and 0.2. The agent's client does the work; its
//! errors become `error-code`s in one place.
//!
//! **Limits.** Those of the client, and what a guest asks for below them. [`SAID`] refusals of a live instance are logged.
//!
//! **Cost.** Three boxes around the two bodies.

use std::future::Future;
use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use http_body_util::BodyExt as _;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody, WasiHttpHooks};

use crate::fetch::{ConnectError, FetchError, Patience};
use crate::wasm::chunks::MAX_CHUNK;
use crate::wasm::granted::Granted;
use crate::wasm::session::Session;

/// How many refusals are logged of each live instance: a guest that tries all the world's hosts must not fill the log.
const SAID: u32 = 16;

/// What sends the requests of one store.
pub(super) struct Outbound {
    session: Arc<Session>,
    granted: Arc<Granted>,
    refused: Arc<AtomicU32>,
}

impl Outbound {
    pub(super) fn new(session: Arc<Session>, granted: Arc<Granted>) -> Self {
        Self { session, granted, refused: Arc::default() }
    }
}

type Transfer = Box<dyn Future<Output = Result<(), Error>> + Send>;
type Sent = Result<(http::Response<WasiBody>, Transfer), Error>;

impl WasiHttpHooks for Outbound {
    fn send_request(
        &mut self,
        request: http::Request<WasiBody>,
        options: Option<RequestOptions>,
        _transfer: Transfer,
    ) -> Box<dyn Future<Output = Sent> + Send> {
        let (session, refused) = (self.session.clone(), self.refused.clone());
        let client = self.granted.client().cloned();
        let options = options.unwrap_or_default();
        let patience = Patience {
            connect: options.connect_timeout,
            head: options.first_byte_timeout,
            bytes: options.between_bytes_timeout,
        };
        Box::new(async move {
            // A module that imports this without the grant does not serve.
            let client = client.ok_or(Error::HttpRequestDenied)?;
            let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
            let sent = client.send(request, patience).await.map_err(|error| {
                say(&error, &session, &refused);
                told(error)
            })?;
            let transfer: Transfer = Box::new(std::future::ready(Ok(())));
            Ok((sent.map(|body| body.map_err(told).boxed_unsync()), transfer))
        })
    }

    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_CHUNK
    }

    fn p3_outgoing_body_chunk_size(&mut self) -> usize {
        MAX_CHUNK
    }

    /// The client says which host it is, by where the request goes.
    fn set_host_header(&mut self) -> bool {
        false
    }
}

/// Tells the operator why a request failed, and what would have to be granted if it is that.
fn say(error: &FetchError, session: &Session, refused: &AtomicU32) {
    let key = session.ledger().key();
    let (agent, instance) = (key.agent(), key.name());
    let Some(missing) = error.missing() else {
        tracing::debug!(%agent, instance, "a request to others failed: {error}");
        return;
    };
    match refused.fetch_add(1, Ordering::Relaxed) {
        said if said < SAID => tracing::warn!(
            %agent, instance, target = %missing,
            "a request was refused: {error}; allow_hosts = [\"{missing}\"] in [agents.{agent}] would grant it"
        ),
        SAID => tracing::warn!(%agent, instance, "more requests are refused, and not logged"),
        _ => {}
    }
}

/// What a guest is told.
fn told(error: FetchError) -> Error {
    let cut_off = error.is_cut_off();
    match error {
        FetchError::NoHost(_) => Error::HttpRequestUriInvalid,
        FetchError::Method(_) => Error::HttpRequestMethodInvalid,
        FetchError::NotGranted(_) => Error::HttpRequestDenied,
        FetchError::TooManyRequests { .. } => Error::ConnectionLimitReached,
        FetchError::Connect(error) => match error {
            ConnectError::NoHost(_) => Error::HttpRequestUriInvalid,
            ConnectError::TooMany { .. } => Error::ConnectionLimitReached,
            ConnectError::NoAddress { .. } => Error::DnsError { rcode: None, info_code: None },
            ConnectError::Prohibited { .. } => Error::DestinationIpProhibited,
            ConnectError::Timeout(_) => Error::ConnectionTimeout,
            ConnectError::Refused { cause, .. } => match cause.kind() {
                ErrorKind::ConnectionRefused => Error::ConnectionRefused,
                ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                    Error::DestinationIpUnroutable
                }
                _ => Error::DestinationUnavailable,
            },
            ConnectError::Certificate { .. } => Error::TlsCertificateError,
            ConnectError::Tls { .. } => Error::TlsProtocolError,
            ConnectError::Roots(_) => Error::ConfigurationError,
        },
        FetchError::ResponseTimeout => Error::HttpResponseTimeout,
        FetchError::ReadTimeout => Error::ConnectionReadTimeout,
        FetchError::Request(_) if cut_off => Error::ConnectionTerminated,
        FetchError::Response(_) if cut_off => Error::HttpResponseIncomplete,
        FetchError::Request(_) | FetchError::Response(_) => Error::HttpProtocolError,
    }
}
