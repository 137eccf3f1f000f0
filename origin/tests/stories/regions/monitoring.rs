//! What an operator is told while something between the regions is wrong.

use flotilla_common::units::BitRate;
use reqwest::Method;

use super::harness::Regions;
use super::until;
use crate::servers::GateState;
use crate::support::{header, sample};

async fn metrics(regions: &Regions, region: usize) -> String {
    regions.client(region).metrics().await
}

/// The value of a metric of a region, by its name without the prefix and the value of its label.
async fn metric(regions: &Regions, region: usize, name: &str, label: &str) -> Option<u64> {
    let text = metrics(regions, region).await;
    let start = format!("flotilla_origin_region_{name}{{");
    let label = format!("\"{label}\"}}");
    let mut lines = text.lines();
    let line = lines.find(|line| line.starts_with(&start) && line.contains(&label))?;
    line.rsplit(' ').next()?.parse().ok()
}

async fn lag_seconds(regions: &Regions, region: usize, from: &str) -> u64 {
    let lag = metric(regions, region, "lag_seconds", from).await;
    lag.unwrap_or(0)
}

/// The other region cannot be reached, and no client's request asks it for anything.
#[tokio::test]
async fn lag_is_told_while_nothing_arrives() {
    let regions = Regions::start(2, |_, _| {}).await;
    until("the first list", async || {
        metric(&regions, 1, "follows", "eu-1").await == Some(1)
    })
    .await;
    regions.gate(1, 0).set(GateState::Closed);
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(100, 1)]).await;
    until("standing", async || {
        metric(&regions, 1, "standing", "eu-1").await == Some(0)
    })
    .await;
    until("lag", async || lag_seconds(&regions, 1, "eu-1").await >= 3).await;
    regions.gate(1, 0).set(GateState::Open);
    until("no lag any more", async || {
        lag_seconds(&regions, 1, "eu-1").await == 0
    })
    .await;
    until("standing of 100 %", async || {
        metric(&regions, 1, "standing", "eu-1").await == Some(100)
    })
    .await;
}

/// A pass of the follower lasts as long as its copies, and the lag is told meanwhile.
#[tokio::test]
async fn lag_is_told_while_bandwidth_limits_copies() {
    let regions = Regions::start(2, |_, config| {
        config.regions.down = Some(BitRate(8_000)).into();
    })
    .await;
    let client = regions.client(0);
    client.push_image("app", "v1", &[sample(1 << 20, 1)]).await;
    until("lag", async || lag_seconds(&regions, 1, "eu-1").await >= 3).await;
    let entries = metric(&regions, 1, "lag_entries", "eu-1").await;
    assert!(entries >= Some(1), "{entries:?}");
    assert_eq!(
        metric(&regions, 1, "blocked_entries", "eu-1").await,
        Some(0)
    );
}

/// Both regions accept a first push of an immutable tag while they cannot reach each other.
#[tokio::test]
async fn replaced_push_of_an_immutable_tag_is_counted() {
    let rules = "[[repository]]\nmatch = \"**\"\nimmutable = [\"v*\"]\n";
    let regions = Regions::start_with(2, 1, rules, |_, _| {}).await;
    let set_gates = |state| {
        regions.gate(0, 1).set(state);
        regions.gate(1, 0).set(state);
    };
    set_gates(GateState::Closed);
    for region in [0, 1] {
        let layer = sample(100, region);
        let client = regions.client(region);
        client.push_image("app", "v1", &[layer]).await;
    }
    set_gates(GateState::Open);
    let value = async |region: usize| {
        let client = regions.client(region);
        let request = client
            .request(Method::GET, "/v2/app/manifests/v1")
            .header("flotilla-own-storage", "only");
        header(&request.send().await.unwrap(), "docker-content-digest").to_owned()
    };
    until("the same value", async || value(0).await == value(1).await).await;
    let conflicts = async |region: usize| {
        let text = metrics(&regions, region).await;
        let name = "flotilla_origin_region_immutable_conflicts_total ";
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix(name));
        line.unwrap().parse::<u64>().unwrap()
    };
    until("the count", async || {
        conflicts(0).await + conflicts(1).await == 1
    })
    .await;
}
