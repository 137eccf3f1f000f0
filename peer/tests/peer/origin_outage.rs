//! While every origin is unavailable, peers get manifests, proofs and bytes of an image from each
//! other.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::grant::{Grant, LIFETIME_S};
use flotilla_peer::{Config, Peer};
use flotilla_runtime::clock::Clock;

use crate::harness::{
    Fleet, client, digest, pull, random_bytes, try_pull, try_pull_reference, wait_until,
};

/// Upper bound for the error response for an image without a source.
const MAX_ERROR_TIME: Duration = Duration::from_secs(6);

fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(2 << 20, 2),
        random_bytes(300_000, 3),
    ]
}

/// Starts a peer and pulls the image.
async fn peer_with_image(fleet: &Fleet, config: Config) -> Peer {
    let peer = fleet.start(config).await;
    assert_eq!(pull(&peer).await, image());
    peer
}

/// Makes the origin unavailable. Returns the bytes it has sent so far.
fn stop_origin(fleet: &Fleet) -> u64 {
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    fleet
        .origin
        .are_blobs_unavailable
        .store(true, Ordering::Relaxed);
    fleet.origin.bytes_sent()
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_pulled_by_digest_from_a_neighbour() {
    let fleet = Fleet::new().await;
    let manifest = fleet.origin.push(&image());
    let tracker = fleet.tracker.clone().unwrap();
    let _first = peer_with_image(&fleet, fleet.config("vm-1")).await;
    wait_until("the image is announced", || {
        tracker.swarm_size(&manifest) == 1
    })
    .await;
    let sent_before = stop_origin(&fleet);
    let second = fleet.peer("vm-2").await;
    assert_eq!(
        try_pull_reference(&second, &manifest.to_string())
            .await
            .unwrap(),
        image()
    );
    assert_eq!(
        fleet.origin.bytes_sent(),
        sent_before,
        "the origin is unavailable"
    );
    // The second peer then serves the image to a third.
    wait_until("the image is announced", || {
        tracker.swarm_size(&manifest) == 2
    })
    .await;
    let third = fleet.peer("vm-3").await;
    assert_eq!(
        try_pull_reference(&third, &manifest.to_string())
            .await
            .unwrap(),
        image()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn known_tag_is_pulled_with_proofs_from_a_neighbour() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let _first = peer_with_image(&fleet, fleet.config("vm-1")).await;
    let second = fleet.peer("vm-2").await;
    let head = client()
        .head(format!(
            "http://{}/v2/app/manifests/v1",
            second.mirror_addr()
        ))
        .send()
        .await;
    assert!(
        head.unwrap().status().is_success(),
        "the tag is resolved, and no blob is wanted yet"
    );
    stop_origin(&fleet);
    assert_eq!(try_pull(&second).await.unwrap(), image());
}

#[tokio::test(flavor = "multi_thread")]
async fn image_without_source_fails_soon() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let _first = peer_with_image(&fleet, fleet.config("vm-1")).await;
    stop_origin(&fleet);
    let second = fleet.peer("vm-2").await;
    let started = Instant::now();
    let absent = digest(b"absent").to_string();
    let error = try_pull_reference(&second, &absent).await.unwrap_err();
    assert!(error.contains("UNAVAILABLE"), "{error}");
    assert!(
        started.elapsed() < MAX_ERROR_TIME,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn image_request_without_grant_is_refused() {
    let fleet = Fleet::with_tls().await;
    let manifest = fleet.origin.push(&image());
    *fleet.origin.grants.lock().unwrap() = Some(Box::new(|key, peer, digests| {
        Some(Grant::sign(
            key,
            peer,
            digests,
            Clock::system().unix_seconds() + LIFETIME_S,
        ))
    }));
    let with_grants_required = |name| Config {
        requires_grants: true,
        ..fleet.config(name)
    };
    let first = peer_with_image(&fleet, with_grants_required("vm-1")).await;
    let tracker = fleet.tracker.clone().unwrap();
    wait_until("the image is announced", || {
        tracker.swarm_size(&manifest) == 1
    })
    .await;
    stop_origin(&fleet);
    let second = fleet.start(with_grants_required("vm-2")).await;
    assert!(
        try_pull_reference(&second, &manifest.to_string())
            .await
            .is_err()
    );
    assert!(
        first.stats().refused_not_permitted > 0,
        "{:?}",
        first.stats()
    );
}

/// Peers that start together pull the image. Returns the copies that the origin sent.
async fn copies_for_peers_at_once(fleet: &Fleet, peers: u64) -> f64 {
    let starts = (0..peers).map(|number| {
        let config = fleet.config(&format!("vm-{number}"));
        peer_with_image(fleet, config)
    });
    let _peers = futures_util::future::join_all(starts).await;
    let size: usize = image().iter().map(Bytes::len).sum();
    fleet.origin.bytes_sent() as f64 / size as f64
}

#[tokio::test(flavor = "multi_thread")]
async fn image_whose_first_closures_fail_is_fetched_once() {
    const PEERS: u64 = 8;
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let failing = &fleet.origin.failing_closures;
    failing.store(PEERS, Ordering::Relaxed);
    let copies = copies_for_peers_at_once(&fleet, PEERS).await;
    assert!(copies <= 1.1, "{copies}");
    let requests = fleet.origin.closure_requests.load(Ordering::Relaxed);
    assert!(requests > PEERS, "they are asked for again: {requests}");
}

#[tokio::test(flavor = "multi_thread")]
async fn image_whose_closures_are_late_is_fetched_once() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let delay = &fleet.origin.closure_delay_ms;
    delay.store(3000, Ordering::Relaxed);
    let copies = copies_for_peers_at_once(&fleet, 8).await;
    assert!(copies <= 1.1, "{copies}");
}
