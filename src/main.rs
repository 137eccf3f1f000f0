//! The `flotilla` command: parse, run, exit.

use std::process::ExitCode;

use flotilla::cli::Cli;
use flotilla_runtime::config;

fn main() -> ExitCode {
    config::parse::<Cli>().run()
}
