//! `flotilla tracker`: runs a tracker.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};
use flotilla_runtime::address_range::AddressRange;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::config::ConfigFile;
use flotilla_tracker::{Config, Tracker};

use super::admin::AdminArgs;
use super::service::{init, parse_address};
use super::tls::{TlsArgs, WithoutTls};
use crate::command::{CommandError, block_on};

/// How long a tracker may drain.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// The arguments of `flotilla tracker`.
#[derive(Debug, Args)]
#[command(after_help = "\
Each flag can also be set in the --config file (open-leases = 8) or in the environment (FLOTILLA_OPEN_LEASES=8).
A tracker stores nothing; it can be restarted at any time.

Examples:
  flotilla tracker                                      to try things out: loopback, plain HTTP, no access control
  flotilla tracker --config /etc/flotilla/tracker.toml
  flotilla tracker --listen 0.0.0.0:7070 --own-url http://t1:7070 --trackers http://t1:7070,http://t2:7070")]
pub struct TrackerArgs {
    /// The address for peers
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7070", value_parser = parse_address)]
    listen: SocketAddr,
    /// All trackers of this one's region, including this one, with the URLs that peers use [default:
    /// only this tracker]
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',')]
    trackers: Vec<String>,
    /// This tracker's own URL among --trackers
    #[arg(long, value_name = "URL")]
    own_url: Option<String>,
    /// The addresses that peers may announce although their requests come from another one, because a
    /// proxy or an address translation is in between: 10.0.0.0/8,fd00::/8 [default: none]
    #[arg(long, value_name = "CIDR[,CIDR]", value_delimiter = ',')]
    advertised_from: Vec<AddressRange>,
    /// Chunks of one blob that peers of one region may fetch from the origin at the same time
    #[arg(long, value_name = "N", default_value_t = Config::default().lease.open, value_parser = value_parser!(u32).range(1..))]
    open_leases: u32,
    /// Record what the state machine is told and what it decides, in a file of this directory that
    /// `flotilla simulate replay` repeats; for developers: it may grow to 1 GiB
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs a tracker until SIGTERM or SIGINT.
///
/// # Errors
/// If it does not start.
pub fn run(args: TrackerArgs) -> Result<(), CommandError> {
    block_on(async move {
        let shutdown = init()?;
        let mut config = Config {
            listen: args.listen,
            admin: args.admin.into(),
            trackers: args.trackers,
            own_url: args.own_url,
            advertised_from: args.advertised_from,
            record: args.record,
            ..Config::default()
        };
        config.lease.open = args.open_leases;
        let identity = args.tls.identity(WithoutTls::PlainHttp)?;
        let tracker = Tracker::start(config, identity, Clock::system(), &shutdown)
            .await
            .map_err(|error| CommandError::failed("start the tracker", error))?;
        shutdown.wait().await;
        let drained = shutdown.drain(DRAIN_TIMEOUT).await;
        tracker.finished().await;
        tracing::info!(?drained, "tracker stopped");
        Ok(())
    })
}
