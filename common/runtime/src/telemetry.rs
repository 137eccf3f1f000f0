//! Logs: one subscriber for the process, to standard error.
//!
//! `FLOTILLA_LOG` selects what is logged, in the syntax of `tracing-subscriber`'s filters (`info`,
//! `flotilla_peer=debug,warn`). Standard output belongs to what commands print: never log there. A
//! line that cannot be written, since nobody reads the pipe any more or the disk is full, is lost,
//! and nothing else.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The environment variable with the filter.
pub const FILTER_VARIABLE: &str = "FLOTILLA_LOG";

const DEFAULT_FILTER: &str = "info";

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    /// For people.
    Text,
    /// One object per line, for machines.
    Json,
}

/// The filter in `FLOTILLA_LOG` cannot be read.
#[derive(Debug, thiserror::Error)]
#[error(
    "{FILTER_VARIABLE} '{filter}' is no filter ({source}): write a level (error, warn, info, debug, trace) or target=level, parted by commas"
)]
pub struct FilterError {
    filter: String,
    source: ParseError,
}

/// Starts logging with the filter in `FLOTILLA_LOG`, otherwise at `info`. Later calls in the same
/// process change nothing, so that tests may call it freely.
///
/// # Errors
/// The filter cannot be read; nothing is started then.
pub fn init(format: LogFormat) -> Result<(), FilterError> {
    init_with(
        format,
        std::env::var(FILTER_VARIABLE)
            .ok()
            .as_deref()
            .unwrap_or(DEFAULT_FILTER),
    )
}

/// [`init`] with a filter of the caller's, for commands that show progress and want a quiet log.
///
/// # Errors
/// The filter cannot be read; nothing is started then.
pub fn init_with(format: LogFormat, filter: &str) -> Result<(), FilterError> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| FilterError {
        filter: filter.to_owned(),
        source,
    })?;
    let on_terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(io::stderr)
        // It would complain on standard error, which just failed, and panic in whoever logs.
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
    fn starting_twice_is_fine() {
        init_with(LogFormat::Text, "warn").unwrap();
        init_with(LogFormat::Json, "flotilla_runtime=debug,info").unwrap();
    }

    #[test]
    fn a_bad_filter_is_named_with_its_cure() {
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
