//! A body that cannot go on ends with FIN, and what comes after it goes to the next host.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, FallbackTimeouts, Peer};

use crate::client::{error, get};
use crate::harness::{Fleet, noise, until};
use crate::{MIB, path_of};

const AT_ONCE: Duration = Duration::from_secs(1);

/// Reads a layer whose second half does not come, and asks for the rest as containerd does.
async fn is_cut_and_refused(fleet: &Fleet, peer: &Peer, blob: &bytes::Bytes) {
    let path = path_of(blob);
    let answer = get(peer, &path, None).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.length(), blob.len() as u64);
    let got = answer
        .whole()
        .await
        .expect("a cut body ends with FIN and not with a reset");
    assert!(
        !got.is_empty() && got.len() < blob.len(),
        "{} bytes",
        got.len()
    );
    assert_eq!(got, blob[..got.len()], "all that was sent is right");

    let rest = format!("bytes={}-", got.len());
    let again = get(peer, &path, Some(&rest)).await;
    assert_eq!(again.status, 404, "the runtime goes on to its next host");
    assert!(again.head_after < AT_ONCE, "{:?}", again.head_after);
    let (_, message) = error(again).await;
    assert!(message.contains("was cut off here"), "{message}");
    // What is there is served all the same.
    let begin = get(peer, &path, Some("bytes=0-99")).await;
    assert_eq!(begin.status, 206);
    assert_eq!(begin.whole().await.unwrap(), blob[..100]);

    // It comes after all: the bytes are there, and nobody is refused.
    fleet.origin.breaks_at.store(u64::MAX, Ordering::Relaxed);
    fleet.origin.serves_until.store(u64::MAX, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_stops_coming_in_is_cut_and_gone_on_with_elsewhere() {
    let fleet = Fleet::without_tracker().await;
    let blob = noise(6 * MIB, 4);
    fleet.origin.push(&[noise(700, 1), blob.clone()]);
    let fallback_timeouts = FallbackTimeouts {
        no_source: Duration::from_millis(100),
        ..FallbackTimeouts::default()
    };
    let peer = fleet
        .start(Config {
            fallback_timeouts,
            ..fleet.config("vm-1")
        })
        .await;
    fleet
        .origin
        .serves_until
        .store(3 * MIB as u64, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    is_cut_and_refused(&fleet, &peer, &blob).await;
    until("the rest is here", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
    let rest = get(&peer, &path_of(&blob), Some(&format!("bytes={}-", 3 * MIB))).await;
    assert_eq!(rest.status, 206);
    assert_eq!(rest.whole().await.unwrap(), blob[3 * MIB..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_passed_through_is_cut_where_the_origin_breaks_off() {
    let fleet = Fleet::without_tracker().await;
    let blob = noise(6 * MIB, 4);
    fleet.origin.push(&[noise(700, 1), blob.clone()]);
    let peer = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-1")
        })
        .await;
    fleet
        .origin
        .breaks_at
        .store(3 * MIB as u64, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    is_cut_and_refused(&fleet, &peer, &blob).await;
}
