//! Changes while a listed replica is dead, restarts or does not answer: they wait no longer than
//! that replica could serve old values, and no replica serves one afterwards.

use core::time::Duration;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use flotilla_common::digest::Digest;
use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Config, Origin, Replicas};
use reqwest::StatusCode;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::faulty_storage::{Faults, FaultyStorage};
use crate::support::{Registry, config, sample};

/// Nothing expires during a test.
const TIME_TO_LIVE: Duration = Duration::from_secs(600);
/// A change that waits for nothing takes less.
const PROMPT: Duration = Duration::from_secs(1);
const TAG: &str = "/v2/app/manifests/v1";

async fn free_address() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// The configuration of a replica that listens for others at `own`.
fn listening(own: SocketAddr, listed: &watch::Receiver<Arc<[SocketAddr]>>) -> Config {
    let mut config = config();
    config.limits.tag_time_to_live = TIME_TO_LIVE;
    config.limits.repository_time_to_live = TIME_TO_LIVE;
    config.replicas = Replicas::followed(listed.clone());
    config.replica_listen = Some(own);
    config
}

/// Starts a replica. The address of one that was killed is free a moment later.
async fn start(
    own: SocketAddr,
    listed: &watch::Receiver<Arc<[SocketAddr]>>,
    storage: &Arc<dyn Storage>,
) -> Origin {
    let begun = async {
        loop {
            let started = Origin::start_on(listening(own, listed), Arc::clone(storage)).await;
            match started {
                Ok(origin) => return origin,
                Err(flotilla_origin::StartError::Listen { .. }) => {
                    sleep(Duration::from_millis(5)).await;
                }
                Err(error) => panic!("{error}"),
            }
        }
    };
    timeout(Duration::from_secs(10), begun).await.unwrap()
}

fn memory() -> Arc<dyn Storage> {
    storage::open("memory:///", 64 << 20).unwrap()
}

/// Moves the tag and returns how long that took, and the manifest.
async fn move_tag(client: &Registry, seed: usize) -> (Duration, bytes::Bytes) {
    let layer = sample(10, seed);
    client.push_blob("app", layer.clone()).await;
    client.push_blob("app", "{}").await;
    let manifest = crate::support::manifest(b"{}", &[layer]);
    let began = Instant::now();
    let answer = client
        .put_manifest(TAG, crate::support::MANIFEST, manifest.clone())
        .await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    (began.elapsed(), manifest)
}

async fn tagged(client: &Registry) -> bytes::Bytes {
    client.get(TAG).await.bytes().await.unwrap()
}

#[tokio::test]
async fn dead_replica_delays_no_change() {
    let (first, second) = (free_address().await, free_address().await);
    let (_list, listed) = watch::channel(Arc::from([first, second]));
    let storage = memory();
    let alive = start(first, &listed, &storage).await;
    let dead = start(second, &listed, &storage).await;
    let client = Registry::of(&alive);
    move_tag(&client, 1).await;
    drop(dead);
    // Its listener closes with its last connection.
    while TcpStream::connect(second).await.is_ok() {
        sleep(Duration::from_millis(1)).await;
    }
    let changes = async {
        let (moved, _) = move_tag(&client, 2).await;
        let began = Instant::now();
        let blob = format!("/v2/app/blobs/{}", Digest::sha256(&sample(10, 2)));
        assert_eq!(client.delete(&blob).await, StatusCode::ACCEPTED);
        moved.max(began.elapsed())
    };
    let slowest = timeout(Duration::from_secs(20), changes).await.unwrap();
    assert!(slowest < PROMPT, "{slowest:?}");
    let metrics = client.metrics().await;
    assert!(
        metrics.contains("flotilla_origin_changes_told_total{outcome=\"refused\"}"),
        "{metrics}"
    );
}

#[tokio::test]
async fn restarts_delay_no_change_and_show_none_late() {
    let (first, second) = (free_address().await, free_address().await);
    let (_list, listed) = watch::channel(Arc::from([first, second]));
    let storage = memory();
    let writer = start(first, &listed, &storage).await;
    let client = Registry::at(writer.addr());
    let mut seed = 0;
    let mut slowest = Duration::ZERO;
    for round in 0..4 {
        let restarted = start(second, &listed, &storage).await;
        let reader = Registry::at(restarted.addr());
        for _ in 0..10 {
            seed += 1;
            let moved = timeout(Duration::from_secs(20), move_tag(&client, seed)).await;
            let (took, manifest) = moved.unwrap();
            slowest = slowest.max(took);
            assert_eq!(tagged(&reader).await, manifest, "round {round}, {seed}");
        }
        // Changes go on while it drains.
        let stopping = async {
            if round % 2 == 0 {
                restarted.shutdown().await;
            } else {
                sleep(Duration::from_millis(1)).await;
                drop(restarted);
            }
        };
        let changing = async {
            let mut slowest = Duration::ZERO;
            for next in 0..5 {
                let moved = timeout(Duration::from_secs(20), move_tag(&client, seed + next)).await;
                slowest = slowest.max(moved.unwrap().0);
            }
            slowest
        };
        let ((), took) = tokio::join!(stopping, changing);
        seed += 5;
        slowest = slowest.max(took);
    }
    assert!(slowest < PROMPT, "{slowest:?}");
}

/// A link to an address that can be cut: then connections are accepted, and nothing moves.
struct Link {
    address: SocketAddr,
    cut: watch::Sender<bool>,
}

impl Link {
    async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (cut, is_cut) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut is_cut = is_cut.clone();
                tokio::spawn(async move {
                    is_cut.wait_for(|cut| !cut).await.map(drop).unwrap();
                    let Ok(mut far) = TcpStream::connect(target).await else {
                        return;
                    };
                    let cut_now = async {
                        let _ = is_cut.wait_for(|cut| *cut).await.map(drop);
                    };
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near, &mut far) => return,
                        () = cut_now => {}
                    }
                    // Both connections stay open, and nothing moves.
                    core::future::pending::<()>().await;
                });
            }
        });
        Self { address, cut }
    }
}

#[tokio::test]
async fn silent_replica_delays_changes_only_while_it_may_serve_old_values() {
    const LEASE: Duration = Duration::from_millis(3_200);
    let (first, second) = (free_address().await, free_address().await);
    // The other replica is cut off in both directions, and reaches its clients and storage.
    let (to_first, to_second) = (Link::to(first).await, Link::to(second).await);
    let (_list, listed) = watch::channel(Arc::from([first, to_second.address]));
    let (_far_list, far_listed) = watch::channel(Arc::from([to_first.address, second]));
    let storage = memory();
    let writer = start(first, &listed, &storage).await;
    let cut_off = start(second, &far_listed, &storage).await;
    let (client, reader) = (Registry::at(writer.addr()), Registry::at(cut_off.addr()));
    // Both know each other after a second.
    sleep(Duration::from_millis(1_500)).await;
    let (took, first_manifest) = move_tag(&client, 1).await;
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(tagged(&reader).await, first_manifest);
    for link in [&to_first, &to_second] {
        link.cut.send_replace(true);
    }
    let changed = timeout(Duration::from_secs(60), move_tag(&client, 2)).await;
    let (took, manifest) = changed.unwrap();
    assert!(took < LEASE + PROMPT, "{took:?}");
    assert_eq!(tagged(&reader).await, manifest, "its lease has ended");
    for seed in 3..6 {
        let (took, manifest) = move_tag(&client, seed).await;
        assert!(took < PROMPT, "{took:?}");
        assert_eq!(tagged(&reader).await, manifest);
    }
    for link in [&to_first, &to_second] {
        link.cut.send_replace(false);
    }
    sleep(Duration::from_millis(2_500)).await;
    let (took, manifest) = move_tag(&client, 6).await;
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(tagged(&reader).await, manifest);
    let reads = || cut_off.metrics().operations().metadata_reads();
    let before = reads();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(tagged(&reader).await, manifest);
    assert_eq!(
        reads(),
        before,
        "it keeps values for the time-to-live again"
    );
}

#[tokio::test]
async fn readiness_tells_whether_other_replicas_reach_storage() {
    let (first, second) = (free_address().await, free_address().await);
    let (_list, listed) = watch::channel(Arc::from([first, second]));
    let storage = memory();
    let faulty = || -> (Arc<dyn Storage>, Faults) {
        let storage = FaultyStorage::new(Arc::clone(&storage));
        let faults = storage.faults();
        (Arc::new(storage), faults)
    };
    let ((one_storage, one_faults), (other_storage, other_faults)) = (faulty(), faulty());
    let one = start(first, &listed, &one_storage).await;
    let other = start(second, &listed, &other_storage).await;
    let client = Registry::at(one.addr());
    let readiness_with = async |expected: &str| {
        let mut text = String::new();
        for _ in 0..80 {
            text = client.get("/readyz").await.text().await.unwrap();
            if text.contains(expected) {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("{text}, and not {expected}");
    };
    readiness_with("ready").await;
    one_faults.set_down(true);
    readiness_with("another replica reaches it").await;
    other_faults.set_down(true);
    readiness_with("no other replica reaches it").await;
    drop(other);
    for _ in 0..80 {
        let text = client.get("/readyz").await.text().await.unwrap();
        if !text.contains("replica reaches it") {
            assert!(text.contains("storage is unavailable"), "{text}");
            return;
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("a replica that does not run is counted");
}
