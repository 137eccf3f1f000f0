//! Requests that cannot be served fail at once, with a status that lets the runtime try its next
//! host.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, FallbackTimeouts};

use super::client::{get, oci_error, request};
use super::{MIB, image, path_of};
use crate::harness::{Fleet, digest, random_bytes};

/// Much longer than a response takes that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn unknown_content_is_404_at_once_with_its_name() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let absent = digest(b"absent");
    for (path, expected_code, expected_text) in [
        (
            "/v2/app/manifests/v2".to_owned(),
            "MANIFEST_UNKNOWN",
            "refused by the test origin",
        ),
        (
            format!("/v2/app/manifests/{absent}"),
            "MANIFEST_UNKNOWN",
            "refused by the test origin",
        ),
        (
            "/v2/other/manifests/v1".to_owned(),
            "MANIFEST_UNKNOWN",
            "other:v1",
        ),
        (
            format!("/v2/app/blobs/{absent}"),
            "BLOB_UNKNOWN",
            "refused by the test origin",
        ),
        (
            format!("/v2/other/blobs/{absent}"),
            "BLOB_UNKNOWN",
            "other@sha256",
        ),
        (
            "/v2/app/blobs/sha256:abc".to_owned(),
            "DIGEST_INVALID",
            "sha256:abc",
        ),
        ("/v2/App/manifests/v1".to_owned(), "MANIFEST_INVALID", "App"),
        (
            "/v2/app/tags/list".to_owned(),
            "BLOB_UNKNOWN",
            "/v2/app/tags/list",
        ),
    ] {
        let head = request(&peer, "HEAD", &path, None).await;
        let response = get(&peer, &path, None).await;
        assert_eq!((head.status, response.status), (404, 404), "{path}");
        assert!(
            response.head_after < AT_ONCE,
            "{path}: {:?}",
            response.head_after
        );
        let (code, message) = oci_error(response).await;
        assert_eq!(code, expected_code, "{path}");
        assert!(message.contains(expected_text), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_origin_is_503_so_that_the_next_host_is_tried() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let absent = digest(b"absent");
    for path in [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{absent}"),
        format!("/v2/app/blobs/{absent}"),
    ] {
        for method in ["HEAD", "GET"] {
            let response = request(&peer, method, &path, None).await;
            // containerd retries 408 and 429 five times at the same host, and 502 fails the pull.
            assert_eq!(response.status, 503, "{method} {path}");
            assert!(
                response.head_after < AT_ONCE,
                "{method} {path}: {:?}",
                response.head_after
            );
            if method == "GET" {
                let (code, message) = oci_error(response).await;
                assert_eq!(code, "UNAVAILABLE");
                assert!(message.contains(&fleet.origin.url()), "{message}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blob_without_source_is_503_within_the_timeout() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    fleet
        .origin
        .are_blobs_unavailable
        .store(true, Ordering::Relaxed);
    // The manifest is stored and its blobs are wanted, but they have no source.
    assert_eq!(
        get(&peer, "/v2/app/manifests/v1", Some("bytes=0-"))
            .await
            .status,
        206
    );
    let response = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(response.status, 503);
    let bound = FallbackTimeouts::default().no_source + AT_ONCE;
    assert!(response.head_after < bound, "{:?}", response.head_after);
    let (_, message) = oci_error(response).await;
    assert!(
        message.contains("no neighbour has it") && message.contains(&fleet.origin.url()),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_origin_does_not_hang_the_mirror() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let second = Duration::from_secs(1);
    let fallback_timeouts = FallbackTimeouts {
        no_progress: second,
        maximum: second,
        ..FallbackTimeouts::default()
    };
    let peer = fleet.peer_with_timeouts("vm-1", fallback_timeouts).await;
    // Blobs hang from the start: the peer begins to fetch them as soon as it has the manifest.
    fleet.origin.is_hanging.store(true, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let started = Instant::now();
    let response = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(response.status, 503);
    // The reader's timeout, and 5 s for the origin to begin its response.
    assert!(
        started.elapsed() < second + Duration::from_secs(5) + AT_ONCE,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn head_is_sent_in_time_and_the_body_follows() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let fallback_timeouts = FallbackTimeouts {
        head: Duration::from_millis(300),
        ..FallbackTimeouts::default()
    };
    let peer = fleet.peer_with_timeouts("vm-1", fallback_timeouts).await;
    fleet.origin.is_hanging.store(true, Ordering::Relaxed);
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    let response = get(&peer, &path_of(&image[2]), None).await;
    assert_eq!(response.status, 200);
    let head_after = response.head_after;
    let earliest = fallback_timeouts.head;
    assert!(
        (earliest..earliest + AT_ONCE).contains(&head_after),
        "{head_after:?}"
    );
    fleet.origin.is_hanging.store(false, Ordering::Relaxed);
    assert_eq!(response.read_all().await.unwrap(), image[2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn unavailable_range_of_started_blob_is_206_with_cut_body() {
    let fleet = Fleet::without_tracker().await;
    let image = [random_bytes(700, 1), random_bytes(8 * MIB, 4)];
    fleet.origin.push(&image);
    let fallback_timeouts = FallbackTimeouts {
        no_source: Duration::from_millis(100),
        ..FallbackTimeouts::default()
    };
    let storing = fleet.peer_with_timeouts("vm-1", fallback_timeouts).await;
    let passing = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-2")
        })
        .await;
    // The second half has no source.
    fleet
        .origin
        .unavailable_from
        .store(4 * MIB as u64, Ordering::Relaxed);
    for peer in [&storing, &passing] {
        assert_eq!(
            get(peer, "/v2/app/manifests/v1", Some("bytes=0-"))
                .await
                .status,
            206
        );
        let path = path_of(&image[1]);
        let first = get(peer, &path, Some("bytes=0-")).await;
        assert_eq!(first.status, 206);
        assert_eq!(first.read_and_close(MIB).await, image[1][..MIB]);

        let later = format!("bytes={}-", 5 * MIB);
        let response = get(peer, &path, Some(&later)).await;
        assert_eq!(response.status, 206, "any other status fails the pull");
        assert_eq!(response.length(), 3 * MIB as u64);
        assert_eq!(
            response
                .read_all()
                .await
                .expect("ended by FIN, not by a reset"),
            b"",
            "ended early"
        );
        // containerd now retries at the same host, and then tries the next one.
        let again = get(peer, &path, Some(&later)).await;
        assert_eq!(again.status, 404);
        assert!(again.head_after < AT_ONCE, "{:?}", again.head_after);
    }
}
