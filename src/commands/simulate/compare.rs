//! `flotilla simulate compare`: two results side by side.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use flotilla_simulations::{Results, compare_report, comparison_table};

use crate::command::{CommandError, print_text};

/// The arguments of `flotilla simulate compare`.
#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    /// What `flotilla simulate --json FILE --curves` wrote
    #[arg(value_name = "A.json")]
    one: PathBuf,
    /// The same, of other runs
    #[arg(value_name = "B.json")]
    other: PathBuf,
    /// Write an HTML report to FILE
    #[arg(long, value_name = "FILE.html")]
    report: Option<PathBuf>,
}

/// Runs the command.
pub(super) fn run(args: &CompareArgs) -> Result<(), CommandError> {
    let (one, other) = (read(&args.one)?, read(&args.other)?);
    let names = [name(&args.one), name(&args.other)];
    let names = [names[0].as_str(), names[1].as_str()];
    if let Some(path) = &args.report {
        super::write(path, &compare_report(&one, &other, names))?;
    }
    print_text(comparison_table(&one, &other, names))
}

fn read(path: &Path) -> Result<Results, CommandError> {
    let action = || format!("read results {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| CommandError::failed(action(), error))?;
    Results::parse(&text).map_err(|error| CommandError::failed(action(), error))
}

/// The file's name without its extension, as the results are named in tables.
fn name(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or(path.as_os_str());
    stem.to_string_lossy().into_owned()
}
