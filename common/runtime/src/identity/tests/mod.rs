//! Stories of a fleet: made, joined, mistaken, renewed.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::time::Duration;

use flotilla_common::chunk::Geometry;
use flotilla_common::digest::Digest;
use flotilla_common::name::PeerId;
use flotilla_common::seal::BlobFacts;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::clock::Clock;

mod rotation;

const ALPN: &[u8] = b"flotilla/1";
const DAY: Duration = Duration::from_secs(86_400);

fn peer(id: &str) -> PeerId {
    id.parse().unwrap()
}

fn identity(authority: &CertificateAuthority, issued: &Issued) -> Identity {
    Identity::from_pem(
        &issued.certificate_pem,
        &issued.key_pem,
        authority.certificate_pem(),
        Clock::system(),
    )
    .unwrap()
}

/// A handshake in memory; the peers that server and client see.
async fn handshake(
    server: ServerConfig,
    client: ClientConfig,
    name: &str,
) -> std::io::Result<(Option<PeerId>, Option<PeerId>)> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let (server, client) = tokio::join!(
        TlsAcceptor::from(Arc::new(server)).accept(far),
        TlsConnector::from(Arc::new(client)).connect(name, near),
    );
    let (server, client) = (server?, client?);
    let seen =
        |chain: Option<&[CertificateDer<'_>]>| chain.and_then(|chain| peer_id(chain.first()?));
    Ok((
        seen(server.get_ref().1.peer_certificates()),
        seen(client.get_ref().1.peer_certificates()),
    ))
}

#[tokio::test]
async fn peers_of_a_fleet_authenticate_each_other() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let [left, right] = ["left-1", "right-1"]
        .map(|id| identity(&fleet, &fleet.issue_peer(&peer(id), DAY).unwrap()));
    assert_eq!(left.peer_id(), Some(peer("left-1")));
    let name = peer_name(&peer("right-1"));
    let seen = handshake(
        right.quic_server(ALPN).unwrap(),
        left.quic_client(ALPN).unwrap(),
        &name,
    )
    .await
    .unwrap();
    assert_eq!(seen, (Some(peer("left-1")), Some(peer("right-1"))));
}

#[tokio::test]
async fn peer_with_another_peers_address_is_refused() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let [left, right] =
        ["left", "right"].map(|id| identity(&fleet, &fleet.issue_peer(&peer(id), DAY).unwrap()));
    let name = peer_name(&peer("middle"));
    assert!(
        handshake(
            right.quic_server(ALPN).unwrap(),
            left.quic_client(ALPN).unwrap(),
            &name
        )
        .await
        .is_err()
    );
}

/// An origin refuses to start with a certificate that no other region would accept.
#[test]
fn certificate_of_an_origin_verifies_against_its_own_authority() {
    let [fleet, other] = [(); 2].map(|()| CertificateAuthority::create(Clock::system()).unwrap());
    let region = "eu-1".parse().unwrap();
    let names = ["127.0.0.1".to_owned()];
    let issued = fleet.issue_server(&names, Some(&region), DAY).unwrap();
    identity(&fleet, &issued).verify_origin(&region).unwrap();

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let files = CertificateFiles {
        certificate: file("origin.pem", &issued.certificate_pem),
        key: file("origin.key", &issued.key_pem),
        authority: file("ca.pem", other.certificate_pem()),
    };
    let foreign = Identity::load(&files, Clock::system()).unwrap();
    let error = foreign.verify_origin(&region).unwrap_err().to_string();
    for part in ["origin.pem", "ca.pem", "another authority", "pki issue"] {
        assert!(error.contains(part), "{error}");
    }

    let unnamed = fleet.issue_server(&names, None, DAY).unwrap();
    assert!(identity(&fleet, &unnamed).verify_origin(&region).is_err());
}

#[tokio::test]
async fn foreign_and_expired_certificates_are_refused() {
    let (fleet, other) = (
        CertificateAuthority::create(Clock::system()).unwrap(),
        CertificateAuthority::create(Clock::system()).unwrap(),
    );
    let server = identity(&fleet, &fleet.issue_peer(&peer("a"), DAY).unwrap());
    let foreign = identity(&other, &other.issue_peer(&peer("b"), DAY).unwrap());
    let name = peer_name(&peer("a"));
    let met = handshake(
        server.quic_server(ALPN).unwrap(),
        foreign.quic_client(ALPN).unwrap(),
        &name,
    )
    .await;
    assert!(met.is_err());

    let over = fleet.issue_peer(&peer("c"), Duration::ZERO).unwrap();
    let error = Identity::from_pem(
        &over.certificate_pem,
        &over.key_pem,
        fleet.certificate_pem(),
        Clock::system(),
    )
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("expired") && error.contains("flotilla pki issue"),
        "{error}"
    );
}

#[tokio::test]
async fn client_certificates_are_optional_for_https() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let names = [
        "origin.example".to_owned(),
        "127.0.0.1".to_owned(),
        "::1".to_owned(),
    ];
    let origin = identity(&fleet, &fleet.issue_server(&names, None, DAY).unwrap());
    assert_eq!(origin.peer_id(), None);
    let server = || Arc::unwrap_or_clone(origin.https_server(ClientAuth::Optional).unwrap());

    let vm = identity(&fleet, &fleet.issue_peer(&peer("vm-1"), DAY).unwrap());
    let seen = handshake(server(), vm.https_client().unwrap(), "origin.example")
        .await
        .unwrap();
    assert_eq!(seen, (Some(peer("vm-1")), None));

    let directory = tempfile::tempdir().unwrap();
    let authority = directory.path().join("ca.pem");
    write_new(FileKind::Authority, &authority, fleet.certificate_pem()).unwrap();
    let person = || client_trusting(&authority).unwrap();
    let seen = handshake(server(), person(), "127.0.0.1").await.unwrap();
    assert_eq!(seen, (None, None));
    assert!(
        handshake(server(), client_without_trust().unwrap(), "127.0.0.1")
            .await
            .is_err()
    );

    let members_only = Arc::unwrap_or_clone(origin.https_server(ClientAuth::Required).unwrap());
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("origin.example").unwrap();
    let (accepted, _) = tokio::join!(
        TlsAcceptor::from(Arc::new(members_only)).accept(far),
        TlsConnector::from(Arc::new(person())).connect(name, near),
    );
    assert!(accepted.is_err());
}

/// Origins of other regions are clients, so a region's certificate is accepted from a client and
/// from a server.
#[tokio::test]
async fn origins_of_two_regions_authenticate_each_other() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let origin = |region: &str| {
        let names = [format!("origin.{region}.example")];
        let issued = fleet.issue_server(&names, Some(&region.parse().unwrap()), DAY);
        identity(&fleet, &issued.unwrap())
    };
    let (left, right) = (origin("eu-1"), origin("us-1"));
    assert_eq!(left.region(), Some("eu-1".parse().unwrap()));
    assert_eq!(left.peer_id(), None);
    let server = Arc::unwrap_or_clone(right.https_server(ClientAuth::Required).unwrap());
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from("origin.us-1.example").unwrap();
    let (accepted, connected) = tokio::join!(
        TlsAcceptor::from(Arc::new(server)).accept(far),
        TlsConnector::from(Arc::new(left.https_client().unwrap())).connect(name, near),
    );
    let region = |chain: Option<&[CertificateDer<'_>]>| {
        let certificate = Certificate::parse(chain?.first()?)?;
        certificate.region().map(ToString::to_string)
    };
    let (accepted, connected) = (accepted.unwrap(), connected.unwrap());
    let client = region(accepted.get_ref().1.peer_certificates());
    assert_eq!(client.as_deref(), Some("eu-1"));
    let server = region(connected.get_ref().1.peer_certificates());
    assert_eq!(server.as_deref(), Some("us-1"));

    // Without a region it is no client at all.
    let tracker = fleet.issue_server(&["tracker.example".to_owned()], None, DAY);
    let tracker = identity(&fleet, &tracker.unwrap());
    let server = right.quic_server(ALPN).unwrap();
    let met = handshake(
        server,
        tracker.quic_client(ALPN).unwrap(),
        "origin.us-1.example",
    )
    .await;
    assert!(met.is_err());
}

#[tokio::test]
async fn client_of_a_region_refuses_every_other_server() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let origin = |host: &str, region: Option<&str>| {
        let region = region.map(|region| region.parse().unwrap());
        let issued = fleet.issue_server(&[host.to_owned()], region.as_ref(), DAY);
        identity(&fleet, &issued.unwrap())
    };
    let own = origin("origin.eu.example", Some("eu-1"));
    let connect = async |host: &str, region: Option<&str>| {
        let server = origin(host, region)
            .https_server(ClientAuth::Optional)
            .unwrap();
        let client = own
            .https_client_of_origin(&"us-1".parse().unwrap())
            .unwrap();
        let met = handshake(Arc::unwrap_or_clone(server), client, "origin.us.example").await;
        met.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(connect("origin.us.example", Some("us-1")).await, Ok(()));
    for (host, region) in [
        ("origin.us.example", Some("ap-1")),
        ("origin.us.example", None),
        ("origin.ap.example", Some("us-1")),
    ] {
        assert!(connect(host, region).await.is_err(), "{host} {region:?}");
    }
}

#[test]
fn server_certificates_exclude_the_names_of_members() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    for name in [
        "vm-1.peer.flotilla.internal",
        "x.PEER.flotilla.internal",
        "peer.flotilla.internal",
        "eu-1.origin.flotilla.internal",
        "eu-1.Origin.Flotilla.Internal",
        "origin.flotilla.internal",
        "ci.client.flotilla.internal",
        "a b",
        "",
    ] {
        let refused = fleet.issue_server(&[name.to_owned()], None, DAY);
        assert!(
            matches!(refused, Err(IdentityError::ServerName(_))),
            "{name}"
        );
    }
}

#[test]
fn peer_id_of_63_characters_fits_a_certificate() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let longest = peer(&"a".repeat(63));
    assert_eq!(
        identity(&fleet, &fleet.issue_peer(&longest, DAY).unwrap()).peer_id(),
        Some(longest)
    );
}

#[test]
fn certificate_names_exactly_one_member() {
    let key = rcgen::KeyPair::generate().unwrap();
    let named = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let params = rcgen::CertificateParams::new(names).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Certificate::parse(certificate.der()).map(|certificate| certificate.name.to_string())
    };
    let peer = "a.peer.flotilla.internal";
    let origin = "a.origin.flotilla.internal";
    assert_eq!(named(&[peer, "vm.example"]).as_deref(), Some("peer a"));
    let expected = Some("the origin of region a");
    assert_eq!(named(&["10.0.0.1", origin]).as_deref(), expected);
    for names in [
        &[peer, "b.peer.flotilla.internal"][..],
        &[origin, "b.origin.flotilla.internal"],
        &[origin, peer],
        &[peer, "a.client.flotilla.internal"],
        &[peer, "b.PEER.flotilla.internal"],
        &[peer, "origin.flotilla.internal"],
        &["a.b.peer.flotilla.internal"],
        &["peer.flotilla.internal"],
        &["a.client.flotilla.internal"],
        &["apeer.flotilla.internal"],
        &["vm.example"],
    ] {
        assert_eq!(named(names), None, "{names:?}");
    }
    let nonsense = CertificateDer::from_slice(b"nonsense");
    assert_eq!(Certificate::parse(&nonsense), None);
}

/// An identity's files in a directory.
fn write_files(
    directory: &std::path::Path,
    fleet: &CertificateAuthority,
    issued: &Issued,
) -> CertificateFiles {
    let files = CertificateFiles {
        certificate: directory.join("peer.pem"),
        key: directory.join("peer.key"),
        authority: directory.join("ca.pem"),
    };
    write_new(
        FileKind::Certificate,
        &files.certificate,
        &issued.certificate_pem,
    )
    .unwrap();
    write_new(FileKind::PrivateKey, &files.key, &issued.key_pem).unwrap();
    write_new(
        FileKind::Authority,
        &files.authority,
        fleet.certificate_pem(),
    )
    .unwrap();
    files
}

#[test]
fn file_errors_name_fault_and_fix() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let files = write_files(
        directory.path(),
        &fleet,
        &fleet.issue_peer(&peer("a"), DAY).unwrap(),
    );
    let swapped = CertificateFiles {
        certificate: files.key.clone(),
        ..files.clone()
    };
    let error = Identity::load(&swapped, Clock::system())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("peer.key") && error.contains("BEGIN CERTIFICATE"),
        "{error}"
    );
    let missing = CertificateFiles {
        key: directory.path().join("nowhere"),
        ..files
    };
    let error = Identity::load(&missing, Clock::system())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("read private key") && error.contains("nowhere"),
        "{error}"
    );
}

#[test]
fn loaded_authority_issues_accepted_certificates() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = (
        directory.path().join("ca.pem"),
        directory.path().join("ca.key"),
    );
    let made = CertificateAuthority::create(Clock::system()).unwrap();
    write_new(FileKind::Authority, &certificate, made.certificate_pem()).unwrap();
    write_new(FileKind::AuthorityKey, &key, &made.key_pem()).unwrap();
    assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let loaded = CertificateAuthority::load(&certificate, &key, Clock::system()).unwrap();
    assert_eq!(loaded.certificate_pem(), made.certificate_pem());
    let issued = loaded.issue_peer(&peer("a"), DAY).unwrap();
    let chain = CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap();
    assert_eq!(peer_id(&chain), Some(peer("a")));

    let again = write_new(FileKind::AuthorityKey, &key, "other");
    assert!(matches!(again, Err(IdentityError::Exists(..))));
    std::fs::write(
        &key,
        CertificateAuthority::create(Clock::system())
            .unwrap()
            .key_pem(),
    )
    .unwrap();
    let error = CertificateAuthority::load(&certificate, &key, Clock::system())
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not belong"), "{error}");
}

#[test]
fn seal_key_file_round_trip() {
    let directory = tempfile::tempdir().unwrap();
    let (secret_file, trusted_file) = (
        directory.path().join("seal.key"),
        directory.path().join("trusted-keys"),
    );
    let secret = SealSecret::generate("eu-1".parse().unwrap()).unwrap();
    write_new(FileKind::SealKey, &secret_file, &secret.to_text()).unwrap();
    write_new(
        FileKind::TrustedKeys,
        &trusted_file,
        &trusted_key_line(&secret.key()),
    )
    .unwrap();
    let key = load_seal_key(&secret_file).unwrap();
    assert_eq!(key.key_id(), secret.key().key_id());
    assert_eq!(key.issuer().as_str(), "eu-1");
    let size = 64 << 20;
    let seal = key.seal(BlobFacts {
        digest: Digest::sha256(b"x"),
        size,
        chunk_log2: Geometry::for_size(size).chunk_log2(),
        root: [7; 32],
    });
    assert!(
        load_trusted_keys(&trusted_file)
            .unwrap()
            .check(&seal)
            .is_ok()
    );

    let error = parse_trusted_keys("# empty\n\n").unwrap_err().to_string();
    assert!(error.contains("contains no key"), "{error}");
    let error = parse_trusted_keys("# one\neu-1 ed25519 12\n")
        .unwrap_err()
        .to_string();
    assert!(error.contains("line 2"), "{error}");
    let error = load_seal_key(&trusted_file).unwrap_err().to_string();
    assert!(
        error.contains("ed25519-secret") && error.contains("trusted-keys"),
        "{error}"
    );
}
