//! Pulling: ranges, conditions, headers, and the cap on the uplink.

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::units::BitRate;
use flotilla_origin::storage;
use reqwest::{Method, StatusCode};

use crate::support::{Region, Registry, code, header, location, sample, start_replicas};

#[tokio::test]
async fn ranges_of_large_and_small_blobs() {
    let region = Region::start(1).await;
    let client = region.client(0);
    for len in [100, 3_000_000] {
        let bytes = sample(len, 0);
        let digest = client.push_blob("app", bytes.clone()).await;
        let path = format!("/v2/app/blobs/{digest}");
        let ranged = |range: String| {
            client
                .request(Method::GET, &path)
                .header("range", range)
                .send()
        };
        for (range, start, end) in [
            ("bytes=0-0".to_owned(), 0, 1),
            ("bytes=10-19".to_owned(), 10, 20),
            ("bytes=-7".to_owned(), len - 7, len),
            (format!("bytes={}-", len - 1), len - 1, len),
            ("bytes=50-99999999".to_owned(), 50, len),
        ] {
            let answer = ranged(range.clone()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::PARTIAL_CONTENT, "{range}");
            assert_eq!(
                header(&answer, "content-range"),
                format!("bytes {start}-{}/{len}", end - 1)
            );
            assert_eq!(header(&answer, "content-length"), (end - start).to_string());
            assert!(
                answer.bytes().await.unwrap() == bytes[start..end],
                "{range}"
            );
        }
        let answer = ranged(format!("bytes={len}-")).await.unwrap();
        assert_eq!(answer.status(), StatusCode::RANGE_NOT_SATISFIABLE);
        assert_eq!(header(&answer, "content-range"), format!("bytes */{len}"));
        let answer = ranged("bytes=0-1,5-6".to_owned()).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap().len(), len);
    }
}

/// Files of a local directory are sent to the socket by the kernel.
#[tokio::test]
async fn ranges_spanning_segments_of_local_directory() {
    let directory = tempfile::tempdir().unwrap();
    let storage =
        storage::open(&format!("file://{}", directory.path().display()), 64 << 20).unwrap();
    let replicas = start_replicas(1, storage, |_| {}).await;
    let client = Registry::at(replicas[0].addr());
    let bytes = sample(3_000_000, 0);
    let cut = 1_200_000;
    let upload = client.begin("app").await;
    let upload = location(&client.chunk(&upload, 0, bytes.slice(..cut)).await);
    let upload = location(&client.chunk(&upload, cut, bytes.slice(cut..)).await);
    let digest = Digest::sha256(&bytes);
    assert_eq!(
        client.put(&upload, &digest, Bytes::new()).await.status(),
        StatusCode::CREATED
    );
    let path = format!("/v2/app/blobs/{digest}");
    for (start, end) in [
        (0, bytes.len()),
        (cut - 5, cut + 5),
        (7, cut),
        (cut, bytes.len()),
        (0, 1),
    ] {
        let range = format!("bytes={start}-{}", end - 1);
        let answer = client
            .request(Method::GET, &path)
            .header("range", &range)
            .send()
            .await
            .unwrap();
        assert!(
            answer.bytes().await.unwrap() == bytes[start..end],
            "{range}"
        );
    }
    assert!(client.get(&path).await.bytes().await.unwrap() == bytes);
    assert!(replicas[0].metrics().blob_bytes() >= bytes.len() as u64 * 2);
}

#[tokio::test]
async fn head_returns_headers_without_body() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let digest = client.push_blob("app", sample(5000, 0)).await;
    let path = format!("/v2/app/blobs/{digest}");
    let answer = client.head(&path).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(header(&answer, "content-length"), "5000");
    assert_eq!(header(&answer, "docker-content-digest"), digest.to_string());
    assert_eq!(header(&answer, "accept-ranges"), "bytes");
    assert_eq!(
        header(&answer, "docker-distribution-api-version"),
        "registry/2.0"
    );
    let etag = header(&answer, "etag").to_owned();
    for method in [Method::GET, Method::HEAD] {
        let answer = client
            .request(method, &path)
            .header("if-none-match", &etag)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_MODIFIED);
    }
    let answer = client
        .head(&format!("/v2/app/blobs/{}", Digest::sha256(b"unknown")))
        .await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    assert!(answer.bytes().await.unwrap().is_empty());
}

#[tokio::test]
async fn blobs_are_scoped_to_their_repository() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let digest = client.push_blob("app", sample(5000, 0)).await;
    assert_eq!(
        code(client.get(&format!("/v2/other/blobs/{digest}")).await).await,
        "BLOB_UNKNOWN"
    );
    assert_eq!(
        code(client.get(&format!("/v2/app/sub/blobs/{digest}")).await).await,
        "BLOB_UNKNOWN"
    );
}

#[tokio::test]
async fn uplink_cap_is_shared_and_counted() {
    let rate = BitRate(64_000_000);
    let region = Region::start_with(1, |config| config.uplink = Some(rate).into()).await;
    let client = region.client(0);
    let bytes = sample(1 << 20, 0);
    let digest = client.push_blob("app", bytes.clone()).await;
    let path = format!("/v2/app/blobs/{digest}");
    let started = std::time::Instant::now();
    let pulls = futures_util::future::join_all((0..3).map(|_| client.get(&path))).await;
    for answer in pulls {
        assert!(answer.bytes().await.unwrap() == bytes);
    }
    // 3 MiB at 8 MB/s take 393 ms; an idle cap grants the first 64 KiB at once.
    assert!(
        started.elapsed().as_millis() >= 350,
        "{:?}",
        started.elapsed()
    );
    assert_eq!(region.origins[0].metrics().blob_bytes(), 3 << 20);
}
