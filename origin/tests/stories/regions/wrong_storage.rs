//! Regions that share a storage, or that have another storage than before, refuse each other.

use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_origin::maintenance::{self, Renewing};
use flotilla_origin::storage;
use reqwest::{Method, StatusCode};

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::support::{Registry, sample};

/// Longer than a follower, a hint or a probe needs.
const A_WHILE: Duration = Duration::from_secs(3);

/// Waits until a region says that it refuses the other one, or no longer does.
async fn until_refused(regions: &Regions, region: usize, is_refused: bool) {
    let value = u8::from(is_refused);
    let (client, name) = (regions.client(region), &regions.sites[1 - region].name);
    let line = format!("flotilla_origin_region_refused{{region=\"{name}\"}} {value}");
    until(&line, async || {
        let metrics = client.metrics().await;
        metrics.contains(&line)
    })
    .await;
}

/// Asserts that a region serves and takes nothing while its storage is out: it asks no other one.
async fn assert_alone_during_outage(regions: &mut Regions, region: usize) {
    let cold = regions.cold_client(region).await;
    regions.faults(region).set_outage(Some(Outage::Refuses));
    until("the outage is noticed", async || {
        let answer = cold.get("/readyz").await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
    for _ in 0..5 {
        let status = push(&cold).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "a push");
        let answer = cold.get("/v2/app/manifests/v1").await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "a pull");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    regions.faults(region).set_outage(None);
}

/// Pushes a blob.
async fn push(client: &Registry) -> StatusCode {
    let blob = sample(1_000, 99);
    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::sha256(&blob));
    let request = client.request(Method::POST, &path).body(blob);
    request.send().await.unwrap().status()
}

#[tokio::test]
async fn regions_with_one_storage_refuse_each_other() {
    let storage = storage::open("memory:///", 64 << 20).unwrap();
    let storages = vec![std::sync::Arc::clone(&storage), storage];
    let mut regions = Regions::start_on(storages, 1, "", |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(1_000, 1)]).await;
    for region in [0, 1] {
        until_refused(&regions, region, true).await;
    }
    tokio::time::sleep(A_WHILE).await;
    let owed = regions.keys(0, "journal/us-1/").await;
    assert_eq!(owed.len(), 1, "no entry is dropped: {owed:?}");
    assert_alone_during_outage(&mut regions, 0).await;
}

#[tokio::test]
async fn region_with_another_storage_than_before_is_refused() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(1_000, 1)]).await;
    until("the copy", async || {
        !regions.keys(1, "tag/").await.is_empty() && regions.keys(0, "journal/").await.is_empty()
    })
    .await;
    let before = std::sync::Arc::clone(&regions.sites[1].storage);
    let empty = storage::open("memory:///", 64 << 20).unwrap();
    regions.restart_on(1, empty).await;

    client.push_image("app", "v2", &[sample(1_000, 2)]).await;
    until_refused(&regions, 0, true).await;
    tokio::time::sleep(A_WHILE).await;
    let owed = regions.keys(0, "journal/us-1/").await;
    assert_eq!(owed.len(), 1, "no entry is dropped: {owed:?}");
    let copied = regions.keys(1, "tag/").await;
    assert_eq!(copied, Vec::<String>::new());
    for tag in ["v1", "v2"] {
        let path = format!("/v2/app/manifests/{tag}");
        let answer = regions.client(1).get(&path).await;
        assert_ne!(answer.status(), StatusCode::OK, "it is not read through");
    }
    assert_alone_during_outage(&mut regions, 0).await;

    // The operator corrects the configuration.
    regions.restart_on(1, before).await;
    until_refused(&regions, 0, false).await;
    until("the copy", async || {
        regions.keys(1, "tag/").await.len() == 2
    })
    .await;
}

#[tokio::test]
async fn renewed_storage_is_accepted_and_the_old_one_is_refused() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(1_000, 1)]).await;
    until("the copy", async || {
        regions.keys(1, "tag/").await.len() == 1
    })
    .await;
    let renewed = std::sync::Arc::clone(&regions.sites[1].storage);
    let format = "format".parse().unwrap();
    let old = storage::open("memory:///", 64 << 20).unwrap();
    let body = renewed.read(&format).await.unwrap().unwrap().body;
    old.create(&format, body).await.unwrap();
    regions.sites[1].origins.clear();
    let ids = maintenance::storage_ids(&*renewed).await.unwrap();
    let asked = Renewing {
        region: regions.sites[1].name.clone(),
        replace: ids.storage_id.parse().unwrap(),
        age: Duration::from_hours(1),
        now: 1,
        dry_run: false,
    };
    let done = maintenance::renew(std::sync::Arc::clone(&renewed), &asked).await;
    assert_eq!(done.unwrap().swept_regions, 1);

    regions.restart_on(1, std::sync::Arc::clone(&renewed)).await;
    client.push_image("app", "v2", &[sample(1_000, 2)]).await;
    until("the next copy", async || {
        regions.keys(1, "tag/").await.len() == 2 && regions.keys(0, "journal/").await.is_empty()
    })
    .await;

    regions.restart_on(1, old).await;
    until_refused(&regions, 0, true).await;
    client.push_image("app", "v3", &[sample(1_000, 3)]).await;
    tokio::time::sleep(A_WHILE).await;
    assert_eq!(regions.keys(0, "journal/us-1/").await.len(), 1);
    regions.restart_on(1, renewed).await;
    until_refused(&regions, 0, false).await;
}
