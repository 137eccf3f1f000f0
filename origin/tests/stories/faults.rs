//! A server of object storage that throttles, fails, hangs, tears, and loses its answers: clients
//! see a success, or 503 with Retry-After, and what was acknowledged can be pulled.

use core::time::Duration;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};

use crate::servers::{Fault, Kind, Server};
use crate::support::{MANIFEST, Region, is_unavailable, manifest, sample};

async fn start(
    story: &str,
    replicas: usize,
    storage_timeout: Duration,
) -> Option<(Server, Region)> {
    let server = Server::start(story, Kind::S3Fs).await?;
    let adjust =
        |config: &mut flotilla_origin::Config| config.limits.storage_timeout = storage_timeout;
    let region = Region::start_on(server.storage(), replicas, adjust).await;
    Some((server, region))
}

const PATIENT: Duration = Duration::from_secs(30);
const BRIEF: Duration = Duration::from_millis(700);

async fn pulled(region: &Region, replica: usize, bytes: &Bytes) -> Result<bool, reqwest::Error> {
    let path = format!("/v2/app/blobs/{}", Digest::sha256(bytes));
    let answer = region.client(replica).get(&path).await.error_for_status()?;
    Ok(answer.bytes().await? == *bytes)
}

/// Each kind of write once throttled, once failed, and once done with its answer lost; parts of a
/// long segment, too.
#[tokio::test]
async fn every_write_may_be_throttled_or_fail_or_lose_its_answer_and_the_push_succeeds() {
    let story = "every_write_may_be_throttled_or_fail_or_lose_its_answer_and_the_push_succeeds";
    let Some((server, region)) = start(story, 2, PATIENT).await else {
        return;
    };
    let mut tag = 0;
    for fault in [Fault::Throttled, Fault::Failed, Fault::Unheard] {
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
            assert!(server.faults().are_spent(), "{part}");
            assert!(
                pulled(&region, 1, &layer).await.unwrap(),
                "{fault:?} {part}"
            );
        }
    }
    region.is_sound().await;
}

#[tokio::test]
async fn storage_that_throttles_for_good_is_a_503_that_says_when_to_come_again() {
    let story = "storage_that_throttles_for_good_is_a_503_that_says_when_to_come_again";
    let Some((server, region)) = start(story, 1, PATIENT).await else {
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
async fn a_request_that_hangs_is_given_up_and_the_write_settled() {
    let story = "a_request_that_hangs_is_given_up_and_the_write_settled";
    let Some((server, region)) = start(story, 1, BRIEF).await else {
        return;
    };
    let client = region.client(0);
    client.push_blob("app", "{}").await;
    server.faults().arm(Method::PUT, "/rm/", 1, Fault::Hangs);
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest(b"{}", &[]))
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert!(server.faults().are_spent());
    server.faults().arm(Method::GET, "/tag/", 9, Fault::Hangs);
    assert!(is_unavailable(&client.get("/v2/app/manifests/v2").await));
    server.faults().disarm();
    region.is_sound().await;
}

#[tokio::test]
async fn a_server_that_is_gone_is_a_503_and_what_is_warm_is_served() {
    let story = "a_server_that_is_gone_is_a_503_and_what_is_warm_is_served";
    let Some((server, region)) = start(story, 1, BRIEF).await else {
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
async fn a_torn_body_goes_on_where_it_broke_off_and_one_that_never_comes_whole_is_cut_short() {
    let story =
        "a_torn_body_goes_on_where_it_broke_off_and_one_that_never_comes_whole_is_cut_short";
    let Some((server, region)) = start(story, 1, PATIENT).await else {
        return;
    };
    let layer = sample(3 << 20, 0);
    region.client(0).push_blob("app", layer.clone()).await;
    server.faults().arm(Method::GET, "/seg/", 2, Fault::Torn);
    assert!(pulled(&region, 0, &layer).await.unwrap());
    assert!(server.faults().are_spent());
    server
        .faults()
        .arm(Method::GET, "/seg/", u32::MAX, Fault::Failed);
    server.faults().arm(Method::GET, "/seg/", 1, Fault::Torn);
    assert!(pulled(&region, 0, &layer).await.is_err());
    server.faults().disarm();
    region.is_sound().await;
}

/// A client that does not check what it gets must not take it for whole, either.
#[tokio::test]
async fn a_body_that_was_changed_on_its_way_is_cut_and_never_completed() {
    let story = "a_body_that_was_changed_on_its_way_is_cut_and_never_completed";
    let Some((server, region)) = start(story, 2, PATIENT).await else {
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
        assert!(server.faults().are_spent());
        assert!(pulled(&region, 1, &layer).await.unwrap());
    }
}
