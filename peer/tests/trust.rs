//! Whom peers serve and believe: grants, and certificates and keys that change while pulls go on.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod harness;

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
    Authority, CertificateFiles, Identity, LiveKeys, trusted_key_line,
};
use harness::origin::Granting;
use harness::{Fleet, HOUR, noise, pull, try_pull, until};

fn image() -> Vec<Bytes> {
    vec![noise(700, 1), noise(2 << 20, 2)]
}

/// A grant that ends so many seconds from now, for better or worse.
fn ends_in(seconds: i64) -> impl Fn(&SealKey, PeerId, Vec<Digest>) -> Option<Grant> {
    move |key, peer, digests| {
        let end = Clock::system()
            .unix_seconds()
            .saturating_add_signed(seconds);
        Some(Grant::sign(key, peer, digests, end))
    }
}

/// A fleet that requires grants, its first peer with the whole image.
async fn fleet_with_grants() -> (Fleet, Peer) {
    let fleet = Fleet::over_tls().await;
    fleet.origin.push(&image());
    grant(&fleet, ends_in(LIFETIME_S as i64));
    let first = fleet.start(requiring(fleet.config("vm-1"))).await;
    assert_eq!(pull(&first).await, image());
    (fleet, first)
}

fn requiring(config: Config) -> Config {
    Config {
        requires_grants: true,
        ..config
    }
}

fn grant(
    fleet: &Fleet,
    granting: impl Fn(&SealKey, PeerId, Vec<Digest>) -> Option<Grant> + Send + Sync + 'static,
) {
    let granting: Granting = Box::new(granting);
    *fleet.origin.grants.lock().unwrap() = Some(granting);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_with_a_grant_is_served_by_its_neighbour() {
    let (fleet, first) = fleet_with_grants().await;
    let second = fleet.start(requiring(fleet.config("vm-2"))).await;
    assert_eq!(pull(&second).await, image());
    assert!(
        second.stats().bytes_from_peers > 1 << 20,
        "{:?}",
        second.stats()
    );
    assert_eq!(first.stats().refused_not_permitted, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_valid_grant_nothing_comes_from_a_neighbour_and_the_pull_completes_all_the_same()
{
    let tolerance = CLOCK_TOLERANCE_S as i64;
    let stranger = SealKey::from_secret("eu-1".parse().unwrap(), &[8; 32]);
    let worthless: Vec<Granting> = vec![
        Box::new(|_, _, _| None),
        Box::new(ends_in(-tolerance - 10)),
        Box::new(|key, _, digests| ends_in(1000)(key, "vm-9".parse().unwrap(), digests)),
        Box::new(move |_, peer, digests| ends_in(1000)(&stranger, peer, digests)),
        Box::new(|key, peer, _| ends_in(1000)(key, peer, vec![Digest::sha256(b"another image")])),
        Box::new(move |key, peer, digests| {
            let honest = ends_in(-tolerance - 10)(key, peer, digests)?;
            Some(Grant {
                expires_unix_s: honest.expires_unix_s + 100_000,
                ..honest
            })
        }),
    ];
    let (fleet, first) = fleet_with_grants().await;
    for (number, granting) in (2..).zip(worthless) {
        let refused = first.stats().refused_not_permitted;
        *fleet.origin.grants.lock().unwrap() = Some(granting);
        let other = fleet
            .start(requiring(fleet.config(&format!("vm-{number}"))))
            .await;
        assert_eq!(pull(&other).await, image());
        assert_eq!(other.stats().bytes_from_peers, 0, "grant {number}");
        assert!(
            first.stats().refused_not_permitted > refused,
            "grant {number}"
        );
        other.shutdown().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_whose_clock_is_almost_an_hour_ahead_honours_a_grant_to_its_end() {
    let (fleet, _first) = fleet_with_grants().await;
    // To its clock, the grant ended so long ago.
    grant(&fleet, ends_in(60 - CLOCK_TOLERANCE_S as i64));
    let second = fleet.start(requiring(fleet.config("vm-2"))).await;
    assert_eq!(pull(&second).await, image());
    assert!(
        second.stats().bytes_from_peers > 1 << 20,
        "{:?}",
        second.stats()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_renewed_while_the_pull_goes_on() {
    let (fleet, _first) = fleet_with_grants().await;
    // It ends soon, and the pull cannot: nobody has the rest.
    grant(&fleet, ends_in(30));
    fleet.origin.is_down.store(true, Ordering::Relaxed);
    let image = [image(), vec![noise(1 << 20, 9)]].concat();
    fleet.origin.push(&image);
    let second = fleet.start(requiring(fleet.config("vm-2"))).await;
    let pulling = tokio::spawn({
        let second = Arc::new(second);
        async move { try_pull(&second).await }
    });
    until("it asks for a grant again", || {
        fleet.origin.closures.load(Ordering::Relaxed) >= 3
    })
    .await;
    fleet.origin.is_down.store(false, Ordering::Relaxed);
    drop(pulling);
}

#[tokio::test(flavor = "multi_thread")]
async fn grants_need_an_origin_that_knows_its_peers() {
    let fleet = Fleet::new().await;
    let error = Peer::start(requiring(fleet.config("vm-1")), &fleet.shutdown)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("require-grants") && error.contains("https://"),
        "{error}"
    );
}

fn replace(path: &Path, text: &str) {
    let new = path.with_extension("new");
    std::fs::write(&new, text).unwrap();
    std::fs::rename(&new, path).unwrap();
}

/// A peer whose identity and trusted keys are in files.
fn in_files(
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
    replace(&files.certificate, &issued.certificate_pem);
    replace(&files.key, &issued.key_pem);
    replace(&files.authority, fleet.authority.certificate_pem());
    let trusted = file("keys");
    replace(&trusted, &trusted_key_line(&fleet.key));
    let identity = Identity::load(&files).unwrap();
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
async fn certificates_and_authority_change_while_peers_pull() {
    let (fleet, dir) = (Fleet::new().await, tempfile::tempdir().unwrap());
    let image = image();
    fleet.origin.push(&image);
    let (config, files, _) = in_files(&fleet, dir.path(), "vm-1");
    let identity = config.identity.clone();
    let first = fleet.start(config).await;
    assert_eq!(pull(&first).await, image);
    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    until("they know each other", || first.stats().neighbours == 1).await;

    // The next authority comes in beside the old one; a peer of the next one joins.
    let next = Authority::create().unwrap();
    let issue = |name: &str| next.issue_peer(&name.parse().unwrap(), 2 * HOUR).unwrap();
    let both = format!(
        "{}{}",
        fleet.authority.certificate_pem(),
        next.certificate_pem()
    );
    let renewed = issue("vm-1");
    replace(&files.authority, &both);
    replace(&files.certificate, &renewed.certificate_pem);
    replace(&files.key, &renewed.key_pem);
    let ends = identity.ends_unix_s();
    until("the new certificate is in use", || {
        identity.ends_unix_s() > ends
    })
    .await;
    let newcomer = issue("vm-3");
    let identity = Identity::from_pem(
        &newcomer.certificate_pem,
        &newcomer.key_pem,
        next.certificate_pem(),
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
        "the connection from before goes on: {:?}",
        first.stats()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_sealed_with_a_key_that_was_removed_is_not_taken_in_anew() {
    let (fleet, dir) = (Fleet::new().await, tempfile::tempdir().unwrap());
    fleet.origin.push(&image());
    let (config, _, trusted) = in_files(&fleet, dir.path(), "vm-1");
    let keys = config.trusted_keys.clone();
    let peer = fleet.start(config).await;
    assert_eq!(pull(&peer).await, image());
    let sealed = peer.stats().blobs.len();
    let next = SealKey::from_secret("eu-1".parse().unwrap(), &[9; 32]);
    replace(&trusted, &trusted_key_line(&next));
    until("the keys are taken up", || {
        keys.current().to_string() == next.key_id().to_string()
    })
    .await;

    let other = vec![noise(700, 5), noise(1 << 20, 6)];
    fleet.origin.push(&other);
    // Tags are remembered for a moment.
    until_pulled(&peer, &other).await;
    assert_eq!(
        peer.stats().blobs.len(),
        sealed,
        "nothing of it is believed, so nothing is kept"
    );
}

async fn until_pulled(peer: &Peer, image: &[Bytes]) {
    let is_new = AtomicBool::new(false);
    while !is_new.load(Ordering::Relaxed) {
        is_new.store(pull(peer).await == image, Ordering::Relaxed);
    }
}
