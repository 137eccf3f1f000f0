//! `flotilla tracker`.

use std::net::SocketAddr;

use clap::Args;
use flotilla_runtime::config::ConfigFile;
use flotilla_tracker::{Config, Tracker};

use super::tls::TlsArgs;
use super::{DRAIN, begin};
use crate::cli::{CommandError, block_on};

/// The arguments of `flotilla tracker`.
#[derive(Debug, Args)]
pub struct TrackerArgs {
    /// Where to listen
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070")]
    listen: SocketAddr,
    /// Leases open at once for one blob in one region
    #[arg(long, value_name = "N", default_value_t = Config::default().lease.open)]
    open_leases: u32,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs the tracker until it is told to stop.
///
/// # Errors
/// Why it does not start.
pub fn run(args: TrackerArgs) -> Result<(), CommandError> {
    block_on(async move {
        let shutdown = begin()?;
        let mut config = Config { listen: args.listen, ..Config::default() };
        config.lease.open = args.open_leases;
        let tracker = Tracker::start(config, args.tls.identity()?, &shutdown)
            .await
            .map_err(|error| CommandError::failed("start the tracker", error))?;
        shutdown.wait().await;
        shutdown.drain(DRAIN).await;
        tracker.finished().await;
        Ok(())
    })
}
