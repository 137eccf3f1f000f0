//! Tags are resolved by the origin. The answer is cached for a short time, and used longer only
//! while no origin is available.

use std::sync::atomic::Ordering;

use super::client::{get, request};
use super::image;
use crate::harness::{Fleet, metrics, random_bytes};

#[tokio::test(flavor = "multi_thread")]
async fn tag_lookups_are_cached() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    for _ in 0..5 {
        assert_eq!(
            request(&peer, "HEAD", "/v2/app/manifests/v1", None)
                .await
                .status,
            200
        );
    }
    let requests = fleet.origin.requests.lock().unwrap().clone();
    assert_eq!(requests, ["GET /v2/app/manifests/v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn moved_tag_is_followed_soon() {
    let fleet = Fleet::without_tracker().await;
    let before = fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let digest = async || {
        let head = request(&peer, "HEAD", "/v2/app/manifests/v1", None).await;
        head.header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!(digest().await, before.to_string());
    let after = fleet
        .origin
        .push(&[random_bytes(10, 7), random_bytes(20, 8)]);
    let polling = async {
        while digest().await != after.to_string() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), polling)
        .await
        .expect("the cache entry expires soon");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_tag_during_origin_outage_has_warning() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image()).to_string();
    let peer = fleet.peer("vm-1").await;
    let fresh = get(&peer, "/v2/app/manifests/v1", None).await;
    assert_eq!(fresh.headers("warning"), Vec::<&str>::new());
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    let stale = loop {
        // The cached answer is still valid for a moment.
        let response = request(&peer, "HEAD", "/v2/app/manifests/v1", None).await;
        assert_eq!(response.status, 200);
        assert_eq!(
            response.header("docker-content-digest"),
            Some(digest.as_str())
        );
        if response.header("warning").is_some() {
            break response;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    };
    let warnings = stale.headers("warning");
    assert!(
        warnings.iter().any(|text| text.starts_with("110 ")),
        "{warnings:?}"
    );
    assert!(
        warnings.iter().any(|text| text.starts_with("111 ")),
        "{warnings:?}"
    );
    assert!(peer.stats().stale_tags >= 1);
    let metrics = metrics(&peer).await;
    assert!(metrics.contains("flotilla_peer_stale_tags_total"));
    // A tag that was never resolved here is unavailable, not unknown.
    assert_eq!(get(&peer, "/v2/app/manifests/v9", None).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_tag_is_not_served_stale() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, "/v2/app/manifests/v1", None).await.status, 200);
    fleet.origin.is_untagged.store(true, Ordering::Relaxed);
    let deleted = async {
        while get(&peer, "/v2/app/manifests/v1", None).await.status != 404 {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), deleted)
        .await
        .expect("404 instead of a stale tag");
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_by_digest_needs_no_origin_after_restart() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image());
    let path = format!("/v2/app/manifests/{digest}");
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, &path, None).await.status, 200);
    peer.shutdown().await;
    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let response = get(&peer, &path, None).await;
    assert_eq!(response.status, 200);
    assert!(digest.matches(&response.read_all().await.unwrap()));
}
