//! `flotilla tracker`.

use std::net::SocketAddr;

use clap::{Args, value_parser};
use flotilla_runtime::config::ConfigFile;
use flotilla_tracker::{Config, Tracker};

use super::tls::{TlsArgs, WithoutTls};
use super::{DRAIN, address, begin};
use crate::cli::{CommandError, block_on};

/// The arguments of `flotilla tracker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Every flag is also a line of the --config file (open-leases = 8) and an environment variable (FLOTILLA_OPEN_LEASES=8).
The tracker keeps nothing: it may be stopped and started at any time.

Examples:
  flotilla tracker                                      for trying things out: loopback, plain HTTP, anybody
  flotilla tracker --config /etc/flotilla/tracker.toml
  flotilla tracker --listen 0.0.0.0:7070 --own-url http://t1:7070 --trackers http://t1:7070,http://t2:7070")]
pub struct TrackerArgs {
    /// Where to listen, for peers and for /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070", value_parser = address)]
    listen: SocketAddr,
    /// All trackers of the fleet, this one too, as the peers know them [default: this one alone]
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',')]
    trackers: Vec<String>,
    /// This tracker's own URL among --trackers
    #[arg(long, value_name = "URL")]
    own_url: Option<String>,
    /// Chunks of one blob that may be fetched from the origin at once in one region
    #[arg(long, value_name = "N", default_value_t = Config::default().lease.open, value_parser = value_parser!(u32).range(1..))]
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
        let (trackers, own_url) = (args.trackers, args.own_url);
        let mut config = Config {
            listen: args.listen,
            trackers,
            own_url,
            ..Config::default()
        };
        config.lease.open = args.open_leases;
        let identity = args.tls.identity(WithoutTls::Plain)?;
        let tracker = Tracker::start(config, identity, &shutdown)
            .await
            .map_err(|error| CommandError::failed("start the tracker", error))?;
        shutdown.wait().await;
        let drained = shutdown.drain(DRAIN).await;
        tracker.finished().await;
        tracing::info!(?drained, "tracker stopped");
        Ok(())
    })
}
