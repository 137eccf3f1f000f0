//! Outages of one region's storage, made outside its origin, over each pair of storages.
//!
//! Each story tries both directions and forms of outage at once: they mostly wait.

use std::time::{Duration, Instant};

use flotilla_common::digest::Digest;
use futures_util::future::join_all;
use reqwest::StatusCode;

use super::storage_servers::{
    OutageSite, StorageKind, is_not_now, own_standing, pull, pull_blobs, push_until_accepted,
};
use super::until;
use crate::servers::{Behaviour, Kind, Outage};
use crate::support::{Registry, location, sample};

/// The bar of the first requests is 2.5 s and a round trip; machines are shared.
pub(super) const FIRST: Duration = Duration::from_millis(4_000);
/// Reads of what can change wait for 5 s in a brown-out.
pub(super) const BROWN_OUT: Duration = Duration::from_millis(6_500);
/// Concurrent pulls of a burst.
const BURST: usize = 8;
/// Larger than what sockets on the way keep, and more than one part.
const LARGE_LAYER: usize = 8 << 20;
/// At most one part: the server has no multipart uploads over the XML API.
const LARGE_LAYER_OF_GCS: usize = 5 << 20;

pub(super) const S3: StorageKind = StorageKind::Server(Kind::S3Fs);

/// The blobs of the image by several clients at once; the longest time of one request.
pub(super) async fn burst(client: &Registry, site: &OutageSite) -> Duration {
    let pulls = (0..BURST).map(|_| pull_blobs(client, &site.image));
    let longest = join_all(pulls).await.into_iter().max();
    longest.unwrap_or_default()
}

/// The storage of a region fails in the middle of a pull and of a push: the pull goes on, the push
/// is repeated, and afterwards the region is whole again.
async fn region_survives(
    test: &str,
    kinds: [StorageKind; 2],
    failing: usize,
    outage: Outage,
    large: usize,
) {
    let Some(mut site) = OutageSite::start(test, kinds, failing, large).await else {
        return;
    };
    let context = format!("{:?}, {outage:?}", kinds[failing]);
    let cold = site.regions.cold_client(failing).await;
    let client = site.regions.client(failing);
    let last = site.image.blobs.last().unwrap().clone();
    let large_path = format!("/v2/app/blobs/{}", Digest::sha256(&last));
    let mut midway = client.get(&large_path).await;
    let mut received = midway.chunk().await.unwrap().unwrap().to_vec();
    let layer = sample(200_000, 77);
    let upload = client.begin("app").await;
    let half = layer.slice(..100_000);
    let upload = location(&client.patch(&upload, half).await);

    site.set_outage(Some(outage));
    let goes_on = async {
        let mut stall = Duration::ZERO;
        let mut since = Instant::now();
        while let Some(piece) = midway.chunk().await.unwrap() {
            stall = stall.max(since.elapsed());
            since = Instant::now();
            received.extend_from_slice(&piece);
        }
        assert!(received == last, "{context}");
        stall
    };
    let by_tag = pull(&cold, "/v2/app/manifests/v1", &site.image.manifest);
    let (stall, first) = tokio::join!(goes_on, by_tag);
    assert!(
        stall < FIRST && first < FIRST,
        "{context}: {stall:?}, {first:?}"
    );
    let later = burst(&cold, &site).await;
    assert!(later < FIRST, "{context}: {later:?}");
    eprintln!("{context}: stall {stall:.2?}, by tag {first:.2?}, burst {later:.2?}");

    // Only a storage that answers is sure that something is absent.
    let absent = format!("/v2/app/manifests/{}", Digest::sha256(b"absent"));
    for path in [&absent, "/v2/app/manifests/absent"] {
        let answer = cold.get(path).await;
        assert!(is_not_now(&answer), "{context}: {path}: {answer:?}");
    }
    // The upload that began before cannot go on; a client begins again. The replica may notice the
    // outage by this request.
    let answer = client.patch(&upload, layer.slice(100_000..)).await;
    let is_interrupted = answer.status() == StatusCode::REQUEST_TIMEOUT;
    assert!(
        is_interrupted || is_not_now(&answer),
        "{context}: {answer:?}"
    );
    let started = Instant::now();
    let refused = push_until_accepted(&client, "during", &layer).await;
    eprintln!(
        "{context}: push {:.2?}, {refused} refused",
        started.elapsed()
    );
    assert!(site.stores_tag(site.other(), "during").await, "{context}");
    for replica in [&client, &cold] {
        let answer = replica.get("/v2/app/manifests/during").await;
        assert_eq!(answer.status(), StatusCode::OK, "{context}");
    }

    let readiness = cold.get("/readyz").await.text().await.unwrap();
    assert!(readiness.starts_with("degraded"), "{context}: {readiness}");
    assert_eq!(own_standing(&cold).await, "out", "{context}");

    site.set_outage(None);
    let healed = Instant::now();
    let what = format!("{context}: the forwarded push returns");
    until(&what, async || {
        site.stores_tag(site.failing, "during").await
    })
    .await;
    site.assert_whole().await;
    eprintln!("{context}: whole after {:.2?}", healed.elapsed());
    if matches!(
        kinds,
        [
            StorageKind::Server(Kind::S3Fs),
            StorageKind::Server(Kind::S3Fs)
        ]
    ) {
        let returned = async || own_standing(&cold).await == "usable";
        until("requests return to the storage", returned).await;
    }
}

/// A pair of storages, of which each one fails in turn, in each of these forms.
async fn pair_survives(test: &str, kinds: [StorageKind; 2], forms: [&[Outage]; 2], large: usize) {
    let stories = [0, 1].into_iter().flat_map(|failing| {
        let forms = forms[failing].iter();
        forms.map(move |form| region_survives(test, kinds, failing, *form, large))
    });
    join_all(stories).await;
}

const HANGS: &[Outage] = &[Outage::Hangs, Outage::ProcessStops];

#[tokio::test]
async fn s3_with_s3() {
    pair_survives("s3_with_s3", [S3, S3], [HANGS, HANGS], LARGE_LAYER).await;
}

#[tokio::test]
async fn s3_with_azure() {
    let kinds = [S3, StorageKind::Server(Kind::Azurite)];
    pair_survives("s3_with_azure", kinds, [HANGS, HANGS], LARGE_LAYER).await;
}

#[tokio::test]
async fn s3_with_gcs() {
    let kinds = [S3, StorageKind::Server(Kind::Gcs)];
    pair_survives("s3_with_gcs", kinds, [HANGS, HANGS], LARGE_LAYER_OF_GCS).await;
}

#[tokio::test]
async fn directory_with_directory() {
    let forms: &[Outage] = &[Outage::ProcessStops, Outage::ProcessDies, Outage::Unmounted];
    let kinds = [StorageKind::Directory; 2];
    pair_survives(
        "directory_with_directory",
        kinds,
        [forms, forms],
        LARGE_LAYER,
    )
    .await;
}

/// The storage answers probes, and cuts the body of everything else that is read, also of records.
#[tokio::test]
async fn storage_that_cuts_each_body_is_left() {
    let test = "storage_that_cuts_each_body_is_left";
    let Some(mut site) = OutageSite::start(test, [S3, S3], 0, 100_000).await else {
        return;
    };
    let [reader, pusher] = [
        site.regions.cold_client(0).await,
        site.regions.cold_client(0).await,
    ];
    site.set_outage(Some(Outage::Answers(Behaviour::TearsBodies)));
    let layer = sample(50_000, 77);
    let started = Instant::now();
    let push = async {
        let refused = push_until_accepted(&pusher, "during", &layer).await;
        (refused, started.elapsed())
    };
    let by_tag = pull(&reader, "/v2/app/manifests/v1", &site.image.manifest);
    let (first, (refused, push)) = tokio::join!(by_tag, push);
    eprintln!("by tag {first:.2?}, push {push:.2?}, {refused} refused");
    assert!(first < FIRST, "{first:?}");
    assert!(push < Duration::from_secs(10), "{push:?}");
    let later = pull(&reader, "/v2/app/manifests/v1", &site.image.manifest).await;
    assert!(later < Duration::from_secs(1), "{later:?}");
    assert!(site.stores_tag(1, "during").await);
    site.set_outage(None);
    until("the forwarded push returns", async || {
        site.stores_tag(0, "during").await
    })
    .await;
    site.assert_whole().await;
}
