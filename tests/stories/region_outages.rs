//! Outages of a region's storage in the middle of a burst, as `flotilla demo` shows them.

use std::path::Path;

use serde_json::Value;

use crate::harness::tools::run;

const FLOTILLA: &str = env!("CARGO_BIN_EXE_flotilla");

/// Runs the demonstration of an outage, which must meet its criteria.
fn survives(outage: &str, flags: &[&str]) -> Value {
    let fixed = ["demo", "--regions", "2", outage, "--json"];
    let printed = run(Path::new(FLOTILLA), fixed.iter().chain(flags)).unwrap();
    let outcome: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(outcome["ok"], true, "{printed}");
    assert!(outcome["stall_s"].as_f64().unwrap() <= 3.0, "{printed}");
    assert!(outcome["wan_copies"].as_f64().unwrap() <= 1.1, "{printed}");
    assert_eq!(
        outcome["bytes_by_region"]["region-2"], outcome["wan_bytes"],
        "region-2 sends nothing before the outage: {printed}"
    );
    outcome
}

#[test]
fn burst_survives_a_storage_that_hangs() {
    let outcome = survives("--outage", &["--size", "64MiB"]);
    assert_eq!(outcome["outage"], "hang");
    assert_eq!(outcome["peers"], 8);
    // The outage was real: the other region had to send what was missing.
    assert!(outcome["wan_bytes"].as_u64().unwrap() > 0, "{outcome}");
    let by_region = outcome["bytes_by_region"].as_object().unwrap();
    assert!(by_region["region-1"].as_u64().unwrap() > 0, "{outcome}");
}

#[test]
fn burst_survives_a_storage_that_refuses() {
    let outcome = survives("--outage=refuse", &["--peers", "4", "--size", "32MiB"]);
    assert_eq!(outcome["outage"], "refuse");
    assert!(outcome["wan_bytes"].as_u64().unwrap() > 0, "{outcome}");
}

#[test]
fn burst_survives_a_storage_that_fails_half_of_the_calls() {
    let outcome = survives("--outage=errors", &["--peers", "4", "--size", "32MiB"]);
    assert_eq!(outcome["outage"], "errors");
}

#[test]
fn burst_survives_a_slow_storage() {
    let outcome = survives("--outage=slow", &["--peers", "4", "--size", "32MiB"]);
    assert_eq!(outcome["outage"], "slow");
}

#[test]
fn an_outage_needs_another_region() {
    let message = run(Path::new(FLOTILLA), ["demo", "--outage"]).unwrap_err();
    assert!(message.contains("--regions 2"), "{message}");
    let message = run(
        Path::new(FLOTILLA),
        ["demo", "--regions", "2", "--outage=burn"],
    );
    assert!(message.is_err_and(|message| message.contains("refuse")));
}

#[test]
fn breaking_a_storage_needs_regions_that_run() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let arguments = ["up", "break", "region-1", "--dir", dir];
    let message = run(Path::new(FLOTILLA), arguments).unwrap_err();
    assert!(
        message.contains("no regions run in") && message.contains("up --regions 2"),
        "{message}"
    );
}
