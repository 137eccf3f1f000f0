//! One region follows another in memory, with a clock that advances while all wait.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::sync::atomic::Ordering;
use core::time::Duration;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use flotilla_common::storage_id::StorageId;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::shutdown::{Drained, Shutdown};
use tokio::time::{Instant, sleep};

use super::follower::Follower;
use super::members::Members;
use super::routes::no_routes;
use super::source::Source;
use super::sweep::Sweeper;
use super::sweep_state::SweepTimes;
use super::test_regions::{TestRegion, TestSource, image_of, index_of, policy, tag_key};
use crate::policy::LivePolicy;

const HORIZON: Duration = Duration::from_hours(48);
const DAY: Duration = Duration::from_hours(24);

/// `us` follows `eu`.
struct Following {
    eu: TestRegion,
    us: TestRegion,
    /// `eu`, as `us` sees it.
    source: Arc<TestSource>,
    members: Arc<Members>,
    live: LivePolicy,
    shutdown: Shutdown,
}

impl Following {
    async fn start() -> Self {
        let (eu, us) = (
            TestRegion::start("eu-1").await,
            TestRegion::start("us-1").await,
        );
        us.set_policy(&policy(&["eu-1", "us-1"], "")).await;
        let source = eu.source_of(&us);
        let (members, live) = us.members_by(vec![Arc::clone(&source)]).await;
        let following = Self {
            eu,
            us,
            source,
            members,
            live,
            shutdown: Shutdown::new(),
        };
        following.follow();
        following
    }

    /// Starts a follower by the policy as it is now.
    fn follow(&self) {
        let replicator = Arc::new(self.us.replicator());
        let source: Arc<dyn Source> = Arc::clone(&self.members.sources()[0]);
        let sweeper = Sweeper::new(
            Arc::clone(&replicator),
            Arc::clone(&self.members),
            source.region(),
            SweepTimes::default(),
        );
        let routes = Arc::new(ArcSwap::from_pointee(no_routes(Clock::tokio())));
        let members = Arc::clone(&self.members);
        let follower = Follower::new(replicator, members, routes, source, sweeper, HORIZON);
        let lease = self.us.lease("follow-eu-1");
        self.shutdown
            .spawn(follower.run(lease, self.shutdown.clone()));
    }

    /// Pushes an image whose layer never arrives.
    async fn push_hanging(&self, name: &str) {
        let layer = Bytes::copy_from_slice(name.as_bytes());
        let digest = self.eu.push_blob(layer.clone()).await;
        self.source.faults.hanging.lock().unwrap().insert(digest);
        let image = image_of(&digest, layer.len());
        self.eu.push(&image, &[name], &[&self.us]).await;
    }

    async fn push(&self, name: &str) {
        self.eu.push(&index_of(&[]), &[name], &[&self.us]).await;
    }

    /// How long it takes until a tag is here, at most a minute.
    async fn wait_for(&self, name: &str) -> Option<Duration> {
        let started = Instant::now();
        while started.elapsed() < Duration::from_mins(1) {
            if self.us.has_tag(name).await {
                return Some(started.elapsed());
            }
            sleep(Duration::from_millis(100)).await;
        }
        None
    }

    async fn stop(self) {
        self.shutdown.trigger();
        let drained = self.shutdown.drain(Duration::from_secs(1)).await;
        assert_eq!(drained, Drained::Complete);
    }
}

const SOON: Duration = Duration::from_secs(7);

#[tokio::test(start_paused = true)]
async fn slow_entries_hold_up_no_others_and_keep_the_lease() {
    let following = Following::start().await;
    following.push_hanging("slow").await;
    sleep(SOON).await;
    let mut contender = following.us.lease("follow-eu-1");
    for number in 0..10 {
        let name = format!("v{number}");
        following.push(&name).await;
        assert!(following.wait_for(&name).await.unwrap() < SOON, "{name}");
        assert!(!contender.hold().await.unwrap());
        sleep(Duration::from_secs(20)).await;
    }
    assert!(!following.us.has_tag("slow").await);
    following.stop().await;
}

/// Nothing arrives from a region that does not answer, or that says that it uses another storage.
#[tokio::test(start_paused = true)]
async fn lag_of_a_region_that_cannot_be_followed_grows() {
    let following = Following::start().await;
    following.push("v1").await;
    following.wait_for("v1").await.unwrap();
    let faults = &following.source.faults;
    let told = || {
        let counts = following.us.counts.by_region()[following.source.region()];
        let unix_now = following.us.registry.unix_nanos();
        (counts.follows, counts.lag_nanos(unix_now) / 1_000_000_000)
    };
    sleep(SOON).await;
    assert_eq!(told(), (true, 0));

    faults.is_silent.store(true, Ordering::Relaxed);
    sleep(Duration::from_mins(1)).await;
    let (_, lag) = told();
    assert!(lag >= 50, "{lag} s");

    faults.is_silent.store(false, Ordering::Relaxed);
    *faults.storage_id.lock().unwrap() = Some(StorageId::from_bytes([9; 16]));
    sleep(Duration::from_mins(1)).await;
    let (follows, later) = told();
    assert!(!follows && later >= lag + 50, "{follows} {later} s");

    *faults.storage_id.lock().unwrap() = None;
    sleep(SOON).await;
    assert_eq!(told(), (true, 0));
    following.stop().await;
}

/// A client that abandons many pushes leaves entries that are never reached.
#[tokio::test(start_paused = true)]
async fn pages_of_unreached_entries_do_not_hide_later_ones() {
    let following = Following::start().await;
    following.source.faults.page_len.store(3, Ordering::Relaxed);
    for _ in 0..7 {
        following.eu.owe(tag_key("never"), &following.us).await;
    }
    // Until they are old, and looked at seldom.
    sleep(Duration::from_mins(20)).await;
    following.push("young").await;
    assert!(following.wait_for("young").await.unwrap() < SOON);
    following.stop().await;

    // A backlog from before the follower began, behind such entries.
    let following = Following::start().await;
    following.shutdown.trigger();
    for _ in 0..7 {
        following.eu.owe(tag_key("never"), &following.us).await;
    }
    for name in ["old-1", "old-2"] {
        following.push(name).await;
    }
    sleep(Duration::from_mins(20)).await;
    let following = Following {
        shutdown: Shutdown::new(),
        ..following
    };
    following.source.faults.page_len.store(3, Ordering::Relaxed);
    following.follow();
    for name in ["old-1", "old-2"] {
        assert!(following.wait_for(name).await.is_some(), "{name}");
    }
    following.stop().await;
}

#[tokio::test(start_paused = true)]
async fn corrupt_records_do_not_hold_up_the_journal() {
    let following = Following::start().await;
    following.shutdown.trigger();
    for name in ["v1", "v2", "v3"] {
        following.push(name).await;
    }
    following.eu.corrupt(&tag_key("v1")).await;
    following.us.corrupt(&tag_key("v2")).await;
    let following = Following {
        shutdown: Shutdown::new(),
        ..following
    };
    following.follow();
    assert!(following.wait_for("v3").await.is_some());
    following.stop().await;
}

/// The region moves while its follower is in the middle of its work: another follower takes over
/// at once. It leaves: no replica follows it.
#[tokio::test(start_paused = true)]
async fn followers_of_moved_and_removed_regions_end_at_once() {
    let following = Following::start().await;
    following.push_hanging("slow").await;
    sleep(SOON).await;
    let moved = policy(&["eu-1", "us-1"], "").replace("https://eu-1", "https://eu-1.moved");
    for text in [moved, policy(&["us-1"], "")] {
        let mut contender = following.us.lease("follow-eu-1");
        assert!(!contender.hold().await.unwrap());
        following.us.set_policy(&text).await;
        following.live.read_now().await.unwrap();
        sleep(Duration::from_secs(1)).await;
        assert!(contender.hold().await.unwrap(), "{text}");
        contender.release().await;
        if !following.members.sources().is_empty() {
            following.follow();
            following.push("v1").await;
            assert!(following.wait_for("v1").await.unwrap() < 2 * SOON);
        }
    }
    following.stop().await;
}

/// The journal of a region that has left grows no more, and is dropped after a week.
#[tokio::test(start_paused = true)]
async fn journals_of_all_regions_are_trimmed() {
    let [eu, gone, us] = [
        TestRegion::start("eu-1").await,
        TestRegion::start("gone-1").await,
        TestRegion::start("us-1").await,
    ];
    for number in 0..3 {
        let key = tag_key(&format!("v{number}"));
        eu.owe(key.clone(), &us).await;
        eu.owe(key, &gone).await;
    }
    let regions = eu.registry.journal_regions().await.unwrap();
    assert_eq!(regions, [gone.name.clone(), us.name]);
    tokio::time::advance(7 * DAY).await;
    let trimmed = eu.registry.trim_old_entries(&gone.name, 6 * DAY, 9).await;
    assert_eq!(trimmed.unwrap(), 3);
    assert_eq!(eu.registry.journal_regions().await.unwrap().len(), 1);
}

/// A region that fetches nothing is owed a sweep in place of an endless journal. Entries whose
/// writes may be in flight stay.
#[tokio::test(start_paused = true)]
async fn oldest_entries_of_a_journal_that_is_too_long_are_trimmed() {
    let [eu, us] = [
        TestRegion::start("eu-1").await,
        TestRegion::start("us-1").await,
    ];
    for number in 0..6 {
        eu.owe(tag_key(&format!("v{number}")), &us).await;
        tokio::time::advance(DAY).await;
    }
    let week = 7 * DAY;
    let trim = async |max_entries| {
        let trimmed = eu.registry.trim_old_entries(&us.name, week, max_entries);
        trimmed.await.unwrap()
    };
    assert_eq!(trim(6).await, 0);
    let owed = eu.registry.owed_to(&us.name).await.unwrap();
    assert_eq!((owed.entries, owed.sweep), (6, None));
    assert_eq!(trim(4).await, 2, "the oldest");
    let page = eu.registry.journal_page(&us.name, None, 9).await.unwrap();
    let keys: Vec<_> = page
        .entries
        .iter()
        .map(|entry| entry.keys[0].0.clone())
        .collect();
    let left: Vec<_> = (2..6)
        .map(|number| tag_key(&format!("v{number}")))
        .collect();
    assert_eq!(keys, left);
    assert!(page.sweep.is_some(), "it sweeps all keys");
    assert_eq!(
        trim(0).await,
        2,
        "those of the last two days may be in flight"
    );
}
