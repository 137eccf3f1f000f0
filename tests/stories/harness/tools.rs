//! Third-party programs that a test needs.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// If set to anything but `0` or an empty string, a missing tool fails its test instead of skipping
/// it.
const FORBID_SKIPS: &str = "FLOTILLA_FORBID_SKIPS";

/// Finds all `tools`, and checks for root if `needs_root`. If something is missing, reports that
/// the test is skipped and returns `None`.
///
/// # Panics
/// If something is missing and skips are forbidden.
pub(crate) fn find_or_skip(test: &str, tools: &[&str], needs_root: bool) -> Option<Vec<PathBuf>> {
    let found: Result<Vec<_>, _> = tools
        .iter()
        .map(|tool| on_path(tool).ok_or(*tool))
        .collect();
    let missing = match &found {
        Err(tool) => Some(format!("{tool} is not installed")),
        Ok(_) if needs_root && !is_root() => Some("it must run as root".to_owned()),
        Ok(_) => None,
    };
    if let Some(missing) = missing {
        skip(test, &missing);
        return None;
    }
    found.ok()
}

/// Reports that a test is skipped, and why. `tests/run` lists these lines in its summary.
///
/// # Panics
/// If skips are forbidden.
pub(crate) fn skip(test: &str, reason: &str) {
    let forbidden =
        env::var_os(FORBID_SKIPS).is_some_and(|value| !value.is_empty() && value != "0");
    assert!(!forbidden, "{test}: {reason}, and {FORBID_SKIPS} is set");
    eprintln!("SKIPPED {test}: {reason}");
}

fn on_path(tool: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path)
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

fn is_root() -> bool {
    run(Path::new("id"), ["-u"]).is_ok_and(|text| text.trim() == "0")
}

/// Runs a program to its end and returns its stdout.
///
/// # Errors
/// If it fails, with its output.
pub(crate) fn run<S: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = S>,
) -> Result<String, String> {
    output(Command::new(program).args(arguments))
}

/// As [`run`], for a prepared command.
///
/// # Errors
/// If it fails, with its output.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let program = command.get_program().display().to_string();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("run {program}: {error}"))?;
    let Output {
        status,
        stdout,
        stderr,
    } = output;
    let text = String::from_utf8_lossy(&stdout).into_owned();
    if status.success() {
        Ok(text)
    } else {
        Err(format!(
            "{program} ended with {status}:\n{text}{}",
            String::from_utf8_lossy(&stderr)
        ))
    }
}
