//! Trackers in groups and regions: slow, silent, lost and cut off.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

const PER_REGION: &str = "[tracker]\nper_region = true\n";
const WITH_FALLBACK: &str = "[tracker]\nper_region = true\nfallback_to_other_regions = true\n";

fn scenario(more: &str) -> String {
    format!(
        "name = 'trackers'\n[image]\nlayers = ['4MiB', '4MiB', '4MiB', '4MiB']\n[peers]\ncount = 24\n\
         up = '100Mbit'\ndown = '100Mbit'\nregions = 2\n[origin]\nup = '100Mbit'\n{more}"
    )
}

/// Twenty-four peers in two regions pull four layers; `more` is further TOML.
fn outcome(more: &str) -> Outcome {
    let outcome = run(&Scenario::parse(&scenario(more)).unwrap(), 1);
    assert!(outcome.ok, "{:?}", outcome.details.complaints);
    outcome
}

#[test]
fn regions_with_their_own_trackers_do_not_share_bytes() {
    let own = outcome(PER_REGION);
    assert!(own.origin_copies < 1.1, "{}", own.origin_copies);
    assert_eq!(own.wan_bytes, 0);
}

#[test]
fn other_regions_trackers_are_used_while_the_own_one_is_lost() {
    let lost = "[[failures]]\nat_s = 0\nkind = 'stop-tracker'\nregion = 0\n";
    let alone = outcome(&format!("{PER_REGION}{lost}"));
    let helped = outcome(&format!("{WITH_FALLBACK}{lost}"));
    assert!(
        helped.origin_copies < alone.origin_copies,
        "{} and {}",
        helped.origin_copies,
        alone.origin_copies
    );
    let unleased = |outcome: &Outcome| outcome.details.unleased;
    assert_eq!(unleased(&helped), 0);
    assert!(unleased(&alone) > 0);
}

#[test]
fn session_returns_to_the_own_tracker() {
    let restarted = "[[failures]]\nat_s = 0.1\nkind = 'stop-tracker'\nregion = 0\nfor_s = 0.4\n";
    let outcome = outcome(&format!("{WITH_FALLBACK}{restarted}"));
    assert!(outcome.max_s < 6.0, "{}", outcome.max_s);
}

#[test]
fn partition_cuts_a_region_off_from_the_others_trackers() {
    let cut = "[[failures]]\nat_s = 0\nkind = 'stop-tracker'\nregion = 0\n\
               [[failures]]\nat_s = 0\nkind = 'partition'\nregion = 0\n";
    let outcome = outcome(&format!("{WITH_FALLBACK}{cut}"));
    assert_eq!(outcome.wan_bytes, 0);
    assert!(outcome.details.unleased > 0, "no tracker can be reached");
}

#[test]
fn second_tracker_takes_over_from_a_lost_one() {
    let two = "[tracker]\ncount = 2\n";
    let healthy = outcome(two);
    assert!(healthy.origin_copies < 1.1, "{}", healthy.origin_copies);
    let lost = outcome(&format!(
        "{two}[[failures]]\nat_s = 0.2\nkind = 'stop-tracker'\nshare = 0.5\n"
    ));
    assert!(lost.origin_copies < 2.0, "{}", lost.origin_copies);
    assert!(lost.max_s < 8.0, "{}", lost.max_s);
}

#[test]
fn silent_tracker_serves_what_it_has_accepted_when_it_continues() {
    let silent = "[[failures]]\nat_s = 0.1\nkind = 'silent-tracker'\nfor_s = 1\n";
    let silenced = outcome(silent);
    let healthy = outcome("");
    assert!(silenced.p50_s > healthy.p50_s, "{}", silenced.p50_s);
    assert_eq!(
        silenced.details.unleased, 0,
        "it continues before it is late"
    );
}

#[test]
fn slow_tracker_delays_the_pull() {
    let healthy = outcome("");
    let slow =
        outcome("[[failures]]\nat_s = 0\nkind = 'slow-tracker'\np50_ms = 100\np99_ms = 400\n");
    assert!(slow.p50_s > healthy.p50_s, "{}", slow.p50_s);
}

#[test]
fn invalid_keys_name_the_fix() {
    let error = |more: &str| Scenario::parse(&scenario(more)).unwrap_err().to_string();
    let without_regions = error("[tracker]\nfallback_to_other_regions = true");
    assert!(without_regions.contains("set per_region, too"));
    assert!(error("[tracker]\ncount = 17").contains("write a number from 1 to 16"));
    let shared = error("[[failures]]\nat_s = 1\nkind = 'stop-tracker'\nregion = 1");
    assert!(
        shared.contains("`failures.region`: leave it out"),
        "{shared}"
    );
    let slow = error("[[failures]]\nat_s = 1\nkind = 'slow-tracker'");
    assert!(slow.contains("`failures.p50_ms`"), "{slow}");
}
