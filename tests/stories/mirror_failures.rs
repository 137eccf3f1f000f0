//! The mirror fails during a pull: containerd continues at the origin.

use std::path::Path;
use std::thread;

use flotilla::region::PeerPlan;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::hosts_toml;

use crate::harness::containerd::Containerd;
use crate::harness::proxy::BreakableProxy;
use crate::harness::region::{REPOSITORY, TAG, TestRegion};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(24 << 20);
const RATE: Option<BitRate> = Some(BitRate(80_000_000));

/// Starts a pull by containerd on a separate thread, which returns the digests of its content.
fn start_pull(
    region: &TestRegion,
    peer: usize,
    containerd: Containerd,
) -> thread::JoinHandle<Vec<String>> {
    let mirror = region.peers()[peer].mirror_addr();
    let (registry, origin) = (region.registry(), region.origin_url());
    thread::spawn(move || {
        containerd.configure_mirror(&registry, &hosts_toml(mirror, Some(&origin), None));
        containerd
            .pull(&format!("{registry}/{REPOSITORY}:{TAG}"))
            .unwrap();
        containerd.content()
    })
}

async fn assert_succeeds(pull: thread::JoinHandle<Vec<String>>) {
    let content = tokio::task::spawn_blocking(|| pull.join())
        .await
        .unwrap()
        .expect("the pull succeeds");
    assert_eq!(
        content.len(),
        6,
        "manifest, config and four layers: {content:?}"
    );
}

/// The installed versions of containerd; version 2 is started with `start_2`.
fn daemons(test: &str, start_2: impl Fn(&Path, &Path) -> Containerd) -> Vec<Containerd> {
    let mut daemons = Vec::new();
    if let Some(tools) = tools::find_or_skip(test, &["containerd", "ctr"], true) {
        daemons.push(Containerd::start(&tools[0], &tools[1]));
    }
    if let Some(tools) = tools::find_or_skip(test, &["containerd-2", "ctr-2"], true) {
        daemons.push(start_2(&tools[0], &tools[1]));
    }
    daemons
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_survives_the_end_of_its_mirror() {
    // Without parallel ranges: if one of them fails, containerd 2.2 cancels the earlier ranges and
    // thereby the pull.
    for daemon in daemons("the end of a mirror", Containerd::start_2) {
        let mut region = TestRegion::with_image(SIZE, RATE).await;
        region.add_peers(1).await;
        let pull = start_pull(&region, 0, daemon);
        region
            .wait_until("containerd has a quarter of the image", |region| {
                bytes_to_runtime(region) > region.image_bytes / 4
            })
            .await;
        region.stop_peer(0).await;
        assert_succeeds(pull).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_resumes_an_aborted_download_at_the_origin() {
    for daemon in daemons("an aborted download", Containerd::start_2_with_ranges) {
        let mut region = TestRegion::with_image(SIZE, RATE).await;
        let proxy = BreakableProxy::start(region.registry().parse().unwrap()).await;
        let plan = PeerPlan {
            upstream: Some(proxy.url()),
            ..PeerPlan::numbered(1, 1)
        };
        region.add_peer(plan).await.unwrap();
        let pull = start_pull(&region, 0, daemon);
        region
            .wait_until("containerd has a quarter of the image", |region| {
                bytes_to_runtime(region) > region.image_bytes / 4
            })
            .await;
        // From here on the peer has no source for the image; containerd can reach the origin.
        proxy.stop().await;
        assert_succeeds(pull).await;
        let from_mirror = bytes_to_runtime(&region);
        assert!(
            from_mirror < region.image_bytes,
            "the rest must come from the origin: {from_mirror} bytes from the mirror"
        );
    }
}

fn bytes_to_runtime(region: &TestRegion) -> u64 {
    region.peers()[0].stats().bytes_to_runtime
}
