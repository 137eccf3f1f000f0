//! Origins on S3: the same guarantees as on any storage, and the number of S3 requests per request.

use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};

use crate::servers::{Kind, Server};
use crate::support::{MANIFEST, Region, descriptor, header, location, manifest, sample};

#[tokio::test]
async fn images_across_three_replicas_on_s3() {
    let test = "images_across_three_replicas_on_s3";
    for kind in [Kind::S3Fs, Kind::Moto] {
        let Some(server) = Server::start(test, kind).await else {
            return;
        };
        let region = Region::start_on(server.storage(), 3, |_| {}).await;
        // One part, two parts, several requests.
        let layers = [sample(100_000, 1), sample((9 << 20) + 1, 2)];
        let pushed = region
            .client(0)
            .push_image("library/app", "v1", &layers)
            .await;
        let across_replicas = push_across_replicas(&region, 5, 700_000).await;
        for replica in 0..3 {
            let client = region.client(replica);
            let got = client
                .get("/v2/library/app/manifests/v1")
                .await
                .bytes()
                .await
                .unwrap();
            assert_eq!(got, pushed);
            for layer in layers.iter().chain([&across_replicas]) {
                let path = format!("/v2/library/app/blobs/{}", Digest::sha256(layer));
                assert!(
                    client.get(&path).await.bytes().await.unwrap() == *layer,
                    "{kind:?}"
                );
                let answer = client
                    .request(Method::GET, &path)
                    .header("range", "bytes=99-1098")
                    .send()
                    .await;
                assert!(
                    answer.unwrap().bytes().await.unwrap() == layer[99..1099],
                    "{kind:?}"
                );
            }
        }
        let mut artifact: serde_json::Value = serde_json::from_slice(&pushed).unwrap();
        artifact["subject"] = descriptor(MANIFEST, &pushed);
        let (client, artifact) = (region.client(1), artifact.to_string());
        let answer = client
            .put_manifest("/v2/library/app/manifests/sig", MANIFEST, artifact)
            .await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let referrers = format!("/v2/library/app/referrers/{}", Digest::sha256(&pushed));
        let referrers = region.client(2).get(&referrers).await.text().await.unwrap();
        assert_eq!(referrers.matches("\"digest\"").count(), 1, "{referrers}");
        let tags = region.client(2).get("/v2/library/app/tags/list?n=1").await;
        assert!(header(&tags, "link").contains("last=sig"), "{tags:?}");
        assert_eq!(
            region
                .client(1)
                .delete("/v2/library/app/manifests/sig")
                .await,
            StatusCode::ACCEPTED
        );
        let tags = region
            .client(0)
            .get("/v2/library/app/tags/list")
            .await
            .text()
            .await
            .unwrap();
        assert_eq!(tags, "{\"name\":\"library/app\",\"tags\":[\"v1\"]}");
    }
}

/// Pushes a blob whose chunks go to the replicas in turn.
async fn push_across_replicas(region: &Region, chunks: usize, step: usize) -> bytes::Bytes {
    let bytes = sample(chunks * step, 7);
    let mut upload = region.client(0).begin("library/app").await;
    for chunk in 0..chunks {
        let piece = bytes.slice(chunk * step..(chunk + 1) * step);
        let answer = region
            .client(chunk % 3)
            .chunk(&upload, chunk * step, piece)
            .await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        upload = location(&answer);
    }
    let answer = region
        .client(1)
        .put(&upload, &Digest::sha256(&bytes), "")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    bytes
}

/// The costs in storage operations are also the costs in S3 requests.
#[tokio::test]
async fn s3_requests_per_operation() {
    let test = "s3_requests_per_operation";
    // s3s-fs keeps the metadata of an object in a file whose name has the whole key. For a long key
    // it writes the object and answers 500, so a record costs a second PUT and a read.
    let Some(server) = Server::start(test, Kind::Moto).await else {
        return;
    };
    let region = Region::start_on(server.storage(), 2, |_| {}).await;
    let (first, second) = (region.client(0), region.client(1));
    let costs = |expected: usize, what: &str| {
        let requests = server.faults().take_requests();
        assert_eq!(requests.len(), expected, "{what}: {requests:#?}");
    };
    server.faults().take_requests();
    let layer = sample(1 << 20, 0);
    first.push_blob("app", layer.clone()).await;
    costs(6, "HEAD, segment, link, finish link, record, claim");

    let elsewhere = sample(1 << 20, 1);
    let digest = Digest::sha256(&elsewhere);
    first.head(&format!("/v2/app/blobs/{digest}")).await;
    let next = location(&first.patch(&first.begin("app").await, elsewhere).await);
    assert_eq!(
        second.put(&next, &digest, "").await.status(),
        StatusCode::CREATED
    );
    costs(7, "the same, and a read of the last log entry");

    first.push_blob("app", "{}").await;
    server.faults().take_requests();
    let body = manifest(b"{}", std::slice::from_ref(&layer));
    let answer = first
        .put_manifest("/v2/app/manifests/v1", MANIFEST, body.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    costs(4, "two writes and two reads");

    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&body));
    second.get("/v2/app/manifests/v1").await;
    costs(2, "a cold tag and its manifest");
    let blob = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    second.get(&blob).await.bytes().await.unwrap();
    costs(3, "membership, record, bytes");
    second.get(&by_digest).await;
    second.head(&blob).await;
    costs(0, "warm");
    second.get(&blob).await.bytes().await.unwrap();
    costs(1, "bytes");
}
