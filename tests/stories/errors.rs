//! Error responses and messages name the problem.

use flotilla::client::{ClientError, RegistryClient};
use flotilla::region::PeerPlan;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::OCI_MANIFEST;
use flotilla_common::units::ByteSize;
use reqwest::StatusCode;

use crate::harness::region::{REPOSITORY, TestRegion};

fn status(error: ClientError) -> (StatusCode, String) {
    match error {
        ClientError::Status {
            status, message, ..
        } => (status, message),
        other => panic!("not an error response of a registry: {other}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn push_with_wrong_digest_is_rejected() {
    let region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    let origin = RegistryClient::new(region.origin_url(), REPOSITORY.parse().unwrap()).unwrap();
    let wrong = Digest::sha256(b"something else");
    let error = origin.upload(&wrong, 5, "bytes".into()).await.unwrap_err();
    let (code, message) = status(error);
    assert_eq!(code, StatusCode::BAD_REQUEST);
    assert!(message.contains("DIGEST_INVALID"), "{message}");
    let head = head_status(&format!(
        "{}/v2/{REPOSITORY}/blobs/{wrong}",
        region.origin_url()
    ))
    .await;
    assert_eq!(head, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifest_with_unknown_blobs_is_rejected() {
    let region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    let origin = RegistryClient::new(region.origin_url(), REPOSITORY.parse().unwrap()).unwrap();
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
async fn unknown_image_is_404_through_the_mirror() {
    let mut region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    region.add_peers(1).await;
    let client = region.mirror_client(0, "library/typo").unwrap();
    let error = client.pull("v1", |_| {}).await.unwrap_err();
    let (code, _) = status(error);
    assert_eq!(code, StatusCode::NOT_FOUND);
    // A response to HEAD has no body; a GET shows the message.
    let url = format!(
        "http://{}/v2/library/typo/manifests/v1?ns={}",
        region.peers()[0].mirror_addr(),
        region.registry()
    );
    let message = get_text(&url).await;
    assert!(
        message.contains("MANIFEST_UNKNOWN") && message.contains("library/typo"),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn unusable_store_names_its_folder() {
    let mut region = TestRegion::with_image(ByteSize(1 << 20), None).await;
    let plan = PeerPlan::numbered(1, 1);
    let blocking_file = region.dir().join("peers");
    std::fs::write(&blocking_file, "a file where the folder should be").unwrap();
    let error = region.add_peer(plan).await.unwrap_err().to_string();
    assert!(
        error.contains("start peer-1") && error.contains(blocking_file.to_str().unwrap()),
        "{error}"
    );
}

async fn head_status(url: &str) -> StatusCode {
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
