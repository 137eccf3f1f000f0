//! Outages strand no peer as long as each chunk has a source.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Failure, FailureKind, Outcome, Scenario, run};

fn small(peers: u32) -> Scenario {
    Scenario::parse(&format!(
        "name = 'small'\n[image]\nlayers = ['4MiB', '1MiB', '1kB']\n[peers]\ncount = {peers}\nup = '100Mbit'\n\
         down = '100Mbit'\n[origin]\nup = '100Mbit'"
    ))
    .unwrap()
}

fn failing(at_s: f64, kind: FailureKind, for_s: Option<f64>) -> Failure {
    Failure {
        at_s,
        kind,
        region: None,
        share: 1.0,
        for_s,
        cached: 0.0,
        p50_ms: None,
        p99_ms: None,
        over_s: 0.0,
        kept_share: None,
    }
}

fn assert_ok(outcome: &Outcome) {
    assert!(
        outcome.ok,
        "{:?} in {:?}",
        outcome.details.complaints, outcome.trace_hash
    );
}

#[test]
fn lone_peer_without_tracker_fetches_from_the_origin_at_once() {
    let mut scenario = small(1);
    scenario.tracker.enabled = false;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.p99_over_bound < 1.1, "{}", outcome.p99_over_bound);
}

#[test]
fn tracker_stop_or_restart_strands_no_peer() {
    for kind in [FailureKind::StopTracker, FailureKind::RestartTracker] {
        for at_s in [0.0, 0.05, 0.2, 0.4] {
            let mut scenario = small(12);
            scenario.failures = vec![failing(at_s, kind, None)];
            let outcome = run(&scenario, 1);
            assert_ok(&outcome);
        }
    }
}

#[test]
fn tracker_recovery_strands_no_peer() {
    let mut scenario = small(12);
    scenario.failures = vec![failing(0.05, FailureKind::StopTracker, Some(2.0))];
    assert_ok(&run(&scenario, 1));
}

#[test]
fn origin_pause_strands_no_peer() {
    let mut scenario = small(12);
    scenario.failures = vec![failing(0.1, FailureKind::StopOrigin, Some(3.0))];
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.max_s < 10.0, "{}", outcome.max_s);
}

#[test]
fn origin_of_another_region_takes_over() {
    let mut scenario = small(12);
    scenario.peers.regions = 2.try_into().unwrap();
    scenario.failures = vec![failing(0.0, FailureKind::StopOrigin, None)];
    scenario.failures[0].region = Some(0);
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.wan_bytes > 0);
}

#[test]
fn image_whose_first_closures_fail_is_fetched_once() {
    let mut scenario = small(8);
    scenario.origin.fail_first_closures = true;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.origin_copies < 1.05, "{}", outcome.origin_copies);
}

#[test]
fn image_whose_closures_are_late_is_fetched_once() {
    let mut scenario = small(8);
    // The manifests arrive before it, the requests for closures during it, those for chunks after it.
    scenario.failures = vec![failing(0.0012, FailureKind::SlowOrigin, Some(1.0))];
    scenario.failures[0].p50_ms = Some(3000.0);
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.p50_s > 3.0, "{}", outcome.p50_s);
    assert!(outcome.origin_copies < 1.05, "{}", outcome.origin_copies);
}

/// A known limit: peers that get no proofs for 10 to 15 s pass the image through.
#[test]
fn image_without_proofs_is_passed_through_to_each_peer() {
    let mut scenario = small(8);
    scenario.origin.fail_closures = true;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!((outcome.origin_copies - 8.0).abs() < 1e-9);
    assert_eq!(outcome.details.served, 0);
}

#[test]
fn runtime_keeps_the_chunks_of_a_pass_through_that_broke_off() {
    let mut scenario = small(8);
    scenario.origin.fail_closures = true;
    scenario.failures = vec![failing(15.5, FailureKind::StopOrigin, Some(1.0))];
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    // Two seconds of the origin's uplink are 4.8 copies.
    let copies = outcome.origin_copies;
    assert!((8.0..10.0).contains(&copies), "{copies}");
}

#[test]
fn proofs_from_another_region_keep_the_image_in_the_swarm() {
    let mut scenario = small(8);
    scenario.peers.regions = 2.try_into().unwrap();
    scenario.failures = vec![failing(0.0, FailureKind::StopOrigin, None)];
    scenario.failures[0].region = Some(0);
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.origin_copies < 1.5, "{}", outcome.origin_copies);
}

#[test]
fn blob_without_seal_is_exchanged_as_a_whole() {
    let mut scenario = small(12);
    scenario.image.digest_only = true;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.origin_copies <= 1.5, "{}", outcome.origin_copies);
}

#[test]
fn late_peers_use_the_swarm() {
    let mut scenario = small(40);
    scenario.peers.start_spread_s = 3.0;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.origin_copies <= 1.1, "{}", outcome.origin_copies);
}

#[test]
fn random_failures_strand_no_peer() {
    let kinds = [
        FailureKind::KillPeers,
        FailureKind::KillLeaseHolders,
        FailureKind::LeavePeers,
        FailureKind::StopTracker,
        FailureKind::RestartTracker,
    ];
    for rng_seed in 0..20 {
        let mut scenario = small(10 + rng_seed as u32);
        scenario.peers.start_spread_s = (rng_seed % 3) as f64 * 0.3;
        scenario.peers.lying_share = if rng_seed % 4 == 0 { 0.1 } else { 0.0 };
        scenario.failures = (0..3)
            .map(|step| {
                let kind = kinds[(rng_seed as usize * 7 + step * 3) % kinds.len()];
                let mut failure = failing(0.05 + 0.2 * step as f64, kind, None);
                failure.share = 0.3;
                failure
            })
            .collect();
        let outcome = run(&scenario, rng_seed);
        assert!(
            outcome.ok,
            "rng_seed {rng_seed}: {:?}",
            outcome.details.complaints
        );
    }
}
