//! Properties of runs of the committed scenarios that their bars do not name.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::read(path.as_ref()).unwrap()
}

/// The scenario `burst-16` without bars, for variants that would miss them.
fn burst_without_bars() -> Scenario {
    let mut scenario = scenario("burst-16");
    scenario.bars = flotilla_simulations::Bars::default();
    scenario
}

/// Nothing was violated, and no peer is stranded. `known_misses.rs` checks the other bars.
fn assert_sound(outcome: &Outcome) {
    let details = &outcome.details;
    assert_eq!(
        details.complaints.len(),
        details.missed_bars.len(),
        "{}: {:?}",
        outcome.scenario,
        details.complaints
    );
    assert_eq!(outcome.stranded, 0);
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
fn burst_without_tracker_completes_through_known_peers() {
    let outcome = run(&scenario("no-tracker"), 1);
    assert_sound(&outcome);
    assert!(outcome.origin_copies < 1.5, "{}", outcome.origin_copies);
}

/// As the scenario `no-tracker`, with other numbers.
fn without_tracker(peers: u32, rest: &str) -> Outcome {
    let scenario = format!(
        "name = 'without-tracker'\n[image]\nlayers = ['16MiB']\n[origin]\nup = '100Mbit'\n\
         [tracker]\nenabled = false\n\
         [peers]\ncount = {peers}\nup = '100Mbit'\ndown = '100Mbit'\n{rest}"
    );
    let outcome = run(&Scenario::parse(&scenario).unwrap(), 1);
    assert_sound(&outcome);
    outcome
}

#[test]
fn copies_without_tracker_do_not_grow_with_the_number_of_peers() {
    for peers in [10, 100, 400] {
        let copies = without_tracker(peers, "").origin_copies;
        assert!(copies < 1.5, "{peers} peers: {copies}");
    }
}

#[test]
fn chunks_of_claimants_that_die_are_claimed_again() {
    let deaths = "[[failures]]\nkind = 'kill-peers'\nshare = 0.1\nat_s = 0.1\nover_s = 1\n";
    let outcome = without_tracker(200, deaths);
    assert!(outcome.origin_copies < 1.5, "{}", outcome.origin_copies);
    // A claim expires after two seconds.
    assert!(outcome.max_s < 6.0, "{}", outcome.max_s);
}

#[test]
fn most_bytes_stay_within_a_zone() {
    let scenario = scenario("zones");
    let outcome = run(&scenario, 1);
    assert_sound(&outcome);
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
    assert_sound(&outcome);
    assert!(outcome.p99_over_bound < 1.02, "{}", outcome.p99_over_bound);
}

#[test]
fn corrupt_chunks_are_detected_and_dropped() {
    let mut scenario = burst_without_bars();
    scenario.peers.lying_share = 0.2;
    let outcome = run(&scenario, 3);
    assert_sound(&outcome);
    assert!(outcome.details.corrupt > 0);
}

#[test]
fn faulty_seeders_serve_nothing_and_strand_nobody() {
    let mut scenario = burst_without_bars();
    scenario.peers.seeders = 4;
    let outcome = run(&scenario, 1);
    assert_sound(&outcome);
    assert!(outcome.origin_copies < 0.1, "{}", outcome.origin_copies);
    for fault in ["lying", "mute", "busy"] {
        let peers = &mut scenario.peers;
        (peers.lying_share, peers.mute_share, peers.busy_share) = (0.0, 0.0, 0.0);
        match fault {
            "lying" => peers.lying_share = 1.0,
            "mute" => peers.mute_share = 1.0,
            _ => peers.busy_share = 1.0,
        }
        let outcome = run(&scenario, 1);
        assert_sound(&outcome);
        assert!(
            outcome.origin_copies >= 1.0,
            "{fault}: {}",
            outcome.origin_copies
        );
    }
}

/// A peer that knows its rate and its neighbours' has as many slots as its rate deserves.
#[test]
fn rates_that_peers_are_told_change_the_exchange() {
    let mut scenario = burst_without_bars();
    scenario.peers.slow_share = 0.3;
    let unknown = run(&scenario, 1);
    scenario.peers.knows_rates = true;
    let known = run(&scenario, 1);
    assert_sound(&unknown);
    assert_sound(&known);
    assert!(
        known.details.refused_busy < unknown.details.refused_busy,
        "{} and {}",
        known.details.refused_busy,
        unknown.details.refused_busy
    );
}
