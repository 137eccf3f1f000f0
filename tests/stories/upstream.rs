//! An upstream that is not a Flotilla origin: its blobs pass through, and are shared once their
//! digests are verified.

use flotilla::client::{RegistryClient, push_layout};
use flotilla::region::PeerPlan;
use flotilla_common::units::ByteSize;
use tokio::task::spawn_blocking;

use crate::harness::docker_registry::DockerRegistry;
use crate::harness::region::{REPOSITORY, TAG, TestRegion};
use crate::harness::tools;

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_fetch_one_copy_from_a_third_party_registry() {
    let Some(tools) = tools::find_or_skip("a third-party upstream", &["docker-registry"], false)
    else {
        return;
    };
    let registry = spawn_blocking(move || DockerRegistry::start(&tools[0]))
        .await
        .unwrap();
    // The region's own origin is not used.
    let mut region = TestRegion::with_image(ByteSize(24 << 20), None).await;
    push_layout(&registry.url(), REPOSITORY, TAG, &region.layout)
        .await
        .unwrap();
    for number in 1..=2 {
        let plan = PeerPlan {
            upstream: Some(registry.url()),
            ..PeerPlan::numbered(number, 1)
        };
        region.add_peer(plan).await.unwrap();
    }
    let direct = RegistryClient::new(registry.url(), REPOSITORY.parse().unwrap()).unwrap();
    let digest = direct.pull(TAG, |_| {}).await.unwrap().digest;

    let first = region.finish_pull(region.pull(0)).await;
    let is_complete = |region: &TestRegion, peer: usize| {
        region.peers()[peer]
            .stats()
            .blobs
            .iter()
            .all(|blob| blob.is_complete)
    };
    region
        .wait_until("the first peer has verified all blobs", |region| {
            is_complete(region, 0)
        })
        .await;
    let second = region.finish_pull(region.pull(1)).await;
    assert_eq!(
        (first.digest, second.digest),
        (digest, digest),
        "the same digest as from the registry directly"
    );

    let (first, second) = (region.peers()[0].stats(), region.peers()[1].stats());
    assert_eq!(first.bytes_from_origin, region.image_bytes, "{first:?}");
    assert_eq!(second.bytes_from_peers, region.image_bytes, "{second:?}");
    assert_eq!(second.bytes_from_origin, 0, "{second:?}");
    assert_eq!(region.origin_blob_bytes(), 0);
}
