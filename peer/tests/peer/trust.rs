//! Grants, and replacement of certificates and keys at run time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::grant::{CLOCK_TOLERANCE_S, Grant, LIFETIME_S};
use flotilla_common::name::PeerId;
use flotilla_common::seal::SealKey;
use flotilla_peer::{Config, Peer};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::identity::{
    CertificateAuthority, CertificateFiles, Identity, LiveKeys, trusted_key_line,
};

use crate::harness::origin::GrantSource;
use crate::harness::{Fleet, HOUR, pull, random_bytes, try_pull, wait_until};

fn image() -> Vec<Bytes> {
    vec![random_bytes(700, 1), random_bytes(2 << 20, 2)]
}

/// Grants that expire `seconds` from now; negative values are in the past.
fn expiring_in(seconds: i64) -> impl Fn(&SealKey, PeerId, Vec<Digest>) -> Option<Grant> {
    move |key, peer, digests| {
        let end = Clock::system()
            .unix_seconds()
            .saturating_add_signed(seconds);
        Some(Grant::sign(key, peer, digests, end))
    }
}

/// A fleet that requires grants. Its first peer has the whole image.
async fn fleet_with_grants() -> (Fleet, Peer) {
    let fleet = Fleet::with_tls().await;
    fleet.origin.push(&image());
    set_grants(&fleet, expiring_in(LIFETIME_S as i64));
    let first = fleet.start(require_grants(fleet.config("vm-1"))).await;
    assert_eq!(pull(&first).await, image());
    (fleet, first)
}

fn require_grants(config: Config) -> Config {
    Config {
        requires_grants: true,
        ..config
    }
}

fn set_grants(
    fleet: &Fleet,
    source: impl Fn(&SealKey, PeerId, Vec<Digest>) -> Option<Grant> + Send + Sync + 'static,
) {
    let source: GrantSource = Box::new(source);
    *fleet.origin.grants.lock().unwrap() = Some(source);
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_with_grant_is_served_by_neighbour() {
    let (fleet, first) = fleet_with_grants().await;
    let second = fleet.start(require_grants(fleet.config("vm-2"))).await;
    assert_eq!(pull(&second).await, image());
    assert!(
        second.stats().bytes_from_peers > 1 << 20,
        "{:?}",
        second.stats()
    );
    assert_eq!(first.stats().refused_not_permitted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_without_valid_grant_pulls_from_the_origin_only() {
    let tolerance = CLOCK_TOLERANCE_S as i64;
    let untrusted_key = SealKey::from_secret("eu-1".parse().unwrap(), &[8; 32]);
    let invalid_grants: Vec<GrantSource> = vec![
        Box::new(|_, _, _| None),
        Box::new(expiring_in(-tolerance - 10)),
        Box::new(|key, _, digests| expiring_in(1000)(key, "vm-9".parse().unwrap(), digests)),
        Box::new(move |_, peer, digests| expiring_in(1000)(&untrusted_key, peer, digests)),
        Box::new(|key, peer, _| {
            expiring_in(1000)(key, peer, vec![Digest::sha256(b"another image")])
        }),
        Box::new(move |key, peer, digests| {
            let expired = expiring_in(-tolerance - 10)(key, peer, digests)?;
            Some(Grant {
                expires_unix_s: expired.expires_unix_s + 100_000,
                ..expired
            })
        }),
    ];
    let (fleet, first) = fleet_with_grants().await;
    for (number, source) in (2..).zip(invalid_grants) {
        let refused_before = first.stats().refused_not_permitted;
        *fleet.origin.grants.lock().unwrap() = Some(source);
        let other = fleet
            .start(require_grants(fleet.config(&format!("vm-{number}"))))
            .await;
        assert_eq!(pull(&other).await, image());
        assert_eq!(other.stats().bytes_from_peers, 0, "grant {number}");
        assert!(
            first.stats().refused_not_permitted > refused_before,
            "grant {number}"
        );
        other.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_tolerates_clock_skew_of_59_minutes() {
    let (fleet, _first) = fleet_with_grants().await;
    // As expired as the grant appears to a neighbour with such a clock.
    set_grants(&fleet, expiring_in(60 - CLOCK_TOLERANCE_S as i64));
    let second = fleet.start(require_grants(fleet.config("vm-2"))).await;
    assert_eq!(pull(&second).await, image());
    assert!(
        second.stats().bytes_from_peers > 1 << 20,
        "{:?}",
        second.stats()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn grant_is_renewed_during_a_pull() {
    let (fleet, _first) = fleet_with_grants().await;
    // The grant expires soon, and the pull cannot complete because the rest has no source.
    set_grants(&fleet, expiring_in(30));
    fleet
        .origin
        .are_blobs_unavailable
        .store(true, Ordering::Relaxed);
    let image = [image(), vec![random_bytes(1 << 20, 9)]].concat();
    fleet.origin.push(&image);
    let second = fleet.start(require_grants(fleet.config("vm-2"))).await;
    let pulling = tokio::spawn({
        let second = Arc::new(second);
        async move { try_pull(&second).await }
    });
    wait_until("the grant is requested again", || {
        fleet.origin.closure_requests.load(Ordering::Relaxed) >= 3
    })
    .await;
    fleet
        .origin
        .are_blobs_unavailable
        .store(false, Ordering::Relaxed);
    drop(pulling);
}

#[tokio::test(flavor = "multi_thread")]
async fn requiring_grants_needs_an_https_origin() {
    let fleet = Fleet::new().await;
    let error = Peer::start(require_grants(fleet.config("vm-1")), &fleet.shutdown)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("require-grants") && error.contains("https://"),
        "{error}"
    );
}

fn replace_file(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// The configuration of a peer whose identity and trusted keys are loaded from files, with the
/// paths of these files.
fn config_from_files(
    fleet: &Fleet,
    dir: &Path,
    name: &str,
) -> (Config, CertificateFiles, std::path::PathBuf) {
    let issued = fleet
        .authority
        .issue_peer(&name.parse().unwrap(), HOUR)
        .unwrap();
    let file = |suffix: &str| dir.join(format!("{name}.{suffix}"));
    let files = CertificateFiles {
        certificate: file("pem"),
        key: file("key"),
        authority: file("ca"),
    };
    replace_file(&files.certificate, &issued.certificate_pem);
    replace_file(&files.key, &issued.key_pem);
    replace_file(&files.authority, fleet.authority.certificate_pem());
    let trusted = file("keys");
    replace_file(&trusted, &trusted_key_line(&fleet.key));
    let identity = Identity::load(&files, Clock::system()).unwrap();
    let trusted_keys = LiveKeys::load(&trusted).unwrap();
    (
        Config {
            identity,
            trusted_keys,
            ..fleet.config(name)
        },
        files,
        trusted,
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_and_authority_are_replaced_at_run_time() {
    let fleet = Fleet::new().await;
    let dir = tempfile::tempdir().unwrap();
    let image = image();
    fleet.origin.push(&image);
    let (config, files, _) = config_from_files(&fleet, dir.path(), "vm-1");
    let identity = config.identity.clone();
    let first = fleet.start(config).await;
    assert_eq!(pull(&first).await, image);
    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    wait_until("the peers are connected", || first.stats().neighbours == 1).await;

    // The next authority is trusted besides the old one; a peer with its certificate joins.
    let next = CertificateAuthority::create(Clock::system()).unwrap();
    let issue = |name: &str| next.issue_peer(&name.parse().unwrap(), 2 * HOUR).unwrap();
    let both = format!(
        "{}{}",
        fleet.authority.certificate_pem(),
        next.certificate_pem()
    );
    let renewed = issue("vm-1");
    replace_file(&files.authority, &both);
    replace_file(&files.certificate, &renewed.certificate_pem);
    replace_file(&files.key, &renewed.key_pem);
    let ends = identity.ends_unix_s();
    wait_until("the new certificate is in use", || {
        identity.ends_unix_s() > ends
    })
    .await;
    let newcomer = issue("vm-3");
    let identity = Identity::from_pem(
        &newcomer.certificate_pem,
        &newcomer.key_pem,
        next.certificate_pem(),
        Clock::system(),
    );
    let third = fleet
        .start(Config {
            identity: identity.unwrap(),
            ..fleet.config("vm-3")
        })
        .await;
    assert_eq!(pull(&third).await, image);
    assert!(
        third.stats().bytes_from_peers > 1 << 20,
        "{:?}",
        third.stats()
    );
    assert!(
        first.stats().neighbours >= 2,
        "the existing connection stays: {:?}",
        first.stats()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_sealed_with_removed_key_is_not_stored() {
    let fleet = Fleet::new().await;
    let dir = tempfile::tempdir().unwrap();
    fleet.origin.push(&image());
    let (config, _, trusted) = config_from_files(&fleet, dir.path(), "vm-1");
    let keys = config.trusted_keys.clone();
    let peer = fleet.start(config).await;
    assert_eq!(pull(&peer).await, image());
    let stored = peer.stats().blobs.len();
    let next = SealKey::from_secret("eu-1".parse().unwrap(), &[9; 32]);
    replace_file(&trusted, &trusted_key_line(&next));
    wait_until("the new keys are loaded", || {
        keys.current().to_string() == next.key_id().to_string()
    })
    .await;

    let other = vec![random_bytes(700, 5), random_bytes(1 << 20, 6)];
    fleet.origin.push(&other);
    // The old tag is cached for a moment.
    pull_until_image_is(&peer, &other).await;
    assert_eq!(
        peer.stats().blobs.len(),
        stored,
        "blobs with an untrusted seal were stored"
    );
}

/// Pulls repeatedly until the tag names this image.
async fn pull_until_image_is(peer: &Peer, image: &[Bytes]) {
    let is_new = AtomicBool::new(false);
    while !is_new.load(Ordering::Relaxed) {
        is_new.store(pull(peer).await == image, Ordering::Relaxed);
    }
}
