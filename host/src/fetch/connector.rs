//! Connections to where a request goes, made for one agent.
//!
//! **Problem.** Whoever owns a name decides what it leads to, each time anew: to a public address while it is checked, and to one of the
//! operator's when it is connected to.
//!
//! **Mechanism.** One lookup for one connection. Each address that it gives is held against the agent's grants, and what is
//! connected to is one of those that passed, by number. Certificates are checked for the name.
//!
//! **Limits.** [`OutboundLimits::connections`], and [`LOOKUPS`] at once; all of it within
//! [`OutboundLimits::connect_timeout`], of which each address has its share.
//!
//! **Cost.** A lookup takes a thread of the runtime while it lasts, and lasts as long as the system's resolver likes, whether or not anyone still
//! waits for it.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsConnector;
use tower_service::Service;

use super::grants::{Grants, Host, NoHost, Scheme, Target};
use crate::config::OutboundLimits;

/// Lookups of one agent at once. One that is never answered holds a thread for as long as the system's resolver waits.
const LOOKUPS: usize = 8;

/// Addresses of one name that are tried.
const TRIED: usize = 8;

type Promised<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// How a name is looked up.
pub type Lookup = Arc<dyn Fn(String) -> Promised<io::Result<Vec<IpAddr>>> + Send + Sync>;

/// What all agents' connections are made with.
pub struct Network {
    lookup: Lookup,
    /// Read when the first connection needs it.
    tls: OnceCell<Arc<ClientConfig>>,
}

/// Why there is no connection.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ConnectError {
    #[error(transparent)]
    NoHost(#[from] NoHost),
    #[error("{limit} connections are open already, which is the limit")]
    TooMany { limit: usize },
    #[error("{host} has no address: {cause}")]
    NoAddress { host: Host, cause: Arc<io::Error> },
    /// None of its addresses is.
    #[error("{target} leads to {address}, which is neither public nor granted")]
    Prohibited { target: Target, address: IpAddr },
    #[error("{0} could not be connected to in time")]
    Timeout(Target),
    #[error("{target} could not be connected to: {cause}")]
    Refused { target: Target, cause: Arc<io::Error> },
    #[error("the certificate of {target} is not one that this machine trusts: {cause}")]
    Certificate { target: Target, cause: rustls::Error },
    #[error("{target} could not be spoken to by TLS: {cause}")]
    Tls { target: Target, cause: Arc<io::Error> },
    #[error("the certificates that this machine trusts cannot be read: {0}")]
    Roots(String),
}

impl Network {
    /// The machine's own.
    pub fn of_system() -> Self {
        Self::new(Arc::new(|name| {
            Box::pin(async move {
                let lookup = move || {
                    let found = (name.as_str(), 0).to_socket_addrs()?;
                    Ok(found.map(|address| address.ip()).collect())
                };
                tokio::task::spawn_blocking(lookup).await?
            })
        }))
    }

    /// One where names are looked up like this.
    pub fn new(lookup: Lookup) -> Self {
        Self { lookup, tls: OnceCell::new() }
    }

    async fn tls(&self) -> Result<TlsConnector, ConnectError> {
        let failed = |cause: &dyn ToString| ConnectError::Roots(cause.to_string());
        let read = || async {
            let read = tokio::task::spawn_blocking(trusted).await;
            read.map_err(|cause| failed(&cause))?.map_err(|cause| failed(&cause))
        };
        Ok(self.tls.get_or_try_init(read).await?.clone().into())
    }
}

/// TLS with the certificates that the machine trusts, or those that `SSL_CERT_FILE` and `SSL_CERT_DIR` name.
fn trusted() -> Result<Arc<ClientConfig>, rustls::Error> {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "a certificate that agents' requests are to trust cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        return Err(rustls::Error::General("there are none".into()));
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    Ok(Arc::new(config))
}

/// What makes one agent's connections.
#[derive(Clone)]
pub(super) struct Connector(Arc<Inner>);

struct Inner {
    network: Arc<Network>,
    grants: Arc<Grants>,
    timeout: Duration,
    limit: usize,
    places: Arc<Semaphore>,
    lookups: Arc<Semaphore>,
}

impl Connector {
    pub(super) fn new(network: Arc<Network>, grants: Arc<Grants>, limits: &OutboundLimits) -> Self {
        let limit = limits.connections;
        let places = Arc::new(Semaphore::new(limit));
        let lookups = Arc::new(Semaphore::new(LOOKUPS));
        let timeout = limits.connect_timeout;
        Self(Arc::new(Inner { network, grants, timeout, limit, places, lookups }))
    }
}

impl Service<Uri> for Connector {
    type Response = Link;
    type Error = ConnectError;
    type Future = Promised<Result<Link, ConnectError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let Self(inner) = self.clone();
        Box::pin(async move {
            let target = Target::of(&uri)?;
            let connecting = tokio::time::timeout(inner.timeout, inner.connect(&target));
            connecting.await.unwrap_or_else(|_| Err(ConnectError::Timeout(target)))
        })
    }
}

impl Inner {
    async fn connect(&self, target: &Target) -> Result<Link, ConnectError> {
        let place = self.places.clone().try_acquire_owned();
        let place = place.map_err(|_| ConnectError::TooMany { limit: self.limit })?;
        let stream = self.dial(target, &self.addresses(target).await?).await?;
        let (stream, is_h2): (Box<dyn Stream>, _) = match target.scheme {
            Scheme::Http => (Box::new(stream), false),
            Scheme::Https => {
                let stream = self.secure(target, stream).await?;
                let is_h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                (Box::new(stream), is_h2)
            }
        };
        Ok(Link { stream: TokioIo::new(stream), is_h2, _place: place })
    }

    /// Where to connect to: what is returned has been checked, and nothing else has.
    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>, ConnectError> {
        let found = match &target.host {
            Host::Address(address) => vec![*address],
            Host::Name(_) if target.host.is_localhost() => {
                vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
            }
            Host::Name(name) => self.look_up(name.clone()).await.map_err(|cause| {
                ConnectError::NoAddress { host: target.host.clone(), cause: Arc::new(cause) }
            })?,
        };
        let permitted = found.iter().filter(|address| self.grants.permit(target, **address));
        let permitted: Vec<_> = permitted
            .map(|address| SocketAddr::new(address.to_canonical(), target.port))
            .take(TRIED)
            .collect();
        match found.first() {
            _ if !permitted.is_empty() => Ok(permitted),
            Some(&address) => Err(ConnectError::Prohibited { target: target.clone(), address }),
            None => {
                let cause = Arc::new(io::Error::other("the answer is empty"));
                Err(ConnectError::NoAddress { host: target.host.clone(), cause })
            }
        }
    }

    /// Looks a name up. Its place is taken until there is an answer, also when nobody waits any more.
    async fn look_up(&self, name: String) -> io::Result<Vec<IpAddr>> {
        let place = self.lookups.clone().acquire_owned().await.map_err(io::Error::other)?;
        let lookup = (self.network.lookup)(name);
        let looked_up = tokio::spawn(async move {
            let _place = place;
            lookup.await
        });
        looked_up.await?
    }

    async fn dial(
        &self,
        target: &Target,
        addresses: &[SocketAddr],
    ) -> Result<TcpStream, ConnectError> {
        let share = self.timeout / u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
        let mut failed = ConnectError::Timeout(target.clone());
        for address in addresses {
            match tokio::time::timeout(share, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    // Only a delay is at stake.
                    let _ = stream.set_nodelay(true);
                    return Ok(stream);
                }
                Ok(Err(cause)) => {
                    failed =
                        ConnectError::Refused { target: target.clone(), cause: Arc::new(cause) };
                }
                Err(_) => {}
            }
        }
        Err(failed)
    }

    async fn secure(
        &self,
        target: &Target,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, ConnectError> {
        let name = match &target.host {
            Host::Address(address) => ServerName::IpAddress((*address).into()),
            Host::Name(name) => ServerName::try_from(name.clone())
                .map_err(|_| NoHost::new(name.as_str(), "no certificate can have that name"))?,
        };
        self.network.tls().await?.connect(name, stream).await.map_err(|cause| {
            let target = target.clone();
            let of_tls = cause.get_ref().and_then(|cause| cause.downcast_ref::<rustls::Error>());
            match of_tls {
                Some(wrong @ rustls::Error::InvalidCertificate(_)) => {
                    ConnectError::Certificate { target, cause: wrong.clone() }
                }
                _ => ConnectError::Tls { target, cause: Arc::new(cause) },
            }
        })
    }
}

/// What bytes go over.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A connection, which hyper takes from here.
pub(super) struct Link {
    stream: TokioIo<Box<dyn Stream>>,
    is_h2: bool,
    _place: OwnedSemaphorePermit,
}

impl Connection for Link {
    fn connected(&self) -> Connected {
        let connected = Connected::new();
        if self.is_h2 { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Link {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl Write for Link {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }
}
