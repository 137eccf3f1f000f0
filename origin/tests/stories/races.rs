//! Concurrent requests for the same key: exactly one wins, and the others get a conflict status.

use bytes::Bytes;
use flotilla_common::digest::Digest;
use futures_util::future::join_all;
use reqwest::StatusCode;

use crate::support::{Region, location, sample};

#[tokio::test]
async fn one_of_concurrent_chunks_wins() {
    let region = Region::start(2).await;
    let upload = region.client(0).begin("app").await;
    let chunks: Vec<Bytes> = (0..8).map(|salt| sample(50_000, salt)).collect();
    let clients: Vec<_> = (0..8).map(|index| region.client(index % 2)).collect();
    let attempts = clients
        .iter()
        .zip(&chunks)
        .map(|(client, chunk)| client.chunk(&upload, 0, chunk.clone()));
    let answers = join_all(attempts).await;
    let winners: Vec<_> = (0..8)
        .filter(|index| answers[*index].status() == StatusCode::ACCEPTED)
        .collect();
    assert_eq!(winners.len(), 1);
    let lost = answers
        .iter()
        .filter(|answer| answer.status() == StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(lost.count(), 7);
    assert_eq!(
        region.keys("seg/").await.len(),
        1,
        "the segments of the losers are removed"
    );
    let winner = winners[0];
    let digest = Digest::sha256(&chunks[winner]);
    let next = location(&answers[winner]);
    assert_eq!(
        region.client(1).put(&next, &digest, "").await.status(),
        StatusCode::CREATED
    );
    let pulled = region
        .client(0)
        .get(&format!("/v2/app/blobs/{digest}"))
        .await;
    assert!(pulled.bytes().await.unwrap() == chunks[winner]);
}

#[tokio::test]
async fn one_of_chunk_finish_and_cancel_wins() {
    for round in 0..12 {
        let region = Region::start(3).await;
        let first = sample(10_000, round);
        let digest = Digest::sha256(&first);
        let upload = region.client(0).begin("app").await;
        let next = location(&region.client(0).patch(&upload, first.clone()).await);
        let clients: Vec<_> = (0..3)
            .map(|index| region.client((index + round) % 3))
            .collect();
        let (chunk, finish, cancel) = tokio::join!(
            clients[0].chunk(&next, 10_000, "more"),
            clients[1].put(&next, &digest, ""),
            clients[2].delete(&next),
        );
        let chunked = chunk.status() == StatusCode::ACCEPTED;
        let finished = finish.status() == StatusCode::CREATED;
        let cancelled = cancel == StatusCode::NO_CONTENT;
        // A cancel retries after a concurrent chunk; a chunk and a finish fail when another request
        // won.
        let statuses = (chunked, finished, cancelled);
        assert!(
            [
                (true, false, true),
                (false, true, false),
                (false, false, true)
            ]
            .contains(&statuses),
            "{statuses:?}"
        );
        let blobs = region.keys("blob/").await.len();
        assert_eq!(blobs, usize::from(finished));
    }
}

#[tokio::test]
async fn concurrent_pushes_of_the_same_blob() {
    let region = Region::start(2).await;
    let bytes = sample(300_000, 0);
    let pushes = (0..8).map(|index| {
        let (client, bytes) = (region.client(index % 2), bytes.clone());
        async move {
            client
                .push_blob(if index < 4 { "app" } else { "other" }, bytes)
                .await
        }
    });
    let digests = join_all(pushes).await;
    for repository in ["app", "other"] {
        for replica in 0..2 {
            let path = format!("/v2/{repository}/blobs/{}", digests[0]);
            let pulled = region.client(replica).get(&path).await;
            assert!(pulled.bytes().await.unwrap() == bytes);
        }
    }
}

#[tokio::test]
async fn concurrent_tag_pushes_are_serialized() {
    let region = Region::start(2).await;
    let images: Vec<Bytes> = join_all((0..6).map(|index| {
        let client = region.client(0);
        async move {
            client
                .push_image("app", &format!("own-{index}"), &[sample(10, index)])
                .await
        }
    }))
    .await;
    let puts = images.iter().enumerate().map(|(index, image)| {
        let client = region.client(index % 2);
        async move {
            let path = "/v2/app/manifests/shared";
            client
                .put_manifest(path, crate::support::MANIFEST, image.clone())
                .await
                .status()
        }
    });
    let statuses = join_all(puts).await;
    let acknowledged: Vec<_> = images
        .iter()
        .zip(&statuses)
        .filter(|(_, status)| **status == StatusCode::CREATED)
        .collect();
    assert!(!acknowledged.is_empty());
    let others = statuses
        .iter()
        .filter(|status| **status != StatusCode::CREATED);
    assert!(
        others
            .into_iter()
            .all(|status| *status == StatusCode::SERVICE_UNAVAILABLE),
        "{statuses:?}"
    );
    let tag = region
        .client(0)
        .get("/v2/app/manifests/shared")
        .await
        .bytes()
        .await
        .unwrap();
    assert!(acknowledged.iter().any(|(image, _)| **image == tag));
}
