//! A peer is stopped (SIGSTOP) in mid-transfer: its connections stand, and it says nothing. A
//! machine that swaps, a paused VM.

use std::time::Duration;

use tokio::time::sleep;

use crate::harness::lab_scene::{LabScene, SLOW_SIZE, slow_peers, slow_region};

/// What one silent neighbour may cost the others, whose pulls take 3.4 s alone. 11.4 s were seen: a
/// transfer is given up when it has not moved for 2 s, the link is lost after 6 s, and a lease that
/// the frozen peer held has to run out.
const OTHERS_BOUND: Duration = Duration::from_secs(18);
/// From its thawing until a peer's own pull is through: it finds its neighbours gone and dials them
/// again.
const THAWED_BOUND: Duration = Duration::from_secs(15);

async fn frozen_for(at_least: Duration) {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let mut pulls = scene.pull_everywhere();
    scene.until_held(0, 0.25).await;
    scene.lab.peer(0).suspend();
    let frozen = sleep(at_least);
    let own = pulls.remove(0);
    for pull in pulls {
        let total = scene.completes(pull).await.total;
        assert!(
            total < OTHERS_BOUND,
            "a silent neighbour cost a pull {total:?}"
        );
    }
    frozen.await;
    scene.lab.peer(0).resume();
    scene.completes_within(own, THAWED_BOUND).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_frozen_until_the_others_are_done() {
    frozen_for(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: half a minute of silence"]
async fn a_peer_is_frozen_for_half_a_minute() {
    frozen_for(Duration::from_secs(30)).await;
}
