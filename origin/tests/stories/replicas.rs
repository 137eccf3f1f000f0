//! Any request may land on any replica.

use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use crate::support::{MANIFEST, Region, header, location, sample};

#[tokio::test]
async fn an_upload_wanders_between_replicas_chunk_by_chunk() {
    let region = Region::start(3).await;
    for step in [1, 1000, 256 << 10, (256 << 10) + 1, 700_000] {
        let bytes = sample(step * 5, step);
        let digest = Digest::sha256(&bytes);
        let mut upload = region.client(0).begin("app").await;
        for chunk in 0..5 {
            let client = region.client(chunk % 3);
            let answer =
                client.chunk(&upload, chunk * step, bytes.slice(chunk * step..(chunk + 1) * step)).await;
            assert_eq!(answer.status(), StatusCode::ACCEPTED, "chunk {chunk} of {step}");
            upload = location(&answer);
        }
        let answer = region.client(2).put(&upload, &digest, "").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let pulled = region.client(1).get(&format!("/v2/app/blobs/{digest}")).await;
        assert!(pulled.bytes().await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn a_client_that_lost_its_location_asks_any_replica_where_to_go_on() {
    let region = Region::start(2).await;
    let upload = region.client(0).begin("app").await;
    let bare = upload.split('?').next().unwrap().to_owned();
    let bytes = sample(100_000, 0);
    region.client(0).chunk(&bare, 0, bytes.slice(..60_000)).await;
    let status = region.client(1).get(&bare).await;
    assert_eq!(header(&status, "range"), "0-59999");
    let answer = region.client(1).chunk(&bare, 60_000, bytes.slice(60_000..)).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    // The first replica remembers an older state, and finds out.
    let status = region.client(0).get(&bare).await;
    assert_eq!(header(&status, "range"), "0-99999");
    let again = region.client(0).chunk(&upload, 0, "x").await;
    assert_eq!(again.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let answer = region.client(0).put(&location(&status), &Digest::sha256(&bytes), "").await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn a_long_chain_is_taken_up_by_another_replica() {
    let region = Region::start(2).await;
    let bytes = sample(150 * 100, 0);
    let mut upload = region.client(0).begin("app").await;
    for chunk in 0..150 {
        let client = region.client(usize::from(chunk % 40 == 39));
        let answer = client.patch(&upload, bytes.slice(chunk * 100..(chunk + 1) * 100)).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "chunk {chunk}");
        upload = location(&answer);
    }
    let digest = Digest::sha256(&bytes);
    assert_eq!(region.client(1).put(&upload, &digest, "").await.status(), StatusCode::CREATED);
    let pulled = region.client(0).get(&format!("/v2/app/blobs/{digest}")).await;
    assert!(pulled.bytes().await.unwrap() == bytes);
}

#[tokio::test]
async fn what_one_replica_acknowledged_another_names_in_a_manifest() {
    let region = Region::start(2).await;
    let (first, second) = (region.client(0), region.client(1));
    let layer = sample(1000, 0);
    // The second replica looks before the push: it must not remember that there was nothing.
    for bytes in [&layer[..], b"{}"] {
        let path = format!("/v2/app/blobs/{}", Digest::sha256(bytes));
        assert_eq!(second.head(&path).await.status(), StatusCode::NOT_FOUND);
    }
    first.push_blob("app", layer.clone()).await;
    first.push_blob("app", "{}").await;
    let manifest = crate::support::manifest(b"{}", &[layer]);
    let answer = second.put_manifest("/v2/app/manifests/v1", MANIFEST, manifest.clone()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(first.get("/v2/app/manifests/v1").await.bytes().await.unwrap(), manifest);
}

#[tokio::test]
async fn a_tag_moved_elsewhere_is_seen_within_its_time_to_live() {
    let none = core::time::Duration::ZERO;
    let region = Region::start_with(2, |config| config.limits.tag_time_to_live = none).await;
    let old = region.client(0).push_image("app", "v1", &[sample(10, 1)]).await;
    assert_eq!(region.client(1).get("/v2/app/manifests/v1").await.bytes().await.unwrap(), old);
    let new = region.client(0).push_image("app", "v1", &[sample(10, 2)]).await;
    assert_eq!(region.client(1).get("/v2/app/manifests/v1").await.bytes().await.unwrap(), new);
}
