//! Remote storage, on servers that emulate S3, GCS and Azure.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_origin::storage::{self, Key, Storage, StorageError, TimeoutStorage};
use futures_util::TryStreamExt;
use http::Method;

use crate::backend_suite::{self, Limitations, sample, stream};
use crate::servers::{Fault, Kind, Server};

/// s3s-fs stores a key with slashes in nested directories, and ignores preconditions of DELETE.
const DIRECTORY_SERVER: Limitations = Limitations {
    no_keys_under_keys: true,
    no_conditional_removal: true,
};

#[tokio::test]
async fn s3_on_s3s_fs() {
    let Some(server) = Server::start("s3_on_s3s_fs", Kind::S3Fs).await else {
        return;
    };
    backend_suite::check(server.storage(), DIRECTORY_SERVER).await;
}

#[tokio::test]
async fn s3_with_every_third_request_throttled() {
    let test = "s3_with_every_third_request_throttled";
    let Some(server) = Server::start(test, Kind::S3Fs).await else {
        return;
    };
    server.faults().throttle_one_in(3);
    backend_suite::check(server.storage(), DIRECTORY_SERVER).await;
}

#[tokio::test]
async fn s3_on_moto() {
    let Some(server) = Server::start("s3_on_moto", Kind::Moto).await else {
        return;
    };
    backend_suite::check(server.storage(), Limitations::default()).await;
}

/// fake-gcs-server does not support writes over the XML API, which `object_store` uses for
/// conditional writes.
#[tokio::test]
async fn probe_rejects_gcs_without_conditional_writes() {
    let test = "probe_rejects_gcs_without_conditional_writes";
    let Some(server) = Server::start(test, Kind::FakeGcs).await else {
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
async fn probe_accepts_gcs_with_conditional_writes() {
    let test = "probe_accepts_gcs_with_conditional_writes";
    let Some(server) = Server::start(test, Kind::Gcs).await else {
        return;
    };
    storage::probe(&*server.storage()).await.unwrap();
}

#[tokio::test]
async fn azure_on_azurite() {
    let Some(server) = Server::start("azure_on_azurite", Kind::Azurite).await else {
        return;
    };
    backend_suite::check(server.storage(), Limitations::default()).await;
}

fn key(text: &str) -> Key {
    text.parse().unwrap()
}

#[tokio::test]
async fn streamed_write_with_lost_response_succeeds() {
    let test = "streamed_write_with_lost_response_succeeds";
    let Some(server) = Server::start(test, Kind::S3Fs).await else {
        return;
    };
    let storage = server.storage();
    for (method, part, len) in [
        (Method::PUT, "seg/a", 1000),
        (Method::POST, "uploadId=", 20 << 20),
    ] {
        server.faults().arm(method, part, 1, Fault::ResponseLost);
        let (name, content) = (key(&format!("seg/a/{len}")), sample(len));
        stream(&storage, &name, &content, 1 << 20).await.unwrap();
        assert!(server.faults().are_all_used());
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

/// The library repeats a create whose response was lost, and is refused by its own object.
#[tokio::test]
async fn conflict_tells_whether_the_write_may_have_applied() {
    let test = "conflict_tells_whether_the_write_may_have_applied";
    let Some(server) = Server::start(test, Kind::S3Fs).await else {
        return;
    };
    let storage = server.storage();
    let conflict = async |body: &'static str| match storage.create(&key("tag/a"), body.into()).await
    {
        Err(StorageError::Conflict {
            may_have_applied, ..
        }) => may_have_applied,
        other => panic!("{other:?}"),
    };
    server
        .faults()
        .arm(Method::PUT, "tag/a", 1, Fault::ResponseLost);
    assert!(conflict("one").await, "its first attempt applied");
    assert!(!conflict("two").await, "it was sent once");
    let object = storage.read(&key("tag/a")).await.unwrap().unwrap();
    assert_eq!(object.body, "one");
}

#[tokio::test]
async fn permanent_throttling_times_out() {
    let test = "permanent_throttling_times_out";
    let Some(server) = Server::start(test, Kind::S3Fs).await else {
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
async fn dropped_writer_aborts_multipart_upload() {
    let test = "dropped_writer_aborts_multipart_upload";
    let Some(server) = Server::start(test, Kind::Moto).await else {
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
async fn presigned_url_needs_no_credentials() {
    let test = "presigned_url_needs_no_credentials";
    let Some(server) = Server::start(test, Kind::S3Fs).await else {
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
