//! containerd 1: skopeo pushes, and two daemons pull, each through its own peer.

use std::path::Path;

use flotilla_common::units::ByteSize;
use flotilla_peer::hosts_toml;
use tokio::task::spawn_blocking;

use crate::harness::containerd::Containerd;
use crate::harness::region::TestRegion;
use crate::harness::tools;

#[tokio::test(flavor = "multi_thread")]
async fn second_containerd_is_served_by_the_first_ones_peer() {
    let Some(tools) = tools::find_or_skip("containerd 1", &["skopeo", "containerd", "ctr"], true)
    else {
        return;
    };
    let [skopeo, containerd, ctr] = <[_; 3]>::try_from(tools).unwrap();
    let mut region = TestRegion::with_image(ByteSize(24 << 20), None).await;
    let registry = region.registry();
    let image = format!("{registry}/real/app:v1");
    let (source, target) = (
        format!("oci:{}", region.layout.display()),
        format!("docker://{image}"),
    );
    blocking(move || {
        let skopeo = Path::new(&skopeo);
        tools::run(
            skopeo,
            [
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                &source,
                &target,
            ],
        )
        .unwrap();
    })
    .await;

    region.add_peers(2).await;
    let mut contents = Vec::new();
    for peer in 0..2 {
        let mirror = region.peers()[peer].mirror_addr();
        let hosts = hosts_toml(mirror, Some(&region.origin_url()), None);
        let (containerd, ctr, registry, image) = (
            containerd.clone(),
            ctr.clone(),
            registry.clone(),
            image.clone(),
        );
        let content = blocking(move || {
            let daemon = Containerd::start(&containerd, &ctr);
            daemon.configure_mirror(&registry, &hosts);
            daemon.pull(&image).unwrap();
            daemon.content()
        });
        contents.push(content.await);
    }
    assert_eq!(
        contents[0], contents[1],
        "both daemons have the same digests"
    );
    assert_eq!(
        contents[0].len(),
        6,
        "manifest, config and four layers: {:?}",
        contents[0]
    );

    let (first, second) = (region.peers()[0].stats(), region.peers()[1].stats());
    assert!(
        first.bytes_to_runtime >= region.image_bytes,
        "the first pull went through its mirror: {first:?}"
    );
    let total = second.bytes_from_peers + second.bytes_from_origin;
    let share = second.bytes_from_peers as f64 / total as f64;
    assert!(
        share > 0.9,
        "only {share:.3} of the second pull came from the first peer: {second:?}"
    );
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}
