//! A region that serves another one's clients too: its own come first.

use std::time::Duration;

use flotilla_common::digest::Digest;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::support::{Registry, header, sample};

async fn metric(client: &Registry, name: &str) -> Option<u64> {
    let text = client.metrics().await;
    let line = text.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// The other region's pulls end in 429 at its share of the requests; own pulls go on, and the other
/// region does not take this one for out.
#[tokio::test]
async fn own_pulls_keep_their_share_of_the_requests() {
    let regions = Regions::start(2, |region, config| {
        if region == 1 {
            config.limits.requests = 4;
            config.limits.region_share = 50;
        }
    })
    .await;
    let layer = sample(64 << 20, 1);
    let path = format!("/v2/app/blobs/{}", Digest::sha256(&layer));
    regions.client(0).push_image("app", "v1", &[layer]).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    regions.faults(0).set_outage(Some(Outage::Refuses));
    let (away, home) = (regions.client(0), regions.client(1));
    // Until the outage is noticed a pull may be refused.
    let mut held = Vec::new();
    until("pulls that the other region serves", async || {
        let answer = away.get(&path).await;
        if answer.status() == StatusCode::OK {
            held.push(answer);
        }
        held.len() == 2
    })
    .await;

    let answer = away.get(&path).await;
    assert_eq!(answer.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(header(&answer, "retry-after"), "1");
    let refused = "flotilla_origin_shed_total{reason=\"region_requests\"}";
    assert!(metric(&home, refused).await >= Some(1));
    for _ in 0..3 {
        assert_eq!(home.get(&path).await.status(), StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let standing = "flotilla_origin_region_standing{of=\"us-1\"}";
    assert_eq!(metric(&away, standing).await, Some(100));

    held.clear();
    until("room again", async || {
        away.get(&path).await.status() == StatusCode::OK
    })
    .await;
}
