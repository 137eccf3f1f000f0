//! Pushes by the clients that people have, straight to the origin, and what comes back afterwards.

use std::path::PathBuf;

use flotilla::client::RegistryClient;
use flotilla_common::digest::{Algorithm, Digest, DigestHasher};
use flotilla_common::units::ByteSize;
use futures_util::{StreamExt, stream};
use tokio::task::spawn_blocking;

use crate::harness::buildah::Buildah;
use crate::harness::docker::Docker;
use crate::harness::platforms::Platforms;
use crate::harness::podman::Podman;
use crate::harness::scene::{REPOSITORY, Scene, TAG};
use crate::harness::tools;

const SIZE: ByteSize = ByteSize(4 << 20);

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    spawn_blocking(work).await.unwrap()
}

fn client(scene: &Scene, repository: &str) -> RegistryClient {
    RegistryClient::new(scene.region.origin_url(), repository.parse().unwrap()).unwrap()
}

/// Pulls `v1` of a repository, checking every digest; its manifest.
async fn pulls(scene: &Scene, repository: &str) -> flotilla_common::manifest::Manifest {
    let client = client(scene, repository);
    let pulled = client.pull("v1", |_| {}).await.unwrap();
    assert!(pulled.bytes > 0);
    client.manifest(&pulled.digest).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn skopeo_pushes_two_platforms_one_of_100_layers_and_gets_them_back() {
    let Some(tools) = tools::find("pushes by skopeo", &["skopeo"], false) else {
        return;
    };
    let [skopeo] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let (pushed, back) = (
        Platforms::make(scene.dir().join("platforms")),
        scene.dir().join("back"),
    );
    let image = format!("docker://{}/skopeo/app:v1", scene.region.registry());
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
    assert_eq!(Platforms::blobs(&back), Platforms::blobs(&pushed.dir));
    assert_eq!(pulls(&scene, "skopeo/app").await.layers.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn docker_pushes_what_it_pulled() {
    let Some(tools) = tools::find("pushes by Docker", &["dockerd", "docker"], true) else {
        return;
    };
    let [dockerd, docker] = <[PathBuf; 2]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let registry = scene.region.registry();
    blocking(move || {
        let docker = Docker::start(&dockerd, &docker, "{}");
        let image = format!("{registry}/{REPOSITORY}:{TAG}");
        docker.pull(&image).unwrap();
        docker
            .push(&image, &format!("{registry}/docker/app:v1"))
            .unwrap();
    })
    .await;
    assert_eq!(pulls(&scene, "docker/app").await.layers.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn podman_pushes_what_it_pulled() {
    let Some(tools) = tools::find("pushes by Podman", &["podman"], true) else {
        return;
    };
    let [podman] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let registry = scene.region.registry();
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
    assert_eq!(pulls(&scene, "podman/app").await.layers.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn buildah_pushes_what_it_built_with_layers_in_zstd() {
    let Some(tools) = tools::find("pushes by buildah", &["buildah"], true) else {
        return;
    };
    let [buildah] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let image = format!("docker://{}/buildah/app:v1", scene.region.registry());
    let content = scene.layout.join("index.json");
    blocking(move || Buildah::new(&buildah).build_and_push(&content, &image))
        .await
        .unwrap();
    let manifest = pulls(&scene, "buildah/app").await;
    let types: Vec<_> = manifest
        .layers
        .iter()
        .map(|layer| layer.media_type.as_str())
        .collect();
    assert_eq!(types, ["application/vnd.oci.image.layer.v1.tar+zstd"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn crane_pushes_mounts_lists_and_deletes() {
    let Some(tools) = tools::find("pushes by crane", &["crane"], false) else {
        return;
    };
    let [crane] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let pushed = Platforms::make(scene.dir().join("platforms"));
    let (layout, digest) = (pushed.dir.display().to_string(), pushed.index.to_string());
    let registry = scene.region.registry();
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
    assert_eq!(pulls(&scene, "crane/two").await.layers.len(), 100);
}

#[tokio::test(flavor = "multi_thread")]
async fn regctl_attaches_an_artifact_and_copies_it_with_its_image() {
    let Some(tools) = tools::find("pushes by regctl", &["regctl"], false) else {
        return;
    };
    let [regctl] = <[PathBuf; 1]>::try_from(tools).unwrap();
    let scene = Scene::with_image(SIZE, None).await;
    let pushed = Platforms::make(scene.dir().join("platforms"));
    let (registry, layout) = (
        scene.region.registry(),
        format!("ocidir://{}:v1", pushed.dir.display()),
    );
    let (config, file) = (
        scene.dir().join("regctl.json"),
        scene.layout.join("index.json"),
    );
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
        let (kind, file) = ("application/vnd.example.sbom", file.display().to_string());
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
    assert_eq!(pulls(&scene, "regctl/two").await.layers.len(), 100);
}

/// The pieces of a body that is nowhere as a whole.
fn pieces(len: u64) -> impl Iterator<Item = Vec<u8>> + Send {
    const PIECE: u64 = 1 << 20;
    (0..len.div_ceil(PIECE)).map(move |number| {
        let mut piece = vec![number as u8; PIECE.min(len - number * PIECE) as usize];
        piece[..8].copy_from_slice(&number.to_le_bytes());
        piece
    })
}

/// More than a segment holds.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "5 GiB: takes a minute, and their room on the disk"]
async fn a_layer_of_5_gib_is_pushed_and_pulled() {
    const LEN: u64 = 5 << 30;
    let scene = Scene::with_image(SIZE, None).await;
    let digest = blocking(|| {
        let mut hasher = DigestHasher::new(Algorithm::Sha256);
        pieces(LEN).for_each(|piece| hasher.update(&piece));
        hasher.finish()
    })
    .await;
    let body = reqwest::Body::wrap_stream(stream::iter(pieces(LEN)).map(Ok::<_, std::io::Error>));
    client(&scene, "large")
        .upload(&digest, LEN, body)
        .await
        .unwrap();
    let url = format!("{}/v2/large/blobs/{digest}", scene.region.origin_url());
    let answer = flotilla::client::http_client()
        .unwrap()
        .get(&url)
        .send()
        .await
        .unwrap();
    let mut pulled = answer.bytes_stream();
    let mut hasher = DigestHasher::new(Algorithm::Sha256);
    let mut len = 0;
    while let Some(piece) = pulled.next().await {
        let piece = piece.unwrap();
        len += piece.len() as u64;
        hasher.update(&piece);
    }
    let whole: Digest = hasher.finish();
    assert_eq!((len, whole), (LEN, digest));
}
