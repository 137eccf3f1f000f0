//! Container runtimes in their usual configuration: skopeo pushes, each runtime pulls through its
//! peer's mirror, and the second peer gets the image from the first.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use flotilla_common::units::{BitRate, ByteSize};
use flotilla_peer::{docker_daemon_json, hosts_toml, registries_conf};
use tokio::task::spawn_blocking;

use crate::harness::containerd::Containerd;
use crate::harness::docker::Docker;
use crate::harness::podman::Podman;
use crate::harness::region::{REPOSITORY, TAG, TestRegion};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(24 << 20);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

/// Pulls through two peers, one after the other. Both results of `pull` must be equal, and the
/// second peer must get the image from the first.
async fn assert_second_peer_is_served_by_the_first<T, F>(region: &mut TestRegion, pull: F)
where
    T: Send + PartialEq + std::fmt::Debug + 'static,
    F: Fn(String, SocketAddr) -> T + Clone + Send + 'static,
{
    region.add_peers(2).await;
    let mut pulled = Vec::new();
    for peer in 0..2 {
        let (pull, origin) = (pull.clone(), region.origin_url());
        let mirror = region.peers()[peer].mirror_addr();
        pulled.push(blocking(move || pull(origin, mirror)).await);
    }
    assert_eq!(pulled[0], pulled[1], "both pulls have the same digests");
    let (first, second) = (region.peers()[0].stats(), region.peers()[1].stats());
    assert!(
        first.bytes_to_runtime >= region.image_bytes,
        "the first pull went through its mirror: {first:?}"
    );
    assert!(
        second.bytes_to_runtime >= region.image_bytes,
        "the second pull went through its mirror: {second:?}"
    );
    let share = second.bytes_from_peers as f64 / region.image_bytes as f64;
    assert!(
        share > 0.9,
        "only {share:.3} of the second pull came from the first peer: {second:?}"
    );
}

async fn region_with_skopeo_push(skopeo: PathBuf, rate: Option<BitRate>) -> TestRegion {
    let region = TestRegion::with_image(SIZE, rate).await;
    let source = format!("oci:{}", region.layout.display());
    let target = format!("docker://{}/{REPOSITORY}:{TAG}", region.registry());
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
    region
}

/// The registry's name and the image reference, for the origin at a URL.
fn image_at(origin: &str) -> (String, String) {
    let registry = origin.trim_start_matches("http://").to_owned();
    let image = format!("{registry}/{REPOSITORY}:{TAG}");
    (registry, image)
}

fn pull_with_containerd(
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
async fn containerd_2_pulls_with_parallel_ranges() {
    let Some(tools) =
        tools::find_or_skip("containerd 2", &["skopeo", "containerd-2", "ctr-2"], true)
    else {
        return;
    };
    let [skopeo, containerd, ctr] = <[_; 3]>::try_from(tools).unwrap();
    let mut region = region_with_skopeo_push(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        pull_with_containerd(
            &Containerd::start_2_with_ranges(&containerd, &ctr),
            &[],
            &origin,
            mirror,
        )
    };
    assert_second_peer_is_served_by_the_first(&mut region, pull).await;
    let copies = region.origin_copies();
    assert!(
        copies < 1.1,
        "aborted range requests cost {copies} copies from the origin"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_pulls_without_its_transfer_service() {
    let Some(tools) = tools::find_or_skip(
        "containerd 2 --local",
        &["skopeo", "containerd-2", "ctr-2"],
        true,
    ) else {
        return;
    };
    let [skopeo, containerd, ctr] = <[_; 3]>::try_from(tools).unwrap();
    let mut region = region_with_skopeo_push(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        pull_with_containerd(
            &Containerd::start_2(&containerd, &ctr),
            &["--local"],
            &origin,
            mirror,
        )
    };
    assert_second_peer_is_served_by_the_first(&mut region, pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_docker_hub_names_through_the_mirror() {
    let Some(tools) = tools::find_or_skip("Docker", &["skopeo", "dockerd", "docker"], true) else {
        return;
    };
    let [skopeo, dockerd, docker] = <[_; 3]>::try_from(tools).unwrap();
    let mut region = region_with_skopeo_push(skopeo, None).await;
    let pull = move |_, mirror| {
        let docker = Docker::start(&dockerd, &docker, &docker_daemon_json(mirror));
        docker.pull(&format!("{REPOSITORY}:{TAG}")).unwrap()
    };
    assert_second_peer_is_served_by_the_first(&mut region, pull).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_through_the_mirror() {
    let Some(tools) = tools::find_or_skip("Podman", &["skopeo", "podman"], true) else {
        return;
    };
    let [skopeo, podman] = <[_; 2]>::try_from(tools).unwrap();
    let mut region = region_with_skopeo_push(skopeo, None).await;
    let pull = move |origin: String, mirror| {
        let (_, image) = image_at(&origin);
        Podman::new(&podman, &registries_conf(mirror, &origin))
            .pull(&image)
            .unwrap()
    };
    assert_second_peer_is_served_by_the_first(&mut region, pull).await;
}

/// CRI-O reads its configuration and pulls with the library of Podman and skopeo.
#[tokio::test(flavor = "multi_thread")]
async fn crio_configuration_falls_back_to_the_origin() {
    let Some(tools) = tools::find_or_skip("CRI-O's library", &["skopeo"], false) else {
        return;
    };
    let [skopeo] = <[_; 1]>::try_from(tools).unwrap();
    let mut region = region_with_skopeo_push(skopeo.clone(), None).await;
    region.add_peers(1).await;
    let (mirror, origin) = (
        region.peers()[0].mirror_addr().to_string(),
        region.origin_url(),
    );
    let arguments = [
        "peer",
        "hosts-toml",
        "--for",
        "crio",
        "--mirror",
        &mirror,
        "--origin",
        &origin,
    ];
    let configuration = tools::run(Path::new(env!("CARGO_BIN_EXE_flotilla")), arguments).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(path("registries.conf"), configuration).unwrap();
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
    let stats = region.peers()[0].stats();
    assert!(
        stats.bytes_to_runtime >= region.image_bytes,
        "the pull went through the mirror: {stats:?}"
    );
    region.stop_peer(0).await;
    pull("from-the-origin").await;
}
