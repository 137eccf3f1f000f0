//! Origins that hang, refuse, are slow, lag behind or are cut off, with one or two regions.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

/// Twelve peers in two regions pull four layers; `more` is further TOML.
fn outcome(more: &str) -> Outcome {
    let scenario = format!(
        "name = 'regions'\n[image]\nlayers = ['4MiB', '4MiB', '4MiB', '4MiB']\n[peers]\ncount = 12\n\
         up = '100Mbit'\ndown = '100Mbit'\nregions = 2\n[origin]\nup = '100Mbit'\n{more}"
    );
    run(&Scenario::parse(&scenario).unwrap(), 1)
}

fn assert_ok(outcome: &Outcome) {
    assert!(outcome.ok, "{:?}", outcome.details.complaints);
}

const LAYER: u64 = 4 << 20;

#[test]
fn healthy_regions_fetch_from_their_own_origins() {
    let outcome = outcome("");
    assert_ok(&outcome);
    assert!(outcome.origin_copies < 1.1, "{}", outcome.origin_copies);
}

#[test]
fn other_region_takes_over_when_the_own_origin_hangs() {
    let outcome = outcome("[[failures]]\nat_s = 0.3\nkind = 'hang-origin'\nregion = 0");
    assert_ok(&outcome);
    assert!(outcome.max_s < 8.0, "{}", outcome.max_s);
    assert!(outcome.wan_bytes > LAYER, "{}", outcome.wan_bytes);
}

#[test]
fn pulls_continue_when_a_hung_origin_recovers() {
    let outcome = outcome("[[failures]]\nat_s = 0.3\nkind = 'hang-origin'\nfor_s = 0.5");
    assert_ok(&outcome);
    assert!(outcome.max_s < 4.0, "{}", outcome.max_s);
}

#[test]
fn stopped_origin_breaks_its_answers() {
    let outcome = outcome("[[failures]]\nat_s = 0.3\nkind = 'stop-origin'\nregion = 1");
    assert_ok(&outcome);
    assert!(outcome.wan_bytes > 0);
    assert!(outcome.max_s < 4.0, "{}", outcome.max_s);
}

#[test]
fn pass_through_goes_on_at_the_other_region_when_an_origin_stops() {
    let outcome = outcome(
        "fail_closures = true\n[[failures]]\nat_s = 15.5\nkind = 'stop-origin'\nregion = 0",
    );
    assert_ok(&outcome);
    // Half of the peers are in each region, and no byte is passed through twice, except for those
    // that were on their way when the origin stopped.
    let copies = outcome.origin_copies;
    assert!((5.99..6.2).contains(&copies), "{copies}");
    assert!(outcome.wan_bytes > 3 * 4 * LAYER, "{}", outcome.wan_bytes);
}

#[test]
fn layers_that_a_region_lacks_come_from_the_other_one() {
    let healthy = outcome("");
    let outcome = outcome("[[failures]]\nat_s = 0\nkind = 'lag-origin'\nregion = 0\nshare = 0.25");
    assert_ok(&outcome);
    assert!(
        outcome.wan_bytes >= healthy.wan_bytes.max(LAYER),
        "{} and {}",
        outcome.wan_bytes,
        healthy.wan_bytes
    );
}

#[test]
fn slow_origin_delays_its_region() {
    let healthy = outcome("");
    let slow = outcome("[[failures]]\nat_s = 0\nkind = 'slow-origin'\np50_ms = 200\np99_ms = 900");
    assert_ok(&slow);
    assert!(slow.p50_s > 1.2 * healthy.p50_s, "{}", slow.p50_s);
}

#[test]
fn region_that_is_cut_off_waits_for_its_own_origin() {
    let outcome = outcome(
        "[[failures]]\nat_s = 0.2\nkind = 'partition'\nregion = 0\nfor_s = 4\n\
         [[failures]]\nat_s = 0.2\nkind = 'stop-origin'\nregion = 0\nfor_s = 2",
    );
    assert_ok(&outcome);
    assert!(outcome.max_s > 2.0, "{}", outcome.max_s);
}

#[test]
fn origin_answers_429_beyond_its_limit_and_serves_all_in_the_end() {
    let scenario = "name = 'busy'\n[image]\nlayers = ['4MiB']\n[peers]\ncount = 12\nup = '100Mbit'\n\
         down = '100Mbit'\n[origin]\nup = '100Mbit'\nmax_requests = 1\n[tracker]\nenabled = false\nknown_peers = 0";
    let outcome = run(&Scenario::parse(scenario).unwrap(), 1);
    assert_ok(&outcome);
}

#[test]
fn jitter_lets_messages_overtake_each_other() {
    let still = outcome("[links]\njitter = 0");
    let jittery = outcome("[links]\njitter = 1");
    assert_ok(&still);
    assert_ok(&jittery);
    assert_ne!(still.trace_hash, jittery.trace_hash);
}

#[test]
fn lost_packets_strand_no_peer() {
    let clean = outcome("");
    let lossy = outcome("[links]\nloss = 0.05");
    assert_ok(&lossy);
    assert!(lossy.p50_s > clean.p50_s);
}

#[test]
fn busy_tracker_delays_the_pull() {
    let fast = outcome("");
    let slow = outcome("[tracker]\nannounce_us = 50_000\nlease_us = 20_000");
    assert_ok(&slow);
    assert!(slow.p50_s > fast.p50_s, "{} and {}", slow.p50_s, fast.p50_s);
}

#[test]
fn tracker_with_few_connections_strands_no_peer() {
    assert_ok(&outcome("[tracker]\nconnections = 4"));
}
