//! From one region to two and back to one, as `docs/regions.md` leads through it, while clients
//! pull and push. No request of theirs fails.

use core::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_origin::check::regions::{RegionsReport, check_regions};
use flotilla_origin::storage::{self, Storage};
use flotilla_origin::{Origin, policy};
use flotilla_runtime::clock::Clock;
use reqwest::StatusCode;

use super::network::{NAMES, Network};
use super::until;
use crate::support::{Registry, config, sample};

/// After a push was acknowledged, another region may take this long to have heard of it.
const HEARD_WITHIN: Duration = Duration::from_millis(1_500);
/// How long clients work in each step.
const STEP: Duration = Duration::from_millis(500);
const PAUSE: Duration = Duration::from_millis(20);

/// A tag that was acknowledged.
#[derive(Clone)]
struct Pushed {
    tag: String,
    manifest: Bytes,
    layer: Digest,
    at: Instant,
}

/// Everything that clients of any region pushed.
#[derive(Clone, Default)]
struct Pushes(Arc<Mutex<Vec<Pushed>>>);

impl Pushes {
    fn all(&self) -> Vec<Pushed> {
        self.0.lock().unwrap().clone()
    }

    /// Pushes an image with a layer of its own.
    async fn push(&self, client: &Registry, tag: String, salt: usize) {
        let layer = sample(10_000, salt);
        let manifest = client
            .push_image("app", &tag, core::slice::from_ref(&layer))
            .await;
        self.0.lock().unwrap().push(Pushed {
            tag,
            manifest,
            layer: Digest::sha256(&layer),
            at: Instant::now(),
        });
    }
}

async fn assert_pulled(client: &Registry, pushed: &Pushed) {
    let Pushed {
        tag,
        manifest,
        layer,
        ..
    } = pushed;
    let answer = client.get(&format!("/v2/app/manifests/{tag}")).await;
    assert_eq!(answer.status(), StatusCode::OK, "{tag}");
    assert_eq!(answer.bytes().await.unwrap(), manifest, "{tag}");
    let answer = client.get(&format!("/v2/app/blobs/{layer}")).await;
    assert_eq!(answer.status(), StatusCode::OK, "layer of {tag}");
    assert_eq!(Digest::sha256(&answer.bytes().await.unwrap()), *layer);
}

/// The clients of a region. They end when they are told to, and fail with the first request that
/// fails.
struct Clients {
    is_over: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Clients {
    /// Starts one client that pushes and one that pulls what was pushed anywhere.
    fn start(region: usize, client: &Registry, pushes: &Pushes) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let (pusher, puller) = (client.clone(), client.clone());
        let (to_push, to_pull) = (pushes.clone(), pushes.clone());
        let (over_for_pusher, over_for_puller) = (Arc::clone(&is_over), Arc::clone(&is_over));
        let push = async move {
            let mut number = 0;
            while !over_for_pusher.load(Ordering::Relaxed) {
                let tag = format!("{}-{number}", NAMES[region]);
                to_push
                    .push(&pusher, tag, 1_000 * (region + 1) + number)
                    .await;
                number += 1;
                tokio::time::sleep(PAUSE).await;
            }
        };
        let pull = async move {
            let mut number = 0;
            while !over_for_puller.load(Ordering::Relaxed) {
                let mut all = to_pull.all();
                all.retain(|pushed| pushed.at.elapsed() > HEARD_WITHIN);
                if !all.is_empty() {
                    assert_pulled(&puller, &all[number * 7 % all.len()]).await;
                    number += 1;
                }
                tokio::time::sleep(PAUSE).await;
            }
            assert!(number > 0, "nothing was pulled");
        };
        Self {
            is_over,
            tasks: vec![tokio::spawn(push), tokio::spawn(pull)],
        }
    }

    /// Lets the clients work for a while. None of their requests has failed until then.
    async fn work(&self, time: Duration) {
        tokio::time::sleep(time).await;
        let running = self.tasks.iter().all(|task| !task.is_finished());
        assert!(running, "a request failed");
    }

    async fn end(self) {
        self.is_over.store(true, Ordering::Relaxed);
        for task in self.tasks {
            task.await.unwrap();
        }
    }
}

async fn start_origin(network: &Network, region: usize, storage: &Arc<dyn Storage>) -> Origin {
    let mut config = config();
    Network::configure(region, &mut config);
    config.tls = Some(network.identity_of(NAMES[region]));
    config.regions.settle = Duration::from_secs(3);
    let origin = Origin::start_on(config, Arc::clone(storage)).await.unwrap();
    network.set_targets(region, &[origin.addr()]);
    origin
}

/// Sets a policy, which the origin takes up at once instead of within a minute.
async fn set_policy(origin: &Origin, storage: &Arc<dyn Storage>, text: &str) {
    let before = policy::read(&**storage).await.unwrap();
    let set = policy::set(&**storage, text, before.as_ref());
    set.await.unwrap();
    origin.policy().read_now().await.unwrap();
}

async fn report(network: &Network, region: usize, storage: &Arc<dyn Storage>) -> RegionsReport {
    let identity = network.identity_of(NAMES[region]);
    let report = check_regions(Arc::clone(storage), &identity, Clock::system(), true).await;
    report.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn region_joins_and_leaves_while_clients_work() {
    let network = Network::start(2).await;
    let storages = [0, 1].map(|_| storage::open("memory:///", 64 << 20).unwrap());
    let client_of = |origin: &Origin| Registry::over_tls(origin.addr(), network.anonymous_tls());
    let pushes = Pushes::default();

    // One region without a policy, with images and clients.
    let eu = start_origin(&network, 0, &storages[0]).await;
    for number in 0..20 {
        let tag = format!("old-{number}");
        pushes.push(&client_of(&eu), tag, number).await;
    }
    let eu_clients = Clients::start(0, &client_of(&eu), &pushes);
    eu_clients.work(STEP).await;

    // The new region starts alone; then both get the policy.
    let us = start_origin(&network, 1, &storages[1]).await;
    let both = network.policy(0, "");
    tokio::join!(
        set_policy(&us, &storages[1], &both),
        set_policy(&eu, &storages[0], &both)
    );
    let us_client = client_of(&us);
    until("us-1 reaches eu-1", async || {
        let list = us_client.get("/flotilla/v1/regions").await;
        let list: serde_json::Value = serde_json::from_str(&list.text().await.unwrap()).unwrap();
        list["regions"][0]["standing"] == "usable"
    })
    .await;

    // Nothing is copied yet: it is fetched when it is asked for.
    let us_clients = Clients::start(1, &us_client, &pushes);
    us_clients.work(STEP).await;

    // The backfill brings what no client has asked for yet.
    until("all images are in us-1", async || {
        let mut is_missing = false;
        for pushed in pushes.all() {
            let key = format!("tag/app/_/{}", pushed.tag).parse().unwrap();
            let is_old = pushed.at.elapsed() > Duration::from_secs(5);
            is_missing |= is_old && storages[1].read(&key).await.unwrap().is_none();
        }
        eu_clients.work(STEP).await;
        us_clients.work(STEP).await;
        !is_missing
    })
    .await;

    // Back to one region: its clients and pushes end first.
    us_clients.end().await;
    until("nothing is owed to eu-1", async || {
        let report = report(&network, 0, &storages[0]).await;
        assert_eq!(report.damage.count, 0, "{report:?}");
        assert!(report.is_complete(), "{report:?}");
        let owed = report.regions[0].owes.unwrap();
        let mut lines = report.pending.shown.iter();
        owed.entries == 0 && lines.all(|finding| !finding.problem.contains("in region eu-1"))
    })
    .await;

    let one = network.policy(0, "");
    let one = one.split("[[region]]").find(|text| text.contains("eu-1"));
    let one = format!("[[region]]{}", one.unwrap());
    set_policy(&eu, &storages[0], &one).await;
    eu_clients.work(STEP).await;
    drop(us);
    eu_clients.work(4 * STEP).await;
    eu_clients.end().await;

    let client = client_of(&eu);
    let all = pushes.all();
    assert!(all.iter().any(|pushed| pushed.tag.starts_with("us-1-")));
    for pushed in &all {
        assert_pulled(&client, pushed).await;
    }
}
