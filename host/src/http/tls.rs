//! TLS on the public address.
//!
//! **Problem.** Browsers allow six streams a host without HTTP/2, which they speak over TLS only. And a certificate lasts for weeks, a
//! host for months: it is renewed under a host that must not end its streams for it.
//!
//! **Mechanism.** Certificate and key are read and held against each other when the host opens. [`Tls::follow`] then reads both files
//! every [`LOOK`], whatever links lead to them. What is read twice alike, and is not what was last acted upon,
//! is what new connections are met with; if it is no pair, a warning says why and the one before stays. Connections keep the
//! pair that they began with. Clients choose the version of HTTP in the handshake.
//!
//! **Limits.** TLS 1.2 and 1.3. A renewal shows two to four seconds after its files are written. What a client keeps to resume a
//! session, it can use until the pair changes or for half a day. No data before the handshake's end, since it could be replayed.
//! Whether a certificate is still valid is for clients to tell.
//!
//! **Cost.** Two small files read every two seconds. A handshake is a signature. A connection has rustls' state and its buffers, which are
//! empty when nothing is on its way; sessions are kept by clients alone.

use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::crypto::ring;
use rustls::server::NoServerSessionStorage;
use rustls::{InconsistentKeys, ServerConfig};
use rustls_pki_types::pem::{self, PemObject as _};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsFiles;

/// How often the files are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// The name of HTTP/2 in the handshake.
pub(super) const H2: &[u8] = b"h2";

/// What the public address shows that it is who it says.
pub struct Tls {
    files: TlsFiles,
    /// What the files had when they were first read.
    first: Pair,
    current: RwLock<Arc<ServerConfig>>,
}

/// What is in the two files.
#[derive(Clone, PartialEq, Eq)]
struct Pair {
    cert: Vec<u8>,
    key: Vec<u8>,
}

/// Why there is no TLS from these files.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{key}: cannot read {}: {error}", file.display())]
    Unreadable { key: &'static str, file: PathBuf, error: io::Error },
    #[error("{key}: {} has no {missing} in PEM", file.display())]
    Missing { key: &'static str, file: PathBuf, missing: &'static str },
    #[error("{key}: {} is not PEM: {error}", file.display())]
    NotPem { key: &'static str, file: PathBuf, error: pem::Error },
    #[error(
        "tls.key: the key in {} is encrypted, and the host has no passphrase for it; `openssl pkey -in KEY -out FILE` writes it without",
        _0.display()
    )]
    Encrypted(PathBuf),
    #[error(
        "tls.key: the key in {} is not that of the first certificate in {}",
        _0.key.display(), _0.cert.display()
    )]
    Mismatch(TlsFiles),
    #[error("tls: {} and {} cannot be used: {error}", files.cert.display(), files.key.display())]
    Unusable { files: TlsFiles, error: rustls::Error },
}

impl Tls {
    /// Reads the certificate and its key.
    pub fn open(files: &TlsFiles) -> Result<Self, TlsError> {
        let first = Pair::read(files)?;
        let current = RwLock::new(first.config(files)?);
        Ok(Self { files: files.clone(), first, current })
    }

    /// Shows what comes into the files, for as long as it is polled.
    pub async fn follow(&self) -> Infallible {
        let mut acted = Ok(self.first.clone());
        let mut before = None;
        loop {
            sleep(LOOK).await;
            let files = self.files.clone();
            let read = tokio::task::spawn_blocking(move || Pair::read(&files));
            let Ok(read) = read.await else { continue };
            let read = read.map_err(|error| error.to_string());
            // Files that are being written, or of which one is still to be, are other files at the next look.
            if before.as_ref() == Some(&read) && read != acted {
                self.show(&read);
                acted = read.clone();
            }
            before = Some(read);
        }
    }

    fn show(&self, read: &Result<Pair, String>) {
        let config = read.as_ref().map_err(String::clone);
        let config = config.and_then(|pair| pair.config(&self.files).map_err(|e| e.to_string()));
        match config {
            Ok(config) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                tracing::info!("new connections see a new certificate");
            }
            Err(why) => tracing::warn!("the certificate stays the one before: {why}"),
        }
    }

    /// What a new connection is met with.
    pub(super) fn acceptor(&self) -> TlsAcceptor {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone().into()
    }
}

impl Pair {
    fn read(files: &TlsFiles) -> Result<Self, TlsError> {
        let read = |key, file: &Path| {
            std::fs::read(file).map_err(|error| {
                let file = file.to_owned();
                TlsError::Unreadable { key, file, error }
            })
        };
        Ok(Self { cert: read("tls.cert", &files.cert)?, key: read("tls.key", &files.key)? })
    }

    fn config(&self, files: &TlsFiles) -> Result<Arc<ServerConfig>, TlsError> {
        let unusable = |error| TlsError::Unusable { files: files.clone(), error };
        let (chain, key) = (self.chain(&files.cert)?, self.private_key(&files.key)?);
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_safe_default_protocol_versions().map_err(unusable)?;
        let config = config.with_no_client_auth().with_single_cert(chain, key);
        let mut config = config.map_err(|error| match error {
            rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
                TlsError::Mismatch(files.clone())
            }
            error => unusable(error),
        })?;
        config.alpn_protocols = vec![H2.into(), b"http/1.1".into()];
        config.ticketer = ring::Ticketer::new().map_err(unusable)?;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        Ok(Arc::new(config))
    }

    fn chain(&self, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let (key, file) = ("tls.cert", file.to_owned());
        match CertificateDer::pem_slice_iter(&self.cert).collect::<Result<Vec<_>, _>>() {
            Ok(chain) if chain.is_empty() => {
                Err(TlsError::Missing { key, file, missing: "certificate" })
            }
            Ok(chain) => Ok(chain),
            Err(error) => Err(TlsError::NotPem { key, file, error }),
        }
    }

    fn private_key(&self, file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
        let file = file.to_owned();
        // The older form says so in a header, the newer one in the name of the section.
        if memchr::memmem::find(&self.key, b"ENCRYPTED").is_some() {
            return Err(TlsError::Encrypted(file));
        }
        PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| match error {
            pem::Error::NoItemsFound => {
                TlsError::Missing { key: "tls.key", file, missing: "private key" }
            }
            error => TlsError::NotPem { key: "tls.key", file, error },
        })
    }
}
