//! `flotilla origin`, `tracker` and `peer`: the services as processes of their own.
//!
//! Each turns its arguments (flag, environment, configuration file) into the service's
//! configuration, starts it, and drains it on SIGTERM or SIGINT.

mod check;
mod origin;
mod peer;
mod tls;
mod tracker;

use std::net::SocketAddr;
use std::time::Duration;

use flotilla_common::units::{BitRate, UnitError};
use flotilla_runtime::shutdown::Shutdown;
use flotilla_runtime::telemetry::{self, LogFormat};
use tokio::signal::unix::{SignalKind, signal};

pub use origin::{OriginArgs, run as origin};
pub use peer::{PeerArgs, run as peer};
pub use tracker::{TrackerArgs, run as tracker};

use crate::cli::CommandError;

/// At this rate a part of 256 KiB takes two seconds, and longer nobody waits for one.
const LEAST_RATE: BitRate = BitRate(1_000_000);
/// How long a service may drain.
const DRAIN: Duration = Duration::from_secs(20);

/// Logging and signals, which every service begins with.
fn begin() -> Result<Shutdown, CommandError> {
    telemetry::init(LogFormat::Auto)
        .map_err(|error| CommandError::failed("start logging", error))?;
    let failed = |error| CommandError::failed("listen for signals", error);
    // Files are read again on SIGHUP. A service without certificates has none, and `systemctl
    // reload` must not end it: once it was listened for, a signal has not its default effect any
    // more.
    let _hangup = signal(SignalKind::hangup()).map_err(failed)?;
    Shutdown::on_signals().map_err(failed)
}

/// Where to listen.
fn address(text: &str) -> Result<SocketAddr, &'static str> {
    text.parse().map_err(
        |_| "write an IP address and a port, such as 127.0.0.1:5000 or 0.0.0.0:5000; names are not looked up",
    )
}

/// A cap under which images can still be pulled.
fn useful_rate(text: &str) -> Result<BitRate, String> {
    let rate: BitRate = text.parse().map_err(|error: UnitError| error.to_string())?;
    if rate < LEAST_RATE {
        return Err(format!(
            "{rate} is too slow for images, and every pull would stand still; the least is {LEAST_RATE}, and the unit must be \
             written: 200Mbit"
        ));
    }
    Ok(rate)
}
