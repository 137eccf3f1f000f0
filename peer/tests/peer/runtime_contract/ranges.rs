//! Range requests: single ones, and a layer in several concurrent ones, as containerd 2 fetches it.

use bytes::Bytes;
use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, Peer};
use futures_util::{StreamExt, stream};

use super::client::get;
use super::{MIB, image, path_of};
use crate::harness::{Fleet, digest, random_bytes};

/// Requests a range and checks status, headers and bytes.
async fn check_range(peer: &Peer, blob: &Bytes, range: &str, status: u16, from: usize, to: usize) {
    let response = get(peer, &path_of(blob), Some(range)).await;
    assert_eq!(response.status, status, "{range}");
    assert_eq!(response.length(), (to - from) as u64, "{range}");
    let content_range = (status == 206).then(|| format!("bytes {from}-{}/{}", to - 1, blob.len()));
    assert_eq!(
        response.header("content-range"),
        content_range.as_deref(),
        "{range}"
    );
    assert_eq!(
        response.header("docker-content-digest"),
        Some(digest(blob).to_string().as_str()),
        "{range}"
    );
    assert_eq!(
        response.read_all().await.unwrap(),
        blob[from..to],
        "{range}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_of_stored_and_passed_through_blobs() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let storing = fleet.peer("vm-1").await;
    let passing = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-2")
        })
        .await;
    for peer in [&storing, &passing] {
        get(peer, "/v2/app/manifests/v1", Some("bytes=0-")).await;
        let blob = &image[1];
        let size = blob.len();
        for (range, status, from, to) in [
            ("bytes=0-", 206, 0, size),
            ("bytes=0-0", 206, 0, 1),
            ("bytes=262143-262145", 206, 262_143, 262_146),
            ("bytes=1000000-", 206, 1_000_000, size),
            ("bytes=-10", 206, size - 10, size),
            ("bytes=5-99999999", 206, 5, size),
            ("bytes=0-1,5-6", 200, 0, size),
            ("lines=1-2", 200, 0, size),
        ] {
            check_range(peer, blob, range, status, from, to).await;
        }
        let response = get(peer, &path_of(blob), Some(&format!("bytes={size}-"))).await;
        assert_eq!(response.status, 416);
        assert_eq!(
            response.header("content-range"),
            Some(format!("bytes */{size}").as_str())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn range_of_a_manifest() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let response = get(
        &peer,
        &format!("/v2/app/manifests/{digest}"),
        Some("bytes=0-"),
    )
    .await;
    assert_eq!(response.status, 206);
    let size = response.length();
    assert_eq!(
        response.header("content-range"),
        Some(format!("bytes 0-{}/{size}", size - 1).as_str())
    );
    assert!(digest.matches(&response.read_all().await.unwrap()));
}

/// Fetches a layer as containerd 2.2 does with `concurrent_layer_fetch_buffer`: an open-ended range
/// for each piece, three at a time; each connection is closed after one piece.
async fn fetch_concurrently(peer: &Peer, blob: &Bytes, piece: usize) -> Vec<u8> {
    let pieces = (0..blob.len().div_ceil(piece)).map(|index| async move {
        let offset = index * piece;
        let response = get(peer, &path_of(blob), Some(&format!("bytes={offset}-"))).await;
        assert_eq!(response.status, 206);
        assert_eq!(
            response.length(),
            (blob.len() - offset) as u64,
            "an open-ended range is never shortened"
        );
        response.read_and_close(piece).await
    });
    stream::iter(pieces)
        .buffered(3)
        .collect::<Vec<_>>()
        .await
        .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_ranges_of_a_layer_cost_the_origin_one_copy() {
    let fleet = Fleet::without_tracker().await;
    let image = [random_bytes(700, 1), random_bytes(24 * MIB + 5, 4)];
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    get(&peer, "/v2/app/manifests/v1", Some("bytes=0-")).await;
    assert_eq!(fetch_concurrently(&peer, &image[1], MIB).await, image[1]);
    let all: usize = image.iter().map(Bytes::len).sum();
    assert!(
        fleet.origin.bytes_sent() <= all as u64,
        "{} bytes were sent",
        fleet.origin.bytes_sent()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn pass_through_reads_little_ahead_of_the_client() {
    let fleet = Fleet::without_tracker().await;
    let image = [random_bytes(700, 1), random_bytes(64 * MIB, 4)];
    fleet.origin.push(&image);
    let peer = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-1")
        })
        .await;
    get(&peer, "/v2/app/manifests/v1", Some("bytes=0-")).await;
    let (at, piece) = (20 * MIB, 2 * MIB);
    let response = get(&peer, &path_of(&image[1]), Some(&format!("bytes={at}-"))).await;
    assert_eq!(
        response.read_and_close(piece).await,
        image[1][at..at + piece]
    );
    let beyond = fleet.origin.bytes_sent() - piece as u64;
    assert!(
        beyond <= 16 * MIB as u64,
        "{} KiB were fetched beyond the piece that was read",
        beyond >> 10
    );
}
