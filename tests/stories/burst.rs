//! Concurrent pulls cost the origin about one copy of the image.

use flotilla_common::units::{BitRate, ByteSize};

use crate::harness::region::TestRegion;

#[tokio::test(flavor = "multi_thread")]
async fn eight_peers_cost_at_most_1_2_origin_copies() {
    let mut region = TestRegion::with_image(ByteSize(24 << 20), Some(BitRate(80_000_000))).await;
    region.add_peers(8).await;
    for pull in region.pull_everywhere() {
        region.finish_pull(pull).await;
    }
    let copies = region.origin_copies();
    assert!(
        (1.0..=1.2).contains(&copies),
        "{copies} copies from the origin"
    );
    region.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn second_pull_is_served_from_the_store() {
    let mut region = TestRegion::with_image(ByteSize(4 << 20), None).await;
    region.add_peers(1).await;
    region.finish_pull(region.pull(0)).await;
    let from_origin = region.origin_blob_bytes();
    region.finish_pull(region.pull(0)).await;
    assert_eq!(
        region.origin_blob_bytes(),
        from_origin,
        "the second pull must not fetch anything"
    );
    assert_eq!(
        region.peers()[0].stats().bytes_from_store,
        region.image_bytes
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn restarted_peer_resumes_from_its_store() {
    let mut region = TestRegion::with_image(ByteSize(16 << 20), Some(BitRate(60_000_000))).await;
    region.add_peers(1).await;
    let interrupted = region.pull(0);
    region
        .wait_until("the peer holds half of the image", |region| {
            region.held_bytes(0) > region.image_bytes / 2
        })
        .await;
    let plan = region.stop_peer(0).await;
    assert!(
        interrupted.await.unwrap().is_err(),
        "the mirror was stopped"
    );
    region.add_peer(plan).await.unwrap();
    region.finish_pull(region.pull(0)).await;
    let copies = region.origin_copies();
    assert!(
        copies < 1.6,
        "{copies} copies: the peer fetched chunks that it held before the restart"
    );
}
