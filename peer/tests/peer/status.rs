//! Status and metrics of a peer: running and finished pulls, reasons for waiting, sources.
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use flotilla_common::swarm::StallReason;
use flotilla_common::tracker::TrackerUrl;
use flotilla_common::units::BitRate;
use flotilla_peer::status::{BlobStatus, Near, PullResult, Status};
use flotilla_peer::{Config, Peer, Warming};
use flotilla_runtime::shutdown::Shutdown;
use serde::de::DeserializeOwned;

use crate::harness::tracker::FakeTracker;
use crate::harness::{Fleet, client, get, metrics, pull, random_bytes, try_pull};

const MIB: usize = 1 << 20;

fn image() -> Vec<Bytes> {
    vec![
        random_bytes(700, 1),
        random_bytes(3 * MIB, 2),
        random_bytes(5 * MIB + 5, 3),
    ]
}

fn bytes_of(image: &[Bytes]) -> u64 {
    image.iter().map(|bytes| bytes.len() as u64).sum()
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> T {
    serde_json::from_slice(bytes).unwrap()
}

/// Polls the status until a condition is true, and returns it.
async fn wait_for_status(
    peer: &Peer,
    condition: &str,
    is_true: impl Fn(&Status) -> bool,
) -> Status {
    for _ in 0..3000 {
        let status: Status = json(&get(peer, "/flotilla/status").await.bytes().await.unwrap());
        if is_true(&status) {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("timed out: {condition}");
}

#[tokio::test(flavor = "multi_thread")]
async fn status_shows_running_and_finished_pulls() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let first = fleet.peer("vm-1").await;
    pull(&first).await;
    let second = fleet
        .start(Config {
            down: Some(BitRate(40_000_000)),
            ..fleet.config("vm-2")
        })
        .await;
    let (pulled, status) = tokio::join!(
        pull(&second),
        wait_for_status(&second, "a chunk comes from vm-1", |status| {
            let from_first = |from: &str| from == "vm-1";
            let mut transfers = status.wanted.iter().flat_map(|blob| &blob.transfers);
            status.pulls.iter().any(|pull| pull.held > 0)
                && transfers.any(|transfer| from_first(&transfer.from) && transfer.received > 0)
        })
    );
    assert_eq!(pulled, image);
    assert_eq!(status.pulls[0].image, "app:v1");
    assert_eq!(status.pulls[0].bytes, bytes_of(&image));
    assert_eq!(status.connected[0].id, *first.id());
    assert_eq!(status.connected[0].nearness, Near::SameZone);
    let (tracker, origin) = (&status.trackers[0], &status.origins[0]);
    assert_eq!(
        (tracker.is_answering, origin.is_answering),
        (Some(true), Some(true)),
        "{status:?}"
    );

    let status = wait_for_status(&second, "the pull is over", |status| {
        !status.finished.is_empty()
    })
    .await;
    let report = &status.finished[0];
    assert!(status.pulls.is_empty());
    assert_eq!(
        (report.result, report.image.as_str()),
        (PullResult::Pulled, "app:v1")
    );
    assert_eq!(report.emitted, bytes_of(&image));
    assert_eq!(report.sources.received(), bytes_of(&image));
    assert!(
        report.sources.same_zone > bytes_of(&image) * 9 / 10,
        "{report:?}"
    );
    let over_bound = report.over_bound.unwrap();
    assert!((0.7..5.0).contains(&over_bound), "{report:?}");
    assert_eq!(status.store.bytes, bytes_of(&image));
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_blob_has_a_reason() {
    let fleet = Fleet::without_tracker().await;
    let image = image();
    fleet.origin.push(&image);
    fleet
        .origin
        .are_blobs_unavailable
        .store(true, Ordering::Relaxed);
    let peer = fleet.peer("vm-1").await;
    let is_waiting = |status: &Status| {
        let waits_for_origin = |blob: &BlobStatus| blob.waits_for == Some(StallReason::Origin);
        status.wanted.iter().any(waits_for_origin)
            && status.stalled.contains_key(&StallReason::Origin)
    };
    let status = tokio::select! {
        pulled = try_pull(&peer) => panic!("the origin is down: {pulled:?}"),
        status = wait_for_status(&peer, "a blob waits for an origin", is_waiting) => status,
    };
    assert!(
        status
            .wanted
            .iter()
            .any(|blob| blob.waited.contains_key(&StallReason::Origin)),
        "{status:?}"
    );
    let origin = &status.origins[0];
    assert!(
        origin.is_answering == Some(false) && origin.trouble.is_some(),
        "{status:?}"
    );
}

/// The lines of the metric `origin_up`.
async fn origin_up(peer: &Peer) -> Vec<String> {
    let text = metrics(peer).await;
    text.lines()
        .filter(|line| line.starts_with("flotilla_peer_origin_up{"))
        .map(str::to_owned)
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn origin_is_probed_only_while_it_does_not_answer() {
    let fleet = Fleet::new().await;
    fleet.origin.push(&image());
    let peer = fleet.peer("vm-1").await;
    let probes = || {
        fleet
            .origin
            .requests
            .lock()
            .unwrap()
            .iter()
            .filter(|request| request.contains("/readyz"))
            .count()
    };
    let line = |up| {
        vec![format!(
            "flotilla_peer_origin_up{{url=\"{}\"}} {up}",
            fleet.origin.url()
        )]
    };

    let status = wait_for_status(&peer, "the tracker answers", |status| {
        status.trackers[0].is_answering == Some(true)
    })
    .await;
    assert_eq!(status.origins[0].is_answering, None, "{status:?}");
    assert_eq!(
        origin_up(&peer).await,
        [""; 0],
        "an unknown state must not raise an alert"
    );
    pull(&peer).await;
    assert_eq!(origin_up(&peer).await, line(1));
    assert_eq!(probes(), 0, "an origin that answers is not probed");

    fleet.origin.is_unavailable.store(true, Ordering::Relaxed);
    get(&peer, "/v2/app/manifests/other").await;
    assert_eq!(origin_up(&peer).await, line(0));
    let status = wait_for_status(&peer, "a probe fails", |status| {
        probes() > 0 && status.origins[0].is_answering == Some(false)
    });
    assert!(
        status.await.origins[0]
            .trouble
            .as_ref()
            .is_some_and(|trouble| trouble.contains("503"))
    );
    fleet.origin.is_unavailable.store(false, Ordering::Relaxed);
    // Without a pull, only probes find out. A 404 from the test origin counts as an answer.
    wait_for_status(&peer, "a probe succeeds", |status| {
        status.origins[0].is_answering == Some(true)
    })
    .await;
    assert_eq!(origin_up(&peer).await, line(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn image_is_warmed_without_a_reader() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    let url = format!(
        "http://{}/flotilla/warm/app/manifests/v1",
        peer.mirror_addr()
    );
    let answer = client().post(url).send().await.unwrap();
    let warming: Warming = json(&answer.bytes().await.unwrap());
    let status = wait_for_status(&peer, "the image is stored", |status| {
        !status.finished.is_empty()
    })
    .await;
    let report = &status.finished[0];
    assert_eq!(warming.manifests, [report.manifest]);
    assert!(report.is_warming && report.emitted == 0, "{report:?}");
    assert!(peer.stats().blobs.iter().all(|blob| blob.is_complete));
    let sent = fleet.origin.bytes_sent();
    assert_eq!(pull(&peer).await, image);
    assert_eq!(fleet.origin.bytes_sent(), sent, "no blob is fetched again");

    let url = format!("http://{}/flotilla/warm/app/nonsense", peer.mirror_addr());
    let answer = client().post(url).send().await.unwrap();
    let message = answer.text().await.unwrap();
    assert!(message.contains("REPOSITORY/manifests/TAG"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_have_units_and_labels() {
    let fleet = Fleet::new().await;
    let image = image();
    fleet.origin.push(&image);
    let peer = fleet.peer("vm-1").await;
    pull(&peer).await;
    wait_for_status(&peer, "the pull is over", |status| {
        !status.finished.is_empty()
    })
    .await;
    let text = metrics(&peer).await;
    for line in [
        format!(
            "flotilla_peer_pulled_bytes_total{{source=\"origin_leased\"}} {}",
            bytes_of(&image)
        ),
        format!(
            "flotilla_peer_sent_bytes_total{{to=\"runtime\"}} {}",
            bytes_of(&image)
        ),
        "flotilla_peer_pulls_total{result=\"pulled\"} 1".to_owned(),
        "flotilla_peer_pull_seconds_count 1".to_owned(),
        "flotilla_peer_http_requests_total{route=\"blob\",code=\"200\"} 3".to_owned(),
        format!(
            "flotilla_peer_origin_up{{url=\"{}\"}} 1",
            fleet.origin.url()
        ),
        format!("flotilla_peer_store_bytes {}", bytes_of(&image)),
    ] {
        assert!(
            text.lines().any(|exported| exported == line),
            "{line} is missing in\n{text}"
        );
    }
    assert!(
        text.contains("flotilla_peer_wait_seconds_total{reason=\"lease\"} "),
        "{text}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn trackers_of_another_region_are_used_while_the_own_one_is_lost() {
    let fleet = Fleet::new().await;
    let own_shutdown = Shutdown::new();
    let own = FakeTracker::start(&own_shutdown).await;
    let other = fleet.tracker.as_ref().unwrap();
    let mut config = fleet.config("vm-1");
    config.trackers = vec![
        TrackerUrl {
            region: Some("us".parse().unwrap()),
            url: other.url(),
        },
        TrackerUrl::in_own_region(own.url()),
    ];
    let peer = fleet.start(config).await;
    let status = wait_for_status(&peer, "the own tracker answers", |status| {
        status.trackers[1].is_answering == Some(true)
    })
    .await;
    let other = &status.trackers[0];
    assert_eq!(other.region.as_ref().unwrap().as_str(), "us");
    assert!(!other.is_used && other.is_answering.is_none() && other.announces == 0);

    own_shutdown.trigger();
    let status = wait_for_status(&peer, "the other tracker answers", |status| {
        status.trackers[0].is_answering == Some(true)
    })
    .await;
    assert_eq!(status.trackers[1].is_answering, Some(false), "{status:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn operators_have_a_port_of_their_own() {
    let fleet = Fleet::new().await;
    let peer = fleet.peer("vm-1").await;
    let operator = async |path: &str| {
        let url = format!("http://{}{path}", peer.admin_addr());
        let answer = client().get(url).send().await.unwrap();
        (answer.status().as_u16(), answer.text().await.unwrap())
    };
    assert_eq!(operator("/healthz").await, (200, "ok\n".to_owned()));
    assert_eq!(operator("/readyz").await, (200, "ready\n".to_owned()));
    let (code, text) = operator("/admin/status").await;
    assert_eq!(code, 200);
    let status: Status = serde_json::from_str(&text).unwrap();
    assert_eq!(status.id.as_str(), "vm-1");
    assert_eq!(operator("/v2/").await.0, 404);
    assert_eq!(get(&peer, "/flotilla/metrics").await.status(), 404);
    assert_eq!(get(&peer, "/metrics").await.status(), 404);
}
