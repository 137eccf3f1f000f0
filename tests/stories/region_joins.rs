//! From one region to two and back to one with real processes, step by step as `docs/regions.md`
//! says, while clients pull and push. No request of theirs fails.
//!
//! `origin/tests/stories/regions/joining.rs` has the same story without the waiting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use flotilla::client::RegistryClient;
use flotilla::image::Layout;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use tokio::task::JoinHandle;

use crate::harness::two_regions::{REGIONS, TwoRegions};

const SIZE: ByteSize = ByteSize(256 << 10);
/// Images that are pushed under many tags.
const IMAGES: u64 = 16;
/// After a push was acknowledged, another region may take this long to have heard of it.
const HEARD_WITHIN: Duration = Duration::from_millis(1_500);
const PAUSE: Duration = Duration::from_millis(200);
/// Within this time all replicas have taken up a policy.
const POLICY_TIME: Duration = Duration::from_mins(2);

/// Tags that were acknowledged, with their images and when.
type Pushed = Arc<Mutex<Vec<(String, Digest, Instant)>>>;

/// The clients of a region: one that pushes, and one that pulls what was pushed anywhere. They fail
/// with the first request that fails.
struct Clients {
    is_over: Arc<AtomicBool>,
    tasks: [JoinHandle<()>; 2],
}

impl Clients {
    fn start(regions: &TwoRegions, region: usize, layouts: &[String], pushed: &Pushed) -> Self {
        let is_over = Arc::<AtomicBool>::default();
        let client = regions.client(region, "app");
        let push = {
            let (client, pushed) = (client.clone(), Arc::clone(pushed));
            let (layouts, is_over) = (layouts.to_vec(), Arc::clone(&is_over));
            async move {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let tag = format!("{}-{number}", REGIONS[region]);
                    let layout = Layout::open(layouts[number % layouts.len()].as_ref()).unwrap();
                    let digest = client.push(&layout, &tag).await.unwrap();
                    pushed.lock().unwrap().push((tag, digest, Instant::now()));
                    number += 1;
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        let pull = {
            let (pushed, is_over) = (Arc::clone(pushed), Arc::clone(&is_over));
            async move {
                let mut number = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let mut all = pushed.lock().unwrap().clone();
                    all.retain(|(_, _, at)| at.elapsed() > HEARD_WITHIN);
                    if !all.is_empty() {
                        let (tag, digest, _) = &all[number * 7 % all.len()];
                        assert_pulled(&client, tag, *digest).await;
                        number += 1;
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        Self {
            is_over,
            tasks: [tokio::spawn(push), tokio::spawn(pull)],
        }
    }

    /// Asserts that no request has failed.
    fn assert_running(&self) {
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

async fn assert_pulled(client: &RegistryClient, tag: &str, digest: Digest) {
    let pulled = client.pull(tag, |_| {}).await;
    let pulled = pulled.unwrap_or_else(|error| panic!("pull {tag}: {error}"));
    assert_eq!(pulled.digest, digest, "{tag}");
}

/// Waits until a region's check succeeds and has printed enough.
async fn until_checked(
    regions: &TwoRegions,
    region: usize,
    flags: &[&str],
    is_enough: impl Fn(&str) -> bool,
) {
    let deadline = Instant::now() + 2 * POLICY_TIME;
    loop {
        let checked = regions.check_as(region, flags);
        match checked {
            Ok(printed) if is_enough(&printed) => return,
            checked => assert!(Instant::now() < deadline, "{checked:?}"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes ten minutes: replicas read a policy each minute, and a backfill begins after five"]
async fn region_joins_and_leaves_without_downtime() {
    let regions = TwoRegions::single_on_directories();
    let layouts = (1..=IMAGES).map(|number| regions.generate(SIZE, number));
    let layouts: Vec<_> = layouts.collect();
    let pushed = Pushed::default();

    // One region with images and clients. No client asks for the last image.
    let _eu = regions.start_origin(0, &[]);
    regions
        .push("other", "v1", &regions.generate(SIZE, 0))
        .await;
    let eu_clients = Clients::start(&regions, 0, &layouts, &pushed);

    // Steps 3 to 6.
    let us = regions.start_origin(1, &[]);
    let policy = regions.path("policy.toml");
    std::fs::write(&policy, regions.policy("")).unwrap();
    regions.must(&["origin", "policy", "check", &policy]);
    regions.set_policy(1, &policy);
    regions.set_policy(0, &policy);
    for region in [0, 1] {
        until_checked(&regions, region, &[], |_| true).await;
    }
    let us_flags = ["--region", "us-1", "--timeout", "10m"];
    regions.wait("other:v1", &us_flags).unwrap();
    let us_clients = Clients::start(&regions, 1, &layouts, &pushed);
    tokio::time::sleep(Duration::from_secs(10)).await;
    eu_clients.assert_running();
    us_clients.assert_running();

    // Back to one region: steps 1 to 4.
    us_clients.end().await;
    until_checked(&regions, 0, &["--deep"], |printed| {
        let is_owed = |line: &str| line.contains("in region eu-1");
        printed.contains("us-1 to eu-1: nothing owed") && !printed.lines().any(is_owed)
    })
    .await;
    std::fs::write(&policy, regions.policy_entry(0)).unwrap();
    regions.set_policy(0, &policy);
    tokio::time::sleep(POLICY_TIME).await;
    eu_clients.assert_running();
    drop(us);
    tokio::time::sleep(Duration::from_secs(10)).await;
    eu_clients.assert_running();
    eu_clients.end().await;
    let client = regions.client(0, "app");
    let all = pushed.lock().unwrap().clone();
    eprintln!("{} pushes", all.len());
    for (tag, digest, _) in all {
        assert_pulled(&client, &tag, digest).await;
    }
}
