//! Processes are killed and links are cut during pulls: all pulls that can complete do, in time.

use std::time::Duration;

use flotilla_common::units::ByteSize;
use flotilla_lab::{LabPlan, NetworkKind, PeerSetup};
use tokio::time::{Instant, timeout};

use crate::harness::lab::{
    SLOW_RATE, SLOW_SIZE, TestLab, namespaces_or_skip, slow_peers, slow_region,
};

/// The size of an image with 256 chunks, which takes less than 1 s without rate limits.
const FAST_SIZE: ByteSize = ByteSize(64 << 20);
/// Limit for a pull without any source until it fails.
const FAILURE_LIMIT: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn peer_killed_during_a_transfer() {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let mut pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.25).await;
    lab.peer(0).kill();
    assert!(
        pulls.remove(0).await.unwrap().is_err(),
        "the killed peer's own pull fails"
    );
    for pull in pulls {
        // 3.4 s without faults, and 6 s until the connection to the dead neighbour times out.
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < Duration::from_secs(15),
            "a pull took {total:?} beside a dead neighbour"
        );
    }
    lab.peer(0).start().await.unwrap();
    lab.finish_pull(lab.pull(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_peers_in_the_handout_are_dead() {
    // Without rate limits, there are many lease requests per second, which may be reordered.
    let plan = LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), NetworkKind::Loopback);
    let mut lab = TestLab::with_plan(plan, FAST_SIZE, &vec![PeerSetup::default(); 2]).await;
    for pull in lab.pull_everywhere() {
        lab.finish_pull(pull).await;
    }
    for peer in 0..2 {
        lab.peer(peer).kill();
    }
    lab.add_peers(&[PeerSetup::default()]).await.unwrap();
    // Less than 1 s without faults; 0.25 s until the dead peers count as unreachable, and 1 s until
    // the chunks they fetched last are leased again.
    let total = lab.finish_pull(lab.pull(2)).await.total;
    assert!(
        total < Duration::from_secs(6),
        "a pull took {total:?} with dead peers in its handout"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn tracker_restarts_during_a_burst() {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.25).await;
    lab.tracker(0).kill();
    lab.wait_until_held(0, 0.5).await;
    lab.tracker(0).start().await.unwrap();
    for pull in pulls {
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < Duration::from_secs(9),
            "a pull took {total:?} during the tracker's restart"
        );
    }
    let copies = lab.origin_copies().await;
    assert!(copies < 2.0, "{copies} copies from the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn link_cut_and_healed() {
    let Some(network) = namespaces_or_skip("a link that is cut and healed", SLOW_RATE) else {
        return;
    };
    let mut lab = TestLab::start(network, SLOW_SIZE, &vec![PeerSetup::default(); 3]).await;
    let mut pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.25).await;
    lab.peer(0).link().unwrap().cut().unwrap();
    let own = pulls.remove(0);
    for pull in pulls {
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < Duration::from_secs(15),
            "a pull took {total:?} beside a disconnected neighbour"
        );
    }
    // A pull that no source can complete must fail, so that the runtime tries its next mirror.
    let disconnected = timeout(FAILURE_LIMIT, own)
        .await
        .expect("a pull without sources ends in time")
        .unwrap();
    assert!(
        disconnected.is_err(),
        "the pull succeeded over a link that is cut"
    );
    lab.peer(0).link().unwrap().heal().unwrap();
    let healed = Instant::now();
    lab.finish_pull(lab.pull(0)).await;
    let delay = healed.elapsed();
    assert!(
        delay < Duration::from_secs(15),
        "the pull took {delay:?} after the link was healed"
    );
}
