//! Redirects of blob pulls to presigned URLs.

use std::process::Command;

use flotilla_common::digest::Digest;
use flotilla_origin::Origin;
use reqwest::{Method, StatusCode};

use crate::servers::{self, Kind, Server};
use crate::support::{Region, Registry, config, header, sample};

async fn start(test: &str) -> Option<(Server, Region)> {
    let server = Server::start(test, Kind::S3Fs).await?;
    let region = Region::start_on(server.storage(), 1, |config| {
        config.redirect_blobs = true;
        config.limits.segment_len.0 = 12 << 20;
    });
    let region = region.await;
    Some((server, region))
}

#[tokio::test]
async fn blob_get_redirects_to_presigned_url() {
    let test = "blob_get_redirects_to_presigned_url";
    let Some((server, region)) = start(test).await else {
        return;
    };
    let bytes = sample(1 << 20, 0);
    let digest = region.client(0).push_blob("app", bytes.clone()).await;
    let (path, client) = (
        format!("/v2/app/blobs/{digest}"),
        Registry::without_redirects(region.origins[0].addr()).with_metrics_of(&region.origins[0]),
    );
    let asked = client
        .request(Method::GET, &path)
        .header("authorization", "Bearer secret")
        .send()
        .await
        .unwrap();
    assert_eq!(asked.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(header(&asked, "cache-control"), "no-store");
    let (url, set) = (
        header(&asked, "location").to_owned(),
        format!("{:?}", asked.headers()),
    );
    assert!(
        url.contains("X-Amz-Signature=") && !set.contains("Bearer"),
        "{set}"
    );
    assert!(asked.bytes().await.unwrap().is_empty());
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    assert!(http.get(&url).send().await.unwrap().bytes().await.unwrap() == bytes);

    server.faults().take_requests();
    let head = client.head(&path).await;
    assert_eq!(
        (head.status(), header(&head, "content-length")),
        (StatusCode::OK, "1048576")
    );
    let again = client.get(&path).await;
    assert_eq!(again.status(), StatusCode::TEMPORARY_REDIRECT);
    assert_eq!(
        server.faults().take_requests(),
        [""; 0],
        "signing must send no request"
    );
    let metrics = client.metrics().await;
    assert!(
        metrics.contains("flotilla_origin_redirects_total 2"),
        "{metrics}"
    );

    let following = region
        .client(0)
        .request(Method::GET, &path)
        .header("range", "bytes=7-1006")
        .send()
        .await
        .unwrap();
    assert_eq!(following.status(), StatusCode::PARTIAL_CONTENT);
    assert!(following.bytes().await.unwrap() == bytes[7..1007]);
}

#[tokio::test]
async fn cached_segmented_and_peer_pulls_are_not_redirected() {
    let test = "cached_segmented_and_peer_pulls_are_not_redirected";
    let Some((_server, region)) = start(test).await else {
        return;
    };
    let client = Registry::without_redirects(region.origins[0].addr());
    for len in [1000, 13 << 20] {
        let bytes = sample(len, 0);
        let digest = client.push_blob("app", bytes.clone()).await;
        let answer = client.get(&format!("/v2/app/blobs/{digest}")).await;
        assert_eq!(answer.status(), StatusCode::OK, "{len} bytes");
        assert!(answer.bytes().await.unwrap() == bytes);
    }
    let bytes = sample(1 << 20, 0);
    let path = format!(
        "/v2/app/blobs/{}",
        client.push_blob("app", bytes.clone()).await
    );
    for (name, value) in [("flotilla-redirect", "never"), ("if-range", "\"another\"")] {
        let answer = client
            .request(Method::GET, &path)
            .header(name, value)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{name}");
        assert!(answer.bytes().await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn skopeo_follows_redirects() {
    let Some(skopeo) = servers::find("skopeo_follows_redirects", "skopeo") else {
        return;
    };
    let Some((_server, region)) = start("skopeo_follows_redirects").await else {
        return;
    };
    let layer = sample(3 << 20, 0);
    region
        .client(0)
        .push_image("app", "v1", std::slice::from_ref(&layer))
        .await;
    let folder = tempfile::tempdir().unwrap();
    let image = format!("docker://{}/app:v1", region.origins[0].addr());
    let copy = tokio::task::spawn_blocking({
        let to = format!("dir:{}", folder.path().join("image").display());
        move || {
            let arguments = [
                "--insecure-policy",
                "copy",
                "--src-tls-verify=false",
                &image,
                &to,
            ];
            Command::new(skopeo).args(arguments).output().unwrap()
        }
    });
    let output = copy.await.unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let file = folder
        .path()
        .join("image")
        .join(Digest::sha256(&layer).to_string().replace("sha256:", ""));
    assert!(std::fs::read(file).unwrap() == layer);
    let metrics = region.client(0).metrics().await;
    assert!(
        !metrics.contains("flotilla_origin_redirects_total 0"),
        "{metrics}"
    );
}

#[tokio::test]
async fn redirects_require_url_signing() {
    let mut config = config();
    config.redirect_blobs = true;
    let error = Origin::start(config).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot sign URLs") && error.contains("leave redirect-blobs out"),
        "{error}"
    );
}
