//! An upstream that is no Flotilla: its images pass through, and its blobs are shared once their
//! digest is checked.

use flotilla::client::{RegistryClient, push_layout};
use flotilla::region::PeerPlan;
use flotilla_common::units::ByteSize;
use tokio::task::spawn_blocking;

use crate::harness::registry::Registry;
use crate::harness::scene::{REPOSITORY, Scene, TAG};
use crate::harness::tools;

#[tokio::test(flavor = "multi_thread")]
async fn two_peers_before_a_docker_registry_fetch_one_copy() {
    let Some(tools) = tools::find(
        "an upstream that is no Flotilla",
        &["docker-registry"],
        false,
    ) else {
        return;
    };
    let registry = spawn_blocking(move || Registry::start(&tools[0]))
        .await
        .unwrap();
    // The region's own origin is not asked.
    let mut scene = Scene::with_image(ByteSize(24 << 20), None).await;
    push_layout(&registry.url(), REPOSITORY, TAG, &scene.layout)
        .await
        .unwrap();
    for number in 1..=2 {
        let plan = PeerPlan {
            upstream: Some(registry.url()),
            ..PeerPlan::numbered(number, 1)
        };
        scene.region.add_peer(plan).await.unwrap();
    }
    let direct = RegistryClient::new(registry.url(), REPOSITORY.parse().unwrap()).unwrap();
    let digest = direct.pull(TAG, |_| {}).await.unwrap().digest;

    let first = scene.completes(scene.pull(0)).await;
    let is_complete = |scene: &Scene, peer: usize| {
        scene.region.peers()[peer]
            .stats()
            .blobs
            .iter()
            .all(|blob| blob.is_complete)
    };
    scene
        .until("the first peer has proved all blobs", |scene| {
            is_complete(scene, 0)
        })
        .await;
    let second = scene.completes(scene.pull(1)).await;
    assert_eq!(
        (first.digest, second.digest),
        (digest, digest),
        "as straight from the registry"
    );

    let (first, second) = (
        scene.region.peers()[0].stats(),
        scene.region.peers()[1].stats(),
    );
    assert_eq!(first.bytes_from_origin, scene.image_bytes, "{first:?}");
    assert_eq!(second.bytes_from_peers, scene.image_bytes, "{second:?}");
    assert_eq!(second.bytes_from_origin, 0, "{second:?}");
    assert_eq!(scene.region.origin_blob_bytes(), 0);
}
