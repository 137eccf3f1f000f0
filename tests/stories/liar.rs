//! A peer that alters the bytes it sends is found out, and nothing of them is kept.

use std::sync::Arc;

use bytes::Bytes;
use flotilla::region::PeerPlan;
use flotilla_common::digest::Digest;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::ChunkInterceptor;

use crate::harness::scene::Scene;

/// Flips one bit of all it sends.
#[derive(Debug)]
struct Liar;

impl ChunkInterceptor for Liar {
    fn bytes(&self, _blob: &Digest, _offset: u64, bytes: Bytes) -> Bytes {
        let mut altered = bytes.to_vec();
        if let Some(last) = altered.last_mut() {
            *last ^= 1;
        }
        altered.into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lying_peer_is_found_out_and_nothing_of_it_is_stored_served_or_emitted() {
    let mut scene = Scene::with_image(ByteSize(8 << 20), Some(BitRate(200_000_000))).await;
    let liar = PeerPlan {
        interceptor: Arc::new(Liar),
        ..PeerPlan::numbered(1, 1)
    };
    scene.region.add_peer(liar).await.unwrap();
    scene.completes(scene.pull(0)).await;

    // Its only neighbour is the liar, which says that it holds everything.
    scene
        .region
        .add_peer(PeerPlan::numbered(2, 1))
        .await
        .unwrap();
    // The client checks each digest: nothing altered was emitted.
    scene.completes(scene.pull(1)).await;
    // What is stored is checked once more as a whole, after the last byte was emitted.
    scene
        .until("the second peer's store is complete", |scene| {
            is_complete(scene, 1)
        })
        .await;
    let victim = scene.region.peers()[1].stats();
    assert!(
        victim.corrupt_chunks >= 1,
        "the liar was asked and found out: {victim:?}"
    );
    assert_eq!(victim.quarantined_peers, 1);
    assert_eq!(
        victim.bytes_from_peers, 0,
        "nothing of it counts as received"
    );

    // A third peer gets honest bytes from the second: nothing altered is served on.
    scene
        .region
        .add_peer(PeerPlan::numbered(3, 1))
        .await
        .unwrap();
    scene.completes(scene.pull(2)).await;
    scene
        .until("the third peer's store is complete", |scene| {
            is_complete(scene, 2)
        })
        .await;
    let third = scene.region.peers()[2].stats();
    assert!(
        third.quarantined_peers <= 1,
        "the honest neighbour is not blamed"
    );
}

fn is_complete(scene: &Scene, peer: usize) -> bool {
    scene.region.peers()[peer]
        .stats()
        .blobs
        .iter()
        .all(|blob| blob.is_complete)
}
