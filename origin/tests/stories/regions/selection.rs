//! Repositories that the policy keeps in some of the regions only.

use flotilla_common::digest::Digest;
use flotilla_origin::policy;
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::servers::GateState;
use crate::support::{Registry, code, sample};

const ONLY_IN_EU: &str = "[[repository]]\nmatch = \"**\"\nregions = [\"eu-1\"]\n";

/// A client may use any region: what it pushed through one, it can read there.
#[tokio::test]
async fn repository_is_served_through_a_region_that_does_not_keep_it() {
    let regions = Regions::start_with(2, 1, ONLY_IN_EU, |_, _| {}).await;
    let client = regions.client(1);
    let layer = sample(70_000, 1);
    let pushed = client
        .push_image("app", "v1", core::slice::from_ref(&layer))
        .await;
    let (manifest, blob) = (Digest::sha256(&pushed), Digest::sha256(&layer));
    for path in [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{manifest}"),
        format!("/v2/app/blobs/{blob}"),
        "/v2/app/tags/list".to_owned(),
        format!("/v2/app/referrers/{manifest}"),
    ] {
        let (head, get) = (client.head(&path).await, client.get(&path).await);
        assert_eq!(head.status(), StatusCode::OK, "HEAD {path}");
        assert_eq!(get.status(), StatusCode::OK, "GET {path}");
        assert!(!get.headers().contains_key("warning"), "{path}");
    }
    let body = client.get(&format!("/v2/app/blobs/{blob}")).await;
    assert_eq!(body.bytes().await.unwrap(), layer);
    let absent = Digest::sha256(b"absent");
    for (path, expected) in [
        ("/v2/app/manifests/v2".to_owned(), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/manifests/{absent}"), "MANIFEST_UNKNOWN"),
        (format!("/v2/app/blobs/{absent}"), "BLOB_UNKNOWN"),
        ("/v2/other/tags/list".to_owned(), "NAME_UNKNOWN"),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
        assert_eq!(code(answer).await, expected, "{path}");
    }
    for prefix in ["rm/", "tag/", "rb/"] {
        let stored = regions.keys(1, prefix).await;
        assert_eq!(stored, Vec::<String>::new(), "nothing is copied");
    }
    regions.gate(1, 0).set(GateState::Closed);
    until("503 without the region", async || {
        let answer = client.get("/v2/app/manifests/v1").await;
        answer.status() == StatusCode::SERVICE_UNAVAILABLE
    })
    .await;
}

/// F10: a region that no longer keeps a repository has its tags, and may keep it again after the
/// tombstones of the others were removed. So it is told of deletes.
#[tokio::test]
async fn deletes_reach_a_region_that_no_longer_keeps_the_repository() {
    let regions = Regions::start(2, |_, _| {}).await;
    let pushed = regions.client(0).push_image("app", "v1", &[]).await;
    let manifest = Digest::sha256(&pushed);
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    for region in [0, 1] {
        regions.set_rules(region, ONLY_IN_EU).await;
    }
    let stored = async |regions: &Regions| {
        let mut versions = Vec::new();
        for key in [
            "tag/app/_/v1".to_owned(),
            regions.keys(1, "rm/").await.remove(0),
        ] {
            let storage = &regions.sites[1].storage;
            let object = storage.read(&key.parse().unwrap()).await.unwrap();
            versions.push(object.unwrap().version);
        }
        versions
    };
    let before = stored(&regions).await;
    let client: Registry = regions.client(0);
    for reference in ["v1".to_owned(), manifest.to_string()] {
        let path = format!("/v2/app/manifests/{reference}");
        assert_eq!(client.delete(&path).await, StatusCode::ACCEPTED, "{path}");
    }
    until("the tombstones", async || {
        let now = stored(&regions).await;
        now.iter().zip(&before).all(|(now, before)| now != before)
    })
    .await;
}

/// The policy of a single region holds without a certificate, which only other regions ask for.
#[tokio::test]
async fn policy_of_one_region_needs_no_certificate() {
    let storage = flotilla_origin::storage::open("memory:///", 64 << 20).unwrap();
    let start = async |storage| {
        flotilla_origin::Origin::start_on(crate::support::config(), storage)
            .await
            .unwrap()
    };
    drop(start(std::sync::Arc::clone(&storage)).await);
    let region = crate::support::config().region;
    let text = format!(
        "[[region]]\nname = \"{region}\"\nurl = \"https://127.0.0.1\"\n[[repository]]\nmatch = \"**\"\nimmutable = [\"v*\"]\n"
    );
    policy::set(&*storage, &text, None).await.unwrap();
    let origin = start(storage).await;
    let client = Registry::at(origin.addr());
    client.push_image("app", "v1", &[sample(10, 1)]).await;
    let second = client.push_image("app", "other", &[sample(10, 2)]).await;
    let moved = client
        .put_manifest("/v2/app/manifests/v1", crate::support::MANIFEST, second)
        .await;
    assert_eq!(moved.status(), StatusCode::FORBIDDEN);
}

/// A process without a certificate writes nothing once the policy lists other regions: these would
/// never hear of it.
#[tokio::test]
async fn change_is_refused_without_a_certificate_for_the_policy() {
    let storage = flotilla_origin::storage::open("memory:///", 64 << 20).unwrap();
    let origin = flotilla_origin::Origin::start_on(
        crate::support::config(),
        std::sync::Arc::clone(&storage),
    )
    .await
    .unwrap();
    let client = Registry::at(origin.addr());
    let image = client.push_image("app", "v1", &[sample(10, 1)]).await;
    let region = crate::support::config().region;
    let text = format!(
        "[[region]]\nname = \"{region}\"\nurl = \"https://127.0.0.1\"\n[[region]]\nname = \"us-1\"\nurl = \"https://127.0.0.2\"\n"
    );
    policy::set(&*storage, &text, None).await.unwrap();
    origin.policy().read_now().await.unwrap();
    let refused = client
        .put_manifest("/v2/app/manifests/v2", crate::support::MANIFEST, image)
        .await;
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    let text = refused.text().await.unwrap();
    assert!(text.contains("flotilla pki issue"), "{text}");
    assert_eq!(
        client.delete("/v2/app/manifests/v1").await,
        StatusCode::SERVICE_UNAVAILABLE
    );
    let read = client.get("/v2/app/manifests/v1").await;
    assert_eq!(read.status(), StatusCode::OK);
}
