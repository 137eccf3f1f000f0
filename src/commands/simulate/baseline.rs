//! Comparing results with a committed baseline, and moving the baseline.

use std::fs;
use std::path::Path;

use flotilla_simulations::{Baseline, Outcome, Results};

use crate::command::CommandError;

/// Prints on stderr what moved against the baseline; whether all of it is tolerated.
pub(super) fn compare(path: &Path, results: &Results) -> Result<bool, CommandError> {
    let comparison = read(path)?.compare(&outcomes(results));
    eprint!("{}", comparison.text());
    Ok(comparison.is_ok())
}

/// Replaces the results of the scenarios that ran, and prints on stderr what moved.
pub(super) fn update(path: &Path, results: &Results) -> Result<(), CommandError> {
    let mut baseline = read(path)?;
    let outcomes = outcomes(results);
    eprint!("{}", baseline.compare(&outcomes).moves_text());
    baseline.update(&outcomes);
    super::write(path, &baseline.to_json())
}

fn read(path: &Path) -> Result<Baseline, CommandError> {
    let action = || format!("read baseline {}", path.display());
    let text = fs::read_to_string(path).map_err(|error| CommandError::failed(action(), error))?;
    Baseline::parse(&text).map_err(|error| CommandError::failed(action(), error))
}

fn outcomes(results: &Results) -> Vec<&Outcome> {
    results.runs.iter().map(|run| &run.outcome).collect()
}
