//! The origin of a region hangs (SIGSTOP) before or in a burst of its peers: connections are
//! accepted, and no byte comes. The other region's origin sends what is missing, once.

use std::time::Duration;

use flotilla_lab::LabPlan;

use crate::harness::lab::{SLOW_SIZE, TestLab, slow_peers, slow_region};

const PEERS: usize = 8;
/// How much longer a pull may take than the slowest one of a healthy region; generous, because
/// other tests run beside this one. Measured alone: 2.2 s if the origin hangs before the burst, of
/// which a pull waits 1.75 s for the manifest of its tag, and 0.7 s in its middle.
const MOST_DELAY: Duration = Duration::from_secs(5);
/// The most bytes from the other region's origin, in copies of the image.
const MOST_WAN_COPIES: f64 = 1.1;

async fn two_regions() -> TestLab {
    let plan = LabPlan {
        regions: 2,
        has_tracker_per_region: true,
        ..slow_region()
    };
    TestLab::with_plan(plan, SLOW_SIZE, &slow_peers(PEERS)).await
}

/// The time of the slowest pull of a region whose origin hangs when the first peer holds this share
/// of the image, and the copies that the other region's origin sent; without an outage if there is
/// no share.
async fn burst(hangs_at: Option<f64>) -> (Duration, f64) {
    let mut lab = two_regions().await;
    if hangs_at == Some(0.0) {
        lab.origin(0).suspend();
    }
    let pulls = lab.pull_everywhere();
    if let Some(share) = hangs_at.filter(|share| *share > 0.0) {
        lab.wait_until_held(0, share).await;
        lab.origin(0).suspend();
    }
    let mut slowest = Duration::ZERO;
    for pull in pulls {
        slowest = slowest.max(lab.finish_pull(pull).await.total);
    }
    let wan_copies = lab.copies_from(1).await;
    if hangs_at.is_some() {
        lab.origin(0).resume();
    }
    lab.finish();
    (slowest, wan_copies)
}

async fn assert_survives(share: f64) {
    let (healthy, wan_copies) = burst(None).await;
    assert!(wan_copies < 0.01, "{wan_copies} copies without an outage");
    let (slowest, wan_copies) = burst(Some(share)).await;
    eprintln!("{slowest:?} in the outage, {healthy:?} without, {wan_copies:.3} copies");
    assert!(
        slowest <= healthy + MOST_DELAY,
        "a pull took {slowest:?} in the outage, and {healthy:?} without"
    );
    assert!(
        wan_copies <= MOST_WAN_COPIES,
        "{wan_copies} copies came from the other region"
    );
    assert!(wan_copies > 0.3, "the outage was too late");
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_survives_an_origin_that_hangs_in_its_middle() {
    assert_survives(0.2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_survives_an_origin_that_hangs_before_it() {
    assert_survives(0.0).await;
}
