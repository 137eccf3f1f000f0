//! What a fleet of a few peers goes through.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![allow(
    clippy::disallowed_methods,
    reason = "these tests run against sockets, in real time"
)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::tree::{self, Value};
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::{Config, CongestionControl, Outbound, Peer};
use harness::{Fleet, get, get_range, noise, pull, read_some, try_pull, until};

const MIB: usize = 1 << 20;

/// A configuration, a small layer and a larger one.
fn image() -> Vec<Bytes> {
    vec![noise(700, 1), noise(MIB + 77, 2), noise(6 * MIB + 5, 3)]
}

fn bytes_of(image: &[Bytes]) -> u64 {
    image.iter().map(|bytes| bytes.len() as u64).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_peer_gets_the_image_from_the_first() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let first = fleet.peer("vm-1").await;
    assert_eq!(pull(&first).await, image);
    assert_eq!(first.stats().bytes_from_origin, bytes_of(&image));

    let sent_before = fleet.origin.sent();
    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    let stats = second.stats();
    let from_peers = stats.bytes_from_peers as f64 / bytes_of(&image) as f64;
    assert!(
        from_peers > 0.9,
        "{stats:?}, the origin sent {}",
        fleet.origin.sent() - sent_before
    );
    assert_eq!(first.stats().bytes_to_peers, stats.bytes_from_peers);
    until("every blob is complete", || {
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
async fn a_burst_of_four_costs_the_origin_little_more_than_one_copy() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let mut peers = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3", "vm-4"] {
        peers.push(fleet.peer(name).await);
    }
    // Some of the readers come just when it is found out.
    let pulls = futures_util::future::join_all(peers.iter().map(pull)).await;
    assert!(pulls.iter().all(|pulled| *pulled == image));
    let copies = fleet.origin.sent() as f64 / bytes_of(&image) as f64;
    assert!(copies <= 1.2, "{copies} copies");
}

/// Alters a byte of every part; in the values, too, if it is clever.
#[derive(Debug)]
struct Liar {
    is_clever: bool,
}

impl Outbound for Liar {
    fn values(&self, _: &Digest, _: u32, mut values: Vec<Value>) -> Vec<Value> {
        if self.is_clever
            && let Some(first) = values.first_mut()
        {
            *first = tree::subtree_value(0, b"lies");
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

async fn a_liar_is_found_out(is_clever: bool) {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let liar = Config {
        outbound: Arc::new(Liar { is_clever }),
        ..fleet.config("vm-liar")
    };
    let liar = fleet.start(liar).await;
    assert_eq!(pull(&liar).await, image);

    let honest = fleet.peer("vm-honest").await;
    assert_eq!(pull(&honest).await, image);
    let stats = honest.stats();
    assert_eq!(stats.quarantined_peers, 1, "{stats:?}");
    assert!(stats.corrupt_chunks >= 1, "{stats:?}");
    assert_eq!(stats.bytes_from_peers, 0, "{stats:?}");
    assert_eq!(stats.bytes_from_origin, bytes_of(&image), "{stats:?}");
    assert_eq!(stats.neighbours, 0, "{stats:?}");
    until("what is stored is right", || {
        honest.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_peer_is_found_out_and_nothing_it_sent_is_kept() {
    a_liar_is_found_out(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_lies_about_its_parts_is_found_out_too() {
    a_liar_is_found_out(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_stops_in_the_middle_is_made_up_for() {
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
        until("some chunks came from the first", || {
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
async fn a_restarted_peer_goes_on_with_what_it_has() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    fleet
        .origin
        .serves_until
        .store(3 * MIB as u64, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    get(&peer, "/v2/app/manifests/v1").await;
    let large = harness::digest(&image[2]);
    let held = |peer: &Peer| {
        peer.stats()
            .blobs
            .iter()
            .find(|blob| blob.digest == large)
            .map_or(0, |blob| blob.held)
    };
    until("three MiB are held", || held(&peer) == 3 * MIB as u64).await;
    peer.shutdown().await;

    fleet.origin.serves_until.store(u64::MAX, Ordering::Relaxed);
    let sent_before = fleet.origin.sent();
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    let sent = fleet.origin.sent() - sent_before;
    assert!(
        sent <= bytes_of(&image) - 3 * MIB as u64,
        "{sent} bytes were fetched again"
    );
    assert!(peer.stats().bytes_from_store >= 3 * MIB as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_the_store_is_served_without_anybody() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    until("all is complete", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
    peer.shutdown().await;

    fleet.origin.is_down.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(pull(&peer).await, image);
    assert_eq!(peer.stats().bytes_from_store, bytes_of(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_store_is_passed_through() {
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
async fn two_seals_that_contradict_each_other_put_the_blob_into_quarantine() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    pull(&peer).await;
    let digest = harness::digest(&image[1]);
    // A new layer makes the peer ask for the proofs again, once the tag is read anew.
    fleet
        .origin
        .push(&[image[0].clone(), image[1].clone(), noise(10, 5)]);
    let other = fleet.origin.seal_as(digest, &noise(image[1].len(), 9));
    fleet.origin.proofs.lock().unwrap().insert(digest, other);
    let asking = async {
        while peer.stats().quarantined_blobs == 0 {
            get(&peer, "/v2/app/manifests/v1").await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), asking)
        .await
        .unwrap();
    assert!(
        peer.stats().blobs.iter().all(|blob| blob.digest != digest),
        "it is not kept"
    );
    assert_eq!(pull(&peer).await[1], image[1], "but passed through");
}

#[tokio::test(flavor = "multi_thread")]
async fn sealed_bytes_under_a_wrong_digest_are_an_origins_fault() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let (wrong, digest) = (noise(image[1].len(), 9), harness::digest(&image[1]));
    let sealed = fleet.origin.seal_as(digest, &wrong);
    fleet.origin.proofs.lock().unwrap().insert(digest, sealed);
    fleet.origin.blobs.lock().unwrap().insert(digest, wrong);
    let peer = fleet.peer("vm-1").await;
    // Some of the readers come just when it is found out.
    let pulls = futures_util::future::join_all((0..32).map(|_| try_pull(&peer))).await;
    for failed in pulls.into_iter().map(Result::unwrap_err) {
        assert!(failed.contains("wrong bytes"), "{failed}");
    }
    until("it is found out", || peer.stats().quarantined_blobs == 1).await;
    assert!(peer.stats().blobs.iter().all(|blob| blob.digest != digest));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_hangs_up_leaves_nothing_behind() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let slow = Config {
        down: Some(BitRate(32_000_000)),
        ..fleet.config("vm-1")
    };
    let peer = fleet.start(slow).await;
    get(&peer, "/v2/app/manifests/v1").await;
    let path = format!("/v2/app/blobs/{}", harness::digest(&image[2]));
    let response = get_range(&peer, &path, Some("bytes=1048576-")).await;
    assert_eq!(response.status(), 206);
    let (got, stream) = read_some(response, 1).await;
    assert!(got > 0);
    drop(stream);
    assert_eq!(pull(&peer).await, image);
}
