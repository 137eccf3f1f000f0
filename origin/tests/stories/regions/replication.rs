//! What is pushed in one region and what becomes of it in the others.

use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::units::BitRate;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::servers::GateState;
use crate::support::{MANIFEST, code, descriptor, header, sample};

/// Waits until a region has answered a path with a status.
async fn until_status(regions: &Regions, region: usize, path: &str, status: StatusCode) {
    let client = regions.client(region);
    until(path, async || client.get(path).await.status() == status).await;
}

/// The manifest that a tag names in a region.
async fn tag(regions: &Regions, region: usize, tag: &str) -> Option<Digest> {
    let answer = regions
        .client(region)
        .get(&format!("/v2/app/manifests/{tag}"))
        .await;
    let is_there = answer.status() == StatusCode::OK;
    is_there.then(|| header(&answer, "docker-content-digest").parse().unwrap())
}

/// Read-your-writes: a second after the push, before the slow copy has brought any layer.
#[tokio::test]
async fn pushed_image_is_pulled_elsewhere_a_second_later() {
    let regions = Regions::start(2, |_, config| {
        config.regions.down = Some(BitRate(8_000)).into();
    })
    .await;
    let layer = sample(300_000, 1);
    let manifest = regions
        .client(0)
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    tokio::time::sleep(Duration::from_millis(1_050)).await;
    let client = regions.client(1);
    let digest = Digest::sha256(&manifest);
    for reference in ["v1".to_owned(), digest.to_string()] {
        let answer = client.get(&format!("/v2/app/manifests/{reference}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{reference}");
        assert_eq!(answer.bytes().await.unwrap(), manifest);
    }
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    let answer = client.get(&path).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.bytes().await.unwrap(), layer);
    let stored = regions.keys(1, "rb/").await;
    let layer = Digest::sha256(&layer).to_string();
    assert!(
        !stored.iter().any(|key| key.ends_with(&layer)),
        "the layer was not copied yet"
    );
}

#[tokio::test]
async fn moved_tags_deletes_and_referrers_follow() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    let first = Digest::sha256(&client.push_image("app", "v1", &[sample(70_000, 1)]).await);
    until("the first image", async || {
        tag(&regions, 1, "v1").await == Some(first)
    })
    .await;
    let subject = client.push_image("app", "v1", &[sample(70_000, 2)]).await;
    let second = Digest::sha256(&subject);
    let moved = Instant::now();
    until("the moved tag", async || {
        tag(&regions, 1, "v1").await == Some(second)
    })
    .await;
    assert!(moved.elapsed() < Duration::from_secs(5));

    let config = client.push_blob("app", Bytes::from_static(b"{}")).await;
    let artifact = serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": "x/signature",
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [], "subject": descriptor(MANIFEST, &subject),
    })
    .to_string();
    let path = format!("/v2/app/manifests/{}", Digest::sha256(artifact.as_bytes()));
    let answer = client.put_manifest(&path, MANIFEST, artifact).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let referrers = format!("/v2/app/referrers/{second}");
    let other = regions.client(1);
    until("the referrer", async || {
        let list = other.get(&referrers).await.text().await.unwrap();
        list.contains("x/signature")
    })
    .await;

    assert_eq!(
        client.delete("/v2/app/manifests/v1").await,
        StatusCode::ACCEPTED
    );
    until_status(&regions, 1, "/v2/app/manifests/v1", StatusCode::NOT_FOUND).await;
    assert_eq!(client.delete(&path).await, StatusCode::ACCEPTED);
    until("the referrer is gone", async || {
        let list = other.get(&referrers).await.text().await.unwrap();
        !list.contains("x/signature")
    })
    .await;
    // All entries are done.
    until("no entries", async || {
        regions.keys(0, "journal/").await.is_empty()
    })
    .await;
}

/// Regions that accept changes while they are cut off from each other agree afterwards.
#[tokio::test]
async fn regions_agree_after_they_were_cut_off() {
    let regions = Regions::start(2, |_, _| {}).await;
    for (from, to) in [(0, 1), (1, 0)] {
        regions.gate(from, to).set(GateState::Closed);
    }
    let mut pushed = Vec::new();
    for region in [0, 1] {
        let client = regions.client(region);
        let own = format!("only-{region}");
        client
            .push_image("app", &own, &[sample(70_000, region)])
            .await;
        let both = client
            .push_image("app", "both", &[sample(70_000, 10 + region)])
            .await;
        pushed.push(Digest::sha256(&both));
    }
    assert_eq!(tag(&regions, 0, "both").await, Some(pushed[0]));
    for (from, to) in [(0, 1), (1, 0)] {
        regions.gate(from, to).set(GateState::Open);
    }
    for name in ["only-0", "only-1"] {
        for region in [0, 1] {
            let path = format!("/v2/app/manifests/{name}");
            until_status(&regions, region, &path, StatusCode::OK).await;
        }
    }
    // The later push wins in both.
    for region in [0, 1] {
        until("the later push", async || {
            tag(&regions, region, "both").await == Some(pushed[1])
        })
        .await;
    }
    for prefix in ["rm/", "tag/"] {
        until(prefix, async || {
            regions.keys(0, prefix).await == regions.keys(1, prefix).await
        })
        .await;
    }
}

#[tokio::test]
async fn immutable_tags_do_not_move() {
    let rules = "[[repository]]\nmatch = \"**\"\nimmutable = [\"v*\"]\n";
    let regions = Regions::start_with(2, 1, rules, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    let config = Bytes::from_static(b"{\"tag\":\"v1\"}");
    let other = crate::support::manifest(&config, &[]);
    let answer = client
        .put_manifest("/v2/app/manifests/v1", MANIFEST, other.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::FORBIDDEN);
    assert_eq!(code(answer).await, "DENIED");
    let answer = client
        .put_manifest("/v2/app/manifests/latest", MANIFEST, other)
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

/// A region that joins gets what the other had before: by a sweep.
#[tokio::test]
async fn new_region_is_filled() {
    let regions = Regions::start(2, |_, config| {
        config.regions.settle = Duration::from_secs(3);
    })
    .await;
    // Not in the journal any more: only the sweep can find these.
    let client = regions.client(0);
    regions.gate(1, 0).set(GateState::Closed);
    client.push_image("app", "v1", &[sample(70_000, 1)]).await;
    let journal = regions.keys(0, "journal/").await;
    for key in journal {
        let storage = &regions.sites[0].storage;
        storage.delete(&key.parse().unwrap()).await.unwrap();
    }
    regions.gate(1, 0).set(GateState::Open);
    until("the swept image", async || {
        let stored = regions.keys(1, "tag/").await;
        !stored.is_empty()
    })
    .await;
}

/// A storm of requests for tags that exist nowhere costs the other region few requests.
#[tokio::test]
async fn storm_of_absent_tags_costs_few_pages() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    let before = region_requests(&regions, 1).await;
    let started = Instant::now();
    for number in 0..500 {
        let path = format!("/v2/app/manifests/sha256-{number}.sig");
        let status = client.get(&path).await.status();
        assert!(
            status == StatusCode::NOT_FOUND || status == StatusCode::SERVICE_UNAVAILABLE,
            "{status}"
        );
    }
    let seconds = started.elapsed().as_secs_f64();
    let asked = region_requests(&regions, 1).await - before;
    let bound = 200.0 + (seconds + 1.0) * 30.0;
    assert!((asked as f64) < bound, "{asked} requests in {seconds:.1} s");
}

/// Requests by other regions that a region has answered.
async fn region_requests(regions: &Regions, region: usize) -> u64 {
    let text = regions.client(region).metrics().await;
    let lines = text.lines().filter(|line| {
        line.starts_with("flotilla_origin_http_requests_total{")
            && line.contains("route=\"region\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}
