//! Reads while the own storage has an older value than another region, or cannot be asked.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use reqwest::{Method, StatusCode};

use super::harness::Regions;
use super::until;
use crate::faulty_storage::{Outage, WriteFault};
use crate::servers::GateState;
use crate::support::{MANIFEST, Registry, header, manifest, sample};

const TAG: &str = "/v2/app/manifests/v1";
const FRESHEST: &str = "[[repository]]\nmatch = \"**\"\ntag_reads = \"freshest\"\n";
const HOME_ELSEWHERE: &str = "[[repository]]\nmatch = \"**\"\nhome = \"us-1\"\n";

/// Lets no merge under `prefix` reach the storage of a region.
fn block_merges(regions: &Regions, region: usize, prefix: &str) {
    let faults = regions.faults(region);
    faults.arm(prefix, u32::MAX, WriteFault::Rejected);
}

/// What a region's own storage says that a path names.
async fn own_answer(client: &Registry, path: &str) -> Bytes {
    let request = client.request(Method::GET, path);
    let answer = request.header("flotilla-own-storage", "only").send().await;
    answer.unwrap().bytes().await.unwrap()
}

async fn status(client: &Registry, path: &str) -> StatusCode {
    client.get(path).await.status()
}

/// Once a client was answered the newer value of another region, memory of the own storage's older
/// one answers no later read.
#[tokio::test]
async fn tags_do_not_go_back_to_what_memory_has() {
    let regions = Regions::start_with(2, 1, FRESHEST, |_, _| {}).await;
    let client = regions.client(0);
    let older = client.push_image("app", "v1", &[sample(100, 1)]).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    block_merges(&regions, 0, "tag/");
    let other = regions.client(1);
    let newer = other.push_image("app", "v1", &[sample(100, 2)]).await;
    until("the newer tag", async || {
        client.get(TAG).await.bytes().await.unwrap() == newer
    })
    .await;
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_eq!(own_answer(&client, TAG).await, older);
        let answer = client.get(TAG).await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap(), newer, "went back");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Other regions are asked no longer: the value that was answered stays.
    regions.gate(0, 1).set(GateState::Closed);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let answer = client.get(TAG).await;
        if answer.status() == StatusCode::OK {
            assert_eq!(answer.bytes().await.unwrap(), newer, "went back");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    regions.gate(0, 1).set(GateState::Open);
    // What the own storage gets later is answered again.
    regions.faults(0).disarm();
    until("the merge", async || {
        own_answer(&client, TAG).await == newer
    })
    .await;
    let newest = client.push_image("app", "v1", &[sample(100, 3)]).await;
    assert_eq!(client.get(TAG).await.bytes().await.unwrap(), newest);
}

/// A replica that was told of a forwarded push does not serve what it remembers of its own storage.
#[tokio::test]
async fn forwarded_pushes_are_read_although_memory_is_older() {
    let regions = Regions::start_with(2, 2, HOME_ELSEWHERE, |_, _| {}).await;
    let (first, second) = (
        regions.client_of_replica(0, 0),
        regions.client_of_replica(0, 1),
    );
    let older = first.push_image("app", "v1", &[sample(100, 1)]).await;
    until("the copy", async || regions.stores_tag(0, "v1").await).await;
    block_merges(&regions, 0, "tag/");
    for salt in 2..8 {
        let newer = first.push_image("app", "v1", &[sample(100, salt)]).await;
        for client in [&first, &second] {
            for _ in 0..5 {
                assert_eq!(own_answer(client, TAG).await, older);
                assert_eq!(client.get(TAG).await.bytes().await.unwrap(), newer);
            }
        }
    }
}

/// A forwarded push by digest is read by every replica at once, with its blobs, whatever the last
/// look at the other region's journal said.
#[tokio::test]
async fn forwarded_pushes_by_digest_are_read_by_all_replicas() {
    let regions = Regions::start_with(2, 2, HOME_ELSEWHERE, |_, _| {}).await;
    let (first, second) = (
        regions.client_of_replica(0, 0),
        regions.client_of_replica(0, 1),
    );
    block_merges(&regions, 0, "rm/");
    for salt in 0..6 {
        let repository = format!("app-{salt}");
        let layer = sample(1_000, salt);
        let config = Bytes::from(format!("{{\"salt\":{salt}}}"));
        for blob in [&config, &layer] {
            first.push_blob(&repository, blob.clone()).await;
        }
        // The journals were just read.
        let absent = format!("/v2/{repository}/manifests/absent");
        for client in [&first, &second] {
            assert_eq!(status(client, &absent).await, StatusCode::NOT_FOUND);
        }
        let image = manifest(&config, core::slice::from_ref(&layer));
        let path = format!("/v2/{repository}/manifests/{}", Digest::sha256(&image));
        let answer = first.put_manifest(&path, MANIFEST, image).await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let blob = format!("/v2/{repository}/blobs/{}", Digest::sha256(&layer));
        for (replica, client) in [&second, &first].into_iter().enumerate() {
            assert_eq!(status(client, &path).await, StatusCode::OK, "{replica}");
            assert_eq!(status(client, &blob).await, StatusCode::OK, "{replica}");
        }
    }
}

/// The same for deletes: the own storage has the manifest until the delete is copied.
#[tokio::test]
async fn forwarded_deletes_by_digest_are_seen_by_all_replicas() {
    let regions = Regions::start_with(2, 2, HOME_ELSEWHERE, |_, _| {}).await;
    let (first, second) = (
        regions.client_of_replica(0, 0),
        regions.client_of_replica(0, 1),
    );
    let image = first.push_image("app", "v1", &[sample(100, 1)]).await;
    until("the copy", async || regions.stores_tag(0, "v1").await).await;
    block_merges(&regions, 0, "rm/");
    let path = format!("/v2/app/manifests/{}", Digest::sha256(&image));
    for client in [&first, &second] {
        assert_eq!(status(client, &path).await, StatusCode::OK);
    }
    assert_eq!(first.delete(&path).await, StatusCode::ACCEPTED);
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        for (replica, client) in [&second, &first].into_iter().enumerate() {
            for path in [&*path, TAG] {
                let status = status(client, path).await;
                assert_eq!(status, StatusCode::NOT_FOUND, "{path} at {replica}");
            }
        }
    }
    // A push after it is read at once, too.
    let answer = first.put_manifest(&path, MANIFEST, image).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    for client in [&second, &first] {
        assert_eq!(status(client, &path).await, StatusCode::OK);
    }
}

/// A replica that did not run when a delete was forwarded hears of it from the region that made it.
/// While that one does not answer, what the own storage says is marked as maybe old.
#[tokio::test]
async fn replica_that_missed_forwarded_changes_hears_of_them() {
    let mut regions = Regions::start_with(2, 1, HOME_ELSEWHERE, |_, _| {}).await;
    let client = regions.client(0);
    let image = client.push_image("app", "v1", &[sample(100, 1)]).await;
    until("the copy", async || regions.stores_tag(0, "v1").await).await;
    block_merges(&regions, 0, "rm/");
    let path = format!("/v2/app/manifests/{}", Digest::sha256(&image));
    assert_eq!(client.delete(&path).await, StatusCode::ACCEPTED);

    regions.gate(0, 1).set(GateState::Closed);
    let cold = regions.cold_client(0).await;
    for (path, expected) in [
        (&*path, StatusCode::OK),
        (TAG, StatusCode::OK),
        ("/v2/app/manifests/absent", StatusCode::NOT_FOUND),
    ] {
        let answer = cold.get(path).await;
        assert_eq!(answer.status(), expected, "{path}");
        assert!(header(&answer, "warning").starts_with("299 - "), "{path}");
    }
    regions.gate(0, 1).set(GateState::Open);
    until("the delete", async || {
        status(&cold, &path).await == StatusCode::NOT_FOUND
    })
    .await;
    let end = Instant::now() + Duration::from_secs(2);
    while Instant::now() < end {
        for path in [&*path, TAG] {
            let answer = cold.get(path).await;
            assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
            assert_eq!(header(&answer, "warning"), "", "{path}");
        }
    }
}

/// A tag that another region deleted may have been pushed here later. While the own storage is out,
/// this region does not know, so the answer is 503. A tag that was deleted through this region is
/// known to be gone.
#[tokio::test]
async fn deletes_elsewhere_are_no_absence_during_an_outage() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    for (from, to) in [(0, 1), (1, 0)] {
        regions.gate(from, to).set(GateState::Closed);
    }
    let other = regions.client(1);
    assert_eq!(other.delete(TAG).await, StatusCode::ACCEPTED);
    let newer = client.push_image("app", "v1", &[sample(100, 2)]).await;
    let cold = regions.cold_client(0).await;
    regions.gate(0, 1).set(GateState::Open);
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("degraded", async || {
        let answer = cold.get("/readyz").await;
        answer.text().await.unwrap().contains("degraded")
    })
    .await;
    for _ in 0..10 {
        let status = status(&cold, TAG).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        // This replica wrote it.
        let answer = client.get(TAG).await;
        if answer.status() == StatusCode::OK {
            assert_eq!(answer.bytes().await.unwrap(), newer);
        } else {
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    let during = cold.push_image("app", "during", &[sample(100, 3)]).await;
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&during));
    let by_tag = "/v2/app/manifests/during";
    for path in [&*by_digest, by_tag] {
        assert_eq!(status(&cold, path).await, StatusCode::OK, "{path}");
    }
    for path in [by_tag, &*by_digest] {
        assert_eq!(cold.delete(path).await, StatusCode::ACCEPTED, "{path}");
        assert_eq!(status(&cold, path).await, StatusCode::NOT_FOUND, "{path}");
    }
}

/// Without memory for the tags that it has seen, a replica asks its storage: another region's older
/// value replaces neither what was pushed here nor what was deleted here.
#[tokio::test]
async fn older_values_elsewhere_do_not_count_without_memory() {
    let regions = Regions::start_with(2, 1, FRESHEST, |region, config| {
        if region == 0 {
            config.limits.other_caches = ByteSize(0);
        }
    })
    .await;
    let client = regions.client(0);
    for tag in ["v1", "deleted"] {
        client.push_image("app", tag, &[sample(100, 1)]).await;
        until("the copy", async || regions.stores_tag(1, tag).await).await;
    }
    block_merges(&regions, 1, "tag/app/_/v1");
    block_merges(&regions, 1, "tag/app/_/deleted");
    // Region 0 is owed something in the repository, so it asks.
    block_merges(&regions, 0, "tag/app/_/owed");
    let other = regions.client(1);
    other.push_image("app", "owed", &[sample(100, 2)]).await;
    let newer = client.push_image("app", "v1", &[sample(100, 3)]).await;
    let deleted = "/v2/app/manifests/deleted";
    assert_eq!(client.delete(deleted).await, StatusCode::ACCEPTED);
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        let answer = client.get(TAG).await;
        assert_eq!(answer.bytes().await.unwrap(), newer);
        assert_eq!(status(&client, deleted).await, StatusCode::NOT_FOUND);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A blob that comes from another region goes on from a third one when the link stalls. Without a
/// third one it ends, so that the client can ask again.
#[tokio::test]
async fn bodies_from_another_region_do_not_stall() {
    for count in [3, 2] {
        let mut regions = Regions::start(count, |_, _| {}).await;
        let layer = sample(24 << 20, 3);
        regions
            .client(0)
            .push_image("app", "v1", core::slice::from_ref(&layer))
            .await;
        for region in 1..count {
            until("the copy", async || regions.stores_tag(region, "v1").await).await;
        }
        let cold = regions.cold_client(0).await;
        regions.faults(0).set_outage(Some(Outage::Refuses));
        let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
        let mut answer = cold.get(&path).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let mut received = answer.chunk().await.unwrap().unwrap().to_vec();
        regions.gate(0, 1).set(GateState::Hanging);
        let rest = async {
            while let Ok(Some(piece)) = answer.chunk().await {
                received.extend_from_slice(&piece);
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(12), rest).await;
        assert!(ended.is_ok(), "{count} regions: the body stalls");
        assert_eq!(received == layer, count == 3, "{count} regions");
    }
}
