//! Tests of what handlers learn about the client of a TLS session.

use std::sync::atomic::{AtomicU64, Ordering};

use rustls::pki_types::{ServerName, UnixTime};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::clock::Clock;
use crate::identity::{CertificateAuthority, ClientAuth, Identity, Issued};

const DAY: Duration = Duration::from_secs(86_400);

/// The identity of a client: `peer vm-1`, `origin eu-1`, or `none`.
async fn who(Extension(identity): Extension<ClientIdentity>) -> String {
    let region = identity.region().map(|region| format!("origin {region}"));
    let peer = identity.peer().map(|peer| format!("peer {peer}"));
    region.or(peer).unwrap_or_else(|| "none".to_owned())
}

/// A server whose TLS sessions read `unix_s` as the time, and what its clients connect with.
struct TlsServer {
    fleet: CertificateAuthority,
    unix_s: Arc<AtomicU64>,
    address: SocketAddr,
    _shutdown: Shutdown,
}

#[derive(Debug)]
struct FakeTime(Arc<AtomicU64>);

impl rustls::time_provider::TimeProvider for FakeTime {
    fn current_time(&self) -> Option<UnixTime> {
        let since_1970 = Duration::from_secs(self.0.load(Ordering::Relaxed));
        Some(UnixTime::since_unix_epoch(since_1970))
    }
}

impl TlsServer {
    async fn start() -> Self {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let unix_s = Arc::new(AtomicU64::new(Clock::system().unix_seconds()));
        let issued = fleet.issue_server(&["localhost".to_owned()], None, DAY);
        let origin = identity(&fleet, issued.unwrap());
        let tls = origin.https_server(ClientAuth::Optional).unwrap();
        let mut tls = Arc::unwrap_or_clone(tls);
        tls.time_provider = Arc::new(FakeTime(Arc::clone(&unix_s)));
        let shutdown = Shutdown::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let router = Router::new().route("/", get(who));
        let server = serve(listener, router, Some(Arc::new(tls)), &shutdown).unwrap();
        Self {
            fleet,
            unix_s,
            address: server.address(),
            _shutdown: shutdown,
        }
    }

    async fn connect(&self, issued: Issued) -> TlsStream<TcpStream> {
        let client = identity(&self.fleet, issued).https_client().unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(client));
        connector.connect(name, stream).await.unwrap()
    }
}

fn identity(fleet: &CertificateAuthority, issued: Issued) -> Identity {
    let (certificate, key) = (issued.certificate_pem, issued.key_pem);
    let authority = fleet.certificate_pem();
    Identity::from_pem(&certificate, &key, authority, Clock::system()).unwrap()
}

/// Sends a request, and reads the response up to the end of a body that begins with `none`,
/// `peer` or `origin`.
async fn identity_seen(stream: &mut TlsStream<TcpStream>) -> String {
    stream.write_all(GET).await.unwrap();
    let mut response = Vec::new();
    loop {
        let mut buffer = [0; 1024];
        let read = stream.read(&mut buffer).await.unwrap();
        response.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&response);
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_default();
        let length = head.split_once("content-length: ").map(|(_, rest)| rest);
        let length = length.and_then(|rest| rest.lines().next()?.parse().ok());
        if length == Some(body.len()) {
            return body.to_owned();
        }
        assert!(read > 0, "the connection ended after {text}");
    }
}

#[tokio::test]
async fn handler_sees_peer_and_region_over_tls() {
    let server = TlsServer::start().await;
    let fleet = &server.fleet;
    let peer = fleet.issue_peer(&"vm-1".parse().unwrap(), DAY).unwrap();
    let mut stream = server.connect(peer).await;
    assert_eq!(identity_seen(&mut stream).await, "peer vm-1");
    let region = "eu-1".parse().unwrap();
    let origin = fleet.issue_server(&["origin.example".to_owned()], Some(&region), DAY);
    let mut stream = server.connect(origin.unwrap()).await;
    assert_eq!(identity_seen(&mut stream).await, "origin eu-1");
}

#[tokio::test]
async fn request_after_the_end_of_the_certificate_has_no_identity() {
    let server = TlsServer::start().await;
    let region = "eu-1".parse().unwrap();
    let names = ["origin.example".to_owned()];
    let issued = server.fleet.issue_server(&names, Some(&region), DAY);
    let mut stream = server.connect(issued.unwrap()).await;
    assert_eq!(identity_seen(&mut stream).await, "origin eu-1");
    server
        .unix_s
        .fetch_add(DAY.as_secs() + 1, Ordering::Relaxed);
    assert_eq!(identity_seen(&mut stream).await, "none");
}

#[tokio::test]
async fn connection_ends_with_its_certificate() {
    let server = TlsServer::start().await;
    let issued = server.fleet.issue_peer(&"vm-1".parse().unwrap(), DAY);
    // The handshake falls into the certificate's last second.
    server
        .unix_s
        .fetch_add(DAY.as_secs() - 1, Ordering::Relaxed);
    let mut stream = server.connect(issued.unwrap()).await;
    assert_eq!(identity_seen(&mut stream).await, "peer vm-1");
    let mut nothing = [0; 1];
    let read = timeout(Duration::from_secs(20), stream.read(&mut nothing)).await;
    assert_eq!(read.unwrap().unwrap(), 0, "the server closes first");
}
