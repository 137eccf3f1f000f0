//! Pushes that more than one region takes part in.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};

use super::harness::Regions;
use super::until;
use crate::faulty_storage::{Outage, WriteFault};
use crate::servers::GateState;
use crate::support::{MANIFEST, Registry, header, location, manifest, sample};

/// DNS moves a client to another region in the middle of an upload.
#[tokio::test]
async fn upload_goes_on_in_the_region_where_it_began() {
    let regions = Regions::start(2, |_, _| {}).await;
    let upload = regions.client(0).begin("app").await;
    assert!(upload.contains("/uploads/eu-1."), "{upload}");
    let bytes = sample(200_000, 1);
    let digest = Digest::sha256(&bytes);
    let moved = regions.client(1);
    let answer = moved.patch(&upload, bytes).await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    let answer = moved.put(&location(&answer), &digest, Vec::new()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let head = regions
        .client(0)
        .head(&format!("/v2/app/blobs/{digest}"))
        .await;
    assert_eq!(head.status(), StatusCode::OK);
}

/// `ack_regions = 2`: a push is acknowledged when both regions have it, and not before.
#[tokio::test]
async fn push_is_acknowledged_by_two_regions() {
    let rules = "[[repository]]\nmatch = \"**\"\nack_regions = 2\n";
    let regions = Regions::start_with(2, 1, rules, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    // Without a wait: it is in the other region's own storage.
    regions.faults(0).set_outage(Some(Outage::Refuses));
    assert!(regions.stores_tag(1, "v1").await);
    regions.faults(0).set_outage(None);
}

/// Another region's home for a repository: changes go there, and are seen here at once.
#[tokio::test]
async fn changes_go_to_the_home_of_a_repository() {
    let rules = "[[repository]]\nmatch = \"**\"\nhome = \"us-1\"\n";
    let regions = Regions::start_with(2, 1, rules, |_, _| {}).await;
    let client = regions.client(0);
    for salt in 1..4 {
        let image = client
            .push_image("app", "v1", &[sample(70_000, salt)])
            .await;
        let answer = client.get("/v2/app/manifests/v1").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap(), image, "push {salt}");
    }
    assert!(regions.stores_tag(1, "v1").await);
    assert_eq!(
        client.delete("/v2/app/manifests/v1").await,
        StatusCode::ACCEPTED
    );
    let answer = client.get("/v2/app/manifests/v1").await;
    assert_eq!(answer.status(), StatusCode::NOT_FOUND);
    regions.gate(0, 1).set(GateState::Closed);
    until("503 without the home", async || {
        let config = sample(10, 1);
        let answer = client
            .put_manifest("/v2/app/manifests/v2", MANIFEST, manifest(&config, &[]))
            .await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
            && !header(&answer, "retry-after").is_empty()
    })
    .await;
}

/// The storage of a repository's home is out: no client and no region can write in another region,
/// because that would allow two values of an immutable tag.
#[tokio::test]
async fn repository_is_written_nowhere_while_its_home_is_out() {
    let rules = "[[repository]]\nmatch = \"**\"\nhome = \"eu-1\"\nimmutable = [\"v*\"]\n";
    let regions = Regions::start_with(2, 1, rules, |_, _| {}).await;
    let client = regions.client(0);
    let image = client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let push = async |client: &Registry| {
        let path = "/v2/app/manifests/v2";
        client.put_manifest(path, MANIFEST, image.clone()).await
    };
    regions.faults(0).set_outage(Some(Outage::Refuses));
    for region in [0, 1] {
        let client = regions.client(region);
        until("503 with the name of the home", async || {
            let answer = push(&client).await;
            assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "{region}");
            assert!(!header(&answer, "retry-after").is_empty());
            let text = answer.text().await.unwrap();
            text.contains("made in region eu-1, ")
        })
        .await;
    }
    // A region with another policy forwards a push here.
    let origin = regions.client_as(&regions.identity_of("eu-1"), 1);
    let answer = push(&origin).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    let upload = origin.request(Method::POST, "/v2/app/blobs/uploads/");
    let answer = upload.send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!regions.stores_tag(1, "v2").await);
    // Reads go on, and so do the questions of pushes.
    let answer = client.get("/v2/app/manifests/v1").await;
    assert_eq!(answer.status(), StatusCode::OK);
    regions.faults(0).set_outage(None);
    until("the push at home", async || {
        push(&regions.client(1)).await.status() == StatusCode::CREATED
    })
    .await;
}

/// Three regions: the storage of the first one is out, and the second one does not answer. A client
/// that only pushes is not sent to the second one for ever.
#[tokio::test]
async fn pushes_go_to_a_region_that_answers() {
    for silence in [GateState::Closed, GateState::Hanging] {
        let regions = Regions::start(3, |_, _| {}).await;
        let client = regions.client(0);
        let image = client.push_image("app", "v1", &[sample(70_000, 1)]).await;
        for region in [1, 2] {
            until("the copy", async || regions.stores_tag(region, "v1").await).await;
        }
        regions.faults(0).set_outage(Some(Outage::Hangs));
        regions.gate(0, 1).set(silence);
        let started = Instant::now();
        let path = "/v2/app/manifests/v2";
        while client
            .put_manifest(path, MANIFEST, image.clone())
            .await
            .status()
            != StatusCode::CREATED
        {
            let took = started.elapsed();
            assert!(took < Duration::from_secs(10), "{silence:?}: {took:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert!(regions.stores_tag(2, "v2").await, "{silence:?}");
        assert!(!regions.stores_tag(1, "v2").await, "{silence:?}");
    }
}

/// Errors of single changes with successes between them do not take the storage out.
#[tokio::test]
async fn single_errors_do_not_take_the_storage_out() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    let image = client.push_image("app", "v1", &[sample(100, 1)]).await;
    let push = async |tag: &str| {
        let path = format!("/v2/app/manifests/{tag}");
        let answer = client.put_manifest(&path, MANIFEST, image.clone()).await;
        answer.status()
    };
    for number in 0..7 {
        // As often as a write is repeated.
        let faults = regions.faults(0);
        faults.arm("tag/app/_/bad", 3, WriteFault::Rejected);
        assert_eq!(push("bad").await, StatusCode::SERVICE_UNAVAILABLE);
        let good = format!("good-{number}");
        assert_eq!(push(&good).await, StatusCode::CREATED);
        assert!(regions.stores_tag(0, &good).await, "{good} was forwarded");
        tokio::time::sleep(Duration::from_millis(600)).await;
    }
}

/// A full storage answers reads and probes, so it is not out; but changes go to another region.
#[tokio::test]
async fn pushes_are_forwarded_while_the_storage_is_full() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    let layer = sample(70_000, 1);
    client
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    regions.faults(0).set_outage(Some(Outage::Full));
    let new = sample(5_000, 2);
    let path = format!("/v2/app/blobs/uploads/?digest={}", Digest::sha256(&new));
    let push = async || {
        let request = client.request(Method::POST, &path).body(new.clone());
        request.send().await.unwrap()
    };
    let answer = push().await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&answer, "retry-after").is_empty());
    let text = answer.text().await.unwrap();
    assert!(text.contains("full") && text.contains("us-1"), "{text}");
    assert_eq!(push().await.status(), StatusCode::CREATED);
    client.push_image("app", "v2", &[new]).await;
    assert!(regions.stores_tag(1, "v2").await);
    assert!(!regions.stores_tag(0, "v2").await);
    // The blobs of the region itself are still its own to send.
    let own = client
        .request(
            Method::GET,
            &format!("/v2/app/blobs/{}", Digest::sha256(&layer)),
        )
        .header("flotilla-own-storage", "only");
    assert_eq!(own.send().await.unwrap().status(), StatusCode::OK);
    let ready = client.get("/readyz").await.text().await.unwrap();
    assert!(!ready.contains("degraded"), "{ready}");
    regions.faults(0).set_outage(None);
    until("the copy", async || regions.stores_tag(0, "v2").await).await;
}

/// The region to which a change was forwarded hangs before it answers: the outcome is unknown, and
/// no other region gets the change.
#[tokio::test]
async fn change_is_never_forwarded_twice() {
    let regions = Regions::start(3, |_, _| {}).await;
    let client = regions.client(0);
    let image = client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    for region in [1, 2] {
        until("the copy", async || regions.stores_tag(region, "v1").await).await;
    }
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("pushes are forwarded", async || {
        let path = "/v2/app/manifests/first";
        let answer = client.put_manifest(path, MANIFEST, image.clone()).await;
        answer.status() == StatusCode::CREATED
    })
    .await;
    // The first half of the manifest passes, and with it the head of the request.
    let (pieces, body) = tokio::sync::mpsc::channel(1);
    let body = futures_util::stream::unfold(body, async |mut body| {
        let piece: Bytes = body.recv().await?;
        Some((Ok::<_, std::io::Error>(piece), body))
    });
    let request = client
        .request(Method::PUT, "/v2/app/manifests/second")
        .header("content-type", MANIFEST)
        .body(reqwest::Body::wrap_stream(body));
    let answer = tokio::spawn(request.send());
    pieces.send(image.slice(..50)).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    regions.gate(0, 1).set(GateState::Hanging);
    pieces.send(image.slice(50..)).await.unwrap();
    drop(pieces);
    let answer = answer.await.unwrap().unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!header(&answer, "retry-after").is_empty());
    let text = answer.text().await.unwrap();
    assert!(text.contains("outcome is unknown"), "{text}");
    assert!(!regions.stores_tag(2, "second").await);
}

/// A change that was forwarded during an outage is seen after it, before it was copied back.
#[tokio::test]
async fn forwarded_push_is_seen_after_the_outage() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    regions.faults(0).set_outage(Some(Outage::Refuses));
    // Until the outage is noticed a push may be refused.
    until("the outage is noticed", async || {
        client
            .get("/readyz")
            .await
            .text()
            .await
            .unwrap()
            .contains("degraded")
    })
    .await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let second = client.push_image("app", "v1", &[sample(70_000, 2)]).await;
    regions.faults(0).set_outage(None);
    for _ in 0..50 {
        let answer = client.get("/v2/app/manifests/v1").await;
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.bytes().await.unwrap(), second);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A manifest whose blobs are in the other region only: they are copied behind the push.
#[tokio::test]
async fn manifest_finds_its_blobs_in_the_other_region() {
    let regions = Regions::start(2, |_, _| {}).await;
    let (config, layer) = (sample(40, 1), sample(70_000, 2));
    for blob in [&config, &layer] {
        regions.client(1).push_blob("app", blob.clone()).await;
    }
    let body = manifest(&config, &[layer]);
    let answer = regions
        .client(0)
        .put_manifest("/v2/app/manifests/v1", MANIFEST, body)
        .await;
    assert_eq!(
        answer.status(),
        StatusCode::CREATED,
        "{}",
        answer.text().await.unwrap()
    );
}
