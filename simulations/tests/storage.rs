//! Storages of origins that hang, refuse or are slow.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use flotilla_simulations::{Outcome, Scenario, run};

const LAYER: u64 = 4 << 20;

/// Twelve peers in two regions pull four layers; `failure` is the content of that table.
fn outcome(regions: u32, failure: &str) -> Outcome {
    let scenario = format!(
        "name = 'storage'\n[image]\nlayers = ['4MiB', '4MiB', '4MiB', '4MiB']\n[peers]\ncount = 12\n\
         up = '100Mbit'\ndown = '100Mbit'\nregions = {regions}\n[origin]\nup = '100Mbit'\n\
         [[failures]]\nregion = 0\n{failure}"
    );
    let outcome = run(&Scenario::parse(&scenario).unwrap(), 1);
    assert!(outcome.ok, "{:?}", outcome.details.complaints);
    outcome
}

#[test]
fn origin_relays_from_the_other_region_while_its_storage_fails() {
    for kind in ["hang-storage", "refuse-storage"] {
        let outcome = outcome(2, &format!("at_s = 0\nkind = '{kind}'"));
        assert!(
            outcome.wan_bytes >= 4 * LAYER,
            "{kind}: {}",
            outcome.wan_bytes
        );
        assert!(outcome.max_s < 6.0, "{kind}: {}", outcome.max_s);
    }
}

#[test]
fn refused_calls_are_noticed_sooner_than_a_storage_that_hangs() {
    let refuses = outcome(2, "at_s = 0\nkind = 'refuse-storage'");
    let hangs = outcome(2, "at_s = 0\nkind = 'hang-storage'");
    // The origin itself waits for a second and a half; the tracker moves its leases before that.
    let (sooner, later) = (refuses.first_byte_p99_s, hangs.first_byte_p99_s);
    assert!(later > sooner + 0.2, "{sooner} and {later}");
    assert!(later < 1.5, "{later}");
}

#[test]
fn what_is_in_memory_does_not_cross() {
    let half = outcome(2, "at_s = 0\nkind = 'refuse-storage'\ncached = 0.5");
    let all = outcome(2, "at_s = 0\nkind = 'refuse-storage'\ncached = 1");
    let healthy = outcome(2, "at_s = 100\nkind = 'refuse-storage'");
    assert_eq!(all.wan_bytes, healthy.wan_bytes);
    assert_eq!(all.max_s, healthy.max_s);
    assert!(
        half.wan_bytes > all.wan_bytes,
        "{} {}",
        half.wan_bytes,
        all.wan_bytes
    );
}

#[test]
fn region_alone_waits_for_its_storage() {
    for kind in ["hang-storage", "refuse-storage"] {
        let outcome = outcome(1, &format!("at_s = 0.3\nkind = '{kind}'\nfor_s = 5"));
        assert!(outcome.max_s > 5.3, "{kind}: {}", outcome.max_s);
        assert_eq!(outcome.wan_bytes, 0);
    }
}

#[test]
fn bodies_go_on_when_the_storage_fails_under_them() {
    let refuses = outcome(2, "at_s = 0.4\nkind = 'refuse-storage'");
    assert!(refuses.max_s < 4.0, "{}", refuses.max_s);
    assert!(refuses.origin_copies < 1.3, "{}", refuses.origin_copies);
}

#[test]
fn slow_storage_delays_its_region() {
    let healthy = outcome(1, "at_s = 100\nkind = 'slow-storage'\np50_ms = 200");
    let slow = outcome(
        1,
        "at_s = 0\nkind = 'slow-storage'\np50_ms = 200\np99_ms = 900",
    );
    assert!(
        slow.p50_s > 1.2 * healthy.p50_s,
        "{} {}",
        slow.p50_s,
        healthy.p50_s
    );
    assert_eq!(slow.wan_bytes, 0);
}
