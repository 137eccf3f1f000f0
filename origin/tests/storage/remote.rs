//! Remote storage against other people's servers.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_origin::storage::{self, Key, Storage, StorageError, TimeoutStorage};
use futures_util::TryStreamExt;
use http::Method;

use crate::backend_suite::{self, Lacks, sample, stream};
use crate::servers::{Fault, Kind, Server};

/// A folder below is how it keeps a key with slashes.
const A_FOLDER: Lacks = Lacks {
    keys_under_keys: true,
};

#[tokio::test]
async fn s3_conforms_on_s3s_fs() {
    let Some(server) = Server::start("s3_conforms_on_s3s_fs", Kind::S3Fs).await else {
        return;
    };
    backend_suite::check(server.storage(), A_FOLDER).await;
}

#[tokio::test]
async fn s3_conforms_while_every_third_request_is_throttled() {
    let story = "s3_conforms_while_every_third_request_is_throttled";
    let Some(server) = Server::start(story, Kind::S3Fs).await else {
        return;
    };
    server.faults().throttle_one_in(3);
    backend_suite::check(server.storage(), A_FOLDER).await;
}

#[tokio::test]
async fn s3_conforms_on_moto() {
    let Some(server) = Server::start("s3_conforms_on_moto", Kind::Moto).await else {
        return;
    };
    backend_suite::check(server.storage(), Lacks::default()).await;
}

/// fake-gcs-server has no writes over the XML interface, which is the one with conditions that
/// `object_store` speaks.
#[tokio::test]
async fn a_gcs_without_conditional_writes_is_refused_at_the_start() {
    let story = "a_gcs_without_conditional_writes_is_refused_at_the_start";
    let Some(server) = Server::start(story, Kind::FakeGcs).await else {
        return;
    };
    let error = storage::probe(&*server.storage())
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("probe storage: create an object: "),
        "{error}"
    );
    assert!(
        error.contains("invalid uploadType") && error.contains("docs/operations.md"),
        "{error}"
    );
}

#[tokio::test]
async fn azure_conforms_on_azurite() {
    let Some(server) = Server::start("azure_conforms_on_azurite", Kind::Azurite).await else {
        return;
    };
    backend_suite::check(server.storage(), Lacks::default()).await;
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

#[tokio::test]
async fn a_streamed_write_whose_answer_was_lost_is_known_as_ones_own() {
    let story = "a_streamed_write_whose_answer_was_lost_is_known_as_ones_own";
    let Some(server) = Server::start(story, Kind::S3Fs).await else {
        return;
    };
    let storage = server.storage();
    for (method, part, len) in [
        (Method::PUT, "seg/a", 1000),
        (Method::POST, "uploadId=", 20 << 20),
    ] {
        server.faults().arm(method, part, 1, Fault::Unheard);
        let (name, content) = (key(&format!("seg/a/{len}")), sample(len));
        stream(&storage, &name, &content, 1 << 20).await.unwrap();
        assert!(server.faults().are_spent());
        let read: Vec<Bytes> = storage
            .read_range(&name, 0..len as u64)
            .await
            .unwrap()
            .try_collect()
            .await
            .unwrap();
        assert!(read.concat() == content);
    }
}

#[tokio::test]
async fn storage_that_throttles_for_good_is_unavailable_within_the_bound() {
    let story = "storage_that_throttles_for_good_is_unavailable_within_the_bound";
    let Some(server) = Server::start(story, Kind::S3Fs).await else {
        return;
    };
    server.faults().throttle_one_in(1);
    let bounded = TimeoutStorage::new(server.storage(), core::time::Duration::from_secs(30));
    let error = bounded.create(&key("a/b"), "x".into()).await.unwrap_err();
    assert!(
        matches!(error, StorageError::Unavailable { .. }) && error.to_string().contains("SlowDown"),
        "{error}"
    );
}

#[tokio::test]
async fn an_abandoned_multipart_upload_is_aborted() {
    let story = "an_abandoned_multipart_upload_is_aborted";
    let Some(server) = Server::start(story, Kind::Moto).await else {
        return;
    };
    let storage: Arc<dyn Storage> = server.storage();
    let mut writer = storage.begin_write(&key("seg/a/b")).await.unwrap();
    writer.write(sample(20 << 20)).await.unwrap();
    assert_eq!(server.unfinished_uploads().await, 1);
    drop(writer);
    while server.unfinished_uploads().await > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_presigned_url_answers_anybody() {
    let story = "a_presigned_url_answers_anybody";
    let Some(server) = Server::start(story, Kind::S3Fs).await else {
        return;
    };
    let storage = server.storage();
    storage
        .create(&key("seg/a/b"), "some bytes".into())
        .await
        .unwrap();
    let url = storage
        .presigned_get(&key("seg/a/b"), core::time::Duration::from_secs(60))
        .await
        .unwrap()
        .unwrap();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client
        .get(url)
        .header("range", "bytes=5-")
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            answer.status().as_u16(),
            answer.text().await.unwrap().as_str()
        ),
        (206, "bytes")
    );
}
