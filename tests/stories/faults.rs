//! A service stops in the middle; whoever can complete does.

use flotilla_common::units::{BitRate, ByteSize};

use crate::harness::scene::Scene;

const SIZE: ByteSize = ByteSize(16 << 20);
const RATE: Option<BitRate> = Some(BitRate(60_000_000));

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_stops_in_mid_transfer() {
    let mut scene = Scene::with_image(SIZE, RATE).await;
    scene.add_peers(5).await;
    let mut pulls = scene.pull_everywhere();
    scene
        .until("a quarter is held", |scene| {
            scene.held_by(0) > scene.image_bytes / 4
        })
        .await;
    scene.region.stop_peer(0).await;
    assert!(
        pulls.remove(0).await.unwrap().is_err(),
        "its own pull was cut off"
    );
    for pull in pulls {
        scene.completes(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_tracker_stops_in_mid_burst() {
    let mut scene = Scene::with_image(SIZE, RATE).await;
    scene.add_peers(4).await;
    let pulls = scene.pull_everywhere();
    scene
        .until("a quarter is held", |scene| {
            scene.held_by(0) > scene.image_bytes / 4
        })
        .await;
    scene.region.stop_tracker();
    for pull in pulls {
        scene.completes(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_no_tracker_from_the_start() {
    let mut scene = Scene::with_image(ByteSize(4 << 20), None).await;
    scene.region.stop_tracker();
    scene.add_peers(2).await;
    for pull in scene.pull_everywhere() {
        scene.completes(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_origin_stops_once_the_peers_have_all_of_it() {
    let mut scene = Scene::with_image(SIZE, RATE).await;
    scene.add_peers(4).await;
    let first = scene.pull(0);
    scene.completes(first).await;
    let pulls: Vec<_> = (1..4).map(|peer| scene.pull(peer)).collect();
    scene
        .until("the others know what they want", |scene| {
            (1..4).all(|peer| scene.region.peers()[peer].stats().blobs.len() == 5)
        })
        .await;
    scene.region.stop_origin();
    for pull in pulls {
        scene.completes(pull).await;
    }
}
