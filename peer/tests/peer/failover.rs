//! Two origins in two regions, or two replicas of one: the own one hangs, lacks content, flaps, or
//! stalls in the middle of a body.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_peer::status::{OriginStanding, Status};
use flotilla_peer::{Config, OriginUrl, Peer};

use crate::harness::origin::FakeOrigin;
use crate::harness::{Fleet, digest, get, pull, random_bytes, try_pull_reference, wait_until};

/// A probe decides after 2.5 s; the rest is a round trip on a loaded machine.
const ONE_WAIT: Duration = Duration::from_millis(3_500);
/// For requests that do not wait for a hung origin.
const NO_WAIT: Duration = Duration::from_millis(900);

fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(2 << 20, 2),
        random_bytes(300_000, 3),
    ]
}

/// A fleet whose peer has the fleet's origin, and another one in `region`.
struct Regions {
    fleet: Fleet,
    other: Arc<FakeOrigin>,
    region: Option<&'static str>,
}

impl Regions {
    /// The other origin is in another region.
    async fn new() -> Self {
        Self::with_other(Some("us")).await
    }

    async fn with_other(region: Option<&'static str>) -> Self {
        let fleet = Fleet::without_tracker().await;
        let other = FakeOrigin::start(fleet.key.clone(), None, &fleet.shutdown).await;
        Self {
            fleet,
            other,
            region,
        }
    }

    fn own(&self) -> &FakeOrigin {
        &self.fleet.origin
    }

    /// Pushes the image to both; returns the digest of its manifest.
    fn push(&self) -> Digest {
        self.own().push(&image());
        self.other.push(&image())
    }

    async fn peer(&self) -> Peer {
        let config = self.fleet.config("vm-1");
        let other = OriginUrl {
            region: self.region.map(|region| region.parse().unwrap()),
            url: self.other.url(),
        };
        let origins = vec![config.origins[0].clone(), other];
        self.fleet.start(Config { origins, ..config }).await
    }
}

async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let started = Instant::now();
    (work.await, started.elapsed())
}

async fn status(peer: &Peer) -> Status {
    let status = get(peer, "/flotilla/status").await;
    serde_json::from_slice(&status.bytes().await.unwrap()).unwrap()
}

/// The number of requests that an origin received, without probes.
fn requests(origin: &FakeOrigin) -> usize {
    let requests = origin.requests.lock().unwrap();
    requests.iter().filter(|it| !it.contains("/readyz")).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_origin_costs_one_wait_across_all_paths() {
    let regions = Regions::new().await;
    let manifest = regions.push();
    let unknown = random_bytes(5_000, 9);
    regions.other.add_blob(&unknown);
    let peer = regions.peer().await;
    regions.own().is_stopped.store(true, Ordering::Relaxed);

    let (tag, first) = timed(get(&peer, "/v2/app/manifests/v1")).await;
    assert!(tag.status().is_success(), "{tag:?}");
    assert!(first < ONE_WAIT, "{first:?}");

    let asked_before = requests(regions.own());
    let (image, rest) = timed(try_pull_reference(&peer, &manifest.to_string())).await;
    assert_eq!(image.unwrap(), self::image());
    assert!(rest < NO_WAIT, "manifest, closure and chunks: {rest:?}");
    let path = format!("/v2/app/blobs/{}", digest(&unknown));
    let (passed_through, took) = timed(get(&peer, &path)).await;
    assert_eq!(passed_through.bytes().await.unwrap(), unknown);
    assert!(took < NO_WAIT, "passed through: {took:?}");
    assert_eq!(requests(regions.own()), asked_before, "only probes");

    let status = status(&peer).await;
    let standings: Vec<_> = status.origins.iter().map(|it| it.standing).collect();
    assert_eq!(standings, [OriginStanding::Out, OriginStanding::Fine]);
    let own = status.origins[0].region.clone();
    assert_eq!(own, status.region);
    assert_eq!(status.origins[1].region.as_str(), "us");
}

#[tokio::test(flavor = "multi_thread")]
async fn pull_by_digest_leaves_a_hung_origin_before_the_verdict() {
    let regions = Regions::new().await;
    let manifest = regions.push();
    let peer = regions.peer().await;
    regions.own().is_stopped.store(true, Ordering::Relaxed);
    let (image, took) = timed(try_pull_reference(&peer, &manifest.to_string())).await;
    assert_eq!(image.unwrap(), self::image());
    assert!(took < Duration::from_millis(2_500), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_returns_by_its_probes() {
    let regions = Regions::new().await;
    regions.push();
    let peer = regions.peer().await;
    regions.own().is_stopped.store(true, Ordering::Relaxed);
    get(&peer, "/v2/app/manifests/v1").await;
    assert_eq!(status(&peer).await.origins[0].standing, OriginStanding::Out);
    regions.own().is_stopped.store(false, Ordering::Relaxed);
    let asked_before = requests(regions.own());
    let started = Instant::now();
    while status(&peer).await.origins[0].standing != OriginStanding::Returning {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "it never returns"
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(requests(regions.own()), asked_before, "no pull was needed");
}

#[tokio::test(flavor = "multi_thread")]
async fn content_that_the_own_region_lacks_comes_from_another_region() {
    let regions = Regions::new().await;
    let manifest = regions.other.push(&image());
    let peer = regions.peer().await;
    let pulled = try_pull_reference(&peer, &manifest.to_string()).await;
    assert_eq!(pulled.unwrap(), image());
    let origins = status(&peer).await.origins;
    assert_eq!(
        origins[0].standing,
        OriginStanding::Fine,
        "a 404 is no failure"
    );
    assert_eq!(origins[0].is_answering, Some(true));

    let absent = format!("/v2/app/manifests/{}", digest(b"absent"));
    assert_eq!(get(&peer, &absent).await.status(), 404, "both are sure");
    regions.other.is_unavailable.store(true, Ordering::Relaxed);
    let absent = format!("/v2/app/manifests/{}", digest(b"also absent"));
    assert_eq!(
        get(&peer, &absent).await.status(),
        503,
        "the other may have it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_replica_is_sure_for_its_region() {
    let regions = Regions::with_other(None).await;
    regions.push();
    let peer = regions.peer().await;
    regions.own().is_unavailable.store(true, Ordering::Relaxed);
    let absent = get(&peer, "/v2/app/manifests/deleted").await;
    assert_eq!(absent.status(), 404, "{}", absent.text().await.unwrap());
    assert_eq!(pull(&peer).await, image());
}

#[tokio::test(flavor = "multi_thread")]
async fn refused_request_is_not_an_outage() {
    let regions = Regions::new().await;
    regions.push();
    let peer = regions.peer().await;
    regions.own().is_forbidding.store(true, Ordering::Relaxed);
    for tag in ["a", "b", "c", "d", "e", "f"] {
        get(&peer, &format!("/v2/app/manifests/{tag}")).await;
    }
    let origins = status(&peer).await.origins;
    assert_eq!(origins[0].standing, OriginStanding::Fine);
    assert_eq!(requests(&regions.other), 0, "a refusal is an answer");
}

#[tokio::test(flavor = "multi_thread")]
async fn flapping_origin_fails_no_request() {
    let regions = Regions::new().await;
    let blobs: Vec<Bytes> = (0..60)
        .map(|salt| random_bytes(1_000, 100 + salt))
        .collect();
    for blob in &blobs {
        regions.own().add_blob(blob);
        regions.other.add_blob(blob);
    }
    let peer = regions.peer().await;
    for (at, blob) in blobs.iter().enumerate() {
        let is_up = at / 5 % 2 == 0;
        regions
            .own()
            .is_unavailable
            .store(!is_up, Ordering::Relaxed);
        let answer = get(&peer, &format!("/v2/app/blobs/{}", digest(blob))).await;
        assert_eq!(answer.status(), 200, "request {at}");
        assert_eq!(answer.bytes().await.unwrap(), *blob);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_stalls_goes_on_from_another_region() {
    let regions = Regions::new().await;
    let blob = random_bytes(3 << 20, 5);
    regions.own().add_blob(&blob);
    regions.other.add_blob(&blob);
    regions.own().stalls_at.send_replace(1 << 20);
    let peer = regions.peer().await;
    let path = format!("/v2/app/blobs/{}", digest(&blob));
    let answer = get(&peer, &path).await;
    wait_until("the body stalls", || regions.own().bytes_sent() == 1 << 20).await;
    regions.own().is_stopped.store(true, Ordering::Relaxed);
    let (bytes, took) = timed(answer.bytes()).await;
    assert_eq!(bytes.unwrap(), blob);
    assert!(took < ONE_WAIT, "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn body_that_breaks_off_goes_on_from_another_region() {
    let regions = Regions::new().await;
    regions.push();
    regions.own().aborts_at.store(100_000, Ordering::Relaxed);
    let peer = regions.peer().await;
    assert_eq!(pull(&peer).await, image());
    assert_eq!(peer.stats().bytes_passed_through, 0, "the swarm continues");
}

#[tokio::test(flavor = "multi_thread")]
async fn single_origin_is_asked_again_for_a_manifest_that_breaks_off() {
    let fleet = Fleet::new().await;
    let manifest = fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    for reference in ["v1".to_owned(), manifest.to_string()] {
        fleet.origin.cut_manifests.store(1, Ordering::Relaxed);
        let pulled = try_pull_reference(&peer, &reference).await;
        assert_eq!(pulled.unwrap(), image(), "{reference}");
    }
    let other = fleet.peer("vm-2").await;
    fleet.origin.cut_manifests.store(1, Ordering::Relaxed);
    let pulled = try_pull_reference(&other, &manifest.to_string()).await;
    assert_eq!(pulled.unwrap(), image(), "by digest first");
    fleet.origin.cut_manifests.store(9, Ordering::Relaxed);
    let third = fleet.peer("vm-3").await;
    let answer = get(&third, "/v2/app/manifests/v1").await;
    assert_eq!(answer.status(), 503);
    let cut = 9 - fleet.origin.cut_manifests.load(Ordering::Relaxed);
    assert_eq!(cut, 2, "asked twice");
}
