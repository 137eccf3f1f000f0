//! The consistency checker over two regions: clients in both write the same tags, manifests and
//! referrers, while replicas crash and pause and the regions are cut off from each other.
//!
//! The checked guarantees (`docs/regions.md`, "Guarantees"):
//! - In each region a read that begins after a change was acknowledged there returns that change or
//!   a later one. Stamps order the changes, since they decide which of two regions' changes stays.
//! - Afterwards both regions come to the same stamps and values: of each key the highest stamp that
//!   any region's storage has ever had. So nothing that was acknowledged is missing unless a later
//!   change replaced it.
//! - Every manifest is whole in both regions.

mod checker;
mod clients;
mod pair;
mod stored;

use core::time::Duration;

use clients::run;
use pair::RegionPair;

/// Short, so that many of them pass during a test.
const TIME_TO_LIVE: Duration = Duration::from_millis(300);
const REPLICAS: usize = 2;

/// The disturbances of the regions, and how long clients run beside them.
#[derive(Clone, Copy, Debug)]
struct Plan {
    time: Duration,
    rng_seed: u64,
    /// Whether the storage of a region fails now and then, beside crashes, pauses and cuts.
    outages: bool,
}

/// Runs clients and disturbances, and returns all violations.
async fn violations(plan: Plan) -> Vec<String> {
    let mut regions = RegionPair::start(REPLICAS, TIME_TO_LIVE).await;
    let history = run(&mut regions, plan).await;
    history.assert_enough_events();
    let mut violations = history.violations();
    violations.extend(regions.differences_at_last().await);
    violations.extend(regions.damage().await);
    violations
}

async fn assert_no_violations(rng_seed: u64) {
    let plan = Plan {
        time: Duration::from_secs(3),
        rng_seed,
        outages: false,
    };
    let found = violations(plan).await;
    assert!(found.is_empty(), "{plan:?}:\n{}", found.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_keep_all_acknowledged_changes_1() {
    assert_no_violations(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_keep_all_acknowledged_changes_2() {
    assert_no_violations(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regions_keep_all_acknowledged_changes_3() {
    assert_no_violations(3).await;
}

/// Many long runs, also with outages of a storage.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes ten minutes: run it alone after a change of what regions promise"]
async fn regions_keep_all_acknowledged_changes_for_minutes() {
    let mut found = Vec::new();
    for rng_seed in 10..26 {
        let outages = rng_seed % 2 == 1;
        let time = Duration::from_secs(if outages { 40 } else { 10 });
        let plan = Plan {
            time,
            rng_seed,
            outages,
        };
        for violation in violations(plan).await {
            eprintln!("{plan:?}: {violation}");
            found.push(violation);
        }
    }
    assert_eq!(found.len(), 0);
}

/// If a journal entry is lost, the check must find that the regions differ.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_journal_entries_are_found() {
    let regions = RegionPair::start(1, TIME_TO_LIVE).await;
    regions.cut(true);
    let client = regions.fleets[0].replicas.read().unwrap()[0].clone();
    let client = client.expect("it is up");
    client.push_image("app", "one", &[]).await;
    regions.lose_journal(0).await;
    // Hints on their way have failed by then.
    tokio::time::sleep(Duration::from_millis(500)).await;
    regions.cut(false);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let differences = regions.differences().await;
    assert_eq!(
        differences.len(),
        2,
        "a manifest and a tag: {differences:?}"
    );
}
