//! The number of storage operations per request, which `docs/origin.md` guarantees.

use flotilla_common::digest::Digest;
use futures_util::future::join_all;
use reqwest::StatusCode;

use crate::support::{MANIFEST, Region, manifest, sample};

#[tokio::test]
async fn push_of_1_mib_costs_6_operations() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let before = region.operations(0).total();
    client.push_blob("app", sample(1 << 20, 0)).await;
    assert_eq!(
        region.operations(0).total() - before,
        6,
        "HEAD, segment, link, finish link, record, claim"
    );
}

#[tokio::test]
async fn push_across_replicas_costs_7_operations() {
    let region = Region::start(2).await;
    let (first, second) = (region.client(0), region.client(1));
    let total = || region.operations(0).total() + region.operations(1).total();
    let bytes = sample(1 << 20, 0);
    let before = total();
    let digest = Digest::sha256(&bytes);
    assert_eq!(
        first
            .head(&format!("/v2/app/blobs/{digest}"))
            .await
            .status(),
        StatusCode::NOT_FOUND
    );
    let upload = first.begin("app").await;
    let next = crate::support::location(&first.patch(&upload, bytes).await);
    assert_eq!(
        second.put(&next, &digest, "").await.status(),
        StatusCode::CREATED
    );
    assert_eq!(total() - before, 7);
}

#[tokio::test]
async fn single_post_push_costs_5_operations() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let bytes = sample(1 << 20, 0);
    let before = region.operations(0).total();
    let digest = Digest::sha256(&bytes);
    client.head(&format!("/v2/app/blobs/{digest}")).await;
    let path = format!("/v2/app/blobs/uploads/?digest={digest}");
    let answer = client
        .request(reqwest::Method::POST, &path)
        .body(bytes)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(region.operations(0).total() - before, 5);
}

#[tokio::test]
async fn manifest_costs_2_writes_and_subject_1_more() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let config = client.push_blob("app", "{}").await;
    let body = manifest(b"{}", &[]);
    let before = region.operations(0).writes();
    client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, body.clone())
        .await;
    assert_eq!(region.operations(0).writes() - before, 2);
    let mut artifact: serde_json::Value = serde_json::from_slice(&body).unwrap();
    artifact["subject"] = crate::support::descriptor(MANIFEST, &body);
    let before = region.operations(0).writes();
    client
        .put_manifest("/v2/app/manifests/v2", MANIFEST, artifact.to_string())
        .await;
    assert_eq!(region.operations(0).writes() - before, 3);
    assert_eq!(config, Digest::sha256(b"{}"));
}

#[tokio::test]
async fn cold_blob_costs_2_metadata_reads_warm_none() {
    let region = Region::start(2).await;
    let digest = region.client(0).push_blob("app", sample(1 << 20, 0)).await;
    let (cold, operations) = (region.client(1), region.operations(1));
    let path = format!("/v2/app/blobs/{digest}");
    let (reads, lists) = (operations.metadata_reads(), operations.lists());
    cold.get(&path).await.bytes().await.unwrap();
    assert_eq!(operations.metadata_reads() - reads, 2);
    assert_eq!(operations.lists(), lists);
    cold.get(&path).await.bytes().await.unwrap();
    cold.head(&path).await;
    assert_eq!(operations.metadata_reads() - reads, 2);
}

#[tokio::test]
async fn warm_pull_by_digest_costs_nothing() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[sample(1000, 1)]).await;
    let paths = [
        format!("/v2/app/manifests/{}", Digest::sha256(&pushed)),
        format!("/v2/app/blobs/{}", Digest::sha256(&sample(1000, 1))),
    ];
    for path in &paths {
        client.get(path).await.bytes().await.unwrap();
    }
    let before = region.operations(0).total();
    for path in paths.iter().cycle().take(20) {
        assert_eq!(client.get(path).await.status(), StatusCode::OK);
    }
    assert_eq!(region.operations(0).total(), before);
}

#[tokio::test]
async fn concurrent_cold_pulls_cost_2_reads() {
    let region = Region::start(2).await;
    region
        .client(0)
        .push_image("app", "v1", &[sample(1000, 1)])
        .await;
    let (cold, operations) = (region.client(1), region.operations(1));
    let before = operations.total();
    let pulls = join_all((0..200).map(|_| cold.get("/v2/app/manifests/v1"))).await;
    assert!(pulls.iter().all(|answer| answer.status() == StatusCode::OK));
    assert_eq!(operations.total() - before, 2);
}

#[tokio::test]
async fn finish_cost_is_independent_of_segments() {
    let region = Region::start(1).await;
    let client = region.client(0);
    for chunks in [1, 40] {
        let bytes = sample(chunks * 1000, chunks);
        let mut upload = client.begin("app").await;
        for chunk in 0..chunks {
            let answer = client
                .patch(&upload, bytes.slice(chunk * 1000..(chunk + 1) * 1000))
                .await;
            upload = crate::support::location(&answer);
        }
        let before = region.operations(0).total();
        let answer = client.put(&upload, &Digest::sha256(&bytes), "").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(region.operations(0).total() - before, 3, "{chunks} chunks");
    }
}
