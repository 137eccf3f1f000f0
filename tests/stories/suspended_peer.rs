//! A peer is suspended (SIGSTOP) during a transfer: its connections stay open and it does not
//! respond, like a paused VM or a machine that swaps.

use std::time::Duration;

use tokio::time::sleep;

use crate::harness::lab::{SLOW_SIZE, TestLab, slow_peers, slow_region};

/// Limit for the other peers' pulls, which take 3.4 s without faults. Measured: 11.4 s, because a
/// stalled transfer is aborted after 2 s, a connection after 6 s, and a lease that the suspended
/// peer holds has to expire.
const OTHERS_LIMIT: Duration = Duration::from_secs(18);
/// Limit for the suspended peer's own pull, from when it resumes: it has to reconnect.
const RESUMED_LIMIT: Duration = Duration::from_secs(15);

async fn suspend_for(at_least: Duration) {
    let mut lab = TestLab::with_plan(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let mut pulls = lab.pull_everywhere();
    lab.wait_until_held(0, 0.25).await;
    lab.peer(0).suspend();
    let suspended = sleep(at_least);
    let own = pulls.remove(0);
    for pull in pulls {
        let total = lab.finish_pull(pull).await.total;
        assert!(
            total < OTHERS_LIMIT,
            "a pull took {total:?} beside a suspended neighbour"
        );
    }
    suspended.await;
    lab.peer(0).resume();
    lab.finish_pull_within(own, RESUMED_LIMIT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn peer_suspended_until_the_others_are_done() {
    suspend_for(Duration::ZERO).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: suspends a peer for 30 s"]
async fn peer_suspended_for_30_s() {
    suspend_for(Duration::from_secs(30)).await;
}
