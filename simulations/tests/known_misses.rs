//! Every committed scenario keeps its bars, except for those that `known-misses.toml` lists, its
//! figures are as in `baselines.json`, and its traces as in `trace-hashes.txt`.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use flotilla_simulations::{
    Baseline, Job, KnownMisses, Limits, Outcome, RunSet, Scenario, run, run_all,
};

/// Memory for runs at the same time.
const MEMORY_BYTES: u64 = 4 << 30;

fn folder() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(name: &str) -> String {
    fs::read_to_string(folder().join(name)).unwrap()
}

fn scenarios() -> Vec<Scenario> {
    let entries = fs::read_dir(folder().join("scenarios")).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let parse = |path: &PathBuf| {
        let scenario = Scenario::read(path).unwrap();
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

fn check(jobs: &[Job<'_>]) {
    let list = KnownMisses::parse(&read("known-misses.toml")).unwrap();
    let baseline = Baseline::parse(&read("baselines.json")).unwrap();
    let limits = Limits {
        threads: available_parallelism().unwrap(),
        memory_bytes: MEMORY_BYTES,
    };
    let outcomes = run_all(jobs, &limits, |_, job| run(job.scenario, job.rng_seed));
    let mut found: Vec<String> = outcomes
        .iter()
        .flat_map(|outcome| differences(&list, outcome))
        .collect();
    let hashes = read("trace-hashes.txt");
    let listed: Vec<&str> = hashes.lines().collect();
    for outcome in &outcomes {
        let (scenario, rng_seed) = (&outcome.scenario, outcome.rng_seed);
        let line = format!("{scenario} {rng_seed} {}", outcome.trace_hash);
        if !listed.contains(&line.as_str()) {
            found.push(format!("trace-hashes.txt lacks {line}"));
        }
    }
    let comparison = baseline.compare(&outcomes.iter().collect::<Vec<_>>());
    if !comparison.is_ok() {
        found.push(comparison.text());
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn known_misses_are_of_committed_scenarios() {
    let scenarios = scenarios();
    for miss in &KnownMisses::parse(&read("known-misses.toml"))
        .unwrap()
        .misses
    {
        let is_known = scenarios.iter().any(|it| it.name == miss.scenario);
        assert!(is_known, "no scenario {}", miss.scenario);
    }
}

/// Runs a set.
fn check_set(name: &str) {
    let scenarios = scenarios();
    let set = RunSet::parse(&read(name)).unwrap();
    let mut jobs = Vec::new();
    for (name, rng_seeds) in set.runs() {
        let scenario = scenarios.iter().find(|scenario| scenario.name == name);
        let scenario = scenario.unwrap_or_else(|| panic!("no scenario {name}"));
        for rng_seed in rng_seeds.as_slice().iter().copied() {
            jobs.push(Job { scenario, rng_seed });
        }
    }
    check(&jobs);
}

#[test]
fn quick_set_is_as_committed() {
    check_set("quick.toml");
}

#[test]
#[ignore = "takes minutes; `tests/run --long` runs it"]
fn all_scenarios_are_as_committed() {
    check_set("all.toml");
}

#[test]
fn set_of_all_scenarios_names_each_of_them() {
    let set = RunSet::parse(&read("all.toml")).unwrap();
    let mut names: Vec<String> = scenarios().into_iter().map(|it| it.name).collect();
    names.sort();
    assert_eq!(set.runs().map(|(name, _)| name).collect::<Vec<_>>(), names);
}
