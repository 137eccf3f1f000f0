#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use axum::routing::get;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::*;
use crate::clock::Clock;
use crate::identity::{CertificateAuthority, Issued};

const DAY: Duration = Duration::from_secs(86_400);

fn settings(listen: &str, open: bool, clients: &[&str]) -> AdminSettings {
    AdminSettings {
        listen: listen.parse().unwrap(),
        open,
        clients: clients.iter().map(|name| name.parse().unwrap()).collect(),
    }
}

#[test]
fn listener_beyond_loopback_needs_clients_or_an_explicit_permission() {
    let check = |listen, open, clients: &[&str], has_tls| {
        let checked = settings(listen, open, clients).check(has_tls);
        checked.map_err(|error| error.to_string())
    };
    for has_tls in [true, false] {
        for listen in ["127.0.0.1:0", "[::1]:7071", "[::ffff:127.0.0.1]:7071"] {
            assert_eq!(check(listen, false, &[], has_tls), Ok(()), "{listen}");
        }
        for listen in ["0.0.0.0:7071", "10.0.0.1:7071", "[::]:7071"] {
            let error = check(listen, false, &[], has_tls).unwrap_err();
            assert!(error.contains(listen), "{error}");
            for fix in ["admin-clients", "admin-open", "127.0.0.1"] {
                assert!(error.contains(fix), "{error}");
            }
            assert_eq!(check(listen, true, &[], has_tls), Ok(()), "{listen}");
        }
    }
    assert_eq!(check("0.0.0.0:1", false, &["peer:ops"], true), Ok(()));
    let error = check("127.0.0.1:0", false, &["peer:ops"], false).unwrap_err();
    assert!(error.contains("tls-cert"), "{error}");
    let error = check("0.0.0.0:1", true, &["peer:ops"], true).unwrap_err();
    assert!(error.contains("remove one of the two"), "{error}");
}

#[test]
fn names_of_clients_are_printed_as_they_are_written() {
    for text in ["peer:ops", "origin:eu-1"] {
        let client: AdminClient = text.parse().unwrap();
        assert_eq!(String::from(client), text);
    }
    for text in ["ops", "peer:", "peer:Ops", "server:a", "origin:eu_1", ""] {
        let error = text.parse::<AdminClient>().unwrap_err();
        assert!(error.contains("write peer:ID or origin:REGION"), "{error}");
    }
}

/// The status and body of an answer.
async fn get_path<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    // The end of a TLS session without a close message is an error, after all bytes.
    let _ended = stream.read_to_string(&mut answer).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

async fn serve(settings: AdminSettings, identity: Option<&Identity>) -> (SocketAddr, Shutdown) {
    let shutdown = Shutdown::new();
    let health = Router::new().route("/healthz", get(|| async { "ok" }));
    let private = Router::new().route("/metrics", get(|| async { "figures" }));
    let served = settings.serve(health, private, identity, &shutdown);
    (served.await.unwrap().address(), shutdown)
}

#[tokio::test]
async fn loopback_is_plain_http_also_for_a_service_with_a_certificate() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let server = fleet.issue_server(&["localhost".to_owned()], None, DAY);
    let identity = identity(&fleet, server.unwrap());
    let (address, shutdown) = serve(AdminSettings::default(), Some(&identity)).await;
    assert!(address.ip().is_loopback());
    let stream = TcpStream::connect(address).await.unwrap();
    let figures = (200, "figures".to_owned());
    assert_eq!(get_path(stream, "/metrics").await, figures);
    shutdown.drain(DAY).await;
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn only_listed_certificates_read_metrics() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let server = fleet.issue_server(&["localhost".to_owned()], None, DAY);
    let server = identity(&fleet, server.unwrap());
    let settings = settings("127.0.0.1:0", false, &["peer:ops", "origin:eu-1"]);
    let (address, _shutdown) = serve(settings, Some(&server)).await;
    let ask = async |client: &Identity, path| {
        let connector = TlsConnector::from(Arc::new(client.https_client().unwrap()));
        let stream = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        get_path(connector.connect(name, stream).await.unwrap(), path).await
    };
    let peer = |id: &str| identity(&fleet, fleet.issue_peer(&id.parse().unwrap(), DAY).unwrap());
    let listed = peer("ops");
    assert_eq!(ask(&listed, "/metrics").await, (200, "figures".to_owned()));
    let (status, text) = ask(&peer("vm-1"), "/metrics").await;
    assert_eq!(status, 403);
    assert!(text.contains("this one names peer vm-1"), "{text}");
    assert_eq!(ask(&peer("vm-1"), "/healthz").await, (200, "ok".to_owned()));
    // A certificate that another authority issued under a listed name.
    let stranger = CertificateAuthority::create(Clock::system()).unwrap();
    let issued = stranger.issue_peer(&"ops".parse().unwrap(), DAY).unwrap();
    let (certificate, key) = (issued.certificate_pem, issued.key_pem);
    let both = [stranger.certificate_pem(), fleet.certificate_pem()].concat();
    let stranger = Identity::from_pem(&certificate, &key, &both, Clock::system()).unwrap();
    let connector = TlsConnector::from(Arc::new(stranger.https_client().unwrap()));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let refused = match connector.connect(name, stream).await {
        // In TLS 1.3 a client learns with the first answer that it is refused.
        Ok(mut stream) => stream.read(&mut [0]).await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "a certificate of another authority");
    // Without a certificate.
    let trusting = crate::identity::client_trusting_pem(fleet.certificate_pem()).unwrap();
    let connector = TlsConnector::from(Arc::new(trusting));
    let stream = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let stream = connector.connect(name, stream).await.unwrap();
    let (status, text) = get_path(stream, "/metrics").await;
    assert_eq!(status, 403);
    assert!(text.contains("this connection has none"), "{text}");
}

fn identity(fleet: &CertificateAuthority, issued: Issued) -> Identity {
    let (certificate, key) = (issued.certificate_pem, issued.key_pem);
    let authority = fleet.certificate_pem();
    Identity::from_pem(&certificate, &key, authority, Clock::system()).unwrap()
}
