//! Every origin is out, and one peer has an image: others get manifest, proofs and bytes from it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod harness;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::grant::{Grant, LIFETIME_S};
use flotilla_peer::{Config, Peer};
use flotilla_runtime::clock::Clock;
use harness::{Fleet, client, noise, pull, try_pull, try_pull_of, until};

/// Until a runtime hears that an image cannot be had.
const REFUSED_BOUND: Duration = Duration::from_secs(6);

fn image() -> Vec<Bytes> {
    vec![noise(700, 1), noise(2 << 20, 2), noise(300_000, 3)]
}

async fn whole(fleet: &Fleet, config: Config) -> Peer {
    let peer = fleet.start(config).await;
    assert_eq!(pull(&peer).await, image());
    peer
}

fn origin_dies(fleet: &Fleet) -> u64 {
    fleet.origin.is_out.store(true, Ordering::Relaxed);
    fleet.origin.is_down.store(true, Ordering::Relaxed);
    fleet.origin.sent()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_peer_pulls_by_digest_what_another_one_has() {
    let fleet = Fleet::new().await;
    let manifest = fleet.origin.push(&image());
    let tracker = fleet.tracker.clone().unwrap();
    let _first = whole(&fleet, fleet.config("vm-1")).await;
    until("the image is announced", || {
        tracker.swarm_of(&manifest) == 1
    })
    .await;
    let sent = origin_dies(&fleet);
    let second = fleet.peer("vm-2").await;
    assert_eq!(
        try_pull_of(&second, &manifest.to_string()).await.unwrap(),
        image()
    );
    assert_eq!(fleet.origin.sent(), sent, "the origin is dead");
    // And it hands the image on itself.
    until("the image is announced", || {
        tracker.swarm_of(&manifest) == 2
    })
    .await;
    let third = fleet.peer("vm-3").await;
    assert_eq!(
        try_pull_of(&third, &manifest.to_string()).await.unwrap(),
        image()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_was_known_is_pulled_with_proofs_of_a_neighbour() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let _first = whole(&fleet, fleet.config("vm-1")).await;
    let second = fleet.peer("vm-2").await;
    let looked = client()
        .head(format!(
            "http://{}/v2/app/manifests/v1",
            second.mirror_addr()
        ))
        .send()
        .await;
    assert!(
        looked.unwrap().status().is_success(),
        "the tag is known, and nothing is wanted"
    );
    origin_dies(&fleet);
    assert_eq!(try_pull(&second).await.unwrap(), image());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_nobody_has_is_refused_soon() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let _first = whole(&fleet, fleet.config("vm-1")).await;
    origin_dies(&fleet);
    let second = fleet.peer("vm-2").await;
    let began = Instant::now();
    let nowhere = harness::digest(b"nowhere").to_string();
    let refusal = try_pull_of(&second, &nowhere).await.unwrap_err();
    assert!(refusal.contains("UNAVAILABLE"), "{refusal}");
    assert!(began.elapsed() < REFUSED_BOUND, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_grant_is_told_nothing() {
    let fleet = Fleet::over_tls().await;
    let manifest = fleet.origin.push(&image());
    *fleet.origin.grants.lock().unwrap() = Some(Box::new(|key, peer, digests| {
        Some(Grant::sign(
            key,
            peer,
            digests,
            Clock::system().unix_seconds() + LIFETIME_S,
        ))
    }));
    let requiring = |name| Config {
        requires_grants: true,
        ..fleet.config(name)
    };
    let first = whole(&fleet, requiring("vm-1")).await;
    let tracker = fleet.tracker.clone().unwrap();
    until("the image is announced", || {
        tracker.swarm_of(&manifest) == 1
    })
    .await;
    origin_dies(&fleet);
    let second = fleet.start(requiring("vm-2")).await;
    assert!(try_pull_of(&second, &manifest.to_string()).await.is_err());
    assert!(
        first.stats().refused_not_permitted > 0,
        "{:?}",
        first.stats()
    );
}
