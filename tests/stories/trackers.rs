//! Trackers that are dead, silent, or of two minds. None of that stops a pull; it costs copies from
//! the origin.

use std::time::Duration;

use flotilla_lab::{LabPlan, PeerSetup};

use crate::harness::lab_scene::{LabScene, SLOW_RATE, SLOW_SIZE, hosts, slow_peers, slow_region};

/// Four peers that share nothing but the origin's 40 Mbit/s: four copies of 3.4 s. 14 s were seen.
const ALONE_BOUND: Duration = Duration::from_secs(18);
/// Four peers that share, and a tracker that falls silent meanwhile. 8 s were seen: its silence is
/// noticed after 2 to 5 s.
const SHARING_BOUND: Duration = Duration::from_secs(12);
/// Two halves of a fleet that know only each their tracker, and share one origin. 9 s were seen:
/// two copies of 3.4 s, and 1 s until the first tracker of a blob counts as silent.
const DISAGREEING_BOUND: Duration = Duration::from_secs(14);

#[tokio::test(flavor = "multi_thread")]
async fn all_trackers_are_dead_from_the_start() {
    let plan = LabPlan {
        trackers: 2,
        ..slow_region()
    };
    let mut scene = LabScene::of(plan, SLOW_SIZE, &[]).await;
    scene.lab.tracker(0).kill();
    scene.lab.tracker(1).kill();
    scene.lab.add_peers(&slow_peers(4)).await.unwrap();
    for pull in scene.pull_everywhere() {
        let total = scene.completes(pull).await.total;
        assert!(
            total < ALONE_BOUND,
            "without a tracker a pull took {total:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tracker_falls_silent_in_mid_burst() {
    let Some(network) = hosts("the tracker falls silent in mid burst", SLOW_RATE) else {
        return;
    };
    let scene = &mut LabScene::start(network, SLOW_SIZE, &vec![PeerSetup::default(); 4]).await;
    let pulls = scene.pull_everywhere();
    scene.until_held(0, 0.25).await;
    scene.lab.tracker(0).link().unwrap().cut().unwrap();
    for pull in pulls {
        let total = scene.completes(pull).await.total;
        assert!(
            total < SHARING_BOUND,
            "a silent tracker cost a pull {total:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_trackers_disagree() {
    let Some(network) = hosts("two trackers disagree", SLOW_RATE) else {
        return;
    };
    let plan = LabPlan {
        trackers: 2,
        network,
        ..slow_region()
    };
    let mut scene = LabScene::of(plan, SLOW_SIZE, &vec![PeerSetup::default(); 4]).await;
    // Half of the fleet takes each of them for dead, so both grant leases.
    for peer in 0..4 {
        let other = scene.lab.tracker(peer / 2).host().address().to_string();
        let lost = ["ip", "route", "add", "blackhole", &other];
        scene.lab.peer(peer).host().run(&lost, "").unwrap();
    }
    for pull in scene.pull_everywhere() {
        let total = scene.completes(pull).await.total;
        assert!(
            total < DISAGREEING_BOUND,
            "trackers that disagree cost a pull {total:?}"
        );
    }
    let copies = scene.origin_copies().await;
    assert!(
        copies < 2.5,
        "{copies} copies from the origin, where two trackers may cost two"
    );
}
