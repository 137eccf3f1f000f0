//! A service of a region in one process stops during pulls: all pulls that can complete do.

use flotilla_common::units::{BitRate, ByteSize};

use crate::harness::region::TestRegion;

const SIZE: ByteSize = ByteSize(16 << 20);
const RATE: Option<BitRate> = Some(BitRate(60_000_000));

#[tokio::test(flavor = "multi_thread")]
async fn peer_stops_during_a_transfer() {
    let mut region = TestRegion::with_image(SIZE, RATE).await;
    region.add_peers(5).await;
    let mut pulls = region.pull_everywhere();
    region
        .wait_until("peer 0 holds a quarter of the image", |region| {
            region.held_bytes(0) > region.image_bytes / 4
        })
        .await;
    region.stop_peer(0).await;
    assert!(
        pulls.remove(0).await.unwrap().is_err(),
        "the stopped peer's own pull fails"
    );
    for pull in pulls {
        region.finish_pull(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tracker_stops_during_a_burst() {
    let mut region = TestRegion::with_image(SIZE, RATE).await;
    region.add_peers(4).await;
    let pulls = region.pull_everywhere();
    region
        .wait_until("peer 0 holds a quarter of the image", |region| {
            region.held_bytes(0) > region.image_bytes / 4
        })
        .await;
    region.stop_tracker();
    for pull in pulls {
        region.finish_pull(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tracker_down_from_the_start() {
    let mut region = TestRegion::with_image(ByteSize(4 << 20), None).await;
    region.stop_tracker();
    region.add_peers(2).await;
    for pull in region.pull_everywhere() {
        region.finish_pull(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_stops_after_the_first_pull() {
    let mut region = TestRegion::with_image(SIZE, RATE).await;
    region.add_peers(4).await;
    let first = region.pull(0);
    region.finish_pull(first).await;
    let pulls: Vec<_> = (1..4).map(|peer| region.pull(peer)).collect();
    region
        .wait_until("the other peers know the image's blobs", |region| {
            (1..4).all(|peer| region.peers()[peer].stats().blobs.len() == 5)
        })
        .await;
    region.stop_origin();
    for pull in pulls {
        region.finish_pull(pull).await;
    }
}
