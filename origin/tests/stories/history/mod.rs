//! A consistency checker: many clients, several replicas that crash and pause, and a check of what
//! the clients saw.
//!
//! The guarantee (`docs/origin.md`, "Replicas"): a read that begins after an acknowledged change
//! returns that change or a later one, through any listed replica. The order of the changes of a
//! tag is recorded by the storage as it applies them. Each blob and each referrer has a single
//! writer, which defines the order of its changes; the chunks of a blob go to different replicas.
//! In the end a deep check of the storage must find no damage.

mod checker;
mod clients;
mod fleet;
mod recording_storage;
mod two_regions;

use core::time::Duration;

use clients::run;
use fleet::Fleet;

/// Short, so that many of them pass during a test.
const TIME_TO_LIVE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reads_see_all_acknowledged_changes() {
    for rng_seed in [1, 3, 5] {
        let mut fleet = Fleet::start(3, TIME_TO_LIVE, fleet::Listing::AllReplicas).await;
        let history = run(&mut fleet, Duration::from_secs(2), rng_seed).await;
        history.assert_enough_events();
        assert_eq!(
            history.violations(Duration::ZERO),
            Vec::<String>::new(),
            "{rng_seed}"
        );
        fleet.assert_sound().await;
    }
}

/// Without invalidations the checker must find stale reads, which shows that it can detect them.
/// What holds without invalidations: no read is stale for longer than a time-to-live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_invalidations_staleness_is_at_most_a_time_to_live() {
    let mut fleet = Fleet::start(3, TIME_TO_LIVE, fleet::Listing::None).await;
    let history = run(&mut fleet, Duration::from_secs(3), 2).await;
    history.assert_enough_events();
    let stale = history.violations(Duration::ZERO);
    for (what, expected) in [
        ("tag", "saw change"),
        ("blob or manifest after its delete", "saw true after"),
    ] {
        assert!(
            stale.iter().any(|stale| stale.contains(expected)),
            "no stale {what} was found: {stale:?}"
        );
    }
    assert_eq!(history.violations(TIME_TO_LIVE), Vec::<String>::new());
}
