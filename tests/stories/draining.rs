//! SIGTERM to each service as a process of its own: what is in flight is finished, nothing new is
//! accepted, and the process ends well and soon.

use std::path::Path;
use std::process::Command;

use flotilla::client::{http_client, push_layout};
use flotilla::image::{self, Layout};
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{ACCEPT, Descriptor};
use flotilla_common::units::ByteSize;
use reqwest::Response;

use crate::harness::process::Process;
use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// Begins to download a layer, so slowly that it is still under way when the service is told to
/// stop.
async fn begin(base: &str, layer: &Descriptor) -> (Response, Vec<u8>) {
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
        "the whole layer came at once"
    );
    (response, first)
}

/// Reads the rest of a download and checks it.
async fn finishes((mut response, mut bytes): (Response, Vec<u8>), layer: &Descriptor) {
    while let Some(piece) = response.chunk().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    assert_eq!(Digest::sha256(&bytes), layer.digest);
}

async fn drains(service: Process, layer: &Descriptor) {
    let download = begin(&service.url(), layer).await;
    service.terminate();
    service.accepts_nothing_new().await;
    finishes(download, layer).await;
    service.ends_well().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_finishes_what_is_in_flight_when_it_is_told_to_stop() {
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
    let start = |arguments: &[&str]| Process::start(Command::new(FLOTILLA).args(arguments));
    let origin = start(&origin.concat());
    let tracker = start(&["tracker", "--listen", any]);
    let (origin_url, tracker_url, store) = (origin.url(), tracker.url(), path("store"));
    let (trusted, ca) = (path("pki/trusted-keys"), path("pki/ca.pem"));
    let (certificate, key) = (path("pki/vm-1.pem"), path("pki/vm-1.key"));
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

    drains(peer, layer).await;
    drains(origin, layer).await;
    tracker.terminate();
    tracker.accepts_nothing_new().await;
    tracker.ends_well().await;
}

/// An origin in memory and a tracker, on plain HTTP.
fn plain_services(dir: &Path, start: impl Fn(&mut Command) -> Process) -> [Process; 2] {
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
async fn a_service_whose_log_nobody_reads_any_more_goes_on_and_ends_when_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    for service in plain_services(dir.path(), Process::start_unread) {
        let health = http_client()
            .unwrap()
            .get(format!("{}/healthz", service.url()))
            .send()
            .await;
        health.unwrap().error_for_status().unwrap();
        service.terminate();
        service.ends().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_does_not_end_a_service_that_has_no_certificates() {
    let dir = tempfile::tempdir().unwrap();
    for service in plain_services(dir.path(), Process::start) {
        service.reload();
        let health = http_client()
            .unwrap()
            .get(format!("{}/healthz", service.url()))
            .send()
            .await;
        health.unwrap().error_for_status().unwrap();
        service.terminate();
        service.ends_well().await;
    }
}
