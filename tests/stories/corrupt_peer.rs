//! A peer that sends corrupt bytes is quarantined, and its bytes are not kept.

use std::sync::Arc;

use bytes::Bytes;
use flotilla::region::PeerPlan;
use flotilla_common::digest::Digest;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::ChunkInterceptor;

use crate::harness::region::TestRegion;

/// Flips the last bit of everything it sends.
#[derive(Debug)]
struct CorruptingSender;

impl ChunkInterceptor for CorruptingSender {
    fn bytes(&self, _blob: &Digest, _offset: u64, bytes: Bytes) -> Bytes {
        let mut corrupted = bytes.to_vec();
        if let Some(last) = corrupted.last_mut() {
            *last ^= 1;
        }
        corrupted.into()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn corrupt_bytes_are_not_stored_served_or_forwarded() {
    let mut region = TestRegion::with_image(ByteSize(8 << 20), Some(BitRate(200_000_000))).await;
    let corrupt_peer = PeerPlan {
        interceptor: Arc::new(CorruptingSender),
        ..PeerPlan::numbered(1, 1)
    };
    region.add_peer(corrupt_peer).await.unwrap();
    region.finish_pull(region.pull(0)).await;

    // The second peer's only neighbour is the corrupt peer, which announces all chunks.
    region.add_peer(PeerPlan::numbered(2, 1)).await.unwrap();
    // The client verifies each digest, so it got no corrupt bytes.
    region.finish_pull(region.pull(1)).await;
    // The store verifies the digest of the whole blob after the client got its last byte.
    region
        .wait_until("the second peer's store is complete", |region| {
            is_complete(region, 1)
        })
        .await;
    let victim = region.peers()[1].stats();
    assert!(
        victim.corrupt_chunks >= 1,
        "the corrupt peer was used and detected: {victim:?}"
    );
    assert_eq!(victim.quarantined_peers, 1);
    assert_eq!(
        victim.bytes_from_peers, 0,
        "corrupt bytes do not count as received"
    );

    // A third peer gets correct bytes from the second.
    region.add_peer(PeerPlan::numbered(3, 1)).await.unwrap();
    region.finish_pull(region.pull(2)).await;
    region
        .wait_until("the third peer's store is complete", |region| {
            is_complete(region, 2)
        })
        .await;
    let third = region.peers()[2].stats();
    assert!(
        third.quarantined_peers <= 1,
        "only the corrupt peer is quarantined"
    );
}

fn is_complete(region: &TestRegion, peer: usize) -> bool {
    region.peers()[peer]
        .stats()
        .blobs
        .iter()
        .all(|blob| blob.is_complete)
}
