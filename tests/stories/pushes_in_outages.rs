//! Clients push to a region whose storage hangs: before the push begins, or in the middle. Each
//! push is one command; clients repeat the upload of a layer by themselves.

use std::path::PathBuf;
use std::sync::Arc;

use flotilla_common::units::ByteSize;
use flotilla_peer::docker_daemon_json;
use tokio::task::spawn_blocking;

use crate::harness::docker::Docker;
use crate::harness::outage::{Outage, RunningCommand, TAG};
use crate::harness::podman::Podman;
use crate::harness::tools;

/// Large enough that the push takes most of a second.
const SIZE: ByteSize = ByteSize(48 << 20);
/// An image whose push begins during the outage.
const LATE_SIZE: ByteSize = ByteSize(4 << 20);
/// Where the client has the images from.
const IMAGES: [(&str, ByteSize); 2] = [("library/app", SIZE), ("library/late", LATE_SIZE)];
const RATE: &str = "10Gbit";

/// Pushes one of the images to a repository of the first region.
type Push = Arc<dyn Fn(usize, &str) -> Result<(), String> + Send + Sync>;

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_through_an_outage() {
    pushes_through_an_outage("Docker", &["dockerd", "docker"], |programs, outage| {
        let daemon_json = docker_daemon_json(outage.mirror());
        let docker = Docker::start(&programs[0], &programs[1], &daemon_json);
        // Docker does not know that the registry has layers which it got through the mirror.
        let local = IMAGES.map(|(repository, _)| format!("{repository}:{TAG}"));
        for image in &local {
            docker.pull(image).unwrap();
        }
        let registry = outage.regions.registry(0);
        Arc::new(move |image, repository| {
            docker.push(&local[image], &format!("{registry}/{repository}:{TAG}"))
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_through_an_outage() {
    pushes_through_an_outage("Podman", &["podman"], |programs, outage| {
        let registries = [0, 1].map(|region| outage.regions.registry(region));
        let unverified: String = registries
            .iter()
            .map(|it| format!("[[registry]]\nlocation = \"{it}\"\ninsecure = true\n"))
            .collect();
        let podman = Podman::new(&programs[0], &unverified);
        let local = IMAGES.map(|(repository, _)| {
            let image = format!("{}/{repository}:{TAG}", registries[1]);
            podman.pull(&image).unwrap();
            image
        });
        let [registry, _] = registries;
        Arc::new(move |image, repository| {
            podman.push(&local[image], &format!("{registry}/{repository}:{TAG}"))
        })
    })
    .await;
}

/// skopeo repeats nothing unless it is told to.
#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_through_an_outage() {
    pushes_through_an_outage("skopeo", &["skopeo"], |programs, outage| {
        let (skopeo, registry) = (programs[0].clone(), outage.regions.registry(0));
        let layouts = [0, 1].map(|image: usize| outage.images[image].layout.clone());
        Arc::new(move |image, repository| {
            let source = format!("oci:{}", layouts[image]);
            let target = format!("docker://{registry}/{repository}:{TAG}");
            let copy = ["--insecure-policy", "copy", "--retry-times", "3"];
            let copy = copy.into_iter().chain(["--dest-tls-verify=false"]);
            tools::run(&skopeo, copy.chain([&*source, &*target])).map(drop)
        })
    })
    .await;
}

async fn pushes_through_an_outage(
    name: &str,
    programs: &[&str],
    client: impl FnOnce(&[PathBuf], &Outage) -> Push + Send + 'static,
) {
    let test = format!("pushes by {name} in an outage");
    let wanted = [&["moto_server"][..], programs].concat();
    let Some(tools) = tools::find_or_skip(&test, &wanted, true) else {
        return;
    };
    let outage = Arc::new(Outage::prepare(&tools[0], RATE, &IMAGES).await);
    let shared = Arc::clone(&outage);
    let push = spawn_blocking(move || client(&tools[1..], &shared));
    let push = push.await.unwrap();
    let start = |image: usize, repository: &'static str| {
        let push = Arc::clone(&push);
        RunningCommand::start(move || push(image, repository))
    };

    let middle = start(0, "pushed/middle");
    outage
        .wait_until("a layer is being uploaded", async |outage| {
            let under_way = "flotilla_origin_uploads_under_way ";
            outage.regions.metric(0, under_way).await > 0
        })
        .await;
    outage.begin();
    assert!(middle.is_running(), "the push had ended before the outage");
    middle
        .finish(&format!("{name}, push, outage in the middle"))
        .await;
    start(1, "pushed/late")
        .finish(&format!("{name}, push, started in the outage"))
        .await;
    for (image, repository) in ["pushed/middle", "pushed/late"].into_iter().enumerate() {
        for region in [0, 1] {
            let client = outage.regions.client(region, repository);
            let pulled = client.pull(TAG, |_| {}).await.unwrap();
            assert!(pulled.bytes > IMAGES[image].1.0 / 2);
        }
    }
}
