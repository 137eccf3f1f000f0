//! The origin is killed: before anybody has the image, after one has it, and for good.

use std::time::Duration;

use tokio::time::timeout;

use crate::harness::lab_scene::{LabScene, SLOW_SIZE, slow_peers, slow_region};

/// From the origin's return until the pulls that waited for it are through.
const RETURN_BOUND: Duration = Duration::from_secs(20);
/// A pull of what a neighbour has, with nobody else there.
const SEEDED_BOUND: Duration = Duration::from_secs(12);
/// How long a pull that nobody can serve may keep the runtime waiting before it hears so.
const GIVE_UP_BOUND: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_killed_before_the_seeding_and_comes_back() {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    let pulls = scene.pull_everywhere();
    scene.until_held(0, 0.1).await;
    scene.lab.origin().kill();
    scene.lab.origin().start().await.unwrap();
    for pull in pulls {
        scene.completes_within(pull, RETURN_BOUND).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_killed_after_the_seeding() {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(4)).await;
    scene.completes(scene.pull(0)).await;
    let pulls: Vec<_> = (1..4).map(|peer| scene.pull(peer)).collect();
    for peer in 1..4 {
        scene.until_held(peer, 0.05).await;
    }
    scene.lab.origin().kill();
    for pull in pulls {
        let total = scene.completes(pull).await.total;
        assert!(
            total < SEEDED_BOUND,
            "without the origin a pull took {total:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_is_gone_for_good_and_nobody_has_the_image() {
    let mut scene = LabScene::of(slow_region(), SLOW_SIZE, &slow_peers(2)).await;
    let pulls = scene.pull_everywhere();
    scene.until_held(0, 0.1).await;
    scene.lab.origin().kill();
    for pull in pulls {
        let ended = timeout(GIVE_UP_BOUND, pull)
            .await
            .expect("a hopeless pull ends")
            .unwrap();
        assert!(ended.is_err(), "bytes that nobody has");
    }
    // Who comes now hears at once that there is nothing, and goes to its next host.
    let ended = timeout(Duration::from_secs(10), scene.pull(1))
        .await
        .expect("a hopeless pull ends")
        .unwrap();
    assert!(ended.is_err(), "bytes that nobody has");
}
