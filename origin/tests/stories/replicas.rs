//! Any request may land on any replica.

use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use flotilla_common::digest::Digest;
use flotilla_origin::Origin;
use reqwest::StatusCode;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::support::{MANIFEST, Region, Registry, config, header, location, sample};

#[tokio::test]
async fn chunks_alternate_between_replicas() {
    let region = Region::start(3).await;
    for step in [1, 1000, 256 << 10, (256 << 10) + 1, 700_000] {
        let bytes = sample(step * 5, step);
        let digest = Digest::sha256(&bytes);
        let mut upload = region.client(0).begin("app").await;
        for chunk in 0..5 {
            let client = region.client(chunk % 3);
            let answer = client
                .chunk(
                    &upload,
                    chunk * step,
                    bytes.slice(chunk * step..(chunk + 1) * step),
                )
                .await;
            assert_eq!(
                answer.status(),
                StatusCode::ACCEPTED,
                "chunk {chunk} of {step}"
            );
            upload = location(&answer);
        }
        let answer = region.client(2).put(&upload, &digest, "").await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        let pulled = region
            .client(1)
            .get(&format!("/v2/app/blobs/{digest}"))
            .await;
        assert!(pulled.bytes().await.unwrap() == bytes);
    }
}

#[tokio::test]
async fn upload_status_at_any_replica() {
    let region = Region::start(2).await;
    let upload = region.client(0).begin("app").await;
    let bare = upload.split('?').next().unwrap().to_owned();
    let bytes = sample(100_000, 0);
    region
        .client(0)
        .chunk(&bare, 0, bytes.slice(..60_000))
        .await;
    let status = region.client(1).get(&bare).await;
    assert_eq!(header(&status, "range"), "0-59999");
    let answer = region
        .client(1)
        .chunk(&bare, 60_000, bytes.slice(60_000..))
        .await;
    assert_eq!(answer.status(), StatusCode::ACCEPTED);
    // The first replica has an older state in memory, and detects that.
    let status = region.client(0).get(&bare).await;
    assert_eq!(header(&status, "range"), "0-99999");
    let again = region.client(0).chunk(&upload, 0, "x").await;
    assert_eq!(again.status(), StatusCode::RANGE_NOT_SATISFIABLE);
    let answer = region
        .client(0)
        .put(&location(&status), &Digest::sha256(&bytes), "")
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
}

#[tokio::test]
async fn long_upload_log_continues_at_another_replica() {
    let region = Region::start(2).await;
    let bytes = sample(150 * 100, 0);
    let mut upload = region.client(0).begin("app").await;
    for chunk in 0..150 {
        let client = region.client(usize::from(chunk % 40 == 39));
        let answer = client
            .patch(&upload, bytes.slice(chunk * 100..(chunk + 1) * 100))
            .await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED, "chunk {chunk}");
        upload = location(&answer);
    }
    let digest = Digest::sha256(&bytes);
    assert_eq!(
        region.client(1).put(&upload, &digest, "").await.status(),
        StatusCode::CREATED
    );
    let pulled = region
        .client(0)
        .get(&format!("/v2/app/blobs/{digest}"))
        .await;
    assert!(pulled.bytes().await.unwrap() == bytes);
}

#[tokio::test]
async fn manifest_names_blob_acknowledged_at_another_replica() {
    let region = Region::start(2).await;
    let (first, second) = (region.client(0), region.client(1));
    let layer = sample(1000, 0);
    // The second replica reads before the push: it must not cache the absence.
    for bytes in [&layer[..], b"{}"] {
        let path = format!("/v2/app/blobs/{}", Digest::sha256(bytes));
        assert_eq!(second.head(&path).await.status(), StatusCode::NOT_FOUND);
    }
    first.push_blob("app", layer.clone()).await;
    first.push_blob("app", "{}").await;
    let manifest = crate::support::manifest(b"{}", &[layer]);
    let answer = second
        .put_manifest("/v2/app/manifests/v1", MANIFEST, manifest.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(
        first
            .get("/v2/app/manifests/v1")
            .await
            .bytes()
            .await
            .unwrap(),
        manifest
    );
}

/// Makes the times-to-live so long that nothing expires during a test.
fn disable_expiry(config: &mut flotilla_origin::Config) {
    config.limits.tag_time_to_live = Duration::from_secs(600);
    config.limits.repository_time_to_live = Duration::from_secs(600);
}

#[tokio::test]
async fn acknowledged_change_is_seen_at_every_listed_replica() {
    let region = Region::start_with(3, disable_expiry).await;
    let layer = sample(1000, 1);
    let (tag, blob) = (
        "/v2/app/manifests/v1",
        format!("/v2/app/blobs/{}", Digest::sha256(&layer)),
    );
    let old = region.client(0).push_image("app", "v1", &[layer]).await;
    let by_digest = format!("/v2/app/manifests/{}", Digest::sha256(&old));
    for replica in 0..3 {
        assert_eq!(
            region.client(replica).get(tag).await.bytes().await.unwrap(),
            old
        );
        assert_eq!(
            region.client(replica).head(&blob).await.status(),
            StatusCode::OK
        );
    }
    let new = region
        .client(1)
        .push_image("app", "v1", &[sample(10, 2)])
        .await;
    for replica in 0..3 {
        assert_eq!(
            region.client(replica).get(tag).await.bytes().await.unwrap(),
            new
        );
    }
    for (changer, path) in [(2, tag), (0, &*by_digest), (1, &*blob)] {
        assert_eq!(
            region.client(changer).delete(path).await,
            StatusCode::ACCEPTED
        );
        for replica in 0..3 {
            assert_eq!(
                region.client(replica).get(path).await.status(),
                StatusCode::NOT_FOUND,
                "{path}"
            );
        }
    }
    let metrics = region.client(1).metrics().await;
    assert!(
        metrics.contains("flotilla_origin_replicas_listed 3"),
        "{metrics}"
    );
    assert!(
        metrics.contains("flotilla_origin_changes_told_total{outcome=\"waited_out\"} 0"),
        "{metrics}"
    );
    assert!(
        metrics.contains("flotilla_origin_changes_heard_total 3"),
        "{metrics}"
    );
}

#[tokio::test]
async fn changed_media_type_reaches_all_replicas() {
    let region = Region::start_with(2, disable_expiry).await;
    let untyped = r#"{"schemaVersion":2,"config":{"mediaType":"x/y","digest":"DIGEST","size":2},"layers":[]}"#;
    let untyped = untyped.replace(
        "DIGEST",
        &region.client(0).push_blob("app", "{}").await.to_string(),
    );
    let docker = "application/vnd.docker.distribution.manifest.v2+json";
    for media_type in [MANIFEST, docker] {
        let path = "/v2/app/manifests/v1";
        let answer = region
            .client(0)
            .put_manifest(path, media_type, untyped.clone())
            .await;
        assert_eq!(answer.status(), StatusCode::CREATED);
        for replica in 0..2 {
            assert_eq!(
                header(&region.client(replica).get(path).await, "content-type"),
                media_type
            );
        }
    }
}

#[tokio::test]
async fn unlisted_replica_is_stale_for_at_most_a_time_to_live() {
    let ttl = Duration::from_millis(300);
    let region = Region::start_with(1, |config| config.limits.tag_time_to_live = ttl).await;
    let mut loner = crate::support::config();
    loner.limits.tag_time_to_live = ttl;
    let loner = Origin::start_on(loner, Arc::clone(&region.storage))
        .await
        .unwrap();
    let elsewhere = crate::support::Registry::at(loner.addr());
    let tag = "/v2/app/manifests/v1";
    let client = region.client(0);
    let old = client.push_image("app", "v1", &[sample(10, 1)]).await;
    let read = Instant::now();
    assert_eq!(elsewhere.get(tag).await.bytes().await.unwrap(), old);
    let new = client.push_image("app", "v1", &[sample(10, 2)]).await;
    loop {
        let asked = Instant::now();
        let seen = elsewhere.get(tag).await.bytes().await.unwrap();
        if seen == new {
            break;
        }
        assert!(
            asked < read + ttl + Duration::from_millis(50),
            "stale after its time-to-live"
        );
    }
}

/// For an address that does not answer and never asked for a lease, or where no replica answers, a
/// change waits until its time-to-live has passed.
#[tokio::test]
async fn change_waits_time_to_live_for_unresponsive_replica() {
    let ttl = Duration::from_millis(400);
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let stranger = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listed = [silent.local_addr().unwrap(), stranger.local_addr().unwrap()];
    tokio::spawn(
        axum::serve(stranger, axum::Router::new().fallback(async || [7_u8; 32])).into_future(),
    );
    let (list, replicas) = watch::channel(Arc::default());
    let region = Region::start_with(1, |config| {
        config.limits.tag_time_to_live = ttl;
        config.replicas = flotilla_origin::Replicas::followed(replicas.clone());
    })
    .await;
    let client = region.client(0);
    client.push_image("app", "v1", &[]).await;
    for (count, replica) in listed.into_iter().enumerate() {
        list.send_replace(Arc::from([replica]));
        let began = Instant::now();
        client.push_image("app", "v1", &[sample(10, count)]).await;
        assert!(began.elapsed() >= ttl);
        let metrics = client.metrics().await;
        let metric = format!(
            "flotilla_origin_changes_told_total{{outcome=\"waited_out\"}} {}",
            count + 1
        );
        assert!(metrics.contains(&metric), "{metrics}");
    }
}

#[tokio::test]
async fn replica_listener_rejects_other_clients() {
    let region = Region::start_with(1, disable_expiry).await;
    let internal = crate::support::Registry::at(region.origins[0].replica_addr().unwrap());
    for (body, status) in [
        (sample(200, 0), StatusCode::FORBIDDEN),
        (sample(70_000, 0), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let request = internal
            .request(reqwest::Method::POST, "/flotilla/v1/replica")
            .body(body);
        assert_eq!(request.send().await.unwrap().status(), status);
    }
    assert_eq!(internal.get("/v2/").await.status(), StatusCode::NOT_FOUND);
    let outside = region
        .client(0)
        .request(reqwest::Method::POST, "/flotilla/v1/replica")
        .send()
        .await
        .unwrap();
    assert_eq!(outside.status(), StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn replica_discovery_by_address_and_name() {
    let listening = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let named = format!("localhost:{}", listening.port());
    let region = Region::start_with(2, |config| {
        config.limits.tag_time_to_live = Duration::from_secs(600);
        config.replicas = flotilla_origin::Replicas::at(vec![named.parse().unwrap()]);
    })
    .await;
    let metrics = region.client(0).metrics().await;
    let listed = metrics
        .lines()
        .find_map(|line| line.strip_prefix("flotilla_origin_replicas_listed "));
    assert!(matches!(listed, Some("1" | "2")), "{metrics}");
}

/// An unlisted replica simulates one that crashed after its write and before its invalidations.
#[tokio::test]
async fn delete_of_tombstone_invalidates_before_404() {
    let region = Region::start_with(2, |config| {
        config.limits.tag_time_to_live = Duration::from_mins(1)
    })
    .await;
    let dead = Origin::start_on(config(), Arc::clone(&region.storage))
        .await
        .unwrap();
    let dead = Registry::at(dead.addr());
    let manifest = Digest::sha256(
        &region
            .client(0)
            .push_image("app", "v1", &[sample(1000, 0)])
            .await,
    );
    let blob = Digest::sha256(&sample(1000, 0));
    let paths = [
        "/v2/app/manifests/v1".to_owned(),
        format!("/v2/app/manifests/{manifest}"),
        format!("/v2/app/blobs/{blob}"),
    ];
    for path in paths {
        assert_eq!(
            region.client(1).get(&path).await.status(),
            StatusCode::OK,
            "{path}"
        );
        assert_eq!(dead.delete(&path).await, StatusCode::ACCEPTED, "{path}");
        assert_eq!(
            region.client(1).get(&path).await.status(),
            StatusCode::OK,
            "it got no invalidation of {path}"
        );
        assert_eq!(
            region.client(0).delete(&path).await,
            StatusCode::NOT_FOUND,
            "{path}"
        );
        assert_eq!(
            region.client(1).get(&path).await.status(),
            StatusCode::NOT_FOUND,
            "{path}"
        );
    }
}
