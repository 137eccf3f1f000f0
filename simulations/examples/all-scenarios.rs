//! Runs every scenario of `scenarios/` with rng seeds 1 to 4, on all processors, and prints a
//! table.
//!
//! ```text
//! all-scenarios [--write] [NAME...]
//! ```
//!
//! `--write` writes `trace-hashes.txt` and `known-misses.toml` anew, for a change that is meant to
//! alter traces or figures; it takes no names.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command-line program prints"
)]

use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla_simulations::{KnownMisses, Outcome, Scenario, run};

const RNG_SEEDS: core::ops::RangeInclusive<u64> = 1..=4;

fn main() -> Result<(), Box<dyn Error>> {
    let mut names: Vec<String> = std::env::args().skip(1).collect();
    let writes = names.iter().any(|name| name == "--write");
    names.retain(|name| name != "--write");
    if writes && !names.is_empty() {
        return Err("--write runs all scenarios and takes no names".into());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut scenarios = Vec::new();
    for entry in fs::read_dir(folder.join("scenarios"))? {
        let scenario = Scenario::parse(&fs::read_to_string(entry?.path())?)?;
        if names.is_empty() || names.contains(&scenario.name) {
            scenarios.push(scenario);
        }
    }
    scenarios.sort_by(|one, other| one.name.cmp(&other.name));
    let outcomes = run_all(&scenarios);
    println!("scenario, rng seed, trace hash, p50, p99, p99 over bound, origin copies, stranded");
    for outcome in &outcomes {
        println!(
            "{} {} {} {:.3} {:.3} {:.4} {:.4} {} {}",
            outcome.scenario,
            outcome.rng_seed,
            outcome.trace_hash,
            outcome.p50_s,
            outcome.p99_s,
            outcome.p99_over_bound,
            outcome.origin_copies,
            outcome.stranded,
            outcome.details.complaints.join("; "),
        );
    }
    if writes {
        let hashes: String = outcomes
            .iter()
            .map(|it| format!("{} {} {}\n", it.scenario, it.rng_seed, it.trace_hash))
            .collect();
        fs::write(folder.join("trace-hashes.txt"), hashes)?;
        let misses = KnownMisses::of(&outcomes).to_toml();
        fs::write(folder.join("known-misses.toml"), misses)?;
    }
    Ok(())
}

/// Runs the scenarios on all processors; the outcomes are in order of scenarios and seeds.
fn run_all(scenarios: &[Scenario]) -> Vec<Outcome> {
    let runs: Vec<(&Scenario, u64)> = scenarios
        .iter()
        .flat_map(|scenario| RNG_SEEDS.map(move |rng_seed| (scenario, rng_seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some((scenario, rng_seed)) = runs.get(number) else {
                        break;
                    };
                    let outcome = run(scenario, *rng_seed);
                    if let Ok(mut outcomes) = outcomes.lock() {
                        outcomes.push((number, outcome));
                    }
                }
            });
        }
    });
    let mut outcomes = outcomes.into_inner().unwrap_or_default();
    outcomes.sort_by_key(|(number, _)| *number);
    outcomes.into_iter().map(|(_, outcome)| outcome).collect()
}
