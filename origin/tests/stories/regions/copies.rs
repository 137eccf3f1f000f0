//! How often a blob crosses from one region to another.

use std::sync::Arc;

use flotilla_common::digest::Digest;
use flotilla_origin::storage::Prefix;
use flotilla_runtime::rate::Limiter;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::servers::GateState;
use crate::support::{header, sample};

/// Bytes of blobs that the replicas of a region have sent.
async fn sent_bytes(regions: &Regions, region: usize) -> u64 {
    let mut sum = 0;
    for replica in 0..regions.sites[region].origins.len() {
        let client = regions.client_of_replica(region, replica);
        let text = client.metrics().await;
        let line = text
            .lines()
            .find(|line| line.starts_with("flotilla_origin_sent_bytes_total"))
            .unwrap();
        sum += line.rsplit(' ').next().unwrap().parse::<u64>().unwrap();
    }
    sum
}

/// Two replicas are asked for an image that their region lacks, beside the one that follows the
/// other region: its large layer is copied once.
#[tokio::test]
async fn replicas_copy_a_large_blob_once() {
    let regions = Regions::start_with(2, 2, "", |_, _| {}).await;
    let layer = sample((64 << 20) + 1, 1);
    regions.gate(1, 0).set(GateState::Closed);
    let image = regions
        .client(0)
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    let sent_before = sent_bytes(&regions, 0).await;
    regions.gate(1, 0).set(GateState::Open);
    let path = format!("/v2/app/manifests/{}", Digest::sha256(&image));
    for replica in [0, 1] {
        let client = regions.client_of_replica(1, replica);
        until("the manifest is read through", async || {
            client.get(&path).await.status() == StatusCode::OK
        })
        .await;
    }
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let sent = sent_bytes(&regions, 0).await - sent_before;
    let least = layer.len() as u64;
    assert!((least..least + least / 20).contains(&sent), "{sent}");
}

/// Four clients read a blob that is being copied; a fifth one waits, and is asked to come back.
#[tokio::test]
async fn few_bodies_of_one_blob_come_from_another_region() {
    let regions = Regions::start(2, |_, config| {
        config.regions.down = Limiter::new("1Mbit".parse().unwrap());
    })
    .await;
    let layer = sample(64 << 20, 1);
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    regions
        .client(0)
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    let client = regions.client(1);
    let mut bodies = Vec::new();
    until("four bodies", async || {
        let answer = client.get(&path).await;
        if answer.status() == StatusCode::OK {
            bodies.push(answer);
        }
        bodies.len() == 4
    })
    .await;
    let started = std::time::Instant::now();
    let refused = client.get(&path).await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(header(&refused, "retry-after"), "5");
    assert!(started.elapsed().as_secs() >= 4, "{:?}", started.elapsed());
    // Its place is taken as soon as one of them ends.
    let last = bodies.pop();
    let (answer, ()) = tokio::join!(client.get(&path), async {
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
        drop(last);
    });
    assert_eq!(answer.status(), StatusCode::OK);
}

/// A storage that has a blob, answers probes and does not send its data is slow: all readers are
/// served by another region, since there is no copy to wait for.
#[tokio::test]
async fn all_readers_of_a_slow_storage_are_served() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let layer = sample(600_000, 1);
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    let pushed = regions
        .client(0)
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    assert!(!pushed.is_empty());
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    // Nothing of it is in memory.
    let cold = regions.cold_client(0).await;
    regions.faults(0).set_outage(Some(Outage::HangsForData));
    let readers = (0..12).map(|_| async {
        let answer = cold.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        answer.bytes().await.unwrap()
    });
    for body in futures_util::future::join_all(readers).await {
        assert!(body == layer);
    }
    regions.faults(0).set_outage(None);
}

/// Data objects of a region's storage are gone: another region serves the blob, and it is copied
/// anew once.
#[tokio::test]
async fn lost_data_is_copied_anew() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let layer = sample(300_000, 1);
    regions
        .client(0)
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let storage = Arc::clone(&regions.sites[0].storage);
    let prefix = Prefix::new("seg/").unwrap();
    let lost = storage.list(&prefix, None, 1000).await.unwrap();
    assert!(!lost.entries.is_empty());
    for entry in lost.entries {
        storage.delete(&entry.key).await.unwrap();
    }
    // Nothing of it is in memory.
    let client = regions.cold_client(0).await;
    let before = sent_bytes(&regions, 1).await;
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    for _ in 0..3 {
        let answer = client.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap(), layer);
    }
    let own_only = async || {
        let request = client.request(reqwest::Method::GET, &path);
        let answer = request.header("flotilla-own-storage", "only").send().await;
        answer.unwrap()
    };
    until("the new copy", async || {
        own_only().await.status() == StatusCode::OK
    })
    .await;
    assert_eq!(own_only().await.bytes().await.unwrap(), layer);
    let sent = sent_bytes(&regions, 1).await - before;
    assert!(
        sent <= 4 * layer.len() as u64,
        "three pulls and a copy: {sent}"
    );
    assert_eq!(client.get(&path).await.bytes().await.unwrap(), layer);
    let after = sent_bytes(&regions, 1).await - before;
    assert_eq!(after, sent, "it is read here now");
    // A lost object is no reason to leave the storage.
    let text = client.metrics().await;
    assert!(text.contains("region_standing{of=\"own storage\"} 100"));
}
