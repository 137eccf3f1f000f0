//! SIGTERM to each service: it finishes requests in flight, accepts no new ones, and exits with
//! status 0.

use std::path::Path;
use std::process::Command;

use flotilla::client::{http_client, push_layout};
use flotilla::image::{self, Layout};
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{ACCEPT, Descriptor};
use flotilla_common::units::ByteSize;
use reqwest::Response;

use crate::harness::service::TestService;
use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// Starts to download a layer and returns its first bytes. The origin's rate limit keeps the
/// download running until the service gets the signal.
async fn start_download(base: &str, layer: &Descriptor) -> (Response, Vec<u8>) {
    let client = http_client().unwrap();
    let manifest = format!("{base}/v2/app/manifests/v1?ns=registry");
    client
        .get(manifest)
        .header("accept", ACCEPT)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    let blob = format!("{base}/v2/app/blobs/{}?ns=registry", layer.digest);
    let mut response = client
        .get(blob)
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap();
    let first = response.chunk().await.unwrap().unwrap().to_vec();
    assert!(
        (first.len() as u64) < layer.size,
        "the download is already complete"
    );
    (response, first)
}

/// Reads the rest of a download and verifies the digest.
async fn finish_download((mut response, mut bytes): (Response, Vec<u8>), layer: &Descriptor) {
    while let Some(buffer) = response.chunk().await.unwrap() {
        bytes.extend_from_slice(&buffer);
    }
    assert_eq!(Digest::sha256(&bytes), layer.digest);
}

async fn assert_drains(service: TestService, layer: &Descriptor) {
    let download = start_download(&service.url(), layer).await;
    service.terminate();
    service.wait_until_closed().await;
    finish_download(download, layer).await;
    service.wait_until_drained().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn services_drain_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let flotilla = |arguments: &[&str]| run(Path::new(FLOTILLA), arguments).unwrap();
    flotilla(&["pki", "init", "--dir", &path("pki")]);
    flotilla(&["pki", "issue", "--dir", &path("pki"), "--peer", "vm-1"]);
    let any = "127.0.0.1:0";
    let seal_key = path("pki/local.seal.key");
    let origin: [&[&str]; 2] = [
        &["origin", "--listen", any, "--storage", "memory:///"],
        &["--seal-key", &seal_key, "--up", "40Mbit"],
    ];
    let start = |arguments: &[&str]| TestService::start(Command::new(FLOTILLA).args(arguments));
    let origin = start(&origin.concat());
    let tracker = start(&["tracker", "--listen", any]);
    let origin_url = origin.url();
    let tracker_url = tracker.url();
    let store = path("store");
    let trusted = path("pki/trusted-keys");
    let ca = path("pki/ca.pem");
    let certificate = path("pki/vm-1.pem");
    let key = path("pki/vm-1.key");
    let peer: [&[&str]; 3] = [
        &["peer", "--mirror", any, "--quic", any, "--store", &store],
        &[
            "--origin",
            &origin_url,
            "--tracker",
            &tracker_url,
            "--trusted-keys",
            &trusted,
        ],
        &[
            "--tls-cert",
            &certificate,
            "--tls-key",
            &key,
            "--tls-ca",
            &ca,
        ],
    ];
    let peer = start(&peer.concat());

    let layout = dir.path().join("image");
    image::generate(&layout, ByteSize(16 << 20), 1).unwrap();
    push_layout(&origin_url, "app", "v1", &layout)
        .await
        .unwrap();
    let layout = Layout::open(&layout).unwrap();
    let (_, manifest) = layout.manifest(&layout.image().digest).unwrap();
    let layer = manifest
        .layers
        .iter()
        .max_by_key(|layer| layer.size)
        .unwrap();

    assert_drains(peer, layer).await;
    assert_drains(origin, layer).await;
    tracker.terminate();
    tracker.wait_until_closed().await;
    tracker.wait_until_drained().await;
}

/// Starts an origin with storage in memory, and a tracker, with plain HTTP.
fn plain_services(dir: &Path, start: impl Fn(&mut Command) -> TestService) -> [TestService; 2] {
    let pki = dir.join("pki").display().to_string();
    run(Path::new(FLOTILLA), ["pki", "init", "--dir", &pki]).unwrap();
    let seal_key = format!("{pki}/local.seal.key");
    let any = ["--listen", "127.0.0.1:0"];
    let origin = ["origin", "--storage", "memory:///", "--seal-key", &seal_key];
    [
        start(Command::new(FLOTILLA).args(origin).args(any)),
        start(Command::new(FLOTILLA).arg("tracker").args(any)),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn services_survive_a_closed_stderr() {
    let dir = tempfile::tempdir().unwrap();
    for service in plain_services(dir.path(), TestService::start_without_log_reader) {
        let health = http_client()
            .unwrap()
            .get(format!("{}/healthz", service.url()))
            .send()
            .await;
        health.unwrap().error_for_status().unwrap();
        service.terminate();
        service.wait_until_ended().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sighup_does_not_end_services_without_certificates() {
    let dir = tempfile::tempdir().unwrap();
    for service in plain_services(dir.path(), TestService::start) {
        service.reload();
        let health = http_client()
            .unwrap()
            .get(format!("{}/healthz", service.url()))
            .send()
            .await;
        health.unwrap().error_for_status().unwrap();
        service.terminate();
        service.wait_until_drained().await;
    }
}
