//! The ways to push a blob, and rejected pushes.

use bytes::Bytes;
use flotilla_common::digest::{Algorithm, Digest};
use reqwest::{Method, StatusCode};

use crate::support::{Region, code, header, location, sample};

async fn pulled(client: &crate::support::Registry, digest: &Digest) -> Bytes {
    let answer = client.get(&format!("/v2/app/blobs/{digest}")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    answer.bytes().await.unwrap()
}

#[tokio::test]
async fn push_by_post_put_and_patch() {
    let region = Region::start(1).await;
    let client = region.client(0);
    for len in [0, 1, 1000, 256 << 10, (3 << 20) + 17] {
        // POST, PATCH, PUT.
        let streamed = sample(len, 1);
        let digest = client.push_blob("app", streamed.clone()).await;
        assert!(pulled(&client, &digest).await == streamed);
        // POST, PUT with the bytes.
        let put = sample(len, 2);
        let digest = Digest::sha256(&put);
        let answer = client
            .put(&client.begin("app").await, &digest, put.clone())
            .await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert_eq!(location(&answer), format!("/v2/app/blobs/{digest}"));
        assert!(pulled(&client, &digest).await == put);
        // POST with the bytes.
        let posted = sample(len, 3);
        let digest = Digest::sha256(&posted);
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let answer = client
            .request(Method::POST, &path)
            .body(posted.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::CREATED);
        assert!(pulled(&client, &digest).await == posted);
    }
}

#[tokio::test]
async fn chunks_in_order_and_last_with_put() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let bytes = sample(1_000_000, 0);
    let digest = Digest::sha256(&bytes);
    let mut upload = client.begin("app").await;
    for (offset, end) in [(0, 300_000), (300_000, 300_001), (300_001, 700_000)] {
        let answer = client
            .chunk(&upload, offset, bytes.slice(offset..end))
            .await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        assert_eq!(header(&answer, "range"), format!("0-{}", end - 1));
        assert!(!header(&answer, "docker-upload-uuid").is_empty());
        upload = location(&answer);
        let status = client.get(&upload).await;
        assert_eq!(status.status(), StatusCode::NO_CONTENT);
        assert_eq!(header(&status, "range"), format!("0-{}", end - 1));
    }
    let answer = client.put(&upload, &digest, bytes.slice(700_000..)).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(pulled(&client, &digest).await == bytes);
    // The upload has ended.
    assert_eq!(
        code(client.chunk(&upload, 700_000, "x").await).await,
        "BLOB_UPLOAD_UNKNOWN"
    );
}

#[tokio::test]
async fn repeated_or_misplaced_chunk_is_416_with_range() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let upload = client.begin("app").await;
    let first = client.chunk(&upload, 0, "0123456789").await;
    let next = location(&first);
    for (at, offset) in [(&upload, 0), (&next, 0), (&next, 5), (&next, 11)] {
        let answer = client.chunk(at, offset, "0123456789").await;
        assert_eq!(
            answer.status(),
            StatusCode::RANGE_NOT_SATISFIABLE,
            "{at} {offset}"
        );
        assert_eq!(header(&answer, "range"), "0-9");
        assert_eq!(location(&answer), next);
    }
    // The segments of the loser are removed; one segment is left.
    assert_eq!(region.keys("seg/").await.len(), 1);
    assert_eq!(
        client.chunk(&next, 10, "x").await.status(),
        StatusCode::ACCEPTED
    );
}

#[tokio::test]
async fn wrong_digest_is_rejected_and_can_be_corrected() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let (bytes, wrong) = (sample(100_000, 0), Digest::sha256(b"something else"));
    let upload = client.begin("app").await;
    let answer = client.put(&upload, &wrong, bytes.clone()).await;
    assert_eq!(answer.status(), StatusCode::BAD_REQUEST);
    assert_eq!(code(answer).await, "DIGEST_INVALID");
    for prefix in ["seg/", "upload/", "blob/", "rb/"] {
        assert!(region.keys(prefix).await.is_empty(), "{prefix}");
    }
    let next = location(&client.patch(&upload, bytes.clone()).await);
    assert_eq!(
        client.put(&next, &wrong, "").await.status(),
        StatusCode::BAD_REQUEST
    );
    assert!(region.keys("blob/").await.is_empty());
    let digest = Digest::sha256(&bytes);
    assert_eq!(
        client.put(&next, &digest, "").await.status(),
        StatusCode::CREATED
    );
    // Repeated, as a client does that lost the response.
    assert_eq!(
        client.put(&next, &digest, "").await.status(),
        StatusCode::CREATED
    );
    let answer = client.put(&next, &wrong, "").await;
    assert_eq!(code(answer).await, "DIGEST_INVALID");
    assert_eq!(region.keys("blob/").await.len(), 1);
}

#[tokio::test]
async fn sha512_with_and_without_announcement() {
    let region = Region::start(1).await;
    let client = region.client(0);
    for (salt, query) in [(1, "?digest-algorithm=sha512"), (2, "")] {
        let bytes = sample(700_000, salt);
        let digest = Digest::of(Algorithm::Sha512, &bytes);
        let path = format!("/v2/app/blobs/uploads/{query}");
        let begun = client.request(Method::POST, &path).send().await.unwrap();
        let next = location(
            &client
                .patch(&location(&begun), bytes.slice(..400_000))
                .await,
        );
        let answer = client.put(&next, &digest, bytes.slice(400_000..)).await;
        assert_eq!(answer.status(), StatusCode::CREATED, "{query}");
        assert!(pulled(&client, &digest).await == bytes);
        let wrong = Digest::of(Algorithm::Sha512, b"wrong");
        let begun = client.begin("app").await;
        assert_eq!(
            code(client.put(&begun, &wrong, bytes).await).await,
            "DIGEST_INVALID"
        );
    }
}

#[tokio::test]
async fn cancelled_upload_is_unknown() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let upload = client.begin("app").await;
    let next = location(&client.patch(&upload, "0123456789").await);
    assert_eq!(client.delete(&next).await, StatusCode::NO_CONTENT);
    let digest = Digest::sha256(b"0123456789");
    assert_eq!(client.get(&next).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(
        code(client.put(&next, &digest, "").await).await,
        "BLOB_UPLOAD_UNKNOWN"
    );
    assert_eq!(
        code(client.patch(&next, "x").await).await,
        "BLOB_UPLOAD_UNKNOWN"
    );
    assert_eq!(client.delete(&next).await, StatusCode::NOT_FOUND);
    assert!(region.keys("blob/").await.is_empty());
}

#[tokio::test]
async fn mount_copies_no_bytes_or_begins_upload() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let digest = client.push_blob("app", sample(1000, 0)).await;
    let mount = |digest: Digest, from: &str| {
        let path = format!("/v2/other/blobs/uploads/?mount={digest}&from={from}");
        client.request(Method::POST, &path).send()
    };
    let answer = mount(digest, "app").await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(location(&answer), format!("/v2/other/blobs/{digest}"));
    assert_eq!(
        client
            .head(&format!("/v2/other/blobs/{digest}"))
            .await
            .status(),
        StatusCode::OK
    );
    // Without a source repository.
    let path = format!("/v2/third/blobs/uploads/?mount={digest}");
    assert_eq!(
        client
            .request(Method::POST, &path)
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::CREATED
    );
    assert_eq!(
        client
            .get(&format!("/v2/third/blobs/{digest}"))
            .await
            .status(),
        StatusCode::OK
    );
    let answer = mount(Digest::sha256(b"unknown"), "app").await.unwrap();
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let path = format!(
        "/v2/third/blobs/uploads/?mount={}",
        Digest::sha256(b"unknown")
    );
    assert_eq!(
        client
            .request(Method::POST, &path)
            .send()
            .await
            .unwrap()
            .status(),
        StatusCode::ACCEPTED
    );
    assert_eq!(region.keys("seg/").await.len(), 1);
}

#[tokio::test]
async fn blob_delete_is_scoped_and_reversible() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let bytes = sample(100_000, 0);
    let digest = client.push_blob("app", bytes.clone()).await;
    client.push_blob("other", bytes.clone()).await;
    let path = format!("/v2/app/blobs/{digest}");
    assert_eq!(client.delete(&path).await, StatusCode::ACCEPTED);
    assert_eq!(client.get(&path).await.status(), StatusCode::NOT_FOUND);
    assert_eq!(client.delete(&path).await, StatusCode::NOT_FOUND);
    assert_eq!(
        client
            .get(&format!("/v2/other/blobs/{digest}"))
            .await
            .status(),
        StatusCode::OK
    );
    client.push_blob("app", bytes.clone()).await;
    assert!(pulled(&client, &digest).await == bytes);
}

#[tokio::test]
async fn long_bodies_are_split_into_segments() {
    let region = Region::start_with(1, |config| config.limits.segment_len.0 = 1 << 20).await;
    let client = region.client(0);
    let bytes = sample(5 << 20, 0);
    let digest = client.push_blob("app", bytes.clone()).await;
    assert!(region.keys("seg/").await.len() >= 3);
    assert!(pulled(&client, &digest).await == bytes);
    let range = client.request(Method::GET, &format!("/v2/app/blobs/{digest}"));
    let answer = range
        .header("range", "bytes=1048000-3200000")
        .send()
        .await
        .unwrap();
    assert!(answer.bytes().await.unwrap() == bytes[1_048_000..=3_200_000]);
}
