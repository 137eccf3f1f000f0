//! Ranges: single ones, and a layer in several at once as containerd 2 fetches it.

use bytes::Bytes;
use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, Peer};
use futures_util::{StreamExt, stream};

use crate::client::get;
use crate::harness::{Fleet, digest, noise};
use crate::{MIB, image, path_of};

/// The header, the status, and the bytes that come.
async fn expect(peer: &Peer, blob: &Bytes, range: &str, status: u16, from: usize, to: usize) {
    let answer = get(peer, &path_of(blob), Some(range)).await;
    assert_eq!(answer.status, status, "{range}");
    assert_eq!(answer.length(), (to - from) as u64, "{range}");
    let wanted = (status == 206).then(|| format!("bytes {from}-{}/{}", to - 1, blob.len()));
    assert_eq!(answer.header("content-range"), wanted.as_deref(), "{range}");
    assert_eq!(
        answer.header("docker-content-digest"),
        Some(digest(blob).to_string().as_str()),
        "{range}"
    );
    assert_eq!(answer.whole().await.unwrap(), blob[from..to], "{range}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_range_gets_its_bytes_stored_or_passed_through() {
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
            expect(peer, blob, range, status, from, to).await;
        }
        let answer = get(peer, &path_of(blob), Some(&format!("bytes={size}-"))).await;
        assert_eq!(answer.status, 416);
        assert_eq!(
            answer.header("content-range"),
            Some(format!("bytes */{size}").as_str())
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_is_served_by_range_too() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let answer = get(
        &peer,
        &format!("/v2/app/manifests/{digest}"),
        Some("bytes=0-"),
    )
    .await;
    assert_eq!(answer.status, 206);
    let size = answer.length();
    assert_eq!(
        answer.header("content-range"),
        Some(format!("bytes 0-{}/{size}", size - 1).as_str())
    );
    assert!(digest.matches(&answer.whole().await.unwrap()));
}

/// A layer as containerd 2.2 fetches it with `concurrent_layer_fetch_buffer`: `bytes=0-` first,
/// then from each further piece's beginning to the end, three at once; each is hung up on after a
/// piece.
async fn in_parallel(peer: &Peer, blob: &Bytes, piece: usize) -> Vec<u8> {
    let pieces = (0..blob.len().div_ceil(piece)).map(|index| async move {
        let at = index * piece;
        let answer = get(peer, &path_of(blob), Some(&format!("bytes={at}-"))).await;
        assert_eq!(answer.status, 206);
        assert_eq!(
            answer.length(),
            (blob.len() - at) as u64,
            "an open-ended range is never shortened"
        );
        answer.piece(piece).await
    });
    stream::iter(pieces)
        .buffered(3)
        .collect::<Vec<_>>()
        .await
        .concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_in_parallel_ranges_costs_the_origin_one_copy() {
    let fleet = Fleet::without_tracker().await;
    let image = [noise(700, 1), noise(24 * MIB + 5, 4)];
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    get(&peer, "/v2/app/manifests/v1", Some("bytes=0-")).await;
    assert_eq!(in_parallel(&peer, &image[1], MIB).await, image[1]);
    let all: usize = image.iter().map(Bytes::len).sum();
    assert!(
        fleet.origin.sent() <= all as u64,
        "{} bytes were sent",
        fleet.origin.sent()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_passed_through_is_hardly_fetched_beyond_what_is_read() {
    let fleet = Fleet::without_tracker().await;
    let image = [noise(700, 1), noise(64 * MIB, 4)];
    fleet.origin.push(&image);
    let peer = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-1")
        })
        .await;
    get(&peer, "/v2/app/manifests/v1", Some("bytes=0-")).await;
    let (at, piece) = (20 * MIB, 2 * MIB);
    let answer = get(&peer, &path_of(&image[1]), Some(&format!("bytes={at}-"))).await;
    assert_eq!(answer.piece(piece).await, image[1][at..at + piece]);
    let beyond = fleet.origin.sent() - piece as u64;
    assert!(
        beyond <= 16 * MIB as u64,
        "{} KiB were fetched beyond the piece that was read",
        beyond >> 10
    );
}
