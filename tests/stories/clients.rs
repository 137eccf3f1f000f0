//! Container runtimes as their users run them: skopeo pushes, each runtime pulls through its peer's
//! mirror, and the second machine gets the image from the first one's peer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::{docker_daemon_json, hosts_toml, registries_conf};
use tokio::task::spawn_blocking;

use crate::harness::containerd::Containerd;
use crate::harness::docker::Docker;
use crate::harness::podman::Podman;
use crate::harness::scene::{REPOSITORY, Scene, TAG};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(24 << 20);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

/// Pulls on two machines, one after the other, each through its own peer; what `pull` says of both
/// must be the same.
async fn second_machine_is_served_by_the_first<T, F>(scene: &mut Scene, pull: F)
where
    T: Send + PartialEq + std::fmt::Debug + 'static,
    F: Fn(String, SocketAddr) -> T + Clone + Send + 'static,
{
    scene.add_peers(2).await;
    let mut pulled = Vec::new();
    for peer in 0..2 {
        let (pull, origin) = (pull.clone(), scene.region.origin_url());
        let mirror = scene.region.peers()[peer].mirror_addr();
        pulled.push(blocking(move || pull(origin, mirror)).await);
    }
    assert_eq!(pulled[0], pulled[1], "both have the same digests");
    let (first, second) = (
        scene.region.peers()[0].stats(),
        scene.region.peers()[1].stats(),
    );
    assert!(
        first.bytes_to_runtime >= scene.image_bytes,
        "the first pull went through its mirror: {first:?}"
    );
    assert!(
        second.bytes_to_runtime >= scene.image_bytes,
        "so did the second: {second:?}"
    );
    let share = second.bytes_from_peers as f64 / scene.image_bytes as f64;
    assert!(
        share > 0.9,
        "only {share:.3} of the second pull came from the first peer: {second:?}"
    );
}

async fn pushed_with_skopeo(skopeo: PathBuf, rate: Option<BitRate>) -> Scene {
    let scene = Scene::with_image(SIZE, rate).await;
    let source = format!("oci:{}", scene.layout.display());
    let target = format!("docker://{}/{REPOSITORY}:{TAG}", scene.region.registry());
    blocking(move || {
        tools::run(
            &skopeo,
            [
                "--insecure-policy",
                "copy",
                "--dest-tls-verify=false",
                &source,
                &target,
            ],
        )
    })
    .await
    .unwrap();
    scene
}

/// An image of the scene as a runtime names it.
fn image_at(origin: &str) -> (String, String) {
    let registry = origin.trim_start_matches("http://").to_owned();
    let image = format!("{registry}/{REPOSITORY}:{TAG}");
    (registry, image)
}

fn containerd_pulls(
    daemon: &Containerd,
    flags: &[&str],
    origin: &str,
    mirror: SocketAddr,
) -> Vec<String> {
    let (registry, image) = image_at(origin);
    daemon.configure_mirror(&registry, &hosts_toml(mirror, Some(origin), None));
    daemon.pull_with(flags, &image).unwrap();
    daemon.content()
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_fetches_layers_in_parallel_ranges() {
    let Some(tools) = tools::find("containerd 2", &["skopeo", "containerd-2", "ctr-2"], true)
    else {
        return;
    };
    let [skopeo, containerd, ctr] = <[_; 3]>::try_from(tools).unwrap();
    let mut scene = pushed_with_skopeo(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        containerd_pulls(
            &Containerd::start_2_in_ranges(&containerd, &ctr),
            &[],
            &origin,
            mirror,
        )
    };
    second_machine_is_served_by_the_first(&mut scene, pull).await;
    let copies = scene.origin_copies();
    assert!(
        copies < 1.1,
        "ranges that were hung up on cost {copies} copies from the origin"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_pulls_without_its_transfer_service() {
    let Some(tools) = tools::find(
        "containerd 2 --local",
        &["skopeo", "containerd-2", "ctr-2"],
        true,
    ) else {
        return;
    };
    let [skopeo, containerd, ctr] = <[_; 3]>::try_from(tools).unwrap();
    let mut scene = pushed_with_skopeo(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        containerd_pulls(
            &Containerd::start_2(&containerd, &ctr),
            &["--local"],
            &origin,
            mirror,
        )
    };
    second_machine_is_served_by_the_first(&mut scene, pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_what_it_takes_for_an_image_of_docker_hub() {
    let Some(tools) = tools::find("Docker", &["skopeo", "dockerd", "docker"], true) else {
        return;
    };
    let [skopeo, dockerd, docker] = <[_; 3]>::try_from(tools).unwrap();
    let mut scene = pushed_with_skopeo(skopeo, None).await;
    let pull = move |_, mirror| {
        let docker = Docker::start(&dockerd, &docker, &docker_daemon_json(mirror));
        docker.pull(&format!("{REPOSITORY}:{TAG}")).unwrap()
    };
    second_machine_is_served_by_the_first(&mut scene, pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_through_the_mirror() {
    let Some(tools) = tools::find("Podman", &["skopeo", "podman"], true) else {
        return;
    };
    let [skopeo, podman] = <[_; 2]>::try_from(tools).unwrap();
    let mut scene = pushed_with_skopeo(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        let (_, image) = image_at(&origin);
        Podman::new(&podman, &registries_conf(mirror, &origin))
            .pull(&image)
            .unwrap()
    };
    second_machine_is_served_by_the_first(&mut scene, pull).await;
}

/// What reads and pulls there is the library of Podman and skopeo.
#[tokio::test(flavor = "multi_thread")]
async fn the_library_in_cri_o_reads_what_is_printed_for_it_and_finds_the_origin_when_the_peer_is_gone()
 {
    let Some(tools) = tools::find("CRI-O's library", &["skopeo"], false) else {
        return;
    };
    let [skopeo] = <[_; 1]>::try_from(tools).unwrap();
    let mut scene = pushed_with_skopeo(skopeo.clone(), None).await;
    scene.add_peers(1).await;
    let (mirror, origin) = (
        scene.region.peers()[0].mirror_addr().to_string(),
        scene.region.origin_url(),
    );
    let asked = [
        "peer",
        "hosts-toml",
        "--for",
        "crio",
        "--mirror",
        &mirror,
        "--origin",
        &origin,
    ];
    let printed = tools::run(Path::new(env!("CARGO_BIN_EXE_flotilla")), asked).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("registries.conf"), printed).unwrap();
    let (_, image) = image_at(&origin);
    let pull = async |to: &str| {
        let (skopeo, conf) = (skopeo.clone(), path("registries.conf"));
        let (from, to) = (format!("docker://{image}"), format!("dir:{}", path(to)));
        let arguments = move || {
            [
                "--insecure-policy",
                "--registries-conf",
                &conf,
                "copy",
                &from,
                &to,
            ]
            .map(str::to_owned)
        };
        blocking(move || tools::run(&skopeo, arguments()))
            .await
            .unwrap();
    };
    pull("through-the-mirror").await;
    let stats = scene.region.peers()[0].stats();
    assert!(
        stats.bytes_to_runtime >= scene.image_bytes,
        "it went through the mirror: {stats:?}"
    );
    scene.region.stop_peer(0).await;
    pull("from-the-origin").await;
}
