//! Deletes of what this region does not have, or does not have yet.

use std::time::Instant;

use flotilla_common::digest::Digest;
use flotilla_common::units::BitRate;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::servers::GateState;
use crate::support::sample;

/// F15: a client deletes in one region what it has just pushed in another. Its layers are not
/// copied for that.
#[tokio::test]
async fn delete_of_what_another_region_owes_copies_nothing() {
    let regions = Regions::start(2, |_, config| {
        config.regions.down = Some(BitRate(8_000)).into();
    })
    .await;
    let (owner, other) = (regions.client(0), regions.client(1));
    let layers = [sample(300_000, 1), sample(300_000, 2)];
    let by_tag = owner.push_image("app", "v1", &layers[..1]).await;
    let by_digest = owner.push_image("app", "v2", &layers[1..]).await;
    // Another region is asked for a page about once a second.
    tokio::time::sleep(std::time::Duration::from_millis(1_050)).await;
    let started = Instant::now();
    let digest = Digest::sha256(&by_digest);
    for reference in ["v1".to_owned(), digest.to_string()] {
        let path = format!("/v2/app/manifests/{reference}");
        assert_eq!(other.delete(&path).await, StatusCode::ACCEPTED, "{path}");
        let read = other.get(&path).await;
        assert_eq!(read.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(other.delete(&path).await, StatusCode::NOT_FOUND, "{path}");
    }
    let took = started.elapsed();
    assert!(took.as_secs() < 5, "{took:?}");
    for reference in ["v1".to_owned(), digest.to_string()] {
        until("the delete where it was pushed", async || {
            let answer = owner.get(&format!("/v2/app/manifests/{reference}")).await;
            answer.status() == StatusCode::NOT_FOUND
        })
        .await;
    }
    let kept = format!("/v2/app/manifests/{}", Digest::sha256(&by_tag));
    assert_eq!(owner.get(&kept).await.status(), StatusCode::OK);
    let stored = regions.keys(1, "rb/").await;
    for layer in layers {
        let layer = Digest::sha256(&layer).to_string();
        assert!(!stored.iter().any(|key| key.ends_with(&layer)), "{layer}");
    }
}

/// F15: the storage that has a tag is out, and no other region has heard of the tag. That is no
/// reason to say that it does not exist.
#[tokio::test]
async fn forwarded_delete_is_undecided_while_its_region_is_silent() {
    let regions = Regions::start(2, |_, _| {}).await;
    regions.gate(1, 0).set(GateState::Closed);
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("the outage is noticed", async || {
        let ready = client.get("/readyz").await.text().await.unwrap();
        ready.contains("degraded")
    })
    .await;
    let path = "/v2/app/manifests/v1";
    for _ in 0..5 {
        assert_eq!(client.delete(path).await, StatusCode::SERVICE_UNAVAILABLE);
    }
    regions.gate(1, 0).set(GateState::Open);
    regions.faults(0).set_outage(None);
    until("the delete", async || {
        client.delete(path).await == StatusCode::ACCEPTED
    })
    .await;
    for region in [0, 1] {
        until("the delete everywhere", async || {
            regions.client(region).get(path).await.status() == StatusCode::NOT_FOUND
        })
        .await;
    }
}
