//! Third-party clients push to the origin; the images are pulled and compared.

use std::path::PathBuf;

use flotilla::client::RegistryClient;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::units::ByteSize;
use futures_util::{StreamExt, stream};
use tokio::task::spawn_blocking;

use crate::harness::buildah::Buildah;
use crate::harness::docker::Docker;
use crate::harness::multi_platform_image::MultiPlatformImage;
use crate::harness::podman::Podman;
use crate::harness::region::{REPOSITORY, TAG, TestRegion};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(4 << 20);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

fn client(region: &TestRegion, repository: &str) -> RegistryClient {
    RegistryClient::new(region.origin_url(), repository.parse().unwrap()).unwrap()
}

/// Pulls `v1` of a repository, verifying every digest, and returns the manifest.
async fn pull_v1(region: &TestRegion, repository: &str) -> flotilla_common::manifest::Manifest {
    let client = client(region, repository);
    let pulled = client.pull("v1", |_| {}).await.unwrap();
    assert!(pulled.bytes > 0);
    client.manifest(&pulled.digest).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_copies_a_multi_platform_image_with_100_layers() {
    let Some(tools) = tools::find_or_skip("pushes by skopeo", &["skopeo"], false) else {
        return;
    };
    let [skopeo] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let (pushed, back) = (
        MultiPlatformImage::create(region.dir().join("platforms")),
        region.dir().join("back"),
    );
    let image = format!("docker://{}/skopeo/app:v1", region.registry());
    let (source, target) = (
        format!("oci:{}:v1", pushed.dir.display()),
        format!("oci:{}:v1", back.display()),
    );
    blocking(move || {
        let copy = ["--insecure-policy", "copy", "--all", "--preserve-digests"];
        let push = copy
            .into_iter()
            .chain(["--dest-tls-verify=false", &source, &image]);
        tools::run(&skopeo, push).unwrap();
        tools::run(
            &skopeo,
            copy.into_iter()
                .chain(["--src-tls-verify=false", &image, &target]),
        )
        .unwrap();
    })
    .await;
    assert_eq!(
        MultiPlatformImage::blob_names(&back),
        MultiPlatformImage::blob_names(&pushed.dir)
    );
    assert_eq!(pull_v1(&region, "skopeo/app").await.layers.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pulls_and_pushes() {
    let Some(tools) = tools::find_or_skip("pushes by Docker", &["dockerd", "docker"], true) else {
        return;
    };
    let [dockerd, docker] = <[PathBuf; 2]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let registry = region.registry();
    blocking(move || {
        let docker = Docker::start(&dockerd, &docker, "{}");
        let image = format!("{registry}/{REPOSITORY}:{TAG}");
        docker.pull(&image).unwrap();
        docker
            .push(&image, &format!("{registry}/docker/app:v1"))
            .unwrap();
    })
    .await;
    assert_eq!(pull_v1(&region, "docker/app").await.layers.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pulls_and_pushes() {
    let Some(tools) = tools::find_or_skip("pushes by Podman", &["podman"], true) else {
        return;
    };
    let [podman] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let registry = region.registry();
    blocking(move || {
        let insecure = format!("[[registry]]\nlocation = \"{registry}\"\ninsecure = true\n");
        let (podman, image) = (
            Podman::new(&podman, &insecure),
            format!("{registry}/{REPOSITORY}:{TAG}"),
        );
        podman.pull(&image).unwrap();
        podman
            .push(&image, &format!("{registry}/podman/app:v1"))
            .unwrap();
    })
    .await;
    assert_eq!(pull_v1(&region, "podman/app").await.layers.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_zstd_layers() {
    let Some(tools) = tools::find_or_skip("pushes by buildah", &["buildah"], true) else {
        return;
    };
    let [buildah] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let image = format!("docker://{}/buildah/app:v1", region.registry());
    let content = region.layout.join("index.json");
    blocking(move || Buildah::new(&buildah).build_and_push(&content, &image))
        .await
        .unwrap();
    let manifest = pull_v1(&region, "buildah/app").await;
    let types: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| layer.media_type.as_str())
        .collect();
    assert_eq!(types, ["application/vnd.oci.image.layer.v1.tar+zstd"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_pushes_mounts_lists_and_deletes() {
    let Some(tools) = tools::find_or_skip("pushes by crane", &["crane"], false) else {
        return;
    };
    let [crane] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let pushed = MultiPlatformImage::create(region.dir().join("platforms"));
    let layout = pushed.dir.display().to_string();
    let digest = pushed.index.to_string();
    let registry = region.registry();
    blocking(move || {
        let run = |arguments: &[&str]| {
            let all = arguments.iter().copied().chain(["--insecure"]);
            tools::run(&crane, all).unwrap().trim().to_owned()
        };
        let (one, two) = (
            format!("{registry}/crane/one"),
            format!("{registry}/crane/two"),
        );
        run(&["push", "--index", &layout, &format!("{one}:layout")]);
        run(&["copy", &format!("{one}@{digest}"), &format!("{two}:v1")]);
        assert_eq!(run(&["digest", &format!("{two}:v1")]), digest);
        run(&["validate", "--fast", "--remote", &format!("{two}:v1")]);
        run(&["tag", &format!("{two}:v1"), "v2"]);
        assert_eq!(run(&["ls", &two]), "v1\nv2");
        run(&["delete", &format!("{two}:v2")]);
        assert_eq!(run(&["ls", &two]), "v1");
    })
    .await;
    assert_eq!(pull_v1(&region, "crane/two").await.layers.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn regctl_attaches_and_copies_referrers() {
    let Some(tools) = tools::find_or_skip("pushes by regctl", &["regctl"], false) else {
        return;
    };
    let [regctl] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let region = TestRegion::with_image(SIZE, None).await;
    let pushed = MultiPlatformImage::create(region.dir().join("platforms"));
    let registry = region.registry();
    let layout = format!("ocidir://{}:v1", pushed.dir.display());
    let config = region.dir().join("regctl.json");
    let file = region.layout.join("index.json");
    blocking(move || {
        let host = format!("reg={registry},tls=disabled");
        let run = |arguments: &[&str]| {
            let mut command = std::process::Command::new(&regctl);
            command
                .env("REGCTL_CONFIG", &config)
                .args(["--host", &host])
                .args(arguments);
            tools::output(&mut command).unwrap()
        };
        let (one, two) = (
            format!("{registry}/regctl/one:v1"),
            format!("{registry}/regctl/two:v1"),
        );
        run(&["image", "copy", &layout, &one]);
        let kind = "application/vnd.example.sbom";
        let file = file.display().to_string();
        run(&[
            "artifact",
            "put",
            "--artifact-type",
            kind,
            "--subject",
            &one,
            "--file",
            &file,
        ]);
        run(&["image", "copy", "--referrers", &one, &two]);
        for image in [&one, &two] {
            let listed = run(&["artifact", "list", "--filter-artifact-type", kind, image]);
            assert!(listed.contains(kind), "{listed}");
        }
        run(&["tag", "rm", &one]);
        assert!(!run(&["tag", "ls", &format!("{registry}/regctl/one")]).contains("v1"));
    })
    .await;
    assert_eq!(pull_v1(&region, "regctl/two").await.layers.len(), 100);
}

/// The content of a large blob, generated in buffers of 1 MiB.
fn buffers(len: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    const BUFFER_LEN: u64 = 1 << 20;
    (0..len.div_ceil(BUFFER_LEN)).map(move |number| {
        let mut buffer = vec![number as u8; BUFFER_LEN.min(len - number * BUFFER_LEN) as usize];
        buffer[..8].copy_from_slice(&number.to_le_bytes());
        buffer
    })
}

/// The blob is larger than one segment.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "long: writes 5 GiB to disk and takes a minute"]
async fn blob_of_5_gib_is_pushed_and_pulled() {
    const LEN: u64 = 5 << 30;
    let region = TestRegion::with_image(SIZE, None).await;
    let digest = blocking(|| {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        buffers(LEN).for_each(|buffer| hasher.update(&buffer));
        hasher.finish()
    })
    .await;
    let body = reqwest::Body::wrap_stream(stream::iter(buffers(LEN)).map(Ok::<_, std::io::Error>));
    client(&region, "large")
        .upload(&digest, LEN, body)
        .await
        .unwrap();
    let url = format!("{}/v2/large/blobs/{digest}", region.origin_url());
    let response = flotilla::client::http_client()
        .unwrap()
        .get(&url)
        .send()
        .await
        .unwrap();
    let mut body = response.bytes_stream();
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut len = 0;
    while let Some(buffer) = body.next().await {
        let buffer = buffer.unwrap();
        len += buffer.len() as u64;
        hasher.update(&buffer);
    }
    let received: Digest = hasher.finish();
    assert_eq!((len, received), (LEN, digest));
}
