//! What containerd does when the mirror fails it in the middle of a pull: it goes on at the origin.

use std::path::Path;
use std::thread;

use flotilla::region::PeerPlan;
use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::hosts_toml;

use crate::harness::breaker::Breaker;
use crate::harness::containerd::Containerd;
use crate::harness::scene::{REPOSITORY, Scene, TAG};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(24 << 20);
const RATE: Option<BitRate> = Some(BitRate(80_000_000));

/// A pull by containerd that goes on in a thread of its own: all digests it has at the end.
fn pulls(scene: &Scene, peer: usize, containerd: Containerd) -> thread::JoinHandle<Vec<String>> {
    let mirror = scene.region.peers()[peer].mirror_addr();
    let (registry, origin) = (scene.region.registry(), scene.region.origin_url());
    thread::spawn(move || {
        containerd.configure_mirror(&registry, &hosts_toml(mirror, Some(&origin), None));
        containerd
            .pull(&format!("{registry}/{REPOSITORY}:{TAG}"))
            .unwrap();
        containerd.content()
    })
}

async fn finished(pulling: thread::JoinHandle<Vec<String>>) {
    let content = tokio::task::spawn_blocking(|| pulling.join())
        .await
        .unwrap()
        .expect("the pull succeeds");
    assert_eq!(
        content.len(),
        6,
        "manifest, configuration and four layers: {content:?}"
    );
}

/// Both versions, if they are here; the second as it is started by `start_2`.
fn daemons(story: &str, start_2: impl Fn(&Path, &Path) -> Containerd) -> Vec<Containerd> {
    let mut daemons = Vec::new();
    if let Some(tools) = tools::find(story, &["containerd", "ctr"], true) {
        daemons.push(Containerd::start(&tools[0], &tools[1]));
    }
    if let Some(tools) = tools::find(story, &["containerd-2", "ctr-2"], true) {
        daemons.push(start_2(&tools[0], &tools[1]));
    }
    daemons
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_dies_while_containerd_reads_costs_it_nothing_but_time() {
    // Not with ranges: containerd 2.2 then cancels the ranges before one that fails, and with them
    // the pull.
    for daemon in daemons("a mirror that dies", Containerd::start_2) {
        let mut scene = Scene::with_image(SIZE, RATE).await;
        scene.add_peers(1).await;
        let pulling = pulls(&scene, 0, daemon);
        scene
            .until("containerd reads", |scene| {
                to_runtime(scene) > scene.image_bytes / 4
            })
            .await;
        scene.region.stop_peer(0).await;
        finished(pulling).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_the_mirror_must_cut_is_resumed_at_the_origin() {
    for daemon in daemons("a download that is cut", Containerd::start_2_in_ranges) {
        let mut scene = Scene::with_image(SIZE, RATE).await;
        let way = Breaker::to(scene.region.registry().parse().unwrap()).await;
        let plan = PeerPlan {
            upstream: Some(way.url()),
            ..PeerPlan::numbered(1, 1)
        };
        scene.region.add_peer(plan).await.unwrap();
        let pulling = pulls(&scene, 0, daemon);
        scene
            .until("containerd reads", |scene| {
                to_runtime(scene) > scene.image_bytes / 4
            })
            .await;
        // The peer cannot reach its origin any more, and nobody else has the image; containerd can.
        way.break_off().await;
        finished(pulling).await;
        let handed = to_runtime(&scene);
        assert!(
            handed < scene.image_bytes,
            "the rest came from the origin: {handed} bytes"
        );
    }
}

fn to_runtime(scene: &Scene) -> u64 {
    scene.region.peers()[0].stats().bytes_to_runtime
}
