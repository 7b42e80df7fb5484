//! TLS on the public address: what clients and the host agree upon, clients that do not shake hands to the end, and certificates
//! that are renewed under open streams.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{CertifiedKey, KeyPair};
use rustls::crypto::ring;
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};
use rustls_pki_types::{CertificateDer, ServerName};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Connection, Started, TestHost};

/// Certificates and their keys, and the files that the host reads.
struct Identity {
    directory: TempDir,
    pairs: Vec<CertifiedKey<KeyPair>>,
}

impl Identity {
    /// Some that clients trust, the first of which is in the files.
    fn new(count: usize) -> Self {
        let pair = |_| rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let pairs = (0..count).map(pair).collect();
        let identity = Self { directory: tempfile::tempdir().unwrap(), pairs };
        identity.renew("cert.pem", 0, &identity.pairs[0].cert.pem());
        identity.renew("key.pem", 0, &identity.pairs[0].signing_key.serialize_pem());
        identity
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Has a file be a link to another one with this in it, as certbot does.
    fn renew(&self, name: &str, version: usize, pem: &str) {
        let target = self.file(&format!("{version}-{name}"));
        std::fs::write(&target, pem).unwrap();
        let link = self.file("new");
        std::os::unix::fs::symlink(target, &link).unwrap();
        std::fs::rename(link, self.file(name)).unwrap();
    }

    fn der(&self, pair: usize) -> CertificateDer<'static> {
        self.pairs[pair].cert.der().clone()
    }

    fn config(&self) -> String {
        config(&self.file("cert.pem"), &self.file("key.pem"))
    }

    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsClient {
        let mut roots = RootCertStore::empty();
        (0..self.pairs.len()).for_each(|pair| roots.add(self.der(pair)).unwrap());
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let config = config.with_protocol_versions(versions).unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        TlsClient(Arc::new(config).into())
    }
}

fn config(cert: &Path, key: &Path) -> String {
    format!("[tls]\ncert = '{}'\nkey = '{}'", cert.display(), key.display())
}

struct TlsClient(TlsConnector);

impl TlsClient {
    async fn try_connect(&self, host: &Started) -> std::io::Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(address(host)).await?;
        self.0.connect(ServerName::try_from("localhost").unwrap(), stream).await
    }

    async fn connect(&self, host: &Started) -> TlsStream<TcpStream> {
        self.try_connect(host).await.expect("the host shakes hands")
    }

    async fn http2(&self, host: &Started) -> SendRequest<Empty<Bytes>> {
        let io = TokioIo::new(self.connect(host).await);
        let (client, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        client
    }
}

fn address(host: &Started) -> &str {
    host.url.strip_prefix("https://").expect("the host says that it speaks TLS")
}

fn request(path: &str) -> String {
    format!("GET /agents/probe/{path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
}

async fn rest(stream: &mut TlsStream<TcpStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("the host ends the session");
    text
}

#[tokio::test]
async fn the_handshake_chooses_the_version_of_http() {
    let identity = Identity::new(1);
    let host = TestHost::serving(&["probe", "service"]).config(&identity.config()).start();
    for (version, is) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        for (offered, chosen) in [
            (&["h2", "http/1.1"][..], Some("h2")),
            (&["http/1.1", "h2"], Some("h2")),
            (&["http/1.1"], Some("http/1.1")),
            (&[], None),
        ] {
            let client = identity.client(&[version], offered);
            let mut stream = client.connect(&host).await;
            let (_, session) = stream.get_ref();
            assert_eq!(session.protocol_version(), Some(is));
            assert_eq!(session.alpn_protocol(), chosen.map(str::as_bytes), "{offered:?}");
            if chosen == Some("h2") {
                let request = http::Request::get("https://localhost/agents/probe/a/emit?count=3");
                let request = request.body(Empty::new()).unwrap();
                let response = client.http2(&host).await.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                let body = response.into_body().collect().await.unwrap().to_bytes();
                assert!(body.ends_with(b"data: 3\n\n"), "{body:?}");
            } else {
                stream.write_all(request("a/emit?count=3").as_bytes()).await.unwrap();
                let answer = rest(&mut stream).await;
                assert!(answer.contains("data: 3\n\n"), "{answer}");
            }
        }
        // Nothing that both speak.
        let refused = identity.client(&[version], &["h3"]).try_connect(&host).await.unwrap_err();
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    }
    // An agent that is plain HTTP is told what was spoken.
    let mut stream = identity.client(&[&TLS13], &[]).connect(&host).await;
    let told = request("a/head").replace("/probe/", "/service/");
    stream.write_all(told.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.contains("Some(Scheme::Https)"), "{answer}");
    // The operator's address is another.
    assert_eq!(host.admin(reqwest::Method::GET, "/healthz").await.status(), 200);
}

#[tokio::test]
async fn a_renewed_certificate_is_for_new_connections_and_half_a_renewal_for_none() {
    let identity = Identity::new(2);
    let config = format!("http.heartbeat = '1s'\n{}", identity.config());
    let host = TestHost::serving(&["probe"]).config(&config).start();
    let client = identity.client(&[&TLS12, &TLS13], &["http/1.1"]);
    let shown = async || {
        let mut stream = client.connect(&host).await;
        // A whole exchange, so that what the client needs to resume its session has come.
        stream.write_all(request("a/reply").as_bytes()).await.unwrap();
        assert!(rest(&mut stream).await.ends_with("a reply"));
        let (_, session) = stream.get_ref();
        let certificate = session.peer_certificates().unwrap()[0].clone().into_owned();
        (certificate, session.handshake_kind().unwrap())
    };
    assert_eq!(shown().await, (identity.der(0), HandshakeKind::Full));
    assert_eq!(shown().await, (identity.der(0), HandshakeKind::Resumed));

    let http2 = identity.client(&[&TLS13], &["h2"]).http2(&host).await;
    let get = async |path: &str| {
        let request = http::Request::get(format!("https://localhost/agents/probe/{path}"));
        let request = request.body(Empty::new()).unwrap();
        http2.clone().send_request(request).await.unwrap()
    };
    let mut stream = get("a/hang").await.into_body();
    let mut beats = async |count: usize| {
        for _ in 0..count {
            stream.frame().await.expect("the stream goes on").unwrap();
        }
    };
    beats(2).await;

    let [_, renewed] = &identity.pairs[..] else { unreachable!("there are two") };
    identity.renew("cert.pem", 1, &renewed.cert.pem());
    host.logged(|line| line.contains("the certificate stays the one before")).await;
    host.logged(|line| line.contains("is not that of the first certificate")).await;
    assert_eq!(shown().await.0, identity.der(0));
    identity.renew("key.pem", 1, &renewed.signing_key.serialize_pem());
    host.logged(|line| line.contains("new connections see a new certificate")).await;
    assert_eq!(shown().await, (identity.der(1), HandshakeKind::Full));
    assert_eq!(shown().await, (identity.der(1), HandshakeKind::Resumed));

    std::fs::remove_file(identity.file("key.pem")).unwrap();
    host.logged(|line| line.contains("cannot read") && line.contains("key.pem")).await;
    assert_eq!(shown().await.0, identity.der(1));
    // The connection that began with the first one, and the stream on it.
    assert_eq!(get("a/reply").await.status(), 200);
    beats(2).await;
}

#[tokio::test]
async fn a_client_that_does_not_come_through_the_handshake_is_let_go() {
    let identity = Identity::new(1);
    let config = format!("http.header_timeout = '1s'\n{}", identity.config());
    let host = TestHost::serving(&["probe"]).config(&config).start();
    let url = format!("http://{}", address(&host));
    // How a client begins: a record of 512 bytes with a hello of 508.
    let hello = [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], &[7; 32]].concat();
    for start in [
        &b""[..],
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02",
        &hello[..],
        &[&hello[..], &[0; 474]].concat(),
        &[0xff; 4096],
        &[&b"\x16\x03\x01\xff\xff"[..], &[1; 65_535]].concat(),
    ] {
        let mut connection = Connection::to(&url).await;
        connection.send(start).await;
        let answer = connection.rest().await;
        assert!(!answer.contains("HTTP"), "{answer:?}");
    }
    // Those that say nothing after it: hyper would wait for HTTP/2 without end.
    for alpn in [&["h2"][..], &["http/1.1"], &[]] {
        let mut stream = identity.client(&[&TLS13], alpn).connect(&host).await;
        // Broken off or ended: nobody said anything.
        drop(stream.read_to_end(&mut Vec::new()).await);
    }
    host.reaches("connections", |open| open == 0).await;
    let mut stream = identity.client(&[&TLS13], &[]).connect(&host).await;
    stream.write_all(request("a/reply").as_bytes()).await.unwrap();
    assert!(rest(&mut stream).await.ends_with("a reply"));
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_with_tls_too() {
    let identity = Identity::new(1);
    let config = format!("http.write_stall = '100ms'\n{}", identity.config());
    let host = TestHost::serving(&["probe"]).config(&config).start();
    let mut stream = identity.client(&[&TLS13], &[]).connect(&host).await;
    stream.write_all(request("a/chunks-endless").as_bytes()).await.unwrap();
    stream.read_exact(&mut [0; 64]).await.unwrap();
    host.reaches("connections", |open| open == 0).await;
    host.reaches("live_runs", |runs| runs == 0).await;
}

#[test]
fn files_that_make_no_identity_are_refused_by_what_is_wrong_with_them() {
    let identity = Identity::new(2);
    let [first, second] = &identity.pairs[..] else { unreachable!("there are two") };
    let key = second.signing_key.serialize_pem();
    let file = |name: &str, text: &str| {
        std::fs::write(identity.file(name), text).unwrap();
        identity.file(name)
    };
    let (cert, other) = (identity.file("cert.pem"), file("other.pem", &key));
    let encrypted = file("encrypted.pem", &key.replace("PRIVATE", "ENCRYPTED PRIVATE"));
    let old = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\nAAAA\n-----END RSA PRIVATE KEY-----\n";
    let encrypted_before = file("old.pem", old);
    let half = &first.cert.pem()[..200];
    let (half, empty) = (file("half.pem", half), file("empty.pem", ""));
    let nonsense = file("nonsense.pem", &key.replace("MI", "AA"));
    let missing = identity.file("missing.pem");
    for (cert, key, says) in [
        (&cert, &missing, ["tls.key: cannot read", "missing.pem"]),
        (&missing, &other, ["tls.cert: cannot read", "missing.pem"]),
        (&cert, &empty, ["tls.key: ", "has no private key in PEM"]),
        (&empty, &other, ["tls.cert: ", "has no certificate in PEM"]),
        (&half, &other, ["tls.cert: ", "half.pem is not PEM"]),
        (&cert, &cert, ["tls.key: ", "has no private key in PEM"]),
        (&other, &other, ["tls.cert: ", "has no certificate in PEM"]),
        (&cert, &other, ["tls.key: ", "is not that of the first certificate in"]),
        (&cert, &encrypted, ["encrypted.pem is encrypted", "openssl pkey"]),
        (&cert, &encrypted_before, ["old.pem is encrypted", "openssl pkey"]),
        (&cert, &nonsense, ["nonsense.pem", "cannot be used"]),
    ] {
        let (status, stderr) = TestHost::serving(&[]).config(&config(cert, key)).refuses();
        assert_eq!(status.code(), Some(1), "{stderr}");
        assert!(says.iter().all(|say| stderr.contains(say)), "{says:?}: {stderr}");
        assert!(!stderr.contains(key.to_str().unwrap()) || !stderr.contains("BEGIN"), "{stderr}");
    }
    let (_, stderr) = TestHost::serving(&[]).config("tls.cert = 'a'").refuses();
    assert!(stderr.contains("tls.key: is needed where there is tls.cert"), "{stderr}");
}
