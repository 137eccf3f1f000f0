//! Logs: one subscriber for the process, which writes to standard error.
//!
//! `FLOTILLA_LOG` is the filter, in the syntax of `tracing-subscriber` (`info`,
//! `flotilla_peer=debug,warn`). Standard output belongs to the output of commands: never log there.
//! A line that cannot be written, because the pipe is closed or the disk is full, is dropped
//! without further effect.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The environment variable with the filter.
pub const FILTER_VARIABLE: &str = "FLOTILLA_LOG";

const DEFAULT_FILTER: &str = "info";

/// The format of log lines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// Human-readable lines.
    Text,
    /// One JSON object per line.
    Json,
}

/// The filter in `FLOTILLA_LOG` is not valid.
#[derive(Debug, thiserror::Error)]
#[error(
    "{FILTER_VARIABLE} '{filter}' is not a valid filter ({source}): use a level (error, warn, info, debug, trace) or target=level, separated by commas"
)]
pub struct FilterError {
    filter: String,
    source: ParseError,
}

/// Starts logging with the filter in `FLOTILLA_LOG`, or at `info`. Later calls in the same process
/// have no effect, so tests may call it freely.
///
/// # Errors
/// The filter is not valid; logging is not started.
pub fn init(format: LogFormat) -> Result<(), FilterError> {
    init_with(
        format,
        std::env::var(FILTER_VARIABLE)
            .ok()
            .as_deref()
            .unwrap_or(DEFAULT_FILTER),
    )
}

/// [`init`] with a given filter, for commands that show progress and need a quiet log.
///
/// # Errors
/// The filter is not valid; logging is not started.
pub fn init_with(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| FilterError {
        filter: filter.to_owned(),
        source,
    })?;
    let on_terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        // Reporting a failed write to standard error would fail again, and panic in the caller.
        .log_internal_errors(false);
    let json = match format {
        LogFormat::Auto => !on_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let _already_started = if json {
        lines.json().flatten_event(true).try_init()
    } else {
        lines.with_ansi(on_terminal).try_init()
    };
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    #[test]
    fn starting_twice_has_no_effect() {
        init_with(LogFormat::Text, "warn").unwrap();
        init_with(LogFormat::Json, "flotilla_runtime=debug,info").unwrap();
    }

    #[test]
    fn invalid_filter_is_an_error_with_a_fix() {
        let error = init_with(LogFormat::Auto, "flotilla_peer=loud")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("FLOTILLA_LOG 'flotilla_peer=loud'"),
            "{error}"
        );
        assert!(error.contains("debug"), "{error}");
    }
}
