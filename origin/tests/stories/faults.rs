//! Faults of the object store (throttling, errors, hangs, torn bodies, lost responses): clients get
//! a success or 503 with Retry-After, and acknowledged content can be pulled.

use core::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};

use crate::servers::{Fault, Kind, Server};
use crate::support::{MANIFEST, Region, is_unavailable, manifest, sample};

async fn start(test: &str, replicas: usize, storage_timeout: Duration) -> Option<(Server, Region)> {
    let server = Server::start(test, Kind::S3Fs).await?;
    let adjust =
        |config: &mut flotilla_origin::Config| config.limits.storage_timeout = storage_timeout;
    let region = Region::start_on(server.storage(), replicas, adjust).await;
    Some((server, region))
}

const LONG_TIMEOUT: Duration = Duration::from_secs(30);
const SHORT_TIMEOUT: Duration = Duration::from_millis(700);

async fn pulled(region: &Region, replica: usize, bytes: &Bytes) -> Result<bool, reqwest::Error> {
    let path = format!("/v2/app/blobs/{}", Digest::sha256(bytes));
    let answer = region.client(replica).get(&path).await.error_for_status()?;
    Ok(answer.bytes().await? == *bytes)
}

/// Each kind of write, including the parts of a long segment, is throttled, fails, and loses its
/// response once.
#[tokio::test]
async fn push_succeeds_despite_write_faults() {
    let test = "push_succeeds_despite_write_faults";
    let Some((server, region)) = start(test, 2, LONG_TIMEOUT).await else {
        return;
    };
    let mut tag = 0;
    for fault in [Fault::Throttled, Fault::Failed, Fault::ResponseLost] {
        for (method, part) in [
            (Method::PUT, "/seg/"),
            (Method::POST, "?uploads"),
            (Method::PUT, "partNumber=2"),
            (Method::POST, "uploadId="),
            (Method::PUT, "/upload/"),
            (Method::PUT, "/blob/"),
            (Method::PUT, "/rb/"),
            (Method::PUT, "/rm/"),
            (Method::PUT, "/tag/"),
        ] {
            tag += 1;
            server.faults().arm(method, part, 1, fault);
            let layer = sample((9 << 20) + tag, tag);
            region
                .client(0)
                .push_image("app", &format!("v{tag}"), std::slice::from_ref(&layer))
                .await;
            assert!(server.faults().are_all_used(), "{part}");
            assert!(
                pulled(&region, 1, &layer).await.unwrap(),
                "{fault:?} {part}"
            );
        }
    }
    region.assert_sound().await;
}

#[tokio::test]
async fn permanent_throttling_is_503_with_retry_after() {
    let test = "permanent_throttling_is_503_with_retry_after";
    let Some((server, region)) = start(test, 1, LONG_TIMEOUT).await else {
        return;
    };
    server.faults().throttle_one_in(1);
    assert!(is_unavailable(
        &region.client(0).get("/v2/app/manifests/v1").await
    ));
    server.faults().throttle_one_in(0);
    let answer = region.client(0).get("/v2/app/manifests/v1").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn hung_write_times_out_and_is_read_back() {
    let test = "hung_write_times_out_and_is_read_back";
    let Some((server, region)) = start(test, 1, SHORT_TIMEOUT).await else {
        return;
    };
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    server.faults().arm(Method::PUT, "/rm/", 1, Fault::Hangs);
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(server.faults().are_all_used());
    server.faults().arm(Method::GET, "/tag/", 9, Fault::Hangs);
    assert!(is_unavailable(&client.get("/v2/app/manifests/v2").await));
    server.faults().disarm();
    region.assert_sound().await;
}

#[tokio::test]
async fn unreachable_server_is_503_and_warm_content_is_served() {
    let test = "unreachable_server_is_503_and_warm_content_is_served";
    let Some((server, region)) = start(test, 1, SHORT_TIMEOUT).await else {
        return;
    };
    let client = region.client(0);
    let pushed = client.push_image("app", "v1", &[sample(1000, 0)]).await;
    assert!(pulled(&region, 0, &sample(1000, 0)).await.unwrap());
    drop(server);
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&pushed));
    assert_eq!(client.get(&by_digest).await.bytes().await.unwrap(), pushed);
    assert!(pulled(&region, 0, &sample(1000, 0)).await.unwrap());
    assert!(is_unavailable(&client.get("/v2/app/manifests/other").await));
    let answer = client
        .put_manifest("/v2/app/manifests/v2", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert!(is_unavailable(&answer));
}

#[tokio::test]
async fn torn_read_is_resumed_or_truncated() {
    let test = "torn_read_is_resumed_or_truncated";
    let Some((server, region)) = start(test, 1, LONG_TIMEOUT).await else {
        return;
    };
    let layer = sample(3 << 20, 0);
    region.client(0).push_blob("app", layer.clone()).await;
    server.faults().arm(Method::GET, "/seg/", 2, Fault::Torn);
    assert!(pulled(&region, 0, &layer).await.unwrap());
    assert!(server.faults().are_all_used());
    server
        .faults()
        .arm(Method::GET, "/seg/", u32::MAX, Fault::Failed);
    server.faults().arm(Method::GET, "/seg/", 1, Fault::Torn);
    assert!(pulled(&region, 0, &layer).await.is_err());
    server.faults().disarm();
    region.assert_sound().await;
}

/// Even a client that verifies nothing must not get a complete body.
#[tokio::test]
async fn corrupted_body_is_never_completed() {
    let test = "corrupted_body_is_never_completed";
    let Some((server, region)) = start(test, 2, LONG_TIMEOUT).await else {
        return;
    };
    for layer in [sample(9 << 20, 0), sample(70_000, 1), sample(1000, 2)] {
        region.client(0).push_blob("app", layer.clone()).await;
        server.faults().arm(Method::GET, "/seg/", 1, Fault::Wrong);
        assert!(
            pulled(&region, 1, &layer).await.is_err(),
            "{} bytes",
            layer.len()
        );
        assert!(server.faults().are_all_used());
        assert!(pulled(&region, 1, &layer).await.unwrap());
    }
}
