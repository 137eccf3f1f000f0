//! The storage of a region fails, in each form, under pulls and pushes.

use std::time::{Duration, Instant};

use flotilla_common::digest::Digest;
use reqwest::{Method, StatusCode};

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::servers::GateState;
use crate::support::{Registry, header, sample};

/// The first requests of an outage take at most this long; machines are shared.
const FIRST: Duration = Duration::from_millis(4_000);

async fn has_image(client: &Registry, repository: &str, tag: &str) -> bool {
    let path = format!("/v2/{repository}/manifests/{tag}");
    client.get(&path).await.status() == StatusCode::OK
}

#[tokio::test]
async fn pulls_and_pushes_survive_each_form_of_outage() {
    let mut table = String::new();
    for outage in Outage::ALL {
        let mut regions = Regions::start(2, |_, _| {}).await;
        let client = regions.client(0);
        let layer = sample(600_000, 1);
        let manifest = client
            .push_image("app", "v1", core::slice::from_ref(&layer))
            .await;
        until("the copy", async || regions.stores_tag(1, "v1").await).await;
        // Nothing of it is in memory.
        let cold = regions.cold_client(0).await;
        regions.faults(0).set_outage(Some(outage));

        let mut row = format!("{outage:?}");
        let digest = Digest::sha256(&manifest);
        for (name, path) in [
            ("tag", "/v2/app/manifests/v1".to_owned()),
            ("digest", format!("/v2/app/manifests/{digest}")),
            ("blob", format!("/v2/app/blobs/{}", Digest::sha256(&layer))),
        ] {
            for attempt in ["first", "next"] {
                let started = Instant::now();
                let answer = cold.get(&path).await;
                assert_eq!(answer.status(), StatusCode::OK, "{outage:?} {path}");
                let bytes = answer.bytes().await.unwrap();
                assert!(bytes == manifest || bytes == layer, "{outage:?} {path}");
                let took = started.elapsed();
                assert!(took < FIRST, "{outage:?} {name} {attempt}: {took:?}");
                row += &format!(" | {name} {attempt} {:.2} s", took.as_secs_f64());
            }
        }
        let started = Instant::now();
        if !matches!(outage, Outage::TearsBodies | Outage::LosesObjects) {
            let pushed = push_once_noticed(&cold, outage).await;
            row += &format!(" | push {pushed} {:.2} s", started.elapsed().as_secs_f64());
        }
        table += &format!("{row}\n");
        regions.faults(0).set_outage(None);
        if !matches!(outage, Outage::TearsBodies | Outage::LosesObjects) {
            // The region is whole again without a hand, and traffic returns.
            until("the pushed image returns", async || {
                regions.stores_tag(0, "during").await
            })
            .await;
            assert!(has_image(&cold, "app", "during").await);
        }
    }
    eprintln!("{table}");
}

/// Neither a value nor a delete that memory knows is sure: the own storage, or another region, may
/// have a later one.
#[tokio::test]
async fn answers_about_tags_may_be_old_during_an_outage() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    for tag in ["kept", "deleted"] {
        client.push_image("app", tag, &[sample(1_000, 1)]).await;
        until("the copy", async || regions.stores_tag(1, tag).await).await;
    }
    // The other region does not hear of the delete.
    regions.gate(1, 0).set(GateState::Closed);
    let deleted = client.delete("/v2/app/manifests/deleted").await;
    assert_eq!(deleted, StatusCode::ACCEPTED);
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("the outage is noticed", async || {
        let ready = client.get("/readyz").await;
        ready.text().await.unwrap().contains("degraded")
    })
    .await;
    for (tag, status) in [("kept", StatusCode::OK), ("deleted", StatusCode::NOT_FOUND)] {
        // Memory is sure of it for a while.
        until("an answer that may be old", async || {
            let answer = client.get(&format!("/v2/app/manifests/{tag}")).await;
            assert_eq!(answer.status(), status, "{tag}");
            header(&answer, "warning").starts_with("299 - ")
        })
        .await;
    }
}

/// A push asks which uploads it may skip, here before the outage is noticed.
#[tokio::test]
async fn question_about_a_blob_goes_on_elsewhere_when_storage_hangs() {
    let mut regions = Regions::start(2, |_, _| {}).await;
    let layer = sample(1_000, 1);
    let image = [layer.clone()];
    regions.client(0).push_image("app", "v1", &image).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let cold = regions.cold_client(0).await;
    regions.faults(0).set_outage(Some(Outage::Hangs));
    let started = Instant::now();
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    assert_eq!(cold.head(&path).await.status(), StatusCode::OK);
    let took = started.elapsed();
    assert!(took < FIRST, "{took:?}");
}

/// Pushes an image through a region whose storage is out. Until the outage is noticed, requests may
/// be answered 503; a client repeats them.
async fn push_once_noticed(client: &Registry, outage: Outage) -> &'static str {
    let deadline = Instant::now() + Duration::from_secs(20);
    let layer = sample(50_000, 77);
    loop {
        match try_push(client, &layer).await {
            Ok(()) => return "forwarded",
            Err(status) => assert!(
                matches!(
                    status,
                    StatusCode::SERVICE_UNAVAILABLE
                        | StatusCode::REQUEST_TIMEOUT
                        | StatusCode::INSUFFICIENT_STORAGE
                ),
                "{outage:?}: {status}"
            ),
        }
        assert!(Instant::now() < deadline, "{outage:?}: no push succeeds");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

async fn try_push(client: &Registry, layer: &bytes::Bytes) -> Result<(), StatusCode> {
    let config = bytes::Bytes::from_static(b"{\"tag\":\"during\"}");
    for blob in [&config, layer] {
        let digest = Digest::sha256(blob);
        let path = format!("/v2/app/blobs/uploads/?digest={digest}");
        let request = client.request(Method::POST, &path).body(blob.clone());
        let answer = request.send().await.unwrap();
        if answer.status() != StatusCode::CREATED {
            return Err(answer.status());
        }
    }
    let manifest = crate::support::manifest(&config, core::slice::from_ref(layer));
    let answer = client
        .put_manifest(
            "/v2/app/manifests/during",
            crate::support::MANIFEST,
            manifest,
        )
        .await;
    match answer.status() {
        StatusCode::CREATED => Ok(()),
        other => Err(other),
    }
}

/// A body that the own storage began goes on from the other region.
#[tokio::test]
async fn body_goes_on_elsewhere_when_storage_hangs() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    let layer = sample(8 << 20, 3);
    client
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    let mut answer = client.get(&path).await;
    let first = answer.chunk().await.unwrap().unwrap();
    regions.faults(0).set_outage(Some(Outage::Hangs));
    let mut received = first.to_vec();
    while let Some(piece) = answer.chunk().await.unwrap() {
        received.extend_from_slice(&piece);
    }
    assert_eq!(received, layer);
}

#[tokio::test]
async fn readiness_is_degraded_while_another_region_serves() {
    let regions = Regions::start(2, |_, _| {}).await;
    regions.faults(0).set_outage(Some(Outage::Refuses));
    let client = regions.client(0);
    until("degraded", async || {
        let answer = client.get("/readyz").await;
        answer.status() == StatusCode::OK && answer.text().await.unwrap().contains("degraded")
    })
    .await;
    regions.faults(1).set_outage(Some(Outage::Refuses));
    until("not ready", async || {
        client.get("/readyz").await.status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
}

/// Both storages are out: neither region passes requests back and forth.
#[tokio::test]
async fn no_loop_when_both_storages_are_out() {
    let regions = Regions::start(2, |_, _| {}).await;
    regions
        .client(0)
        .push_image("app", "v1", &[sample(100, 1)])
        .await;
    for region in [0, 1] {
        regions.faults(region).set_outage(Some(Outage::Refuses));
    }
    let client = regions.client(0);
    let absent = format!("/v2/other/manifests/{}", Digest::sha256(b"absent"));
    until("503", async || {
        let answer = client.get(&absent).await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
            && !header(&answer, "retry-after").is_empty()
    })
    .await;
}
