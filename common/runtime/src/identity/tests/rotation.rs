//! Rotation: certificates, authorities and origin keys change under a running service.

use std::path::Path;
use std::time::Instant;

use flotilla_common::seal::TrustError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::super::live_identity::Validity;
use super::super::watch::{PollOutcome, Watch, expiry_reminder};
use super::*;
use crate::clock::Clock;
use crate::shutdown::Shutdown;

const SETTLE: Duration = Duration::from_secs(5);

/// Replaces a file atomically.
fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

fn renew(files: &CertificateFiles, issued: &Issued) {
    replace(&files.certificate, &issued.certificate_pem);
    replace(&files.key, &issued.key_pem);
}

fn vm(directory: &Path, fleet: &CertificateAuthority) -> (CertificateFiles, Identity) {
    let files = write_files(
        directory,
        fleet,
        &fleet.issue_peer(&peer("vm-1"), DAY).unwrap(),
    );
    let identity = Identity::load(&files, Clock::system()).unwrap();
    (files, identity)
}

#[test]
fn half_written_pair_is_checked_again() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (files, vm) = vm(directory.path(), &fleet);
    let mut watch = Watch::new(vm.clone(), SETTLE);
    let start = Instant::now();
    assert!(matches!(watch.poll(false, start), PollOutcome::Unchanged));
    let renewed = fleet.issue_peer(&peer("vm-1"), 9 * DAY).unwrap();
    replace(&files.certificate, &renewed.certificate_pem);
    assert!(matches!(watch.poll(false, start), PollOutcome::Settling));
    let before = vm.ends_unix_s();
    replace(&files.key, &renewed.key_pem);
    assert!(matches!(
        watch.poll(false, start + SETTLE / 2),
        PollOutcome::Reloaded
    ));
    assert!(vm.ends_unix_s() > before);
    assert!(matches!(
        watch.poll(false, start + SETTLE),
        PollOutcome::Unchanged
    ));
}

#[test]
fn invalid_file_is_reported_once_and_identity_stays() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (files, vm) = vm(directory.path(), &fleet);
    let mut watch = Watch::new(vm.clone(), SETTLE);
    let start = Instant::now();
    watch.poll(false, start);
    let before = vm.ends_unix_s();
    replace(&files.authority, "no certificate at all");
    assert!(matches!(watch.poll(false, start), PollOutcome::Settling));
    let PollOutcome::Invalid(error) = watch.poll(false, start + SETTLE) else {
        panic!("it is bad")
    };
    let error = error.to_string();
    assert!(
        error.contains("ca.pem") && error.contains("flotilla pki"),
        "{error}"
    );
    assert!(
        matches!(
            watch.poll(false, start + 9 * SETTLE),
            PollOutcome::Unchanged
        ),
        "reported twice"
    );
    // SIGHUP reports at once, and again.
    assert!(matches!(
        watch.poll(true, start + 9 * SETTLE),
        PollOutcome::Invalid(_)
    ));
    std::fs::remove_file(&files.authority).unwrap();
    assert!(matches!(
        watch.poll(false, start + 10 * SETTLE),
        PollOutcome::Settling
    ));
    assert_eq!(
        (vm.peer_id(), vm.ends_unix_s()),
        (Some(peer("vm-1")), before)
    );
    replace(&files.authority, fleet.certificate_pem());
    assert!(matches!(
        watch.poll(false, start + 10 * SETTLE),
        PollOutcome::Reloaded
    ));
}

#[test]
fn reload_does_not_rename_a_peer() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (files, vm) = vm(directory.path(), &fleet);
    renew(&files, &fleet.issue_peer(&peer("vm-2"), DAY).unwrap());
    let error = vm.reload().unwrap_err().to_string();
    assert!(
        error.contains("names peer vm-2") && error.contains("restart"),
        "{error}"
    );
    assert_eq!(vm.peer_id(), Some(peer("vm-1")));
}

#[test]
fn reload_does_not_move_an_origin_to_another_region() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let issue = |region: Option<&str>| {
        let region = region.map(|region| region.parse().unwrap());
        let names = ["origin.example".to_owned()];
        fleet.issue_server(&names, region.as_ref(), DAY).unwrap()
    };
    let files = write_files(directory.path(), &fleet, &issue(None));
    let origin = Identity::load(&files, Clock::system()).unwrap();
    origin.bind_region(&"eu-1".parse().unwrap()).unwrap();

    renew(&files, &issue(Some("us-1")));
    let error = origin.reload().unwrap_err().to_string();
    assert!(
        error.contains("peer.pem")
            && error.contains("names region us-1, but this origin is in region eu-1"),
        "{error}"
    );
    // A certificate of its own region needs no restart.
    renew(&files, &issue(Some("eu-1")));
    origin.reload().unwrap();
    assert_eq!(origin.region(), Some("eu-1".parse().unwrap()));
    renew(&files, &issue(None));
    let error = origin.reload().unwrap_err().to_string();
    assert!(error.contains("is the origin of region eu-1"), "{error}");

    let other = Identity::load(&files, Clock::system()).unwrap();
    assert_eq!(other.region(), None);
    renew(&files, &issue(Some("us-1")));
    let other = Identity::load(&files, Clock::system()).unwrap();
    assert!(other.bind_region(&"eu-1".parse().unwrap()).is_err());
}

#[test]
fn expiry_reminder_precedes_expiry() {
    let begins_unix_s = 1_000_000_000;
    let day = DAY.as_secs();
    let year = Validity {
        begins_unix_s,
        ends_unix_s: begins_unix_s + 366 * day,
    };
    let at = |validity: Validity, days_left| {
        expiry_reminder(validity, validity.ends_unix_s - days_left * day)
    };
    assert_eq!(at(year, 31), None);
    assert!(at(year, 30).unwrap().contains("30 days"));
    assert!(at(year, 0).unwrap().contains("new connections fail"));
    let week = Validity {
        begins_unix_s,
        ends_unix_s: begins_unix_s + 9 * day,
    };
    assert_eq!(at(week, 4), None);
    assert!(at(week, 3).unwrap().contains("--renew"));
}

#[test]
fn clock_an_hour_behind_accepts_new_certificate() {
    let fleet = CertificateAuthority::create(Clock::system()).unwrap();
    let made = identity(&fleet, &fleet.issue_peer(&peer("a"), DAY).unwrap());
    let slow_clock = crate::clock::Clock::system().unix_seconds() - 3600;
    assert!(made.validity().begins_unix_s < slow_clock);
    let authority = CertificateDer::from_pem_slice(fleet.certificate_pem().as_bytes()).unwrap();
    let (_, authority) = x509_parser::parse_x509_certificate(&authority).unwrap();
    assert!(authority.validity().not_before.timestamp() < i64::try_from(slow_clock).unwrap());
}

#[test]
fn origin_key_rotation_and_removal() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("trusted-keys");
    let [old, new] = [0, 1].map(|_| SealSecret::generate("eu-1".parse().unwrap()).unwrap().key());
    let seal = |key: &flotilla_common::seal::SealKey| {
        let chunk_log2 = Geometry::for_size(9).chunk_log2();
        key.seal(BlobFacts {
            digest: Digest::sha256(b"x"),
            size: 9,
            chunk_log2,
            root: [7; 32],
        })
    };
    replace(&file, &trusted_key_line(&old));
    let trusted = LiveKeys::load(&file).unwrap();
    let mut watch = Watch::new(trusted.clone(), SETTLE);
    watch.poll(false, Instant::now());
    assert_eq!(
        trusted.current().check(&seal(&new)),
        Err(TrustError::UnknownKey(new.key_id()))
    );

    replace(&file, &(trusted_key_line(&old) + &trusted_key_line(&new)));
    assert!(matches!(
        watch.poll(false, Instant::now()),
        PollOutcome::Reloaded
    ));
    assert!(
        [&old, &new]
            .iter()
            .all(|key| trusted.current().check(&seal(key)).is_ok())
    );

    replace(&file, &trusted_key_line(&new));
    assert!(matches!(
        watch.poll(false, Instant::now()),
        PollOutcome::Reloaded
    ));
    assert_eq!(
        trusted.current().check(&seal(&old)),
        Err(TrustError::UnknownKey(old.key_id()))
    );
    assert!(trusted.current().check(&seal(&new)).is_ok());
}

/// Both ends of a session, made with configurations that were made before any rotation.
async fn connect(
    server: &ServerConfig,
    client: &ClientConfig,
) -> std::io::Result<(
    impl AsyncReadExt + AsyncWriteExt + Unpin,
    impl AsyncReadExt + AsyncWriteExt + Unpin,
)> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let name = ServerName::try_from(peer_name(&peer("vm-1"))).unwrap();
    let (server, client) = tokio::join!(
        TlsAcceptor::from(Arc::new(server.clone())).accept(far),
        TlsConnector::from(Arc::new(client.clone())).connect(name, near),
    );
    Ok((server?, client?))
}

async fn echo(
    (server, client): &mut (
        impl AsyncReadExt + AsyncWriteExt + Unpin,
        impl AsyncReadExt + AsyncWriteExt + Unpin,
    ),
) {
    let mut received = [0; 4];
    client.write_all(b"ping").await.unwrap();
    server.read_exact(&mut received).await.unwrap();
    server.write_all(&received).await.unwrap();
    client.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"ping");
}

/// Waits until the watch has taken the files up.
async fn settled(until: impl Fn() -> bool) {
    let waiting = async {
        while !until() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting)
        .await
        .expect("the change was not taken up");
}

#[tokio::test]
async fn authority_rotation_under_load_keeps_connections() {
    let (old, new) = (
        CertificateAuthority::create(Clock::system()).unwrap(),
        CertificateAuthority::create(Clock::system()).unwrap(),
    );
    let directory = tempfile::tempdir().unwrap();
    let (files, vm) = vm(directory.path(), &old);
    let (server, client) = (vm.quic_server(ALPN).unwrap(), vm.quic_client(ALPN).unwrap());
    let mut early = connect(&server, &client).await.unwrap();
    let shutdown = Shutdown::new();
    let timing = ReloadTiming {
        poll: Duration::from_millis(5),
        settle: SETTLE,
    };
    reload_on_change(vm.clone(), timing, &shutdown);
    // Connections come all the while, and none fails.
    let load = {
        let (server, client, stop) = (server.clone(), client.clone(), shutdown.clone());
        tokio::spawn(async move {
            let mut connections = 0_u32;
            while !stop.is_triggered() {
                echo(&mut connect(&server, &client).await.unwrap()).await;
                connections += 1;
            }
            connections
        })
    };
    let newcomer = identity(&new, &new.issue_peer(&peer("vm-2"), DAY).unwrap())
        .quic_client(ALPN)
        .unwrap();
    assert!(
        connect(&server, &newcomer).await.is_err(),
        "not trusted yet"
    );

    // First all members trust both authorities, then certificates change, then the old authority
    // goes.
    replace(
        &files.authority,
        &format!("{}{}", old.certificate_pem(), new.certificate_pem()),
    );
    let ends = vm.ends_unix_s();
    renew(&files, &new.issue_peer(&peer("vm-1"), 9 * DAY).unwrap());
    settled(|| vm.ends_unix_s() > ends).await;
    echo(&mut connect(&server, &newcomer).await.unwrap()).await;
    let old_timer = identity(&old, &old.issue_peer(&peer("vm-4"), DAY).unwrap());
    let ends = vm.ends_unix_s();
    replace(&files.authority, new.certificate_pem());
    renew(&files, &new.issue_peer(&peer("vm-1"), 19 * DAY).unwrap());
    settled(|| vm.ends_unix_s() > ends).await;
    assert!(
        connect(&server, &old_timer.quic_client(ALPN).unwrap())
            .await
            .is_err(),
        "its authority is gone"
    );

    echo(&mut early).await;
    echo(&mut connect(&server, &newcomer).await.unwrap()).await;
    shutdown.trigger();
    assert!(load.await.unwrap() > 0);
}
