//! Replicas that crash between two steps, and lost responses: acknowledged content stays, and other
//! requests can be repeated at any replica.

use bytes::Bytes;
use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use crate::faulty_storage::WriteFault;
use crate::support::{MANIFEST, Region, code, header, is_unavailable, location, manifest, sample};

/// Uploads these bytes, up to the final PUT. Returns the Location.
async fn upload_without_put(region: &Region, bytes: &Bytes) -> String {
    let client = region.client(0);
    location(
        &client
            .patch(&client.begin("app").await, bytes.clone())
            .await,
    )
}

async fn can_pull(region: &Region, replica: usize, bytes: &Bytes) -> bool {
    let path = format!("/v2/app/blobs/{}", Digest::sha256(bytes));
    let answer = region.client(replica).get(&path).await;
    answer.status() == StatusCode::OK && answer.bytes().await.unwrap() == *bytes
}

#[tokio::test]
async fn interrupted_finish_is_completed_at_another_replica() {
    for step in ["upload/", "blob/", "rb/"] {
        for fault in [WriteFault::Rejected, WriteFault::ResponseLost] {
            let region = Region::start(2).await;
            let bytes = sample(100_000, 0);
            let digest = Digest::sha256(&bytes);
            let next = upload_without_put(&region, &bytes).await;
            // As many faults as one request has attempts, including its read-back.
            region.faults.arm(step, 3, fault);
            let answer = region.client(0).put(&next, &digest, "").await;
            assert!(
                is_unavailable(&answer) || answer.status() == StatusCode::CREATED,
                "{step}"
            );
            let answer = region.client(1).put(&next, &digest, "").await;
            assert_eq!(answer.status(), StatusCode::CREATED, "{step}");
            assert!(can_pull(&region, 0, &bytes).await && can_pull(&region, 1, &bytes).await);
            assert_eq!(
                region.keys("blob/").await.len(),
                1,
                "every attempt writes the same record"
            );
            region.assert_sound().await;
        }
    }
}

#[tokio::test]
async fn write_with_lost_response_is_recognised_by_nonce() {
    for prefix in ["upload/", "blob/", "rb/", "rm/", "tag/"] {
        let region = Region::start(1).await;
        region.faults.arm(prefix, 1, WriteFault::ResponseLost);
        // Every request is acknowledged at its first attempt.
        region
            .client(0)
            .push_image("app", "v1", &[sample(1000, 0)])
            .await;
        assert!(can_pull(&region, 0, &sample(1000, 0)).await, "{prefix}");
        region.assert_sound().await;
    }
}

#[tokio::test]
async fn chunk_is_resent_after_failed_log_entry() {
    let region = Region::start(2).await;
    let bytes = sample(100_000, 0);
    let upload = region.client(0).begin("app").await;
    region.faults.arm("upload/", 3, WriteFault::Rejected);
    assert!(is_unavailable(
        &region.client(0).chunk(&upload, 0, bytes.clone()).await
    ));
    assert_eq!(
        region.keys("seg/").await.len(),
        1,
        "the log entry may still appear, so the segment must stay"
    );
    let answer = region.client(1).chunk(&upload, 0, bytes.clone()).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let answer = region
        .client(0)
        .put(&location(&answer), &Digest::sha256(&bytes), "")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(can_pull(&region, 1, &bytes).await);
    region.assert_sound().await;
}

/// An acknowledged record must not name a segment that was removed after a timeout.
#[tokio::test]
async fn late_log_entry_loses_its_offset() {
    let region = Region::start(2).await;
    let (late, early) = (sample(100_000, 1), sample(100_000, 2));
    let upload = region.client(0).begin("app").await;
    let (reached, resume) = region.faults.hold("upload/");
    let (first, second) = (region.client(0), region.client(1));
    let held = tokio::spawn({
        let (upload, late) = (upload.clone(), late.clone());
        async move { first.chunk(&upload, 0, late).await }
    });
    reached.notified().await;
    // While the first log entry is in flight, the client repeats at another replica and wins.
    let answer = second.chunk(&upload, 0, early.clone()).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    resume.notify_one();
    let lost = held.await.unwrap();
    assert_eq!(lost.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    assert_eq!(
        region.keys("seg/").await.len(),
        1,
        "only the loser's segment is removed"
    );
    let answer = second
        .put(&location(&answer), &Digest::sha256(&early), "")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(can_pull(&region, 0, &early).await && !can_pull(&region, 0, &late).await);
    region.assert_sound().await;
}

/// A cancel while a finish is in flight: exactly one of them takes effect.
#[tokio::test]
async fn late_finish_after_cancel_is_unknown_upload() {
    let region = Region::start(2).await;
    let bytes = sample(100_000, 0);
    let digest = Digest::sha256(&bytes);
    let next = upload_without_put(&region, &bytes).await;
    let (reached, resume) = region.faults.hold("upload/");
    let client = region.client(0);
    let held = tokio::spawn({
        let next = next.clone();
        async move { client.put(&next, &digest, "").await }
    });
    reached.notified().await;
    assert_eq!(region.client(1).delete(&next).await, StatusCode::NO_CONTENT);
    resume.notify_one();
    assert_eq!(code(held.await.unwrap()).await, "BLOB_UPLOAD_UNKNOWN");
    assert!(region.keys("blob/").await.is_empty() && region.keys("rb/").await.is_empty());
    region.assert_sound().await;
}

/// A swap that lost is not written a second time, so the newer acknowledged tag stays.
#[tokio::test]
async fn overtaken_tag_swap_is_503_and_newer_tag_stays() {
    let region = Region::start(2).await;
    let client = region.client(0);
    client.push_image("app", "v1", &[]).await;
    let (slow, fast) = (
        client.push_image("app", "a", &[sample(1, 1)]).await,
        client.push_image("app", "b", &[sample(1, 2)]).await,
    );
    let (reached, resume) = region.faults.hold("tag/app/_/v1");
    let held = tokio::spawn(async move {
        client
            .put_manifest("/v2/app/manifests/v1", MANIFEST, slow)
            .await
    });
    reached.notified().await;
    let answer = region
        .client(1)
        .put_manifest("/v2/app/manifests/v1", MANIFEST, fast.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    resume.notify_one();
    assert!(is_unavailable(&held.await.unwrap()));
    for replica in 0..2 {
        let tag = region
            .client(replica)
            .get("/v2/app/manifests/v1")
            .await
            .bytes()
            .await
            .unwrap();
        assert_eq!(tag, fast);
    }
    region.assert_sound().await;
}

/// A blob dies between its check and the confirmation of the manifest: the manifest is withdrawn.
#[tokio::test]
async fn late_manifest_is_withdrawn_if_a_blob_died() {
    let none = core::time::Duration::ZERO;
    let region = Region::start_with(2, |config| config.horizons.liveness = none).await;
    let layer = sample(1000, 0);
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    let digest = client.push_blob("app", layer.clone()).await;
    let body = manifest(b"{}", &[layer]);
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&body));
    let (reached, resume) = region.faults.hold("rm/");
    let held = tokio::spawn({
        let body = body.clone();
        async move {
            client
                .put_manifest("/v2/app/manifests/v1", MANIFEST, body)
                .await
        }
    });
    reached.notified().await;
    let gone = region
        .client(1)
        .delete(&format!("/v2/app/blobs/{digest}"))
        .await;
    assert_eq!(gone, StatusCode::ACCEPTED);
    resume.notify_one();
    assert_eq!(code(held.await.unwrap()).await, "MANIFEST_BLOB_UNKNOWN");
    for replica in 0..2 {
        assert_eq!(
            region.client(replica).get(&by_digest).await.status(),
            StatusCode::NOT_FOUND
        );
        let tag = region.client(replica).get("/v2/app/manifests/v1").await;
        assert_eq!(tag.status(), StatusCode::NOT_FOUND);
    }
    region.assert_sound().await;
}

#[tokio::test]
async fn hung_storage_is_503() {
    let brief = core::time::Duration::from_millis(300);
    let region = Region::start_with(1, |config| config.limits.storage_timeout = brief).await;
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    for _ in 0..3 {
        region.faults.hold("rm/");
    }
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert!(is_unavailable(&answer));
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    region.assert_sound().await;
}

#[tokio::test]
async fn storage_outage_is_503_and_warm_content_is_served() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[sample(1000, 0)]).await;
    assert!(can_pull(&region, 0, &sample(1000, 0)).await);
    client.get("/v2/app/manifests/v1").await;
    region.faults.set_down(true);
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&pushed));
    assert_eq!(client.get(&by_digest).await.bytes().await.unwrap(), pushed);
    assert!(can_pull(&region, 0, &sample(1000, 0)).await);
    assert!(is_unavailable(&client.get("/v2/app/manifests/other").await));
    assert!(is_unavailable(&client.get("/v2/app/tags/list").await));
    let answer = client
        .put_manifest("/v2/app/manifests/v2", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert!(is_unavailable(&answer));
    region.faults.set_down(false);
    assert_eq!(
        client.get("/v2/app/manifests/other").await.status(),
        StatusCode::NOT_FOUND
    );
    region.assert_sound().await;
}

#[tokio::test]
async fn expired_tag_is_served_stale_with_warning() {
    let none = core::time::Duration::ZERO;
    let region = Region::start_with(1, |config| config.limits.tag_time_to_live = none).await;
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[]).await;
    assert_eq!(
        header(&client.get("/v2/app/manifests/v1").await, "warning"),
        ""
    );
    region.faults.set_down(true);
    let answer = client.get("/v2/app/manifests/v1").await;
    assert!(header(&answer, "warning").starts_with("299 - "));
    assert_eq!(answer.bytes().await.unwrap(), pushed);
    let metrics = client.metrics().await;
    assert!(
        metrics.contains("flotilla_origin_stale_answers_total 1"),
        "{metrics}"
    );
    region.assert_sound().await;
}

#[tokio::test]
async fn disconnected_upload_leaves_no_segments() {
    use tokio::io::AsyncWriteExt;
    let region = Region::start(1).await;
    let client = region.client(0);
    let upload = client.begin("app").await;
    let mut stream = tokio::net::TcpStream::connect(region.origins[0].addr())
        .await
        .unwrap();
    let head =
        format!("PATCH {upload} HTTP/1.1\r\nhost: origin\r\ncontent-length: 5000000\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&sample(3_000_000, 0)).await.unwrap();
    drop(stream);
    let bytes = sample(1000, 1);
    let answer = client.chunk(&upload, 0, bytes.clone()).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let answer = client
        .put(&location(&answer), &Digest::sha256(&bytes), "")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(can_pull(&region, 0, &bytes).await);
    region.assert_sound().await;
}
