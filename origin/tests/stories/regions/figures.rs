//! Figures: the lag under a load, the rate of a backfill, and what a region's own pulls lose beside
//! another region's fleet. Benchmarks, run by
//! hand: `cargo test --release -p flotilla-origin --test stories regions::figures -- --ignored
//! --nocapture --test-threads 1`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_common::digest::Digest;
use flotilla_origin::storage::{self, Prefix, Storage};
use flotilla_runtime::rate::Limiter;
use futures_util::future::join_all;
use reqwest::StatusCode;
use tokio::sync::watch;

use super::harness::Regions;
use super::until;
use crate::faulty_storage::Outage;
use crate::servers::GateState;
use crate::support::{MANIFEST, Registry, manifest, sample};

const PUSHES_PER_SECOND: usize = 10;
const SECONDS: usize = 30;
const ENTRIES: usize = 3_000;

fn directories(dirs: &[tempfile::TempDir]) -> Vec<Arc<dyn Storage>> {
    dirs.iter()
        .map(|dir| storage::open(&format!("file://{}", dir.path().display()), 64 << 20).unwrap())
        .collect()
}

async fn stored(storage: &Arc<dyn Storage>, key: &str) -> bool {
    let key = key.parse().unwrap();
    storage.read(&key).await.unwrap().is_some()
}

async fn count(storage: &Arc<dyn Storage>, prefix: &str) -> usize {
    let prefix = Prefix::new(prefix).unwrap();
    let page = storage.list(&prefix, None, 100_000).await.unwrap();
    page.entries.len()
}

/// From the acknowledgement of a push in one region until its tag is in the other's own storage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark of half a minute"]
async fn lag_of_small_images() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let regions = Regions::start_on(directories(&dirs), 1, "", |_, _| {}).await;
    let regions = Arc::new(regions);
    let mut pushes = Vec::new();
    let started = Instant::now();
    for number in 0..PUSHES_PER_SECOND * SECONDS {
        let due = started + Duration::from_secs(1) * number as u32 / PUSHES_PER_SECOND as u32;
        tokio::time::sleep_until(due.into()).await;
        let regions = Arc::clone(&regions);
        pushes.push(tokio::spawn(async move {
            let tag = format!("v{number}");
            let layer = sample(64 << 10, number);
            regions.client(0).push_image("app", &tag, &[layer]).await;
            let acknowledged = Instant::now();
            while !regions.stores_tag(1, &tag).await {
                tokio::time::sleep(Duration::from_millis(10)).await;
                assert!(acknowledged.elapsed() < Duration::from_secs(60), "{tag}");
            }
            acknowledged.elapsed()
        }));
    }
    let mut lags: Vec<f64> = join_all(pushes)
        .await
        .into_iter()
        .map(|lag| lag.unwrap().as_secs_f64())
        .collect();
    lags.sort_by(f64::total_cmp);
    let at = |share: f64| lags[((lags.len() - 1) as f64 * share) as usize];
    eprintln!(
        "lag of {} pushes, directories: p50 {:.2} s, p99 {:.2} s, max {:.2} s",
        lags.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    assert!(at(0.99) <= 5.0);
}

/// Entries whose blobs are there already, after an absence.
async fn backfill(storages: Vec<Arc<dyn Storage>>, name: &str) -> f64 {
    let regions = Regions::start_on(storages, 1, "", |_, _| {}).await;
    let client = regions.client(0);
    let (config, layer) = (sample(40, 1), sample(70_000, 2));
    for blob in [&config, &layer] {
        client.push_blob("app", blob.clone()).await;
    }
    let body = manifest(&config, &[layer]);
    let first = client
        .put_manifest("/v2/app/manifests/first", MANIFEST, body.clone())
        .await;
    assert_eq!(first.status(), StatusCode::CREATED);
    until("the first image", async || {
        let key = format!("rm/app/_/{}", Digest::sha256(&body));
        stored(&regions.sites[1].storage, &key).await
    })
    .await;
    for (from, to) in [(0, 1), (1, 0)] {
        regions.gate(from, to).set(GateState::Closed);
    }
    for batch in 0..ENTRIES / 50 {
        let pushes = (0..50).map(|number| {
            let path = format!("/v2/app/manifests/v{}", batch * 50 + number);
            let (client, body) = (client.clone(), body.clone());
            async move { client.put_manifest(&path, MANIFEST, body).await.status() }
        });
        for status in join_all(pushes).await {
            assert!(
                status == StatusCode::CREATED || status == StatusCode::SERVICE_UNAVAILABLE,
                "{status}"
            );
        }
    }
    let owed = count(&regions.sites[0].storage, "journal/us-1/").await;
    let had = count(&regions.sites[1].storage, "tag/app/_/").await;
    for (from, to) in [(0, 1), (1, 0)] {
        regions.gate(from, to).set(GateState::Open);
    }
    let mut began = None;
    let tags = count(&regions.sites[0].storage, "tag/app/_/").await;
    loop {
        let here = count(&regions.sites[1].storage, "tag/app/_/").await;
        if here > had && began.is_none() {
            began = Some(Instant::now());
        }
        if here >= tags {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let rate = (tags - had) as f64 / began.unwrap().elapsed().as_secs_f64();
    eprintln!("backfill, {name}: {rate:.0} tags/s of {owed} entries");
    rate
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark"]
async fn backfill_rate() {
    let memory = (0..2).map(|_| storage::open("memory:///", 64 << 20).unwrap());
    let rate = backfill(memory.collect(), "memory").await;
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    backfill(directories(&dirs), "directories").await;
    assert!(rate >= 300.0, "{rate:.0} a second");
}

/// The rate of the surviving region's link.
const LINK: &str = "200Mbit";
const OWN_LAYER: usize = 1 << 20;
const FLEET_LAYER: usize = 4 << 20;
const OWN_PULLS_PER_SECOND: u32 = 5;
const FLEET_CLIENTS: usize = 24;
const ROUND: Duration = Duration::from_secs(8);
const ROUNDS: usize = 6;

/// Pulls of a region's own clients, alone and while it serves another region's fleet too, in
/// alternating rounds. The fleet asks for all that it can get.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a benchmark of two minutes"]
async fn own_pulls_beside_another_regions_fleet() {
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let regions = Regions::start_on(directories(&dirs), 1, "", |region, config| {
        if region == 1 {
            config.uplink = Limiter::new(LINK.parse().unwrap());
        }
    })
    .await;
    let layers = [sample(OWN_LAYER, 1), sample(FLEET_LAYER, 2)];
    regions.client(0).push_image("app", "v1", &layers).await;
    until("the copy", async || regions.stores_tag(1, "v1").await).await;
    let [own_path, fleet_path] =
        layers.map(|layer| format!("/v2/app/blobs/{}", Digest::sha256(&layer)));
    regions.faults(0).set_outage(Some(Outage::Refuses));
    until("the other region serves", async || {
        let answer = regions.client(0).get(&fleet_path).await;
        answer.status() == StatusCode::OK
    })
    .await;

    let regions = Arc::new(regions);
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    let mut fleet_bytes = 0;
    for _ in 0..ROUNDS {
        alone.extend(own_pulls(&regions, &own_path).await);
        let (stop, stopped) = watch::channel(false);
        let clients: Vec<_> = (0..FLEET_CLIENTS)
            .map(|_| {
                let client = regions.client(0);
                tokio::spawn(pull_until(client, fleet_path.clone(), stopped.clone()))
            })
            .collect();
        // The fleet has filled the link when the own pulls begin.
        tokio::time::sleep(Duration::from_secs(1)).await;
        beside.extend(own_pulls(&regions, &own_path).await);
        stop.send_replace(true);
        for bytes in join_all(clients).await {
            fleet_bytes += bytes.unwrap();
        }
    }
    let (alone, beside) = (quantile(&mut alone, 0.99), quantile(&mut beside, 0.99));
    let rate = fleet_bytes as f64 * 8e-6 / (ROUND.as_secs_f64() + 1.0) / ROUNDS as f64;
    eprintln!(
        "own pulls of 1 MiB over {LINK}, p99: {:.1} ms alone, {:.1} ms beside a fleet that gets {rate:.0} Mbit/s",
        alone * 1e3,
        beside * 1e3
    );
    assert!(
        beside <= alone * 1.1,
        "{:.1} %",
        (beside / alone - 1.0) * 100.0
    );
}

/// Seconds of each pull of a round.
async fn own_pulls(regions: &Arc<Regions>, path: &str) -> Vec<f64> {
    let client = regions.client(1);
    let started = Instant::now();
    let mut pulls = Vec::new();
    for number in 0..ROUND.as_secs() as u32 * OWN_PULLS_PER_SECOND {
        let due = started + Duration::from_secs(1) * number / OWN_PULLS_PER_SECOND;
        tokio::time::sleep_until(due.into()).await;
        let (client, path) = (client.clone(), path.to_owned());
        pulls.push(tokio::spawn(async move {
            let started = Instant::now();
            let answer = client.get(&path).await;
            assert_eq!(answer.status(), StatusCode::OK);
            assert_eq!(answer.bytes().await.unwrap().len(), OWN_LAYER);
            started.elapsed().as_secs_f64()
        }));
    }
    let pulls = join_all(pulls).await.into_iter();
    pulls.map(Result::unwrap).collect()
}

/// Pulls a blob again and again; returns the bytes.
async fn pull_until(client: Registry, path: String, stopped: watch::Receiver<bool>) -> u64 {
    let mut bytes = 0;
    while !*stopped.borrow() {
        let mut answer = client.get(&path).await;
        while let Ok(Some(piece)) = answer.chunk().await {
            bytes += piece.len() as u64;
            if *stopped.borrow() {
                break;
            }
        }
    }
    bytes
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    values[((values.len() - 1) as f64 * share) as usize]
}
