//! An upstream of another vendor: its blobs have no seals, so only their digests prove them. They
//! stream to the runtime while they are downloaded, and are shared between peers after their digest
//! was checked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_peer::{ChunkInterceptor, Config, Peer};

use super::client::get;
use super::{MIB, image, path_of};
use crate::harness::{Fleet, pull, random_bytes, try_pull, wait_until};

fn bytes_of(image: &[Bytes]) -> u64 {
    image.iter().map(|bytes| bytes.len() as u64).sum()
}

async fn fleet_without_seals() -> (Fleet, Vec<Bytes>) {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    fleet.origin.is_without_seals.store(true, Ordering::Relaxed);
    (fleet, image)
}

async fn wait_until_complete(peer: &Peer) {
    wait_until("every blob is complete", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_peer_gets_unsealed_blobs_from_the_first() {
    let (fleet, image) = fleet_without_seals().await;
    let first = fleet.peer("vm-1").await;
    assert_eq!(pull(&first).await, image);
    wait_until_complete(&first).await;
    assert_eq!(fleet.origin.bytes_sent(), bytes_of(&image), "one copy");

    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    assert_eq!(
        second.stats().bytes_from_peers,
        bytes_of(&image),
        "{:?}",
        second.stats()
    );
    assert_eq!(
        fleet.origin.bytes_sent(),
        bytes_of(&image),
        "still one copy"
    );
    wait_until_complete(&second).await;

    // The second peer also serves the image from its store, with no source left.
    first.abandon().await;
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    assert_eq!(pull(&second).await, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_pulls_cost_the_upstream_one_copy() {
    let (fleet, image) = fleet_without_seals().await;
    let mut peers = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3"] {
        peers.push(fleet.peer(name).await);
    }
    let pulls = futures_util::future::join_all(peers.iter().map(pull)).await;
    assert!(pulls.iter().all(|pulled| *pulled == image));
    let copies = fleet.origin.bytes_sent() as f64 / bytes_of(&image) as f64;
    assert!(copies <= 1.2, "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn runtime_reads_unverified_bytes_but_they_are_not_held() {
    let (fleet, image) = fleet_without_seals().await;
    let blob = &image[2];
    fleet.origin.stalls_at.send_replace(3 * MIB as u64);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(
        get(&peer, "/v2/app/manifests/v1", Some("bytes=0-"))
            .await
            .status,
        206
    );
    let mut reading = get(&peer, &path_of(blob), Some("bytes=0-")).await;
    assert_eq!(
        *reading.read(3 * MIB).await.unwrap(),
        blob[..3 * MIB],
        "the first half is readable"
    );
    let progress = || {
        let stats = peer.stats();
        stats
            .blobs
            .into_iter()
            .find(|progress| progress.digest == Digest::sha256(blob))
            .unwrap()
    };
    assert_eq!(
        (progress().held, progress().is_complete),
        (0, false),
        "the digest is not checked yet"
    );

    fleet.origin.stalls_at.send_replace(u64::MAX);
    assert_eq!(reading.read_all().await.unwrap(), *blob);
    wait_until("the blob is held", || progress().is_complete).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_the_upstream_are_never_held() {
    let (fleet, image) = fleet_without_seals().await;
    let digest = Digest::sha256(&image[1]);
    fleet
        .origin
        .blobs
        .lock()
        .unwrap()
        .insert(digest, random_bytes(image[1].len(), 9));
    let peer = fleet.peer("vm-1").await;
    let failed = try_pull(&peer).await.unwrap_err();
    assert!(
        failed.contains("wrong bytes"),
        "the runtime checks the digest: {failed}"
    );
    let held = |digest: Digest| {
        let blobs = peer.stats().blobs;
        blobs
            .iter()
            .find(|blob| blob.digest == digest)
            .map_or(0, |blob| blob.held)
    };
    wait_until("the other blob is held", || {
        held(Digest::sha256(&image[2])) > 0
    })
    .await;
    assert_eq!(held(digest), 0);
}

/// Changes the last byte of each part.
#[derive(Debug)]
struct ChangeLastByte;

impl ChunkInterceptor for ChangeLastByte {
    fn bytes(&self, _: &Digest, _: u64, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        bytes.into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_a_neighbour_are_never_readable() {
    let (fleet, image) = fleet_without_seals().await;
    let corrupt = fleet
        .start(Config {
            interceptor: Arc::new(ChangeLastByte),
            ..fleet.config("vm-corrupt")
        })
        .await;
    assert_eq!(pull(&corrupt).await, image);
    wait_until_complete(&corrupt).await;

    let honest = fleet.peer("vm-honest").await;
    assert_eq!(pull(&honest).await, image);
    let stats = honest.stats();
    assert_eq!(
        (stats.quarantined_peers, stats.bytes_from_peers),
        (1, 0),
        "{stats:?}"
    );
    wait_until_complete(&honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupted_download_resumes_at_its_offset() {
    let (fleet, image) = fleet_without_seals().await;
    fleet
        .origin
        .aborts_at
        .store(3 * MIB as u64, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let mut reading = get(&peer, &path_of(&image[2]), None).await;
    reading.read(3 * MIB).await.unwrap();
    fleet.origin.aborts_at.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(reading.read_all().await.unwrap(), image[2]);
    wait_until_complete(&peer).await;
    let requests = fleet.origin.requests.lock().unwrap().clone();
    assert!(
        requests
            .iter()
            .any(|request| request.ends_with(&format!("bytes={}-", 3 * MIB))),
        "{requests:?}"
    );
    assert!(
        fleet.origin.bytes_sent() <= bytes_of(&image),
        "bytes were fetched twice: {}",
        fleet.origin.bytes_sent()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_missing_at_the_upstream_is_404_at_once() {
    let (fleet, image) = fleet_without_seals().await;
    fleet
        .origin
        .blobs
        .lock()
        .unwrap()
        .remove(&Digest::sha256(&image[2]));
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let response = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(response.status, 404);
    assert!(
        response.head_after < Duration::from_secs(2),
        "{:?}",
        response.head_after
    );
}
