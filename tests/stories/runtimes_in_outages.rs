//! Container runtimes pull while the storage of their region hangs, through a mirror and directly
//! from the origin. Each pull is one command, without a retry by hand.

use std::path::PathBuf;
use std::sync::Arc;

use flotilla_common::units::ByteSize;
use flotilla_peer::{docker_daemon_json, hosts_toml, registries_conf};
use tokio::task::spawn_blocking;

use crate::harness::containerd::Containerd;
use crate::harness::docker::Docker;
use crate::harness::outage::{Outage, RunningCommand, TAG};
use crate::harness::podman::Podman;
use crate::harness::tools;

/// Large enough that what sockets and buffers hold is a small part of it.
const SIZE: ByteSize = ByteSize(32 << 20);
/// Both images in the middle of a pull take about 4 s at this rate.
const RATE: &str = "128Mbit";
/// An image whose pull begins during the outage.
const LATE_SIZE: ByteSize = ByteSize(4 << 20);
const IMAGES: [(&str, ByteSize); 4] = [
    ("library/mirrored", SIZE),
    ("library/direct", SIZE),
    ("library/late-mirrored", LATE_SIZE),
    ("library/late-direct", LATE_SIZE),
];

/// Pulls the tag of a repository of the first region, and returns the digests that it got.
type Pull = Arc<dyn Fn(&str) -> Result<Vec<String>, String> + Send + Sync>;

/// The two ways in which a runtime pulls.
struct Runtime {
    mirrored: Pull,
    direct: Pull,
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_2_pulls_through_an_outage() {
    containerd_pulls_through_an_outage("containerd 2.2", "containerd-2", "ctr-2").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_3_pulls_through_an_outage() {
    containerd_pulls_through_an_outage("containerd 2.3", "containerd-2.3", "ctr-2.3").await;
}

async fn containerd_pulls_through_an_outage(name: &str, containerd: &str, ctr: &str) {
    pulls_through_an_outage(name, &[containerd, ctr], |programs, outage| {
        let registry = outage.regions.registry(0);
        let (url, authority) = (outage.regions.url(0), outage.regions.authority());
        let hosts = [
            hosts_toml(outage.mirror(), Some(&url), Some(authority.as_ref())),
            format!("server = {url:?}\nca = {authority:?}\n"),
        ];
        let [mirrored, direct] = hosts.map(|hosts| {
            let daemon = Containerd::start_2(&programs[0], &programs[1]);
            daemon.configure_mirror(&registry, &hosts);
            let registry = registry.clone();
            let pull: Pull = Arc::new(move |repository| {
                daemon.pull(&format!("{registry}/{repository}:{TAG}"))?;
                Ok(daemon.content())
            });
            pull
        });
        Runtime { mirrored, direct }
    })
    .await;
}

/// Docker uses mirrors for images of Docker Hub only. It does not verify certificates of loopback
/// addresses.
#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_through_an_outage() {
    pulls_through_an_outage("Docker", &["dockerd", "docker"], |programs, outage| {
        let daemon_json = docker_daemon_json(outage.mirror());
        let mirrored = Arc::new(Docker::start(&programs[0], &programs[1], &daemon_json));
        let (direct, registry) = (Arc::clone(&mirrored), outage.regions.registry(0));
        Runtime {
            mirrored: Arc::new(move |repository| {
                let digest = mirrored.pull(&format!("{repository}:{TAG}"))?;
                Ok(vec![digest])
            }),
            direct: Arc::new(move |repository| {
                let digest = direct.pull(&format!("{registry}/{repository}:{TAG}"))?;
                Ok(vec![digest])
            }),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_through_an_outage() {
    pulls_through_an_outage("Podman", &["podman"], |programs, outage| {
        let (registry, url) = (outage.regions.registry(0), outage.regions.url(0));
        let unverified = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
        let configurations = [registries_conf(outage.mirror(), &url), unverified];
        let [mirrored, direct] = configurations.map(|configuration| {
            let podman = Podman::new(&programs[0], &configuration);
            let registry = registry.clone();
            let pull: Pull = Arc::new(move |repository| {
                let digest = podman.pull(&format!("{registry}/{repository}:{TAG}"))?;
                Ok(vec![digest])
            });
            pull
        });
        Runtime { mirrored, direct }
    })
    .await;
}

/// Two pulls are in the middle when the storage stops, and two begin afterwards.
async fn pulls_through_an_outage(
    name: &str,
    programs: &[&str],
    runtime: impl FnOnce(&[PathBuf], &Outage) -> Runtime + Send + 'static,
) {
    let test = format!("{name} in an outage");
    let wanted = [&["moto_server"][..], programs].concat();
    let Some(tools) = tools::find_or_skip(&test, &wanted, true) else {
        return;
    };
    let outage = Arc::new(Outage::prepare(&tools[0], RATE, &IMAGES).await);
    let shared = Arc::clone(&outage);
    let runtime = spawn_blocking(move || runtime(&tools[1..], &shared));
    let runtime = runtime.await.unwrap();
    let start = |pull: &Pull, image: usize| {
        let (pull, repository) = (Arc::clone(pull), IMAGES[image].0);
        RunningCommand::start(move || pull(repository))
    };
    let finish = async |pull: RunningCommand<Vec<String>>, image: usize, what: &str| {
        let digests = pull.finish(&format!("{name}, {what}")).await;
        let wanted = outage.images[image].digest.to_string();
        assert!(digests.contains(&wanted), "{what}: {digests:?}");
    };

    let mirrored = start(&runtime.mirrored, 0);
    let direct = start(&runtime.direct, 1);
    outage
        .wait_until("both pulls are in the middle", async |outage| {
            let for_mirror = outage.peer_stats().await.bytes_from_origin;
            let sent = outage.sent_bytes(0).await;
            for_mirror > 0 && sent > for_mirror + SIZE.0 / 4
        })
        .await;
    outage.begin();
    assert!(
        mirrored.is_running() && direct.is_running(),
        "a pull had ended before the outage"
    );
    finish(mirrored, 0, "mirror, outage in the middle").await;
    finish(direct, 1, "origin, outage in the middle").await;
    // The outage was real: the other region had to send what was missing.
    let sent = outage.sent_bytes(1).await;
    assert!(sent > SIZE.0 / 4, "the other region sent {sent} bytes");

    let mirrored = start(&runtime.mirrored, 2);
    let direct = start(&runtime.direct, 3);
    finish(mirrored, 2, "mirror, started in the outage").await;
    finish(direct, 3, "origin, started in the outage").await;
    let to_runtime = outage.peer_stats().await.bytes_to_runtime;
    let wanted = outage.images[0].bytes + outage.images[2].bytes;
    assert!(
        to_runtime >= wanted,
        "the mirror sent {to_runtime} bytes of {wanted}: the runtime asked elsewhere"
    );
}
