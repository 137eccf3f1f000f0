//! What is wrong is said clearly, to clients and to people.

use flotilla::client::{ClientError, RegistryClient};
use flotilla::region::PeerPlan;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::units::ByteSize;
use reqwest::StatusCode;

use crate::harness::scene::{REPOSITORY, Scene};

fn status(error: ClientError) -> (StatusCode, String) {
    match error {
        ClientError::Status {
            status, message, ..
        } => (status, message),
        other => panic!("not an answer of a registry: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_push_under_a_wrong_digest_is_refused_and_leaves_nothing() {
    let scene = Scene::with_image(ByteSize(1 << 20), None).await;
    let origin =
        RegistryClient::new(scene.region.origin_url(), REPOSITORY.parse().unwrap()).unwrap();
    let wrong = Digest::sha256(b"something else");
    let error = origin.upload(&wrong, 5, "bytes".into()).await.unwrap_err();
    let (code, message) = status(error);
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert!(message.contains("DIGEST_INVALID"), "{message}");
    let head = reqwest_head(&format!(
        "{}/v2/{REPOSITORY}/blobs/{wrong}",
        scene.region.origin_url()
    ))
    .await;
    assert_eq!(head, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_names_unknown_blobs_is_refused() {
    let scene = Scene::with_image(ByteSize(1 << 20), None).await;
    let origin =
        RegistryClient::new(scene.region.origin_url(), REPOSITORY.parse().unwrap()).unwrap();
    let unknown = Digest::sha256(b"never pushed");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{{"mediaType":"x","digest":"{unknown}","size":12}},"layers":[]}}"#
    );
    let error = origin
        .put_manifest("broken", OCI_MANIFEST, manifest.into_bytes())
        .await
        .unwrap_err();
    let (code, message) = status(error);
    assert_eq!(code, StatusCode::NOT_FOUND);
    assert!(
        message.contains("MANIFEST_BLOB_UNKNOWN") && message.contains(&unknown.to_string()),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_image_is_a_fast_and_clear_404_through_the_mirror() {
    let mut scene = Scene::with_image(ByteSize(1 << 20), None).await;
    scene.add_peers(1).await;
    let client = scene.region.mirror_client(0, "library/typo").unwrap();
    let error = client.pull("v1", |_| {}).await.unwrap_err();
    let (code, _) = status(error);
    assert_eq!(code, StatusCode::NOT_FOUND);
    // HEAD has no body; GET tells the person what happened.
    let url = format!(
        "http://{}/v2/library/typo/manifests/v1?ns={}",
        scene.region.peers()[0].mirror_addr(),
        scene.region.registry()
    );
    let message = get_text(&url).await;
    assert!(
        message.contains("MANIFEST_UNKNOWN") && message.contains("library/typo"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_cannot_be_used_names_the_folder() {
    let mut scene = Scene::with_image(ByteSize(1 << 20), None).await;
    let plan = PeerPlan::numbered(1, 1);
    let in_the_way = scene.dir().join("peers");
    std::fs::write(&in_the_way, "a file where the folder should be").unwrap();
    let error = scene.region.add_peer(plan).await.unwrap_err().to_string();
    assert!(
        error.contains("start peer-1") && error.contains(in_the_way.to_str().unwrap()),
        "{error}"
    );
}

async fn reqwest_head(url: &str) -> StatusCode {
    flotilla::client::http_client()
        .unwrap()
        .head(url)
        .send()
        .await
        .unwrap()
        .status()
}

async fn get_text(url: &str) -> String {
    flotilla::client::http_client()
        .unwrap()
        .get(url)
        .send()
        .await
        .unwrap()
        .text()
        .await
        .unwrap()
}
