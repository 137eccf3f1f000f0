//! Capacity, slow start, loss and handshakes of links between regions.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

/// Two peers, each alone in its region, pull 8 MiB; the origin of the second region is stopped.
/// `links` is the content of that table.
fn over_the_wide_area(links: &str) -> Outcome {
    let scenario = format!(
        "name = 'wide'\n[image]\nlayers = ['4MiB', '4MiB']\n[peers]\ncount = 2\nregions = 2\n\
         up = '1Gbit'\ndown = '1Gbit'\n[origin]\nup = '1Gbit'\n\
         [[failures]]\nat_s = 0\nkind = 'stop-origin'\nregion = 1\n[links]\n{links}"
    );
    let outcome = run(&Scenario::parse(&scenario).unwrap(), 1);
    assert!(outcome.ok, "{:?}", outcome.details.complaints);
    outcome
}

#[test]
fn bytes_between_regions_share_the_capacity_of_their_link() {
    let free = over_the_wide_area("");
    let limited = over_the_wide_area("wan_rate = '20Mbit'");
    let pair = over_the_wide_area("[[links.between]]\nregions = [1, 0]\nrate = '20Mbit'");
    let least_s = f64::from(8 << 20) * 8.0 / 20e6;
    assert!(limited.max_s > least_s, "{}", limited.max_s);
    assert!(free.max_s < least_s, "{}", free.max_s);
    assert_eq!(pair.trace_hash, limited.trace_hash);
}

#[test]
fn slow_start_delays_long_links_only() {
    let without = over_the_wide_area("");
    let with = over_the_wide_area("slow_start = true");
    assert!(with.max_s > without.max_s + 0.2, "{}", with.max_s);
    // The first peer has an origin in its own region.
    assert_eq!(
        with.details.completions_s[0],
        without.details.completions_s[0]
    );
}

#[test]
fn loss_between_regions_limits_the_rate() {
    let rare = over_the_wide_area("wan_loss = 0.0001");
    let often = over_the_wide_area("wan_loss = 0.01");
    assert!(
        often.max_s > 2.0 * rare.max_s,
        "{} {}",
        often.max_s,
        rare.max_s
    );
}

#[test]
fn only_the_first_request_waits_for_handshakes() {
    let alone = |links: &str| {
        let scenario = format!(
            "name = 'alone'\n[image]\nlayers = ['1kB']\n[peers]\ncount = 1\n\
             up = '1Gbit'\ndown = '1Gbit'\n[origin]\nup = '1Gbit'\n[links]\n\
             region_ms = 50\njitter = 0\n{links}"
        );
        let outcome = run(&Scenario::parse(&scenario).unwrap(), 1);
        assert!(outcome.ok, "{:?}", outcome.details.complaints);
        outcome.max_s
    };
    // The request for the proofs takes two round trips longer, and that for the chunk does not.
    let added = alone("handshakes = true") - alone("");
    assert!((added - 0.2).abs() < 1e-6, "{added}");
}
