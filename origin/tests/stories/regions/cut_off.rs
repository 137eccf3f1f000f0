//! One replica does not reach the storage of its region; another one does.

use std::time::{Duration, Instant};

use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::support::{MANIFEST, Registry, header, sample};

async fn put(client: &Registry, tag: &str, manifest: &bytes::Bytes) -> StatusCode {
    let path = format!("/v2/app/manifests/{tag}");
    let answer = client.put_manifest(&path, MANIFEST, manifest.clone()).await;
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        assert!(!header(&answer, "retry-after").is_empty());
    }
    answer.status()
}

/// The replica that is cut off alone neither forwards changes nor reads tags from another region:
/// its siblings would serve the old tag after a 201, and it the old tag after theirs.
#[tokio::test]
async fn replica_that_is_cut_off_alone_serves_only_content() {
    let regions = Regions::start_with(2, 2, "", |_, _| {}).await;
    let (cut, sibling) = (
        regions.client_of_replica(0, 0),
        regions.client_of_replica(0, 1),
    );
    let layer = sample(70_000, 1);
    let first = cut
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;

    regions
        .replica_faults(0, 0)
        .set_outage(Some(Outage::Refuses));
    let second = sibling.push_image("app", "v1", &[sample(70_000, 2)]).await;
    assert_ne!(first, second);
    let mut answers = 0;
    let until_then = Instant::now() + Duration::from_secs(8);
    while Instant::now() < until_then {
        let answer = cut.get("/v2/app/manifests/v1").await;
        match answer.status() {
            StatusCode::OK => assert_eq!(answer.bytes().await.unwrap(), second),
            other => assert_eq!(other, StatusCode::SERVICE_UNAVAILABLE),
        }
        let refused = put(&cut, "v2", &first).await;
        assert_eq!(refused, StatusCode::SERVICE_UNAVAILABLE);
        let list = cut.get("/v2/app/tags/list").await;
        assert_eq!(list.status(), StatusCode::SERVICE_UNAVAILABLE);
        answers += 1;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(answers >= 5, "{answers} rounds: each answer takes long");
    let content = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    assert_eq!(cut.get(&content).await.status(), StatusCode::OK);
    let ready = cut.get("/readyz").await;
    assert_eq!(ready.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = cut.metrics().await;
    assert!(
        !text.contains("region_forwarded_total{to=\"us-1\"}"),
        "{text}"
    );

    // Back by itself, and never with the old tag.
    regions.replica_faults(0, 0).set_outage(None);
    until("the tag", async || {
        let answer = cut.get("/v2/app/manifests/v1").await;
        let is_ok = answer.status() == StatusCode::OK;
        if is_ok {
            assert_eq!(answer.bytes().await.unwrap(), second);
        }
        is_ok
    })
    .await;
    until("a change", async || {
        put(&cut, "v2", &first).await == StatusCode::CREATED
    })
    .await;
    // The storage itself fails: now changes go to the other region.
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("a forwarded change", async || {
        put(&cut, "v3", &first).await == StatusCode::CREATED
    })
    .await;
}
