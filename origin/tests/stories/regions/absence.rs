//! Answers about content that the own storage lacks, while another region does not answer.

use std::time::{Duration, Instant};

use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::WriteFault;
use crate::servers::GateState;
use crate::support::{MANIFEST, Registry, code, header, manifest, sample};

async fn status(client: &Registry, path: &str) -> StatusCode {
    let answer = client.get(path).await;
    if answer.status() == StatusCode::SERVICE_UNAVAILABLE {
        assert!(!header(&answer, "retry-after").is_empty(), "{path}");
    }
    answer.status()
}

/// One of three regions is silent. What the other two have not is 404, unless the silent one had
/// said that it owes something in that repository.
#[tokio::test]
async fn absence_is_told_while_a_third_region_is_silent() {
    let regions = Regions::start(3, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    // The others cannot merge what region 2 owes them.
    for region in [0, 1] {
        let rejected = WriteFault::Rejected;
        regions.faults(region).arm("rm/named/", u32::MAX, rejected);
    }
    regions
        .client(2)
        .push_image("named", "v1", &[sample(100, 2)])
        .await;
    // From then on the journal that region 0 reads names the repository.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let absent = Digest::sha256(b"absent");
    let known = [
        "/v2/app/manifests/absent".to_owned(),
        format!("/v2/app/manifests/{absent}"),
        format!("/v2/app/blobs/{absent}"),
    ];
    for path in &known {
        until("404 while all answer", async || {
            status(&client, path).await == StatusCode::NOT_FOUND
        })
        .await;
    }
    let named = "/v2/named/manifests/absent";
    until("404 where something is owed", async || {
        status(&client, named).await == StatusCode::NOT_FOUND
    })
    .await;
    assert_eq!(
        status(&client, "/v2/named/manifests/v1").await,
        StatusCode::OK,
        "read through"
    );

    regions.gate(0, 2).set(GateState::Closed);
    for path in &known {
        until("404 while one region is silent", async || {
            status(&client, path).await == StatusCode::NOT_FOUND
        })
        .await;
    }
    for path in [named, "/v2/named/manifests/v1"] {
        until("503 while it is undecided", async || {
            status(&client, path).await == StatusCode::SERVICE_UNAVAILABLE
        })
        .await;
    }
    // The manifest of a push lacks a blob: a region that is away does not leave it undecided.
    let body = manifest(&sample(10, 3), &[]);
    until("404 for a push", async || {
        let path = "/v2/app/manifests/v2";
        let answer = client.put_manifest(path, MANIFEST, body.clone()).await;
        answer.status() == StatusCode::NOT_FOUND && code(answer).await == "MANIFEST_BLOB_UNKNOWN"
    })
    .await;

    regions.gate(0, 2).set(GateState::Open);
    until("200 once it answers", async || {
        status(&client, "/v2/named/manifests/v1").await == StatusCode::OK
    })
    .await;
}

/// A storm of requests for one absent digest neither fails the own storage nor costs the other
/// region more than its limit: beyond it the answer is 503.
#[tokio::test]
async fn storm_of_one_absent_digest_is_bounded() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    let path = format!("/v2/app/manifests/{}", Digest::sha256(b"absent"));
    let before = manifest_requests(&regions.client(1)).await;
    let started = Instant::now();
    let mut undecided = 0;
    for _ in 0..400 {
        match status(&client, &path).await {
            StatusCode::NOT_FOUND => {}
            StatusCode::SERVICE_UNAVAILABLE => undecided += 1,
            other => panic!("{other}"),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let asked = manifest_requests(&regions.client(1)).await - before;
    assert!(
        asked as f64 <= 200.0 + (seconds + 1.0) * 20.0,
        "{asked} in {seconds:.1} s"
    );
    assert_eq!(asked + undecided, 400, "not asked is undecided");
    let standing = regions.client(0).metrics().await;
    assert!(standing.contains("region_standing{of=\"own storage\"} 100"));
}

/// Requests for manifests that a region has answered.
async fn manifest_requests(client: &Registry) -> u64 {
    let text = client.metrics().await;
    let lines = text.lines().filter(|line| {
        line.starts_with("flotilla_origin_http_requests_total{")
            && line.contains("route=\"manifest\"")
    });
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

/// A pipeline that waits for a region asks what that region itself has.
#[tokio::test]
async fn own_storage_header_keeps_a_read_in_its_region() {
    let regions = Regions::start(2, |_, _| {}).await;
    let rejected = WriteFault::Rejected;
    regions.faults(1).arm("rm/", u32::MAX, rejected);
    let image = regions
        .client(0)
        .push_image("app", "v1", &[sample(100, 1)])
        .await;
    let client = regions.client(1);
    let paths = [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{}", Digest::sha256(&image)),
    ];
    let own_only = async |path: &str| {
        let request = client.request(reqwest::Method::GET, path);
        let answer = request.header("flotilla-own-storage", "only").send().await;
        answer.unwrap().status()
    };
    for path in &paths {
        until("the read through", async || {
            status(&client, path).await == StatusCode::OK
        })
        .await;
        assert_eq!(own_only(path).await, StatusCode::NOT_FOUND, "{path}");
    }
    regions.faults(1).set_down(true);
    for path in &paths {
        until("the other region serves", async || {
            status(&client, path).await == StatusCode::OK
        })
        .await;
        assert_eq!(
            own_only(path).await,
            StatusCode::SERVICE_UNAVAILABLE,
            "{path}"
        );
    }
    let text = client.metrics().await;
    let served = "flotilla_origin_region_reads_total{from=\"eu-1\",outcome=\"served\"}";
    assert!(text.contains(served), "{text}");
}

/// Another region hangs: look-ups of what is absent here wait for it once, not each.
#[tokio::test]
async fn hung_region_costs_absent_look_ups_one_wait() {
    let regions = Regions::start(2, |_, _| {}).await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    regions.gate(0, 1).set(GateState::Hanging);
    let mut waited = Duration::ZERO;
    for number in 0..20 {
        let started = Instant::now();
        let status = status(&client, &format!("/v2/app/manifests/absent-{number}")).await;
        waited += started.elapsed();
        assert!(
            matches!(
                status,
                StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE
            ),
            "{status}"
        );
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert!(waited < Duration::from_secs(3), "{waited:?}");
}
