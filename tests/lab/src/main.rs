//! `flotilla-lab`: the project's own benchmarks, which set up whole regions on one machine.
//! (`flotilla bench` has those that operators run on their fleets.)

mod commands;

use std::process::ExitCode;

use clap::Parser;
use commands::Command;

/// Benchmarks of Flotilla that set up whole regions on this machine
#[derive(Debug, Parser)]
#[command(name = "flotilla-lab", version, about, max_term_width = 120)]
#[command(after_help = "\
The program `flotilla` must be in the same folder: build both with `cargo build --release --workspace`.
Exit status 1 means that the result does not meet its criteria, or that the benchmark failed.")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    flotilla::command::exit_code("flotilla-lab", Cli::parse().command.run())
}
