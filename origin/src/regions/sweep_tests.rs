//! Sweeps of one region by another, with a clock that the tests advance.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::time::Duration;
use std::sync::Arc;

use tokio::time::advance;

use super::members::Members;
use super::source::Source;
use super::sweep::Sweeper;
use super::sweep_state::SweepTimes;
use super::test_regions::{TestRegion, index_of, policy, tag_key};

/// A little more than the time from a change of the policy to the first sweep.
const SETTLED: Duration = Duration::from_mins(6);
/// The same from the first sweep to the second.
const SECOND: Duration = Duration::from_hours(49);

/// Sweeps of `source` by `own`.
fn sweeper(own: &TestRegion, members: &Arc<Members>, source: &TestRegion) -> Sweeper {
    let replicator = Arc::new(own.replicator());
    let times = SweepTimes::default();
    Sweeper::new(replicator, Arc::clone(members), &source.name, times)
}

fn source_of(members: &Members, region: &TestRegion) -> Arc<dyn Source> {
    let sources = members.sources();
    let found = sources
        .into_iter()
        .find(|source| *source.region() == region.name);
    found.unwrap()
}

/// Does all that can be done now, and says whether the region is whole.
async fn sweep(sweeper: &Sweeper, source: &Arc<dyn Source>) -> bool {
    sweeper.check_storage_id(&**source).await.unwrap();
    while sweeper.step(source, None).await.unwrap() {}
    sweeper.is_whole().await.unwrap()
}

/// R18 and F10: a replica of the other region writes by the old policy for up to two minutes, so
/// what this region keeps now has no journal entry.
#[tokio::test(start_paused = true)]
async fn pushes_by_the_old_policy_are_swept_before_the_region_is_whole() {
    let regions = ["eu-1", "us-1"];
    let (eu, us) = (
        TestRegion::start(regions[0]).await,
        TestRegion::start(regions[1]).await,
    );
    let narrow = "[[repository]]\nmatch = \"app\"\nregions = [\"eu-1\"]\n";
    us.set_policy(&policy(&regions, narrow)).await;
    let (members, live) = us.members(&[&eu]).await;
    let (sweeper, source) = (sweeper(&us, &members, &eu), source_of(&members, &eu));
    assert!(!sweep(&sweeper, &source).await);
    for pause in [SETTLED, SECOND] {
        advance(pause).await;
        sweep(&sweeper, &source).await;
    }
    assert!(sweep(&sweeper, &source).await);

    us.set_policy(&policy(&regions, "")).await;
    live.read_now().await.unwrap();
    let is_whole = sweeper.is_whole().await.unwrap();
    assert!(!is_whole, "not by the record of the old policy");
    assert!(!sweep(&sweeper, &source).await);
    advance(Duration::from_secs(40)).await;
    eu.push(&index_of(&[]), &["v1"], &[]).await;
    assert!(!sweep(&sweeper, &source).await);
    advance(SETTLED).await;
    assert!(!sweep(&sweeper, &source).await, "a write may be late");
    assert!(us.has_tag("v1").await);
    eu.push(&index_of(&[]), &["late"], &[]).await;
    advance(SECOND).await;
    assert!(sweep(&sweeper, &source).await);
    assert!(us.has_tag("late").await);
}

#[tokio::test(start_paused = true)]
async fn established_regions_stay_whole_when_an_empty_one_joins() {
    let (eu, us, ap) = (
        TestRegion::start("eu-1").await,
        TestRegion::start("us-1").await,
        TestRegion::start("ap-1").await,
    );
    eu.push(&index_of(&[]), &["v1"], &[]).await;
    us.set_policy(&policy(&["eu-1", "us-1"], "")).await;
    let (members, live) = us.members(&[&eu, &ap]).await;
    let (of_eu, source) = (sweeper(&us, &members, &eu), source_of(&members, &eu));
    sweep(&of_eu, &source).await;
    for pause in [SETTLED, SECOND] {
        advance(pause).await;
        sweep(&of_eu, &source).await;
    }
    assert!(sweep(&of_eu, &source).await);

    us.set_policy(&policy(&["eu-1", "us-1", "ap-1"], "")).await;
    live.read_now().await.unwrap();
    assert!(sweep(&of_eu, &source).await, "nothing is missing");
    let (of_ap, empty) = (sweeper(&us, &members, &ap), source_of(&members, &ap));
    sweep(&of_ap, &empty).await;
    advance(SETTLED).await;
    assert!(sweep(&of_ap, &empty).await, "it has nothing");

    // What the region that leaves gave only to eu-1 is found by a sweep.
    us.set_policy(&policy(&["eu-1", "us-1"], "")).await;
    live.read_now().await.unwrap();
    assert!(!sweep(&of_eu, &source).await);
}

/// A record that cannot be read, there or here, costs only itself.
#[tokio::test(start_paused = true)]
async fn corrupt_records_do_not_hold_up_a_sweep() {
    let (eu, us) = (
        TestRegion::start("eu-1").await,
        TestRegion::start("us-1").await,
    );
    for name in ["v1", "v2", "v3"] {
        eu.push(&index_of(&[]), &[name], &[]).await;
    }
    eu.corrupt(&tag_key("v1")).await;
    us.corrupt(&tag_key("v2")).await;
    us.set_policy(&policy(&["eu-1", "us-1"], "")).await;
    let (members, _) = us.members(&[&eu]).await;
    let (sweeper, source) = (sweeper(&us, &members, &eu), source_of(&members, &eu));
    sweep(&sweeper, &source).await;
    advance(SETTLED).await;
    sweep(&sweeper, &source).await;
    assert!(us.has_tag("v3").await);
    // They are tried again until they hold up the end no longer.
    for pause in [25, 49, 25] {
        advance(Duration::from_hours(pause)).await;
        sweep(&sweeper, &source).await;
    }
    assert!(sweep(&sweeper, &source).await, "whole but for them");
}

/// A region with an empty storage is whole for the others after one sweep, or each would ask it for
/// whatever is absent for two days. The second sweep still comes: a push by the old policy, with no
/// entry, may have been in flight.
#[tokio::test(start_paused = true)]
async fn regions_that_join_empty_are_swept_a_second_time() {
    let (eu, us) = (
        TestRegion::start("eu-1").await,
        TestRegion::start("us-1").await,
    );
    us.set_policy(&policy(&["eu-1", "us-1"], "")).await;
    let (members, _) = us.members(&[&eu]).await;
    let (sweeper, source) = (sweeper(&us, &members, &eu), source_of(&members, &eu));
    sweep(&sweeper, &source).await;
    advance(SETTLED).await;
    assert!(sweep(&sweeper, &source).await);
    eu.push(&index_of(&[]), &["late"], &[]).await;
    advance(SETTLED).await;
    sweep(&sweeper, &source).await;
    assert!(!us.has_tag("late").await);
    advance(SECOND).await;
    assert!(sweep(&sweeper, &source).await);
    assert!(us.has_tag("late").await);
}
