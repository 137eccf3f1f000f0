//! `flotilla simulate`: runs a scenario in the simulator, which drives the production state
//! machines, and prints the outcome.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use flotilla_simulations::{Outcome, Scenario};

use crate::command::{CommandError, print_json, print_text};

/// The arguments of `flotilla simulate`.
#[derive(Debug, Args)]
pub struct SimulateArgs {
    /// The scenario file, for example simulations/scenarios/burst-16.toml
    scenario: PathBuf,
    /// The random number generator's seed; the same seed gives the same trace on every machine
    #[arg(long, value_name = "S", default_value_t = 1)]
    rng_seed: u64,
    /// Write the outcome as one JSON object to FILE, or to stdout with `-`
    #[arg(long, value_name = "FILE|-")]
    json: Option<PathBuf>,
    /// Write an HTML report with the completion curve to FILE
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// Runs the command.
///
/// # Errors
/// If the scenario cannot be read or an output cannot be written; [`CommandError::CriteriaNotMet`]
/// if the outcome does not meet the scenario's criteria.
pub fn run(args: &SimulateArgs) -> Result<(), CommandError> {
    let text = fs::read_to_string(&args.scenario).map_err(|error| {
        CommandError::failed(format!("read scenario {}", args.scenario.display()), error)
    })?;
    let scenario = Scenario::parse(&text).map_err(|error| {
        CommandError::failed(format!("read scenario {}", args.scenario.display()), error)
    })?;
    let start = Instant::now();
    let mut outcome = flotilla_simulations::run(&scenario, args.rng_seed);
    outcome.wall_s = start.elapsed().as_secs_f64();
    if let Some(path) = &args.report {
        write(path, &flotilla_simulations::report(&outcome))?;
    }
    match &args.json {
        Some(path) if path == Path::new("-") => print_json(&outcome)?,
        Some(path) => {
            let text = serde_json::to_string(&outcome)
                .map_err(|error| CommandError::failed("encode the outcome", error))?;
            write(path, &text)?;
            print_text(summary(&outcome))?;
        }
        None => print_text(summary(&outcome))?,
    }
    if outcome.ok {
        Ok(())
    } else {
        Err(CommandError::CriteriaNotMet)
    }
}

fn write(path: &Path, text: &str) -> Result<(), CommandError> {
    fs::write(path, text)
        .map_err(|error| CommandError::failed(format!("write {}", path.display()), error))
}

/// The outcome as text.
fn summary(outcome: &Outcome) -> String {
    format!(
        "scenario         {} (rng seed {})\n\
         peers            {}, stranded {}\n\
         time of a pull   p50 {:.2} s, p99 {:.2} s, longest {:.2} s; first byte p99 {:.2} s\n\
         bounds           fluid {:.2} s, pipelined {:.2} s; p99 is {:.3} times the pipelined bound\n\
         origin copies    {:.3}\n\
         between regions  {} bytes\n\
         simulated        {:.1} s in {:.2} s, {} events, trace {}\n\
         result           {}\n",
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
        outcome.origin_copies,
        outcome.wan_bytes,
        outcome.simulated_s,
        outcome.wall_s,
        outcome.events,
        outcome.trace_hash,
        if outcome.ok { "ok" } else { "failed" },
    )
}
