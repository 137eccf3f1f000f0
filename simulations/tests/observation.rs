//! Observing a run does not alter it, and shows what happened.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::cell::RefCell;

use flotilla_simulations::{Progress, RunOptions, Scenario, run, run_with};

fn scenario(name: &str) -> Scenario {
    let path = format!("{}/scenarios/{name}.toml", env!("CARGO_MANIFEST_DIR"));
    Scenario::read(path.as_ref()).unwrap()
}

#[test]
fn recording_does_not_alter_the_trace() {
    let scenario = scenario("zones");
    let calls = RefCell::new(Vec::new());
    let options = RunOptions {
        progress: Some(&|progress: Progress| calls.borrow_mut().push(progress)),
        has_timeline: true,
        last_events: 10,
    };
    let recorded = run_with(&scenario, 2, &options);
    let plain = run(&scenario, 2);
    assert_eq!(recorded.trace_hash, plain.trace_hash);
    assert_eq!(recorded.events, plain.events);
    let calls = calls.into_inner();
    assert!(calls.len() > 10, "{} calls", calls.len());
    assert!(calls.is_sorted_by(|one, next| one.simulated_s <= next.simulated_s));
    assert!(calls.last().unwrap().share > 0.95, "{:?}", calls.last());
    assert!(
        recorded.details.last_events.is_empty(),
        "nothing was violated"
    );
}

#[test]
fn bytes_over_time_add_up_to_all_pulls() {
    let scenario = scenario("zones");
    let options = RunOptions {
        has_timeline: true,
        ..RunOptions::default()
    };
    let timeline = run_with(&scenario, 1, &options).details.timeline.unwrap();
    let by_source: u64 = timeline.bytes.iter().flat_map(|row| &row.bytes).sum();
    let by_zone: u64 = timeline.zone_bytes.iter().flatten().sum();
    let pulled = scenario.image.bytes() * u64::from(scenario.peers.count);
    assert!(by_source.abs_diff(by_zone) < pulled / 1000);
    // Transfers that were given up count, too.
    assert!(
        by_source >= pulled - pulled / 1000,
        "{by_source} of {pulled}"
    );
    assert!(by_source < pulled + pulled / 20, "{by_source} of {pulled}");
    assert_eq!(timeline.zone_bytes.len(), 3);
    assert!(!timeline.stalls.is_empty());
}

#[test]
fn violation_comes_with_the_events_before_it() {
    let mut scenario = scenario("burst-16");
    scenario.time_limit_s = 2.0;
    let options = RunOptions {
        last_events: 7,
        ..RunOptions::default()
    };
    let details = run_with(&scenario, 1, &options).details;
    assert!(details.is_violated);
    assert_eq!(details.missed_bars[0].bar, "max_stranded");
    assert_eq!(details.last_events.len(), 7);
    let last = details.last_events.last().unwrap();
    assert!(last.starts_with("1.9") || last.starts_with("2.0"), "{last}");
}

#[test]
fn missed_bar_is_no_violation() {
    let mut scenario = scenario("burst-16");
    scenario.bars.max_origin_copies = Some(0.5);
    let details = run(&scenario, 1).details;
    assert!(!details.is_violated);
    assert_eq!(details.missed_bars.len(), 1);
}
