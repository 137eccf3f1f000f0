//! Many peers at once cost the origin about one copy.

use flotilla_common::units::{BitRate, ByteSize};

use crate::harness::scene::Scene;

#[tokio::test(flavor = "multi_thread")]
async fn eight_peers_at_once_cost_the_origin_at_most_1_2_copies() {
    let mut scene = Scene::with_image(ByteSize(24 << 20), Some(BitRate(80_000_000))).await;
    scene.add_peers(8).await;
    for pull in scene.pull_everywhere() {
        scene.completes(pull).await;
    }
    let copies = scene.origin_copies();
    assert!(
        (1.0..=1.2).contains(&copies),
        "{copies} copies from the origin"
    );
    scene.region.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pull_comes_out_of_the_own_store() {
    let mut scene = Scene::with_image(ByteSize(4 << 20), None).await;
    scene.add_peers(1).await;
    scene.completes(scene.pull(0)).await;
    let from_origin = scene.region.origin_blob_bytes();
    scene.completes(scene.pull(0)).await;
    assert_eq!(
        scene.region.origin_blob_bytes(),
        from_origin,
        "nothing is fetched twice"
    );
    assert_eq!(
        scene.region.peers()[0].stats().bytes_from_store,
        scene.image_bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_that_restarts_goes_on_with_what_it_holds() {
    let mut scene = Scene::with_image(ByteSize(16 << 20), Some(BitRate(60_000_000))).await;
    scene.add_peers(1).await;
    let cut = scene.pull(0);
    scene
        .until("half of the image is held", |scene| {
            scene.held_by(0) > scene.image_bytes / 2
        })
        .await;
    let plan = scene.region.stop_peer(0).await;
    assert!(cut.await.unwrap().is_err(), "the mirror was cut off");
    scene.region.add_peer(plan).await.unwrap();
    scene.completes(scene.pull(0)).await;
    let copies = scene.origin_copies();
    assert!(
        copies < 1.6,
        "{copies} copies: what was held before the restart was fetched again"
    );
}
