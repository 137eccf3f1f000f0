//! Real processes are killed, links are cut; whoever can complete does, and soon.

use std::time::Duration;

use flotilla_common::units::ByteSize;
use flotilla_lab::{LabPlan, NetworkKind, PeerSetup};
use tokio::time::{Instant, timeout};

use crate::harness::lab_scene::{LabScene, SLOW_RATE, SLOW_SIZE, hosts, slow_peers, slow_region};

/// An image of 256 chunks that takes no second where nothing is capped.
const FAST_SIZE: ByteSize = ByteSize(64 << 20);
/// How long a pull that nobody can serve may keep the runtime waiting before it hears so.
const GIVE_UP_BOUND: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_is_killed_in_mid_transfer() {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let mut pulls = scene.pull_everywhere();
    scene.until_held(0, 0.25).await;
    scene.lab.peer(0).kill();
    assert!(
        pulls.remove(0).await.unwrap().is_err(),
        "its own pull was cut off"
    );
    for pull in pulls {
        // 3.4 s alone, and 6 s until the dead neighbour's silence is taken for its death.
        let total = scene.completes(pull).await.total;
        assert!(
            total < Duration::from_secs(15),
            "one dead neighbour cost a pull {total:?}"
        );
    }
    scene.lab.peer(0).start().await.unwrap();
    scene.completes(scene.pull(0)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_neighbours_that_the_tracker_names_are_dead() {
    // Nothing is capped: many leases a second, whose requests overtake each other.
    let region = LabPlan::new(env!("CARGO_BIN_EXE_flotilla"), NetworkKind::Loopback);
    let mut scene = LabScene::of(region, FAST_SIZE, &vec![PeerSetup::default(); 2]).await;
    for pull in scene.pull_everywhere() {
        scene.completes(pull).await;
    }
    for peer in 0..2 {
        scene.lab.peer(peer).kill();
    }
    scene.lab.add_peers(&[PeerSetup::default()]).await.unwrap();
    // Less than 1 s alone; 0.25 s until they count as out of reach, and 1 s until what they got
    // last is leased again.
    let total = scene.completes(scene.pull(2)).await.total;
    assert!(
        total < Duration::from_secs(6),
        "dead neighbours cost a pull {total:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tracker_is_killed_and_started_again_in_mid_burst() {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let pulls = scene.pull_everywhere();
    scene.until_held(0, 0.25).await;
    scene.lab.tracker(0).kill();
    scene.until_held(0, 0.5).await;
    scene.lab.tracker(0).start().await.unwrap();
    for pull in pulls {
        let total = scene.completes(pull).await.total;
        assert!(
            total < Duration::from_secs(9),
            "a dead tracker cost a pull {total:?}"
        );
    }
    let copies = scene.origin_copies().await;
    assert!(copies < 2.0, "{copies} copies from the origin");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_link_is_cut_and_healed() {
    let Some(network) = hosts("a link is cut and healed", SLOW_RATE) else {
        return;
    };
    let mut scene = LabScene::start(network, SLOW_SIZE, &vec![PeerSetup::default(); 3]).await;
    let mut pulls = scene.pull_everywhere();
    scene.until_held(0, 0.25).await;
    scene.lab.peer(0).link().unwrap().cut().unwrap();
    let own = pulls.remove(0);
    for pull in pulls {
        let total = scene.completes(pull).await.total;
        assert!(
            total < Duration::from_secs(15),
            "a neighbour that was cut off cost a pull {total:?}"
        );
    }
    // Nothing can reach it any more: it is cut, so that the runtime may go on elsewhere, and not
    // kept waiting.
    let cut_off = timeout(GIVE_UP_BOUND, own)
        .await
        .expect("a hopeless pull ends")
        .unwrap();
    assert!(cut_off.is_err(), "bytes came over a link that is cut");
    scene.lab.peer(0).link().unwrap().heal().unwrap();
    let healed = Instant::now();
    scene.completes(scene.pull(0)).await;
    let delay = healed.elapsed();
    assert!(
        delay < Duration::from_secs(15),
        "{delay:?} after its link was healed"
    );
}
