//! Helpers shared by all commands: run a future, print the result, set the exit status.
//!
//! Commands depend on this module and the table of commands ([`crate::cli`]) depends on them; this
//! module depends on neither.

use std::fmt;
use std::io::{ErrorKind, Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use flotilla_runtime::shutdown::Shutdown;
use serde::Serialize;

/// How long a finished command waits for blocking threads that still hash or write.
const BLOCKING_THREADS_TIMEOUT: Duration = Duration::from_secs(5);

/// Why a command ended without success.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// An action failed.
    #[error("{action}: {source}")]
    Failed {
        /// What was attempted: verb and noun.
        action: String,
        /// The cause.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The command ran, and its result does not meet its criteria. The output already says so.
    #[error("the result does not meet the criteria")]
    CriteriaNotMet,
    /// The reader of stdout has closed the pipe (`| head`): not an error.
    #[error("broken pipe")]
    BrokenPipe,
}

impl CommandError {
    /// `action` (verb and noun) failed because of `source`.
    pub fn failed(
        action: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            action: action.into(),
            source: source.into(),
        }
    }
}

/// The exit status for a command's result: 0 for success and 1 for failure, with the error printed
/// on stderr after the program's name. (clap exits with 2 for a wrong flag.)
pub fn exit_code(program: &str, result: Result<(), CommandError>) -> ExitCode {
    match result {
        Ok(()) | Err(CommandError::BrokenPipe) => ExitCode::SUCCESS,
        Err(CommandError::CriteriaNotMet) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{program}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a command's future to completion on all cores, then stops its remaining tasks.
///
/// # Errors
/// The future's error, or that the runtime does not start.
pub fn block_on(
    command: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CommandError::failed("start the runtime", error))?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(BLOCKING_THREADS_TIMEOUT);
    result
}

/// As [`block_on`], but SIGTERM or SIGINT drops the future, so that everything it started ends
/// with it.
///
/// # Errors
/// As [`block_on`]; an interruption is an error, too.
pub fn block_on_until_signal(
    command: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    block_on(async {
        let shutdown = Shutdown::on_signals()
            .map_err(|error| CommandError::failed("listen for signals", error))?;
        tokio::select! {
            result = command => result,
            () = shutdown.wait() => Err(CommandError::failed("run the command", "interrupted by a signal")),
        }
    })
}

/// Prints one JSON object on stdout.
///
/// # Errors
/// If the value cannot be encoded; as [`print_text`].
pub fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text =
        serde_json::to_string(value).map_err(|error| CommandError::failed("encode JSON", error))?;
    print_text(format_args!("{text}\n"))
}

/// Prints a command's outcome, as JSON or as `text`, and turns `ok` into the command's result.
///
/// # Errors
/// As [`print_json`]; [`CommandError::CriteriaNotMet`] unless `ok`.
pub fn print_outcome<T: Serialize>(
    outcome: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
    ok: bool,
) -> Result<(), CommandError> {
    if json {
        print_json(outcome)?;
    } else {
        print_text(text(outcome))?;
    }
    if ok {
        Ok(())
    } else {
        Err(CommandError::CriteriaNotMet)
    }
}

/// Prints text on stdout.
///
/// # Errors
/// [`CommandError::BrokenPipe`], or another error of the write.
pub fn print_text(text: impl fmt::Display) -> Result<(), CommandError> {
    let mut stdout = stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(CommandError::BrokenPipe),
        written => written.map_err(|error| CommandError::failed("print the result", error)),
    }
}
