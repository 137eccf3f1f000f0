//! Finds the program that the benchmarks start.

use std::env;
use std::path::PathBuf;

use flotilla::command::CommandError;

/// The path of the `flotilla` program, in the folder of this one.
///
/// # Errors
/// If it is not there.
pub(super) fn flotilla_program() -> Result<PathBuf, CommandError> {
    let failed = |cause: String| CommandError::failed("find the program flotilla", cause);
    let this = env::current_exe().map_err(|error| failed(error.to_string()))?;
    let program = this.with_file_name("flotilla");
    if program.is_file() {
        return Ok(program);
    }
    Err(failed(format!(
        "{} does not exist; build it with `cargo build --release`",
        program.display()
    )))
}
