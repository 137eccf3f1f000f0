//! Runs every scenario of `scenarios/` with rng seeds 1 to 4, on all processors, and prints a
//! table.
//!
//! ```text
//! all-scenarios [--write] [NAME...]
//! ```
//!
//! Runs only the scenarios that are named, if any are. `--write` writes their entries in
//! `trace-hashes.txt`, `known-misses.toml` and `baselines.json` anew, for a change that is meant to
//! alter traces or figures.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program prints"
)]

use core::num::NonZeroUsize;
use std::error::Error;
use std::fs;
use std::path::Path;

use flotilla_simulations::{
    Baseline, Job, KnownMisses, Limits, Outcome, Scenario, restart_with_huge_pages, run, run_all,
};

const RNG_SEEDS: core::ops::RangeInclusive<u64> = 1..=4;
/// Memory for runs at the same time.
const MEMORY_BYTES: u64 = 8 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    restart_with_huge_pages();
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let writes = names.iter().any(|name| name == "--write");
    names.retain(|name| name != "--write");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(folder.join("scenarios"))? {
        let scenario = Scenario::read(&entry?.path())?;
        if names.is_empty() || names.contains(&scenario.name) {
            scenarios.push(scenario);
        }
    }
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    let outcomes = run_each(&scenarios);
    println!(
        "scenario, rng seed, trace hash, p50, p99, p99 over bound, most origin copies of a region, \
         wide-area copies, stall, stranded"
    );
    for outcome in &outcomes {
        println!(
            "{} {} {} {:.3} {:.3} {:.4} {:.4} {:.4} {:.3} {} {}",
            outcome.scenario,
            outcome.rng_seed,
            outcome.trace_hash,
            outcome.p50_s,
            outcome.p99_s,
            outcome.p99_over_bound,
            outcome.copies_by_region.iter().copied().fold(0.0, f64::max),
            outcome.wan_copies,
            outcome.stall_s,
            outcome.stranded,
            outcome.details.complaints.join("; "),
        );
    }
    if writes {
        let path = folder.join("trace-hashes.txt");
        fs::write(&path, update_hashes(&fs::read_to_string(&path)?, &outcomes))?;
        let path = folder.join("known-misses.toml");
        let mut misses = KnownMisses::parse(&fs::read_to_string(&path)?)?;
        misses.update(&outcomes);
        fs::write(&path, misses.to_toml())?;
        let path = folder.join("baselines.json");
        let mut baseline = Baseline::parse(&fs::read_to_string(&path)?)?;
        let outcomes: Vec<&Outcome> = outcomes.iter().collect();
        print!("{}", baseline.compare(&outcomes).moves_text());
        baseline.update(&outcomes);
        fs::write(path, baseline.to_json())?;
    }
    Ok(())
}

/// The list of hashes with those of the scenarios that ran in the place of older ones.
fn update_hashes(list: &str, outcomes: &[Outcome]) -> String {
    let has_run = |line: &&str| {
        let name = line.split_whitespace().next();
        outcomes.iter().any(|it| name == Some(it.scenario.as_str()))
    };
    let kept = list
        .lines()
        .filter(|line| !has_run(line))
        .map(str::to_owned);
    let hash = |it: &Outcome| format!("{} {} {}", it.scenario, it.rng_seed, it.trace_hash);
    let mut lines: Vec<String> = kept.chain(outcomes.iter().map(hash)).collect();
    lines.sort();
    lines.into_iter().map(|line| line + "\n").collect()
}

/// Runs the scenarios on all processors; the outcomes are in order of scenarios and seeds.
fn run_each(scenarios: &[Scenario]) -> Vec<Outcome> {
    let with_seeds = |scenario| RNG_SEEDS.map(move |rng_seed| Job { scenario, rng_seed });
    let jobs: Vec<Job<'_>> = scenarios.iter().flat_map(with_seeds).collect();
    let limits = Limits {
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        memory_bytes: MEMORY_BYTES,
    };
    run_all(&jobs, &limits, |_, job| run(job.scenario, job.rng_seed))
}
