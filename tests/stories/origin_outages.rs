//! The origin is killed: before and after a peer has the whole image, and permanently.

use std::time::Duration;

use tokio::time::timeout;

use crate::harness::lab::{SLOW_SIZE, TestLab, slow_peers, slow_region};

/// Limit for the pulls, from the origin's restart.
const RESTART_LIMIT: Duration = Duration::from_secs(20);
/// Limit for a pull whose only source is a neighbour.
const SEEDED_LIMIT: Duration = Duration::from_secs(12);
/// Limit for a pull without any source until it fails.
const FAILURE_LIMIT: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn origin_restarts_before_any_peer_has_the_image() {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.1).await;
    lab.origin(0).kill();
    lab.origin(0).start().await.unwrap();
    for pull in pulls {
        lab.finish_pull_within(pull, RESTART_LIMIT).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_killed_after_a_peer_has_the_image() {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    lab.finish_pull(lab.pull(0)).await;
    let pulls: Vec<_> = (1..4).map(|peer| lab.pull(peer)).collect();
    for peer in 1..4 {
        lab.wait_until_held(peer, 0.05).await;
    }
    lab.origin(0).kill();
    for pull in pulls {
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < SEEDED_LIMIT,
            "a pull took {total:?} without the origin"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_fail_when_the_origin_is_gone_and_no_peer_has_the_image() {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(2)).await;
    let pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.1).await;
    lab.origin(0).kill();
    for pull in pulls {
        let ended = timeout(FAILURE_LIMIT, pull)
            .await
            .expect("a pull without sources ends in time")
            .unwrap();
        assert!(ended.is_err(), "the pull succeeded without sources");
    }
    // A new pull fails at once, so that the runtime tries its next mirror.
    let ended = timeout(Duration::from_secs(10), lab.pull(1))
        .await
        .expect("a pull without sources ends in time")
        .unwrap();
    assert!(ended.is_err(), "the pull succeeded without sources");
}
