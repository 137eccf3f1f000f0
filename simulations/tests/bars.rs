//! The bars of the shipped machines in the committed scenarios.
//! `docs/benchmarks/simulated-swarm.md` says how they were measured.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn assert_ok(outcome: &Outcome) {
    assert!(
        outcome.ok,
        "{}: {:?}",
        outcome.scenario, outcome.details.complaints
    );
    assert_eq!(outcome.stranded, 0);
}

#[test]
fn burst_16_stays_near_the_bound() {
    let outcome = run(&scenario("burst-16"), 1);
    assert_ok(&outcome);
    assert!(outcome.p99_over_bound <= 1.1);
    assert!(outcome.origin_copies <= 1.05);
}

/// This run takes at most 5 s of wall-clock time in a release build.
#[test]
fn burst_1000x100_stays_near_the_bound() {
    let outcome = run(&scenario("burst-1000x100"), 1);
    assert_ok(&outcome);
    assert!(outcome.p99_over_bound <= 1.2);
    assert!(outcome.origin_copies <= 1.05);
}

#[test]
fn rng_seed_determines_the_trace() {
    let scenario = scenario("churn");
    let one = run(&scenario, 7);
    let two = run(&scenario, 7);
    let other = run(&scenario, 8);
    assert_eq!(one, two);
    assert_ne!(one.trace_hash, other.trace_hash);
}

#[test]
fn dying_lease_holders_strand_no_peer() {
    assert_ok(&run(&scenario("lease-holders-die"), 1));
}

#[test]
fn churn_meets_its_bars() {
    assert_ok(&run(&scenario("churn"), 1));
}

#[test]
fn frozen_peers_do_not_delay_the_others() {
    assert_ok(&run(&scenario("frozen"), 1));
}

#[test]
fn dead_neighbours_do_not_delay_new_peers() {
    assert_ok(&run(&scenario("dead-neighbours"), 1));
}

#[test]
fn burst_without_tracker_completes_through_known_peers() {
    let outcome = run(&scenario("no-tracker"), 1);
    assert_ok(&outcome);
    assert!(outcome.origin_copies < 10.0, "{}", outcome.origin_copies);
}

#[test]
fn most_bytes_stay_within_a_zone() {
    let scenario = scenario("zones");
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    let zone = f64::from(scenario.peers.count / scenario.peers.zones);
    assert!(
        outcome.details.cross_zone_copies < zone / 2.0,
        "{}",
        outcome.details.cross_zone_copies
    );
}

#[test]
fn lone_peer_runs_at_the_bound() {
    let mut scenario = scenario("burst-16");
    scenario.peers.count = 1;
    let outcome = run(&scenario, 1);
    assert_ok(&outcome);
    assert!(outcome.p99_over_bound < 1.02, "{}", outcome.p99_over_bound);
}

#[test]
fn corrupt_chunks_are_detected_and_dropped() {
    let mut scenario = scenario("burst-16");
    scenario.peers.lying_share = 0.2;
    scenario.bars = flotilla_simulations::Bars::default();
    let outcome = run(&scenario, 3);
    assert_ok(&outcome);
    assert!(outcome.details.corrupt > 0);
}

#[test]
fn every_scenario_file_parses() {
    for entry in std::fs::read_dir(format!("{}/scenarios", env!("CARGO_MANIFEST_DIR"))).unwrap() {
        let path = entry.unwrap().path();
        let scenario = Scenario::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(
            path.file_stem().unwrap().to_str(),
            Some(scenario.name.as_str())
        );
    }
}
