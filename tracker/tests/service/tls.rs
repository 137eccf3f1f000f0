//! A tracker with TLS: peers need certificates, health checks do not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use flotilla_common::codec;
use flotilla_common::wire::tracker::{ANNOUNCE_PATH, LEASE_PATH};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{CertificateAuthority, Identity, Issued, client_trusting_pem};
use flotilla_runtime::shutdown::{Drained, Shutdown};
use flotilla_tracker::Tracker;
use reqwest::StatusCode;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::harness::{DRAIN, Peer, client, config};

const DAY: Duration = Duration::from_secs(86_400);
/// Shorter than the tracker waits for the body of a request.
const AT_ONCE: Duration = Duration::from_secs(3);
/// Connections without a certificate that a tracker holds at once.
const ANONYMOUS_CONNECTIONS: usize = 64;

/// A tracker with TLS and the fleet whose authority issued its certificate.
struct TlsTracker {
    fleet: CertificateAuthority,
    tracker: Tracker,
    shutdown: Shutdown,
}

impl TlsTracker {
    async fn start() -> Self {
        let fleet = CertificateAuthority::create(Clock::system()).unwrap();
        let names = ["127.0.0.1".to_owned()];
        let server = identity(&fleet, fleet.issue_server(&names, None, DAY).unwrap());
        let shutdown = Shutdown::new();
        let tracker = Tracker::start(config(), Some(server), Clock::system(), &shutdown);
        Self {
            tracker: tracker.await.unwrap(),
            fleet,
            shutdown,
        }
    }

    fn address(&self) -> SocketAddr {
        self.tracker.addr()
    }

    /// A client with the certificate of a peer.
    fn peer(&self, id: &str) -> ClientConfig {
        let issued = self.fleet.issue_peer(&id.parse().unwrap(), DAY).unwrap();
        identity(&self.fleet, issued).https_client().unwrap()
    }

    /// A client without a certificate.
    fn anonymous(&self) -> ClientConfig {
        client_trusting_pem(self.fleet.certificate_pem()).unwrap()
    }

    /// The answer to an announce of the peer `claimed`.
    async fn announce(&self, claimed: &str, tls: ClientConfig) -> (StatusCode, String) {
        let url = format!("https://{}{ANNOUNCE_PATH}", self.address());
        let request = Peer::new(claimed, "a", self.address()).request(true, Vec::new());
        let body = codec::encode(&request).unwrap();
        let answer = client(tls).post(url).body(body).send().await.unwrap();
        (answer.status(), answer.text().await.unwrap_or_default())
    }

    async fn connect(&self, tls: ClientConfig) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(self.address()).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connector = TlsConnector::from(Arc::new(tls));
        connector.connect(name, stream).await.unwrap()
    }
}

fn identity(fleet: &CertificateAuthority, issued: Issued) -> Identity {
    let (certificate, key) = (issued.certificate_pem, issued.key_pem);
    let authority = fleet.certificate_pem();
    Identity::from_pem(&certificate, &key, authority, Clock::system()).unwrap()
}

/// Sends a part of a request, and reads the first bytes of the answer; none if the connection ends.
async fn first_bytes(stream: &mut TlsStream<TcpStream>, request: &str) -> String {
    let mut answer = [0; 64];
    let read = async {
        stream.write_all(request.as_bytes()).await.ok()?;
        stream.read(&mut answer).await.ok()
    };
    let read = timeout(AT_ONCE, read).await.expect("an answer at once");
    String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned()
}

#[tokio::test]
async fn peer_id_must_match_the_certificate() {
    let region = TlsTracker::start().await;
    let (status, text) = region.announce("peer", region.peer("peer")).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    let (status, text) = region.announce("other", region.peer("peer")).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert_eq!(
        text,
        "peer id mismatch: the message says other, the certificate peer\n"
    );
    assert_eq!(region.tracker.peer_count(), 1);
    assert_eq!(region.shutdown.drain(DRAIN).await, Drained::Complete);
}

#[tokio::test]
async fn peers_without_certificate_are_refused_before_their_body_is_read() {
    let region = TlsTracker::start().await;
    let (status, text) = region.announce("peer", region.anonymous()).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    assert!(
        text.starts_with("this tracker requires a client certificate of a peer")
            && text.contains("`flotilla pki issue --peer ID`"),
        "{text}"
    );
    for path in [ANNOUNCE_PATH, LEASE_PATH] {
        let mut stream = region.connect(region.anonymous()).await;
        // So long a rest would not be read to keep the connection.
        let half = format!("POST {path} HTTP/1.1\r\nhost: t\r\ncontent-length: 100000\r\n\r\nx");
        let answer = first_bytes(&mut stream, &half).await;
        assert!(answer.starts_with("HTTP/1.1 403"), "{path}: {answer}");
    }
    assert_eq!(region.tracker.peer_count(), 0);
    region.shutdown.trigger();
}

#[tokio::test]
async fn clients_without_certificate_leave_connections_to_peers() {
    const GET: &str = "GET /healthz HTTP/1.1\r\nhost: t\r\n\r\n";
    let region = TlsTracker::start().await;
    let mut held = Vec::new();
    for _ in 0..ANONYMOUS_CONNECTIONS {
        let mut stream = region.connect(region.anonymous()).await;
        let answer = first_bytes(&mut stream, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        held.push(stream);
    }
    let mut refused = region.connect(region.anonymous()).await;
    assert_eq!(first_bytes(&mut refused, GET).await, "");
    let (status, text) = region.announce("peer", region.peer("peer")).await;
    assert_eq!(status, StatusCode::OK, "{text}");
    region.shutdown.trigger();
}
