//! A body that cannot be continued ends with FIN, and requests for the rest get 404, so that the
//! runtime tries its next host.

use std::sync::atomic::Ordering;
use std::time::Duration;

use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, FallbackTimeouts, Peer};

use super::client::{get, oci_error};
use super::{MIB, path_of};
use crate::harness::{Fleet, random_bytes, wait_until};

const AT_ONCE: Duration = Duration::from_secs(1);

/// Reads a layer whose second half has no source, and requests the rest as containerd does.
async fn expect_early_end_and_404(fleet: &Fleet, peer: &Peer, blob: &bytes::Bytes) {
    let path = path_of(blob);
    let response = get(peer, &path, None).await;
    assert_eq!(response.status, 200);
    assert_eq!(response.length(), blob.len() as u64);
    let got = response
        .read_all()
        .await
        .expect("an interrupted body ends with FIN, not with a reset");
    assert!(
        !got.is_empty() && got.len() < blob.len(),
        "{} bytes",
        got.len()
    );
    assert_eq!(got, blob[..got.len()], "the bytes sent are right");

    let rest = format!("bytes={}-", got.len());
    let again = get(peer, &path, Some(&rest)).await;
    assert_eq!(again.status, 404, "the runtime tries its next host");
    assert!(again.head_after < AT_ONCE, "{:?}", again.head_after);
    let (_, message) = oci_error(again).await;
    assert!(
        message.contains("no source for the bytes from offset"),
        "{message}"
    );
    // The stored part is still served.
    let beginning = get(peer, &path, Some("bytes=0-99")).await;
    assert_eq!(beginning.status, 206);
    assert_eq!(beginning.read_all().await.unwrap(), blob[..100]);

    // The source is back: from now on requests succeed.
    fleet.origin.aborts_at.store(u64::MAX, Ordering::Relaxed);
    fleet
        .origin
        .unavailable_from
        .store(u64::MAX, Ordering::Relaxed);
}

#[tokio::test(flavor = "multi_thread")]
async fn stalled_blob_ends_early_and_is_404_afterwards() {
    let fleet = Fleet::without_tracker().await;
    let blob = random_bytes(6 * MIB, 4);
    fleet.origin.push(&[random_bytes(700, 1), blob.clone()]);
    let fallback_timeouts = FallbackTimeouts {
        no_source: Duration::from_millis(100),
        ..FallbackTimeouts::default()
    };
    let peer = fleet.peer_with_timeouts("vm-1", fallback_timeouts).await;
    fleet
        .origin
        .unavailable_from
        .store(3 * MIB as u64, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    expect_early_end_and_404(&fleet, &peer, &blob).await;
    wait_until("the rest is stored", || {
        peer.stats().blobs.iter().all(|blob| blob.is_complete)
    })
    .await;
    let rest = get(&peer, &path_of(&blob), Some(&format!("bytes={}-", 3 * MIB))).await;
    assert_eq!(rest.status, 206);
    assert_eq!(rest.read_all().await.unwrap(), blob[3 * MIB..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn passed_through_body_ends_where_the_origin_aborts() {
    let fleet = Fleet::without_tracker().await;
    let blob = random_bytes(6 * MIB, 4);
    fleet.origin.push(&[random_bytes(700, 1), blob.clone()]);
    let peer = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-1")
        })
        .await;
    fleet
        .origin
        .aborts_at
        .store(3 * MIB as u64, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    expect_early_end_and_404(&fleet, &peer, &blob).await;
}
