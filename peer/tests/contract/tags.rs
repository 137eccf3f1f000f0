//! Tags are the origin's: believed for a moment, and longer only when no origin can be asked.

use std::sync::atomic::Ordering;

use crate::client::{ask, get};
use crate::harness::{Fleet, noise};
use crate::image;

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_costs_the_origin_one_request_in_a_while() {
    let fleet = Fleet::without_tracker().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    for _ in 0..5 {
        assert_eq!(
            ask(&peer, "HEAD", "/v2/app/manifests/v1", None)
                .await
                .status,
            200
        );
    }
    let asked = fleet.origin.asked.lock().unwrap().clone();
    assert_eq!(asked, ["GET /v2/app/manifests/v1"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moves_is_followed() {
    let fleet = Fleet::without_tracker().await;
    let before = fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let digest = async || {
        let head = ask(&peer, "HEAD", "/v2/app/manifests/v1", None).await;
        head.header("docker-content-digest").unwrap().to_owned()
    };
    assert_eq!(digest().await, before.to_string());
    let after = fleet.origin.push(&[noise(10, 7), noise(20, 8)]);
    let following = async {
        while digest().await != after.to_string() {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(10), following)
        .await
        .expect("a short cache");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_every_origin_out_a_tag_is_served_as_it_was_and_says_so() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image()).to_string();
    let peer = fleet.peer("vm-1").await;
    let fresh = get(&peer, "/v2/app/manifests/v1", None).await;
    assert_eq!(fresh.headers("warning"), Vec::<&str>::new());
    fleet.origin.is_out.store(true, Ordering::Relaxed);
    let stale = loop {
        // Believed for a moment longer, as ever.
        let answer = ask(&peer, "HEAD", "/v2/app/manifests/v1", None).await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.header("docker-content-digest"),
            Some(digest.as_str())
        );
        if answer.header("warning").is_some() {
            break answer;
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
    let metrics = get(&peer, "/flotilla/metrics", None)
        .await
        .whole()
        .await
        .unwrap();
    assert!(
        String::from_utf8(metrics)
            .unwrap()
            .contains("flotilla_peer_stale_tags_total")
    );
    // A tag that was never seen here is unavailable, not unknown.
    assert_eq!(get(&peer, "/v2/app/manifests/v9", None).await.status, 503);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_origin_that_says_no_is_believed_at_once() {
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
        .expect("404, nothing stale");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_by_digest_needs_no_origin_even_after_a_restart() {
    let fleet = Fleet::without_tracker().await;
    let digest = fleet.origin.push(&image());
    let path = format!("/v2/app/manifests/{digest}");
    let peer = fleet.peer("vm-1").await;
    assert_eq!(get(&peer, &path, None).await.status, 200);
    peer.shutdown().await;
    fleet.origin.is_out.store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let answer = get(&peer, &path, None).await;
    assert_eq!(answer.status, 200);
    assert!(digest.matches(&answer.whole().await.unwrap()));
}
