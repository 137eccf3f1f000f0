//! A store that is smaller than the images that are pulled one after the other.

use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, Peer};

use crate::harness::{Fleet, digest, get, get_range, random_bytes, try_pull_reference, wait_until};

const MIB: usize = 1 << 20;

/// Starts a peer whose store holds `bytes`.
async fn peer_with_quota(fleet: &Fleet, bytes: usize) -> Peer {
    let config = Config {
        quota: ByteSize(bytes as u64),
        ..fleet.config("vm-1")
    };
    fleet.start(config).await
}

/// Pulls an image by its digest and waits until the peer has checked it.
async fn pull_image(peer: &Peer, manifest: &Digest, image: &[Bytes]) {
    let pulled = try_pull_reference(peer, &manifest.to_string()).await;
    assert_eq!(pulled.unwrap(), image);
    wait_until("the image is stored", || {
        let stats = peer.stats();
        let is_stored = |bytes: &Bytes| {
            let blob = digest(bytes);
            let mut stored = stats.blobs.iter();
            stored.any(|stored| stored.digest == blob && stored.is_complete)
        };
        image.iter().all(is_stored)
    })
    .await;
    // The driver learns last that the readers have ended.
    tokio::time::sleep(Duration::from_millis(100)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_were_read_make_room_for_the_next_one() {
    let fleet = Fleet::new().await;
    let peer = peer_with_quota(&fleet, 3 * MIB).await;
    for salt in 0..6 {
        let image = vec![
            random_bytes(190, 10 + salt),
            random_bytes(2 * MIB, 20 + salt),
        ];
        let manifest = fleet.origin.push(&image);
        pull_image(&peer, &manifest, &image).await;
    }
    let stats = peer.stats();
    assert_eq!(stats.bytes_passed_through, 0, "{stats:?}");
    assert!(stats.store_bytes <= 3 * MIB as u64, "{stats:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_that_is_read_stays_and_is_resumed() {
    let fleet = Fleet::new().await;
    let large = random_bytes(6 * MIB, 1);
    let image = vec![random_bytes(190, 2), large.clone()];
    fleet.origin.push(&image);
    let peer = peer_with_quota(&fleet, 9 * MIB).await;
    assert!(
        get(&peer, "/v2/app/manifests/v1")
            .await
            .status()
            .is_success()
    );
    let path = format!("/v2/app/blobs/{}", digest(&large));
    // One reader is slow; a second one reads another range and ends.
    let mut slow = get(&peer, &path).await;
    let mut received = slow.chunk().await.unwrap().unwrap().len();
    let range = get_range(&peer, &path, Some("bytes=5000000-")).await;
    assert_eq!(range.bytes().await.unwrap(), large.slice(5_000_000..));
    wait_until("the blob is complete", || {
        let stats = peer.stats();
        let mut blobs = stats.blobs.iter();
        blobs.any(|blob| blob.digest == digest(&large) && blob.is_complete)
    })
    .await;
    for salt in 10..14 {
        let other = vec![random_bytes(2 * MIB, salt)];
        let manifest = fleet.origin.push(&other);
        pull_image(&peer, &manifest, &other).await;
    }
    while received < large.len() - MIB {
        received += slow.chunk().await.unwrap().unwrap().len();
    }
    // The body is cut here, and the runtime goes on where it ended.
    drop(slow);
    let range = format!("bytes={received}-");
    let resumed = get_range(&peer, &path, Some(&range)).await;
    assert_eq!(resumed.bytes().await.unwrap(), large.slice(received..));
    let stats = peer.stats();
    assert_eq!(stats.bytes_passed_through, 0, "{stats:?}");
    assert_eq!(
        fleet.origin.bytes_sent(),
        190 + (6 + 4 * 2) * MIB as u64,
        "no blob was downloaded twice"
    );
}
