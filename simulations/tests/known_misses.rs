//! Every committed scenario keeps its bars, except for those that `known-misses.toml` lists.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};

use flotilla_simulations::{KnownMisses, Outcome, Scenario, run};

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scenarios() -> Vec<Scenario> {
    let entries = fs::read_dir(folder().join("scenarios")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let parse = |path: &PathBuf| {
        let scenario = Scenario::parse(&fs::read_to_string(path).unwrap()).unwrap();
        let stem = path.file_stem().unwrap().to_str();
        assert_eq!(stem, Some(scenario.name.as_str()), "file and name differ");
        scenario
    };
    paths.iter().map(parse).collect()
}

/// What the list does not explain, of one run.
fn differences(list: &KnownMisses, outcome: &Outcome) -> Vec<String> {
    let details = &outcome.details;
    let mut differences = list.differences(outcome);
    if details.complaints.len() != details.missed_bars.len() {
        differences.push(format!(
            "{} with rng seed {}: {:?}",
            outcome.scenario, outcome.rng_seed, details.complaints
        ));
    }
    differences
}

/// Scenarios in which peers receive at most so many bytes together run with every change.
const QUICK_BYTES: u64 = 100 << 30;

fn is_quick(scenario: &Scenario) -> bool {
    u64::from(scenario.peers.count) * scenario.image.bytes() <= QUICK_BYTES
}

fn check(rng_seeds: &[u64], is_included: impl Fn(&Scenario) -> bool) {
    let list = fs::read_to_string(folder().join("known-misses.toml")).unwrap();
    let list = KnownMisses::parse(&list).unwrap();
    let scenarios = scenarios();
    let is_known = |name: &String| scenarios.iter().any(|scenario| scenario.name == *name);
    for miss in &list.misses {
        assert!(is_known(&miss.scenario), "no scenario {}", miss.scenario);
    }
    let found: Vec<String> = std::thread::scope(|scope| {
        let run_one = |scenario| {
            let list = &list;
            scope.spawn(move || {
                let outcomes = rng_seeds.iter().map(|rng_seed| run(scenario, *rng_seed));
                outcomes
                    .flat_map(|outcome| differences(list, &outcome))
                    .collect::<Vec<String>>()
            })
        };
        let included = scenarios.iter().filter(|scenario| is_included(scenario));
        let threads: Vec<_> = included.map(run_one).collect();
        let joined = threads.into_iter().map(|thread| thread.join().unwrap());
        joined.flatten().collect()
    });
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn bars_are_kept_except_for_known_misses() {
    check(&[1, 2], is_quick);
}

#[test]
#[ignore = "takes minutes; `tests/run --long` runs it"]
fn bars_are_kept_except_for_known_misses_in_all_runs() {
    check(&[1, 2, 3, 4], |_| true);
}
