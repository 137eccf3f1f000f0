//! `flotilla simulate`: runs scenarios in the simulator, which drives the production state
//! machines, and prints the outcomes.

mod baseline;
mod compare;
mod memory;
mod progress;
mod replay;

use std::fs;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread::available_parallelism;
use std::time::Instant;

use clap::{Args, Subcommand};
use flotilla_common::units::ByteSize;
use flotilla_simulations::{
    Job, Limits, Outcome, Results, RngSeeds, RunOptions, RunResult, RunSet, Scenario,
    ScenarioError, Variation, report, restart_with_huge_pages, run_all, run_with,
};
use serde::Serialize;

use self::compare::CompareArgs;
use self::progress::RunsProgress;
use self::replay::ReplayArgs;
use crate::command::{CommandError, print_json, print_text};

/// The arguments of `flotilla simulate`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct SimulateArgs {
    #[command(subcommand)]
    command: Option<SimulateCommand>,
    /// The scenario files, for example simulations/scenarios/burst-16.toml
    #[arg(required_unless_present = "set", value_name = "SCENARIO")]
    scenarios: Vec<PathBuf>,
    /// Run the scenarios of a set with its seeds, for example simulations/quick.toml
    #[arg(long, value_name = "FILE", conflicts_with_all = ["scenarios", "rng_seed", "rng_seeds"])]
    set: Option<PathBuf>,
    /// Run each scenario once for each value of a key, such as machine.slots=2,3,4
    #[arg(long, value_name = "KEY=V1,V2", conflicts_with = "set")]
    vary: Option<Variation>,
    /// The random number generator's seed; the same seed gives the same trace on every machine
    #[arg(long, value_name = "S", default_value_t = 1)]
    rng_seed: u64,
    /// Run each scenario with several seeds, such as 1..16 (both ends included) or 1,2,5
    #[arg(long, value_name = "A..B", conflicts_with = "rng_seed")]
    rng_seeds: Option<RngSeeds>,
    /// Write the outcome as one JSON object to FILE, or to stdout with `-`
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Print what moved against the results in FILE, for example simulations/baselines.json, and
    /// fail if a figure moved beyond the tolerance that the file states
    #[arg(long, value_name = "FILE", alias = "compare")]
    baseline: Option<PathBuf>,
    /// Write the results of the scenarios that ran to a baseline's FILE, in the place of older ones
    #[arg(long, value_name = "FILE", conflicts_with = "baseline")]
    update_baseline: Option<PathBuf>,
    /// Include the curves over time in the JSON, for reports that compare two runs
    #[arg(long)]
    curves: bool,
    /// Write an HTML report to FILE
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
    /// Run at most N simulations at once; by default as many as there are processors
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Run only as many simulations at once as fit into this much memory; by default nine tenths of
    /// the free memory
    #[arg(long, value_name = "BYTES")]
    memory: Option<ByteSize>,
    /// Print the last N events before the first violation of a run
    #[arg(long, value_name = "N", default_value_t = 40)]
    last_events: usize,
}

#[derive(Debug, Subcommand)]
enum SimulateCommand {
    /// Compare two results: print how the figures differ, and write a report of both side by side
    Compare(CompareArgs),
    /// Repeat recordings of real services: give their inputs to fresh machines, as the simulator
    /// has them, and compare the outputs
    Replay(ReplayArgs),
}

impl SimulateArgs {
    fn has_curves(&self) -> bool {
        self.report.is_some() || self.curves
    }
}

/// A scenario, its file, and the seeds with which it runs.
struct PlannedScenario {
    path: PathBuf,
    scenario: Scenario,
    rng_seeds: Vec<u64>,
}

/// Runs the command.
///
/// # Errors
/// If a scenario cannot be read or an output cannot be written; [`CommandError::CriteriaNotMet`]
/// if an outcome does not meet its scenario's criteria, or differs from the baseline.
pub fn run(args: &SimulateArgs) -> Result<(), CommandError> {
    match &args.command {
        Some(SimulateCommand::Compare(args)) => return compare::run(args),
        Some(SimulateCommand::Replay(args)) => return replay::run(args),
        None => {}
    }
    restart_with_huge_pages();
    let plan = plan(args)?;
    let runs: Vec<(&PlannedScenario, Job<'_>)> = plan
        .iter()
        .flat_map(|planned| {
            planned.rng_seeds.iter().map(move |rng_seed| {
                let (scenario, rng_seed) = (&planned.scenario, *rng_seed);
                (planned, Job { scenario, rng_seed })
            })
        })
        .collect();
    let jobs: Vec<Job<'_>> = runs.iter().map(|(_, job)| *job).collect();
    let outcomes = run_jobs(args, &jobs);
    for ((planned, job), outcome) in runs.iter().zip(&outcomes) {
        if outcome.details.is_violated {
            explain_violation(args, &planned.path, job);
        }
    }
    let is_single = outcomes.len() == 1 && args.rng_seeds.is_none() && args.set.is_none();
    let with_curves = |outcome| RunResult::new(outcome, args.has_curves());
    let mut results = Results::new(outcomes.into_iter().map(with_curves).collect());
    if let Some(path) = &args.report {
        write(path, &report(&results))?;
    }
    if !args.curves {
        results.drop_curves();
    }
    match &results.runs[..] {
        [run] if is_single => print_results(args, run, &summary(&run.outcome))?,
        _ => print_results(args, &results, &results.table())?,
    }
    if let Some(path) = &args.update_baseline {
        // A baseline says what the machines do, with or without missed bars.
        return baseline::update(path, &results);
    }
    let is_as_before = match &args.baseline {
        Some(path) => baseline::compare(path, &results)?,
        None => true,
    };
    if results.ok && is_as_before {
        Ok(())
    } else {
        Err(CommandError::CriteriaNotMet)
    }
}

/// The scenarios that the arguments name, with their seeds.
fn plan(args: &SimulateArgs) -> Result<Vec<PlannedScenario>, CommandError> {
    let Some(path) = &args.set else {
        let rng_seeds = match &args.rng_seeds {
            Some(seeds) => seeds.as_slice().to_vec(),
            None => vec![args.rng_seed],
        };
        let mut plan = Vec::new();
        for path in &args.scenarios {
            let scenarios = match &args.vary {
                Some(variation) => Scenario::read_varied(path, variation),
                None => Scenario::read(path).map(|scenario| vec![scenario]),
            };
            plan.extend(read(path, scenarios)?.into_iter().map(|scenario| {
                let (path, rng_seeds) = (path.clone(), rng_seeds.clone());
                PlannedScenario {
                    path,
                    scenario,
                    rng_seeds,
                }
            }));
        }
        return Ok(plan);
    };
    let action = || format!("read set {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| CommandError::failed(action(), error))?;
    let set = RunSet::parse(&text).map_err(|error| CommandError::failed(action(), error))?;
    set.runs()
        .map(|(name, seeds)| {
            let path = RunSet::scenario_path(path, name);
            let scenario = read(&path, Scenario::read(&path))?;
            Ok(PlannedScenario {
                path,
                scenario,
                rng_seeds: seeds.as_slice().to_vec(),
            })
        })
        .collect()
}

/// Names the file in the error of a scenario that could not be read.
fn read<T>(path: &Path, scenario: Result<T, ScenarioError>) -> Result<T, CommandError> {
    let action = || format!("read scenario {}", path.display());
    scenario.map_err(|error| CommandError::failed(action(), error))
}

/// Runs the jobs in parallel, and shows their progress.
fn run_jobs(args: &SimulateArgs, jobs: &[Job<'_>]) -> Vec<Outcome> {
    let processors = available_parallelism().unwrap_or(NonZeroUsize::MIN);
    let limits = Limits {
        threads: args.jobs.unwrap_or(processors),
        memory_bytes: args
            .memory
            .map_or_else(memory::usable_bytes, |memory| memory.0),
    };
    let progress = RunsProgress::new(jobs.len());
    run_all(jobs, &limits, |_, job| {
        let shown = progress.add_run(job);
        let options = RunOptions {
            progress: Some(&|progress| shown.update(progress)),
            has_timeline: args.has_curves(),
            last_events: 0,
        };
        let start = Instant::now();
        let mut outcome = run_with(job.scenario, job.rng_seed, &options);
        outcome.wall_s = start.elapsed().as_secs_f64();
        shown.finish(&outcome);
        outcome
    })
}

/// Runs a job again, which replays it exactly, to print the events before its violation.
fn explain_violation(args: &SimulateArgs, path: &Path, job: &Job<'_>) {
    let options = RunOptions {
        last_events: args.last_events,
        ..RunOptions::default()
    };
    let details = run_with(job.scenario, job.rng_seed, &options).details;
    let (name, rng_seed) = (&job.scenario.name, job.rng_seed);
    eprintln!("violation in scenario {name} with rng seed {rng_seed}:");
    for complaint in &details.complaints {
        eprintln!("  {complaint}");
    }
    if args.last_events > 0 {
        eprintln!("last events before the first violation:");
        for event in &details.last_events {
            eprintln!("  {event}");
        }
    }
    let path = path.display();
    eprintln!("replay it with: flotilla simulate {path} --rng-seed {rng_seed}");
}

/// Writes the JSON where the arguments want it, and prints the text unless the JSON is on stdout.
fn print_results(
    args: &SimulateArgs,
    results: &impl Serialize,
    text: &str,
) -> Result<(), CommandError> {
    match &args.json {
        Some(path) if path == Path::new("-") => print_json(results),
        Some(path) => {
            let json = serde_json::to_string(results)
                .map_err(|error| CommandError::failed("encode the outcome", error))?;
            write(path, &json)?;
            print_text(text)
        }
        None => print_text(text),
    }
}

fn write(path: &Path, text: &str) -> Result<(), CommandError> {
    fs::write(path, text)
        .map_err(|error| CommandError::failed(format!("write {}", path.display()), error))
}

/// The outcome as text.
fn summary(outcome: &Outcome) -> String {
    let details = &outcome.details;
    let complaints = details.complaints.iter();
    let result = match outcome.ok {
        true => "ok".to_owned(),
        false => complaints.fold("failed".to_owned(), |text, complaint| {
            text + "\n                 " + complaint
        }),
    };
    let copies = outcome.copies_by_region.iter();
    let copies: Vec<String> = copies.map(|copies| format!("{copies:.3}")).collect();
    format!(
        "scenario         {} (rng seed {})\n\
         peers            {}, stranded {}\n\
         time of a pull   p50 {:.2} s, p99 {:.2} s, longest {:.2} s; first byte p99 {:.2} s\n\
         bounds           fluid {:.2} s, pipelined {:.2} s; p99 is {:.3} times the greater one\n\
         longest stall    {:.2} s\n\
         origin copies    {} by region\n\
         between regions  {:.3} copies, {:.3} of chunks that the region held already\n\
         simulated        {:.1} s in {:.2} s, {} events, trace {}\n\
         result           {result}\n",
        outcome.scenario,
        outcome.rng_seed,
        outcome.peers,
        outcome.stranded,
        outcome.p50_s,
        outcome.p99_s,
        outcome.max_s,
        outcome.first_byte_p99_s,
        outcome.fluid_bound_s,
        outcome.pipelined_bound_s,
        outcome.p99_over_bound,
        outcome.stall_s,
        copies.join(", "),
        outcome.wan_copies,
        outcome.wan_repeats,
        outcome.simulated_s,
        outcome.wall_s,
        outcome.events,
        outcome.trace_hash,
    )
}
