//! Pulls in a small fleet: sharing between peers, wrong bytes, restarts, quarantine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::hash_tree::{self, ChainingValue};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::{ChunkInterceptor, Config, CongestionControl, Peer};

use crate::harness::{
    Fleet, get, get_range, pull, random_bytes, read_at_least, try_pull, wait_until,
};

const MIB: usize = 1 << 20;

/// A configuration, a small layer and a larger one.
fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(MIB + 77, 2),
        random_bytes(6 * MIB + 5, 3),
    ]
}

fn bytes_of(image: &[Bytes]) -> u64 {
    image.iter().map(|bytes| bytes.len() as u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn second_peer_gets_the_image_from_the_first() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let first = fleet.peer("vm-1").await;
    assert_eq!(pull(&first).await, image);
    assert_eq!(first.stats().bytes_from_origin, bytes_of(&image));

    let sent_before = fleet.origin.bytes_sent();
    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    let stats = second.stats();
    let from_peers = stats.bytes_from_peers as f64 / bytes_of(&image) as f64;
    assert!(
        from_peers > 0.9,
        "{stats:?}, the origin sent {}",
        fleet.origin.bytes_sent() - sent_before
    );
    assert_eq!(first.stats().bytes_to_peers, stats.bytes_from_peers);
    wait_until("every blob is complete", || {
        second.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_congestion_controller_transfers_chunks() {
    for congestion in CongestionControl::ALL {
        let fleet = Fleet::new().await;
        let image = image();
        fleet.origin.push(&image);
        let config = |name| Config {
            congestion,
            ..fleet.config(name)
        };
        let first = fleet.start(config("vm-1")).await;
        assert_eq!(pull(&first).await, image);
        let second = fleet.start(config("vm-2")).await;
        assert_eq!(pull(&second).await, image);
        let stats = second.stats();
        assert!(
            stats.bytes_from_peers > MIB as u64,
            "{congestion}: {stats:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_of_four_costs_the_origin_little_more_than_one_copy() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let mut peers = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3", "vm-4"] {
        peers.push(fleet.peer(name).await);
    }
    let pulls = futures_util::future::join_all(peers.iter().map(pull)).await;
    assert!(pulls.iter().all(|pulled| *pulled == image));
    let copies = fleet.origin.bytes_sent() as f64 / bytes_of(&image) as f64;
    assert!(copies <= 1.2, "{copies} copies");
}

/// Changes the last byte of every part.
#[derive(Debug)]
struct ChangeLastByte {
    /// Whether it also changes the chaining value of the first part.
    changes_values: bool,
}

impl ChunkInterceptor for ChangeLastByte {
    fn values(&self, _: &Digest, _: u32, mut values: Vec<ChainingValue>) -> Vec<ChainingValue> {
        if self.changes_values
            && let Some(first) = values.first_mut()
        {
            *first = hash_tree::subtree_value(0, b"other");
        }
        values
    }

    fn bytes(&self, _: &Digest, _: u64, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        bytes.into()
    }
}

async fn check_corrupt_neighbour_is_quarantined(changes_values: bool) {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let corrupt = Config {
        interceptor: Arc::new(ChangeLastByte { changes_values }),
        ..fleet.config("vm-corrupt")
    };
    let corrupt = fleet.start(corrupt).await;
    assert_eq!(pull(&corrupt).await, image);

    let honest = fleet.peer("vm-honest").await;
    assert_eq!(pull(&honest).await, image);
    let stats = honest.stats();
    assert_eq!(stats.quarantined_peers, 1, "{stats:?}");
    assert!(stats.corrupt_chunks >= 1, "{stats:?}");
    assert_eq!(stats.bytes_from_peers, 0, "{stats:?}");
    assert_eq!(stats.bytes_from_origin, bytes_of(&image), "{stats:?}");
    assert_eq!(stats.neighbours, 0, "{stats:?}");
    wait_until("all blobs are complete", || {
        honest.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbour_with_wrong_bytes_is_quarantined() {
    check_corrupt_neighbour_is_quarantined(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbour_with_wrong_part_values_is_quarantined() {
    check_corrupt_neighbour_is_quarantined(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_completes_when_the_seeder_stops() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let slow = Config {
        up: Some(BitRate(16_000_000)),
        ..fleet.config("vm-1")
    };
    let seeder = fleet.start(slow).await;
    pull(&seeder).await;

    let second = fleet.peer("vm-2").await;
    let pulling = async {
        let pulled = pull(&second).await;
        assert_eq!(pulled, image);
    };
    let stopping = async {
        wait_until("some chunks came from the seeder", || {
            second.stats().bytes_from_peers > MIB as u64
        })
        .await;
        seeder.abandon().await;
    };
    tokio::join!(pulling, stopping);
    let stats = second.stats();
    assert!(
        stats.bytes_from_peers > 0 && stats.bytes_from_origin > 0,
        "{stats:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_peer_resumes_with_its_store() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    fleet
        .origin
        .unavailable_from
        .store(3 * MIB as u64, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    get(&peer, "/v2/app/manifests/v1").await;
    let large = crate::harness::digest(&image[2]);
    let held = |peer: &Peer| {
        peer.stats()
            .blobs
            .iter()
            .find(|blob| blob.digest == large)
            .map_or(0, |blob| blob.held)
    };
    wait_until("three MiB are held", || held(&peer) == 3 * MIB as u64).await;
    peer.shutdown().await;

    fleet
        .origin
        .unavailable_from
        .store(u64::MAX, Ordering::Relaxed);
    let sent_before = fleet.origin.bytes_sent();
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    let sent = fleet.origin.bytes_sent() - sent_before;
    assert!(
        sent <= bytes_of(&image) - 3 * MIB as u64,
        "{sent} bytes were fetched again"
    );
    assert!(peer.stats().bytes_from_store >= 3 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn stored_image_is_served_without_any_source() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    wait_until("all blobs are complete", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
    peer.shutdown().await;

    fleet
        .origin
        .are_blobs_unavailable
        .store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    assert_eq!(peer.stats().bytes_from_store, bytes_of(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_larger_than_the_quota_is_passed_through() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let small = Config {
        quota: ByteSize(2 * MIB as u64),
        ..fleet.config("vm-1")
    };
    let peer = fleet.start(small).await;
    assert_eq!(pull(&peer).await, image);
    let stats = peer.stats();
    assert_eq!(stats.bytes_passed_through, image[2].len() as u64);
    assert_eq!(stats.bytes_to_runtime, bytes_of(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn contradicting_seals_quarantine_the_blob() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    pull(&peer).await;
    let digest = crate::harness::digest(&image[1]);
    // A new layer makes the peer request the proofs again, once the cached tag has expired.
    fleet
        .origin
        .push(&[image[0].clone(), image[1].clone(), random_bytes(10, 5)]);
    let other = fleet
        .origin
        .seal_with_digest(digest, &random_bytes(image[1].len(), 9));
    fleet.origin.proofs.lock().unwrap().insert(digest, other);
    let polling = async {
        while peer.stats().quarantined_blobs == 0 {
            get(&peer, "/v2/app/manifests/v1").await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), polling)
        .await
        .unwrap();
    assert!(
        peer.stats().blobs.iter().all(|blob| blob.digest != digest),
        "the quarantined blob is still stored"
    );
    assert_eq!(pull(&peer).await[1], image[1], "the blob is passed through");
}

#[tokio::test(flavor = "multi_thread")]
async fn seal_with_wrong_digest_quarantines_the_blob() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let (wrong, digest) = (
        random_bytes(image[1].len(), 9),
        crate::harness::digest(&image[1]),
    );
    let sealed = fleet.origin.seal_with_digest(digest, &wrong);
    fleet.origin.proofs.lock().unwrap().insert(digest, sealed);
    fleet.origin.blobs.lock().unwrap().insert(digest, wrong);
    let peer = fleet.peer("vm-1").await;
    // Some readers arrive at the moment of the quarantine.
    let pulls = futures_util::future::join_all((0..32).map(|_| try_pull(&peer))).await;
    for failed in pulls.into_iter().map(Result::unwrap_err) {
        assert!(failed.contains("wrong bytes"), "{failed}");
    }
    wait_until("the blob is quarantined", || {
        peer.stats().quarantined_blobs == 1
    })
    .await;
    assert!(peer.stats().blobs.iter().all(|blob| blob.digest != digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn closed_reader_does_not_block_later_pulls() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let slow = Config {
        down: Some(BitRate(32_000_000)),
        ..fleet.config("vm-1")
    };
    let peer = fleet.start(slow).await;
    get(&peer, "/v2/app/manifests/v1").await;
    let path = format!("/v2/app/blobs/{}", crate::harness::digest(&image[2]));
    let response = get_range(&peer, &path, Some("bytes=1048576-")).await;
    assert_eq!(response.status(), 206);
    let (read, stream) = read_at_least(response, 1).await;
    assert!(read > 0);
    drop(stream);
    assert_eq!(pull(&peer).await, image);
}
