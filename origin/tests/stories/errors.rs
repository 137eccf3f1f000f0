//! Malformed requests get 4xx with an error code, and start errors name the cause.

use std::time::Duration;

use flotilla_common::digest::Digest;
use flotilla_origin::{Horizons, Origin, StartError, storage};
use reqwest::{Method, StatusCode};

use crate::support::{Region, Registry, code, config, header};

#[tokio::test]
async fn malformed_requests_are_4xx() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let unknown = Digest::sha256(b"unknown");
    for (method, path, status, expected) in [
        (
            Method::GET,
            "/v2/app/blobs/sha256:00".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::GET,
            "/v2/app/blobs/md5:d41d8cd98f00b204e9800998ecf8427e".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::GET,
            "/v2/UPPER/blobs/x".to_owned(),
            400,
            "NAME_INVALID",
        ),
        (
            Method::GET,
            "/v2/app/manifests/sha256:zz".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::GET,
            "/v2/app/manifests/.INVALID".to_owned(),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            Method::GET,
            format!("/v2/app/manifests/{unknown}"),
            404,
            "MANIFEST_UNKNOWN",
        ),
        (
            Method::GET,
            format!("/v2/app/blobs/{unknown}"),
            404,
            "BLOB_UNKNOWN",
        ),
        (
            Method::DELETE,
            format!("/v2/app/blobs/{unknown}"),
            404,
            "BLOB_UNKNOWN",
        ),
        (
            Method::PATCH,
            "/v2/app/blobs/uploads/nonsense".to_owned(),
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (
            Method::PUT,
            format!("/v2/app/blobs/uploads/{}?digest={unknown}", "0".repeat(80)),
            404,
            "BLOB_UPLOAD_UNKNOWN",
        ),
        (
            Method::POST,
            "/v2/app/blobs/uploads/?digest=sha256:1".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::POST,
            "/v2/app/blobs/uploads/?digest-algorithm=md5".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (
            Method::POST,
            format!("/v2/app/blobs/uploads/?mount={unknown}&from=A"),
            400,
            "NAME_INVALID",
        ),
        (
            Method::GET,
            "/v2/app/referrers/x".to_owned(),
            400,
            "DIGEST_INVALID",
        ),
        (Method::GET, "/nowhere".to_owned(), 404, "UNSUPPORTED"),
        (
            Method::POST,
            "/v2/app/tags/list".to_owned(),
            405,
            "UNSUPPORTED",
        ),
        (
            Method::POST,
            "/flotilla/v1/closure".to_owned(),
            400,
            "UNSUPPORTED",
        ),
    ] {
        let answer = client.request(method, &path).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), status, "{path}");
        assert_eq!(
            header(&answer, "content-type"),
            "application/json",
            "{path}"
        );
        assert_eq!(code(answer).await, expected, "{path}");
    }
}

#[tokio::test]
async fn incomplete_upload_requests_are_400() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let upload = client.begin("app").await;
    let without_digest = client.request(Method::PUT, &upload).send().await.unwrap();
    assert_eq!(code(without_digest).await, "DIGEST_INVALID");
    let elsewhere = upload.replace("/v2/app/", "/v2/other/");
    assert_eq!(
        code(client.patch(&elsewhere, "x").await).await,
        "BLOB_UPLOAD_UNKNOWN"
    );
    for range in ["nonsense", "5-2", "0-99"] {
        let request = client
            .request(Method::PATCH, &upload)
            .header("content-range", range)
            .body("0123456789");
        assert_eq!(
            request.send().await.unwrap().status(),
            StatusCode::BAD_REQUEST,
            "{range}"
        );
    }
    let tampered = upload.replace("last=none", "last=zz");
    assert_eq!(
        client.patch(&tampered, "x").await.status(),
        StatusCode::ACCEPTED
    );
}

#[tokio::test]
async fn health_and_metrics() {
    let region = Region::start(1).await;
    let client = region.client(0);
    assert_eq!(client.get("/v2/").await.status(), StatusCode::OK);
    assert_eq!(client.get("/healthz").await.status(), StatusCode::OK);
    assert_eq!(client.get("/readyz").await.status(), StatusCode::OK);
    let metrics = client.metrics().await;
    assert!(
        metrics.contains("flotilla_origin_http_requests_total{route=\"ping\",code=\"200\"} 1"),
        "{metrics}"
    );
    assert!(
        metrics.contains("flotilla_origin_storage_operations_total{kind=\"read\"}"),
        "{metrics}"
    );
    region.faults.set_down(true);
    wait_until_ready_is(&client, StatusCode::SERVICE_UNAVAILABLE).await;
    assert_eq!(client.get("/healthz").await.status(), StatusCode::OK);
    region.faults.set_down(false);
    wait_until_ready_is(&client, StatusCode::OK).await;
}

/// Waits until `/readyz` has this status, and returns its body.
async fn wait_until_ready_is(client: &Registry, status: StatusCode) -> String {
    let asked = async {
        loop {
            let answer = client.get("/readyz").await;
            if answer.status() == status {
                return answer.text().await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), asked)
        .await
        .expect("readiness did not change in time")
}

#[tokio::test]
async fn missing_storage_directory_makes_replica_unready() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, elsewhere) = (dir.path().join("storage"), dir.path().join("elsewhere"));
    let storage = storage::open(&format!("file://{}", folder.display()), 64 << 20).unwrap();
    let region = Region::start_on(storage, 1, |_| {}).await;
    let client = region.client(0);
    wait_until_ready_is(&client, StatusCode::OK).await;
    std::fs::rename(&folder, &elsewhere).unwrap();
    let reason = wait_until_ready_is(&client, StatusCode::SERVICE_UNAVAILABLE).await;
    assert!(
        reason.contains("storage is unavailable: read object format:")
            && reason.contains("mount its file system again"),
        "{reason}"
    );
    assert!(!folder.exists(), "the directory must not be created again");
    std::fs::rename(&elsewhere, &folder).unwrap();
    wait_until_ready_is(&client, StatusCode::OK).await;
}

async fn start_error(adjust: impl FnOnce(&mut flotilla_origin::Config)) -> String {
    let mut config = config();
    adjust(&mut config);
    Origin::start(config).await.unwrap_err().to_string()
}

#[tokio::test]
async fn start_errors_name_the_cause() {
    let message = start_error(|config| config.storage = "file:///dev/null/x".to_owned()).await;
    assert!(
        message.starts_with("open storage directory \"/dev/null/x\""),
        "{message}"
    );
    let message = start_error(|config| config.storage = "s3://".to_owned()).await;
    assert!(message.contains("a bucket is missing"), "{message}");
    let unlisted_listener = |config: &mut flotilla_origin::Config| {
        config.replicas = flotilla_origin::Replicas::at(vec!["127.0.0.1:5001".parse().unwrap()]);
    };
    assert!(
        start_error(unlisted_listener)
            .await
            .contains("set replica-listen")
    );
    let message =
        start_error(|config| config.limits.upload_lifetime = config.horizons.horizon).await;
    assert!(message.contains("upload_lifetime"), "{message}");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let message = start_error(|config| config.listen = address).await;
    assert!(
        message.starts_with(&format!("listen on {address}")),
        "{message}"
    );
}

#[tokio::test]
async fn different_horizons_fail_the_start() {
    let region = Region::start(1).await;
    let mut other = config();
    other.horizons = Horizons {
        condemned: core::time::Duration::from_secs(3600),
        ..Horizons::default()
    };
    let outcome = Origin::start_on(other, std::sync::Arc::clone(&region.storage)).await;
    assert!(matches!(outcome, Err(StartError::Format(_))));
}

#[tokio::test]
async fn operators_have_a_port_of_their_own() {
    let region = Region::start(1).await;
    let client = region.client(0);
    let operators = Registry::at(region.origins[0].admin_addr());
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(path).await.status(), StatusCode::OK, "{path}");
        assert_eq!(operators.get(path).await.status(), StatusCode::OK, "{path}");
    }
    assert_eq!(client.get("/metrics").await.status(), StatusCode::NOT_FOUND);
    assert!(client.metrics().await.contains("flotilla_origin_"));
    let registry = operators.get("/v2/").await.status();
    assert_eq!(registry, StatusCode::NOT_FOUND);

    let mut config = config();
    config.admin.listen = "0.0.0.0:0".parse().unwrap();
    let error = Origin::start(config).await.unwrap_err().to_string();
    assert!(error.contains("set admin-open"), "{error}");
}
