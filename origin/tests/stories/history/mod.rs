//! Many clients, several replicas that are killed and paused, and a checker of what the clients
//! saw.
//!
//! The promise (`docs/origin.md`, "Replicas"): a read that begins after an acknowledged change
//! returns it or a later one, through any listed replica. The order of changes to a tag is the
//! storage's own, written down as it applies them; blobs, whose chunks come through replica after
//! replica, and referrers, which are deleted and come again, have one writer each, whose order it
//! is. In the end a deep check of the storage finds no damage.

mod checker;
mod clients;
mod fleet;
mod recording_storage;

use core::time::Duration;

use clients::run;
use fleet::Fleet;

/// Short, so that a story sees many of them pass.
const TIME_TO_LIVE: Duration = Duration::from_millis(300);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_is_older_than_what_was_acknowledged_before_it() {
    for rng_seed in [1, 3, 5] {
        let mut fleet = Fleet::start(3, TIME_TO_LIVE, fleet::Listing::Everybody).await;
        let history = run(&mut fleet, Duration::from_secs(2), rng_seed).await;
        history.assert_busy();
        assert_eq!(
            history.violations(Duration::ZERO),
            Vec::<String>::new(),
            "{rng_seed}"
        );
        fleet.is_sound().await;
    }
}

/// The checker has teeth: without invalidations it finds stale reads. And what is promised without
/// them holds: nothing is stale for longer than a time-to-live.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_invalidations_reads_are_stale_but_for_a_time_to_live_at_most() {
    let mut fleet = Fleet::start(3, TIME_TO_LIVE, fleet::Listing::Nobody).await;
    let history = run(&mut fleet, Duration::from_secs(3), 2).await;
    history.assert_busy();
    let stale = history.violations(Duration::ZERO);
    for (what, saying) in [
        ("tag", "saw change"),
        ("blob or manifest after its delete", "saw true after"),
    ] {
        assert!(
            stale.iter().any(|stale| stale.contains(saying)),
            "no stale {what} was seen: {stale:?}"
        );
    }
    assert_eq!(history.violations(TIME_TO_LIVE), Vec::<String>::new());
}
