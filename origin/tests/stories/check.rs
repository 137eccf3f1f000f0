//! A check of a storage: complete after pushes, and each kind of damage is found and named.

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_origin::check::{Report, check};
use flotilla_origin::storage::Key;
use reqwest::StatusCode;

use crate::faulty_storage::WriteFault;
use crate::support::{MANIFEST, Region, descriptor, location, sample};

/// A region with an image, a referrer, and a blob whose chunks went to several replicas.
async fn filled() -> Region {
    let region = Region::start_with(2, |config| config.limits.segment_len.0 = 2 << 20).await;
    let client = region.client(0);
    let pushed = client
        .push_image("library/app", "v1", &[sample(1000, 1), sample(5 << 20, 2)])
        .await;
    let mut artifact: serde_json::Value = serde_json::from_slice(&pushed).unwrap();
    artifact["subject"] = descriptor(MANIFEST, &pushed);
    let answer = client
        .put_manifest(
            "/v2/library/app/manifests/sig",
            MANIFEST,
            artifact.to_string(),
        )
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    let bytes = sample(70 * 1000, 3);
    let mut upload = client.begin("other").await;
    for chunk in 0..70 {
        let answer = region
            .client(chunk % 2)
            .patch(&upload, bytes.slice(chunk * 1000..(chunk + 1) * 1000))
            .await;
        upload = location(&answer);
    }
    assert_eq!(
        client
            .put(&upload, &Digest::sha256(&bytes), "")
            .await
            .status(),
        StatusCode::CREATED
    );
    region
}

async fn report(region: &Region, deep: bool) -> Report {
    check(region.storage.clone(), deep).await.unwrap()
}

/// Asserts that a shallow check reports damage only at keys under `prefix`, with these words.
async fn assert_damage(region: &Region, prefix: &str, words: &str) {
    let report = report(region, false).await;
    let fits = |finding: &flotilla_origin::check::Finding| {
        finding.key.starts_with(prefix) && finding.problem.contains(words)
    };
    assert!(
        !report.is_complete() && report.damage.shown.iter().all(fits),
        "{prefix} {words}: {report:#?}"
    );
}

async fn remove(region: &Region, key: &str) {
    region.storage.delete(&key.parse().unwrap()).await.unwrap();
}

async fn replace(region: &Region, key: &str, body: impl Into<Bytes>) {
    let key: Key = key.parse().unwrap();
    region.storage.delete(&key).await.unwrap();
    region.storage.create(&key, body.into()).await.unwrap();
}

#[tokio::test]
async fn check_accepts_complete_pushes() {
    let region = filled().await;
    let report = report(&region, true).await;
    assert!(
        report.is_complete() && report.leftovers.count == 0,
        "{report:#?}"
    );
    assert_eq!(report.objects["tags"], 2);
    assert_eq!(
        (report.objects["manifests"], report.objects["referrers"]),
        (2, 1)
    );
    assert_eq!((report.objects["claims"], report.objects["blobs"]), (4, 4));
    assert_eq!(
        report.hashed_bytes,
        (5 << 20) + 1000 + 70_000 + "{\"tag\":\"v1\"}".len() as u64
    );
}

#[tokio::test]
async fn check_reports_missing_objects() {
    for (prefix, at, words) in [
        ("seg/", "blob/", "is missing"),
        ("blob/", "rb/", "the blob has no live record"),
        ("rb/", "rm/", "is missing"),
        ("rm/", "", "manifest"),
    ] {
        let region = filled().await;
        let key = region.keys(prefix).await.swap_remove(0);
        remove(&region, &key).await;
        assert_damage(&region, at, words).await;
    }
    let region = filled().await;
    remove(&region, "format").await;
    assert_damage(&region, "format", "no origin has started on this storage").await;
}

#[tokio::test]
async fn check_reports_altered_objects() {
    for (prefix, at, words) in [
        ("blob/", "", "decode"),
        ("rb/library/", "r", ""),
        ("tag/", "tag/", "the object is truncated"),
        ("ref/", "ref/", "the object is truncated"),
        ("upload/", "upload/", ""),
    ] {
        let region = filled().await;
        let key = region.keys(prefix).await.swap_remove(0);
        replace(&region, &key, vec![7; 3]).await;
        let report = report(&region, false).await;
        let found = report
            .damage
            .shown
            .iter()
            .any(|finding| finding.key.starts_with(at));
        assert!(found, "{prefix} {words}: {report:#?}");
    }
    let region = filled().await;
    replace(&region, "tag/no-repository", "x").await;
    assert_damage(&region, "tag/no-repository", "not a key of an origin").await;
}

#[tokio::test]
async fn deep_check_detects_altered_content() {
    let region = filled().await;
    let keys = region.keys("seg/").await;
    let key: Key = keys[0].parse().unwrap();
    let prefix = flotilla_origin::storage::Prefix::new(
        key.as_str().rsplit_once('/').unwrap().0.to_owned() + "/",
    )
    .unwrap();
    let page = region.storage.list(&prefix, None, 1).await.unwrap();
    replace(
        &region,
        key.as_str(),
        vec![0; page.entries[0].size as usize],
    )
    .await;
    assert!(report(&region, false).await.is_complete());
    let report = report(&region, true).await;
    assert!(
        report.damage.count == 1
            && report.damage.shown[0]
                .problem
                .contains("content has the digest"),
        "{report:#?}"
    );
}

#[tokio::test]
async fn deletes_and_unfinished_uploads_are_leftovers() {
    let region = filled().await;
    let layer = Digest::sha256(&sample(1000, 1));
    let client = region.client(0);
    assert_eq!(
        client
            .delete(&format!("/v2/library/app/blobs/{layer}"))
            .await,
        StatusCode::ACCEPTED
    );
    let upload = client.begin("app").await;
    assert_eq!(
        client.patch(&upload, sample(1000, 4)).await.status(),
        StatusCode::ACCEPTED
    );
    let upload = client.begin("app").await;
    region.faults.arm("upload/", 3, WriteFault::Rejected);
    client.patch(&upload, sample(1000, 5)).await;
    let report = report(&region, true).await;
    assert!(report.is_complete(), "{report:#?}");
    let problems: Vec<_> = report
        .leftovers
        .shown
        .iter()
        .map(|finding| finding.problem.as_str())
        .collect();
    for (start, end) in [
        ("", "was deleted"),
        ("unfinished upload with 1000 bytes so far", ""),
        ("unreferenced segment seg/", " with 1000 bytes"),
    ] {
        let found = problems
            .iter()
            .any(|problem| problem.starts_with(start) && problem.ends_with(end));
        assert!(found, "{start}...{end}: {problems:?}");
    }
}
