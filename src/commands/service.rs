//! What the commands that run a service share: logging, signals, and parsers of their arguments.
//!
//! A service command turns its arguments (flags, environment, configuration file) into the
//! service's configuration, starts the service, and drains it on SIGTERM or SIGINT.

use std::net::SocketAddr;

use flotilla_common::units::{BitRate, UnitError};
use flotilla_runtime::shutdown::Shutdown;
use flotilla_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};

use crate::command::CommandError;

/// The least rate limit: a part of 256 KiB takes 2 s, as long as a peer waits for one.
const MIN_RATE: BitRate = BitRate(1_000_000);

/// Starts logging and listens for signals.
///
/// # Errors
/// If `FLOTILLA_LOG` is not valid, or a signal handler cannot be installed.
pub(super) fn init() -> Result<Shutdown, CommandError> {
    telemetry::init(LogFormat::Auto)
        .map_err(|error| CommandError::failed("start logging", error))?;
    let failed = |error| CommandError::failed("listen for signals", error);
    // Services reload files on SIGHUP. One without certificates has none to reload and installs no
    // handler, but `systemctl reload` must not kill it. Tokio never restores a signal's default
    // action, so creating the stream once is enough.
    let _hangup = signal(SignalKind::hangup()).map_err(failed)?;
    Shutdown::on_signals().map_err(failed)
}

/// Parses an address to listen on.
pub(super) fn parse_address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(
        |_| "write an IP address and a port, such as 127.0.0.1:5000 or 0.0.0.0:5000; host names are not supported",
    )
}

/// Parses a rate limit, and rejects one that is too low to pull images.
pub(super) fn parse_rate_limit(text: &str) -> Result<BitRate, String> {
    let rate: BitRate = text.parse().map_err(|error: UnitError| error.to_string())?;
    if rate < MIN_RATE {
        return Err(format!(
            "{rate} is too low: pulls would time out; the minimum is {MIN_RATE} (write the unit: 200Mbit)"
        ));
    }
    Ok(rate)
}
