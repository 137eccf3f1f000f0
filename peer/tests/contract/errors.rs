//! A pull that cannot be served says so at once, in a way that lets the runtime go on.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use flotilla_common::units::ByteSize;
use flotilla_peer::{Config, FallbackTimeouts};

use crate::client::{ask, error, get};
use crate::harness::{Fleet, digest, noise};
use crate::{MIB, image, path_of};

/// Far more than an answer takes that waits for nothing.
const AT_ONCE: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_not_is_404_at_once_and_says_what() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let absent = digest(b"nobody has this");
    for (path, code, says) in [
        (
            "/v2/app/manifests/v2".to_owned(),
            "MANIFEST_UNKNOWN",
            "says the origin of the test",
        ),
        (
            format!("/v2/app/manifests/{absent}"),
            "MANIFEST_UNKNOWN",
            "says the origin of the test",
        ),
        (
            "/v2/other/manifests/v1".to_owned(),
            "MANIFEST_UNKNOWN",
            "other:v1",
        ),
        (
            format!("/v2/app/blobs/{absent}"),
            "BLOB_UNKNOWN",
            "says the origin of the test",
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
        let head = ask(&peer, "HEAD", &path, None).await;
        let answer = get(&peer, &path, None).await;
        assert_eq!((head.status, answer.status), (404, 404), "{path}");
        assert!(
            answer.head_after < AT_ONCE,
            "{path}: {:?}",
            answer.head_after
        );
        let (told, message) = error(answer).await;
        assert_eq!(told, code, "{path}");
        assert!(message.contains(says), "{path}: {message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_is_out_is_503_and_never_what_is_asked_again_at_the_same_host() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    fleet.origin.is_out.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let absent = digest(b"nobody has this");
    for path in [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{absent}"),
        format!("/v2/app/blobs/{absent}"),
    ] {
        for method in ["HEAD", "GET"] {
            let answer = ask(&peer, method, &path, None).await;
            // 408 and 429 are asked five times more at the same host, 502 fails the pull.
            assert_eq!(answer.status, 503, "{method} {path}");
            assert!(
                answer.head_after < AT_ONCE,
                "{method} {path}: {:?}",
                answer.head_after
            );
            if method == "GET" {
                let (code, message) = error(answer).await;
                assert_eq!(code, "UNAVAILABLE");
                assert!(message.contains(&fleet.origin.url()), "{message}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blob_that_nobody_can_bring_is_503_within_the_bound() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    fleet.origin.is_down.store(true, Ordering::Relaxed);
    // The manifest is here, its blobs are wanted, and then there is nobody.
    assert_eq!(
        get(&peer, "/v2/app/manifests/v1", Some("bytes=0-"))
            .await
            .status,
        206
    );
    let answer = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(answer.status, 503);
    let bound = FallbackTimeouts::default().no_source + AT_ONCE;
    assert!(answer.head_after < bound, "{:?}", answer.head_after);
    let (_, message) = error(answer).await;
    assert!(
        message.contains("no neighbour has it") && message.contains(&fleet.origin.url()),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_keeps_silent_does_not_keep_the_mirror_silent() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    let second = Duration::from_secs(1);
    let fallback_timeouts = FallbackTimeouts {
        no_progress: second,
        maximum: second,
        ..FallbackTimeouts::default()
    };
    let peer = fleet
        .start(Config {
            fallback_timeouts,
            ..fleet.config("vm-1")
        })
        .await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    fleet.origin.is_silent.store(true, Ordering::Relaxed);
    let started = Instant::now();
    let answer = get(&peer, &path_of(&image[2]), Some("bytes=0-")).await;
    assert_eq!(answer.status, 503);
    // The reader's timeout, and an origin's 5 s to begin its answer.
    assert!(
        started.elapsed() < second + Duration::from_secs(5) + AT_ONCE,
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_range_of_a_blob_that_was_begun_is_never_an_error() {
    let fleet = Fleet::without_tracker().await;
    let image = [noise(700, 1), noise(8 * MIB, 4)];
    fleet.origin.push(&image);
    let fallback_timeouts = FallbackTimeouts {
        no_source: Duration::from_millis(100),
        ..FallbackTimeouts::default()
    };
    let storing = fleet
        .start(Config {
            fallback_timeouts,
            ..fleet.config("vm-1")
        })
        .await;
    let passing = fleet
        .start(Config {
            quota: ByteSize(0),
            ..fleet.config("vm-2")
        })
        .await;
    // Nothing behind the middle comes from anywhere.
    fleet
        .origin
        .serves_until
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
        assert_eq!(first.piece(MIB).await, image[1][..MIB]);

        let later = format!("bytes={}-", 5 * MIB);
        let answer = get(peer, &path, Some(&later)).await;
        assert_eq!(answer.status, 206, "any other status fails the pull");
        assert_eq!(answer.length(), 3 * MIB as u64);
        assert_eq!(
            answer.whole().await.expect("an end, not a reset"),
            b"",
            "it is cut"
        );
        // Now containerd asks again, at the first host, and goes on to the next.
        let again = get(peer, &path, Some(&later)).await;
        assert_eq!(again.status, 404);
        assert!(again.head_after < AT_ONCE, "{:?}", again.head_after);
    }
}
