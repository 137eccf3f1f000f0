//! What is promised of the machines, on the clock of the simulator: `docs/decisions/chunk-scheduling.md`
//! says how it was found.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn must_be_ok(outcome: &Outcome) {
    assert!(
        outcome.ok,
        "{}: {:?}",
        outcome.scenario, outcome.details.complaints
    );
    assert_eq!(outcome.stranded, 0);
}

#[test]
fn sixteen_peers_are_close_to_the_bound_with_one_copy_from_the_origin() {
    let outcome = run(&scenario("burst-16"), 1);
    must_be_ok(&outcome);
    assert!(outcome.p99_over_bound <= 1.1);
    assert!(outcome.origin_copies <= 1.05);
}

/// A thousand peers by a hundred chunks, and what the time to it costs: at most 5 s in a release
/// build.
#[test]
fn a_thousand_peers_are_close_to_the_bound_with_one_copy_from_the_origin() {
    let outcome = run(&scenario("burst-1000x100"), 1);
    must_be_ok(&outcome);
    assert!(outcome.p99_over_bound <= 1.2);
    assert!(outcome.origin_copies <= 1.05);
}

#[test]
fn the_same_seed_gives_the_same_trace_and_another_seed_another() {
    let scenario = scenario("churn");
    let (one, two, other) = (run(&scenario, 7), run(&scenario, 7), run(&scenario, 8));
    assert_eq!(one, two);
    assert_ne!(one.trace_hash, other.trace_hash);
}

#[test]
fn half_of_the_lease_holders_die_and_nobody_is_stranded() {
    must_be_ok(&run(&scenario("lease-holders-die"), 1));
}

#[test]
fn three_in_ten_peers_leave_or_die() {
    must_be_ok(&run(&scenario("churn"), 1));
}

#[test]
fn two_of_three_hundred_freeze_and_the_others_do_not_wait_for_them() {
    must_be_ok(&run(&scenario("frozen"), 1));
}

#[test]
fn who_comes_after_all_others_died_does_not_wait_for_them() {
    must_be_ok(&run(&scenario("dead-neighbours"), 1));
}

#[test]
fn without_a_tracker_a_burst_completes_from_whom_peers_knew_before() {
    let outcome = run(&scenario("no-tracker"), 1);
    must_be_ok(&outcome);
    assert!(outcome.origin_copies < 10.0, "{}", outcome.origin_copies);
}

#[test]
fn zones_exchange_a_fraction_of_what_they_pull() {
    let scenario = scenario("zones");
    let outcome = run(&scenario, 1);
    must_be_ok(&outcome);
    let zone = f64::from(scenario.peers.count / scenario.peers.zones);
    assert!(
        outcome.details.cross_zone_copies < zone / 2.0,
        "{}",
        outcome.details.cross_zone_copies
    );
}

#[test]
fn a_lone_peer_is_as_fast_as_without_a_swarm() {
    let mut scenario = scenario("burst-16");
    scenario.peers.count = 1;
    let outcome = run(&scenario, 1);
    must_be_ok(&outcome);
    assert!(outcome.p99_over_bound < 1.02, "{}", outcome.p99_over_bound);
}

#[test]
fn liars_are_found_out_and_nothing_of_theirs_is_kept() {
    let mut scenario = scenario("burst-16");
    scenario.peers.lying_share = 0.2;
    scenario.bars = flotilla_simulations::Bars::default();
    let outcome = run(&scenario, 3);
    must_be_ok(&outcome);
    assert!(outcome.details.corrupt > 0);
}

#[test]
fn every_scenario_file_can_be_read() {
    for entry in std::fs::read_dir(format!("{}/scenarios", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = entry.unwrap().path();
        let scenario = Scenario::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            path.file_stem().unwrap().to_str(),
            Some(scenario.name.as_str())
        );
    }
}
