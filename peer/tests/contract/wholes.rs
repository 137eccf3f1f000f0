//! An upstream that is no Flotilla: its blobs have no seals, so only their digest proves them. They
//! stream to the runtime as they come from it, and are shared as wholes once they are proved.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_peer::{Config, Outbound, Peer};

use crate::client::get;
use crate::harness::{Fleet, noise, pull, try_pull, until};
use crate::{MIB, image, path_of};

fn bytes_of(image: &[Bytes]) -> u64 {
    image.iter().map(|bytes| bytes.len() as u64).sum()
}

async fn foreign() -> (Fleet, Vec<Bytes>) {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    fleet.origin.is_foreign.store(true, Ordering::Relaxed);
    (fleet, image)
}

async fn until_complete(peer: &Peer) {
    until("every blob is complete", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_second_peer_gets_the_blobs_of_a_foreign_upstream_from_the_first() {
    let (fleet, image) = foreign().await;
    let first = fleet.peer("vm-1").await;
    assert_eq!(pull(&first).await, image);
    until_complete(&first).await;
    assert_eq!(fleet.origin.sent(), bytes_of(&image), "one copy");

    let second = fleet.peer("vm-2").await;
    assert_eq!(pull(&second).await, image);
    assert_eq!(
        second.stats().bytes_from_peers,
        bytes_of(&image),
        "{:?}",
        second.stats()
    );
    assert_eq!(fleet.origin.sent(), bytes_of(&image), "still one copy");
    until_complete(&second).await;

    // And from its own store, with everybody gone.
    first.abandon().await;
    fleet.origin.is_out.store(true, Ordering::Relaxed);
    assert_eq!(pull(&second).await, image);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_at_once_cost_a_foreign_upstream_one_copy() {
    let (fleet, image) = foreign().await;
    let mut peers = Vec::new();
    for name in ["vm-1", "vm-2", "vm-3"] {
        peers.push(fleet.peer(name).await);
    }
    let pulls = futures_util::future::join_all(peers.iter().map(pull)).await;
    assert!(pulls.iter().all(|pulled| *pulled == image));
    let copies = fleet.origin.sent() as f64 / bytes_of(&image) as f64;
    assert!(copies <= 1.2, "{copies} copies");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_runtime_reads_while_it_comes_in_and_nobody_else_does() {
    let (fleet, image) = foreign().await;
    let blob = &image[2];
    fleet.origin.flows_until.send_replace(3 * MIB as u64);
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
        "half of it is here"
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
        "it is not proved yet"
    );

    fleet.origin.flows_until.send_replace(u64::MAX);
    assert_eq!(reading.whole().await.unwrap(), *blob);
    until("it is held", || progress().is_complete).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_bytes_of_an_upstream_are_never_held() {
    let (fleet, image) = foreign().await;
    let digest = Digest::sha256(&image[1]);
    fleet
        .origin
        .blobs
        .lock()
        .unwrap()
        .insert(digest, noise(image[1].len(), 9));
    let peer = fleet.peer("vm-1").await;
    let failed = try_pull(&peer).await.unwrap_err();
    assert!(
        failed.contains("wrong bytes"),
        "the runtime finds out: {failed}"
    );
    let held = |digest: Digest| {
        let blobs = peer.stats().blobs;
        blobs
            .iter()
            .find(|blob| blob.digest == digest)
            .map_or(0, |blob| blob.held)
    };
    until("the right ones are held", || {
        held(Digest::sha256(&image[2])) > 0
    })
    .await;
    assert_eq!(held(digest), 0);
}

/// Alters the last byte of all it sends.
#[derive(Debug)]
struct Liar;

impl Outbound for Liar {
    fn bytes(&self, _: &Digest, _: u64, bytes: Bytes) -> Bytes {
        let mut bytes = bytes.to_vec();
        if let Some(byte) = bytes.last_mut() {
            *byte ^= 1;
        }
        bytes.into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_neighbour_that_alters_a_whole_blob_is_found_out_before_a_byte_is_seen() {
    let (fleet, image) = foreign().await;
    let liar = fleet
        .start(Config {
            outbound: Arc::new(Liar),
            ..fleet.config("vm-liar")
        })
        .await;
    assert_eq!(pull(&liar).await, image);
    until_complete(&liar).await;

    let honest = fleet.peer("vm-honest").await;
    assert_eq!(pull(&honest).await, image);
    let stats = honest.stats();
    assert_eq!(
        (stats.quarantined_peers, stats.bytes_from_peers),
        (1, 0),
        "{stats:?}"
    );
    until_complete(&honest).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let (fleet, image) = foreign().await;
    fleet
        .origin
        .breaks_at
        .store(3 * MIB as u64, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let mut reading = get(&peer, &path_of(&image[2]), None).await;
    reading.read(3 * MIB).await.unwrap();
    fleet.origin.breaks_at.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(reading.whole().await.unwrap(), image[2]);
    until_complete(&peer).await;
    let asked = fleet.origin.asked.lock().unwrap().clone();
    assert!(
        asked
            .iter()
            .any(|asked| asked.ends_with(&format!("bytes={}-", 3 * MIB))),
        "{asked:?}"
    );
    assert!(
        fleet.origin.sent() <= bytes_of(&image),
        "nothing is fetched twice: {}",
        fleet.origin.sent()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_the_upstream_lacks_is_404_at_once() {
    let (fleet, image) = foreign().await;
    fleet
        .origin
        .blobs
        .lock()
        .unwrap()
        .remove(&Digest::sha256(&image[2]));
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let answer = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(answer.status, 404);
    assert!(
        answer.head_after < Duration::from_secs(2),
        "{:?}",
        answer.head_after
    );
}
