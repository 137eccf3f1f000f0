//! Runs every scenario of `scenarios/` with the rng seeds of `all.toml`, on all processors, and
//! prints a table.
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
    Baseline, Job, KnownMisses, Limits, Outcome, RunSet, Scenario, restart_with_huge_pages, run,
    run_all,
};

/// Memory for runs at the same time.
const MEMORY_BYTES: u64 = 8 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    restart_with_huge_pages();
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let writes = names.iter().any(|name| name == "--write");
    names.retain(|name| name != "--write");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = folder.join("all.toml");
    let set = RunSet::parse(&fs::read_to_string(&path)?)?;
    let mut runs = Vec::new();
    for (name, rng_seeds) in set.runs() {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            let scenario = Scenario::read(&RunSet::scenario_path(&path, name))?;
            runs.push((scenario, rng_seeds.as_slice()));
        }
    }
    let outcomes = run_each(&runs);
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
fn run_each(runs: &[(Scenario, &[u64])]) -> Vec<Outcome> {
    let jobs: Vec<Job<'_>> = runs
        .iter()
        .flat_map(|(scenario, rng_seeds)| {
            let rng_seeds = rng_seeds.iter().copied();
            rng_seeds.map(move |rng_seed| Job { scenario, rng_seed })
        })
        .collect();
    let limits = Limits {
        threads: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        memory_bytes: MEMORY_BYTES,
    };
    run_all(&jobs, &limits, |_, job| run(job.scenario, job.rng_seed))
}
