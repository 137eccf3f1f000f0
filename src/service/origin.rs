//! `flotilla origin`.

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Args, Subcommand, value_parser};
use flotilla_common::name::RegionName;
use flotilla_common::units::BitRate;
use flotilla_origin::{Config, Limits, Origin, ReplicaAddress, Replicas};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::config::ConfigFile;
use flotilla_runtime::identity::load_seal_key;

use super::check::{self, CheckArgs};
use super::tls::{TlsArgs, WithoutTls};
use super::{address, begin, useful_rate};
use crate::cli::{CommandError, block_on};

/// The arguments of `flotilla origin`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Without a command it runs an origin. Every flag is also a line of the --config file (seal-key = \"...\") and an environment variable (FLOTILLA_SEAL_KEY).
Whatever it acknowledges is in the storage: it may be stopped and started at any time, and run several times.
Replicas on one storage that list each other show an acknowledged change at once; others within seconds.

Examples:
  flotilla pki init --dir pki
  flotilla origin --storage file:///var/lib/flotilla/origin --seal-key pki/local.seal.key
  flotilla origin --config origin.toml --replica-listen 0.0.0.0:5001 --replicas origin-replicas.internal:5001
  flotilla origin --config /etc/flotilla/origin.toml
  flotilla origin check --storage file:///var/lib/flotilla/origin")]
pub struct OriginArgs {
    #[command(subcommand)]
    command: Option<OriginCommand>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum OriginCommand {
    /// Verify that a storage holds what was acknowledged: records, segments, references, uploads
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Where to listen, for clients, peers and /metrics
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000", value_parser = address)]
    listen: SocketAddr,
    /// Where images are stored: file:///dir, s3://bucket/prefix, gs://bucket/prefix,
    /// az://container/prefix or memory:///
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// The region of this origin; its seal key must be one of that region [default: the seal key's]
    #[arg(long, value_name = "NAME")]
    region: Option<RegionName>,
    /// The key that seals are signed with, as `flotilla pki init` makes it
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,
    /// Cap on the bytes of blobs sent to everybody, per second: 500Mbit, 10Gbit [default: none]
    #[arg(long, value_name = "RATE", value_parser = useful_rate)]
    up: Option<BitRate>,
    /// Where the other replicas tell this one what they changed
    #[arg(long, value_name = "ADDR", value_parser = address)]
    replica_listen: Option<SocketAddr>,
    /// The replicas' own listeners, its own among them or not; a name is looked up again and again
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    replicas: Vec<ReplicaAddress>,
    /// Send clients to the storage for blobs, by presigned URLs; peers always get them from the
    /// origin
    #[arg(long)]
    redirect_blobs: bool,
    /// Connections at once; more are told to come again
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections as u32, value_parser = value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Requests at once, each until the last byte of its answer; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests as u32, value_parser = value_parser!(u32).range(1..))]
    max_requests: u32,
    /// Uploads at once whose bytes are received or wait for their turn; more are refused with 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().uploads as u32, value_parser = value_parser!(u32).range(1..))]
    max_uploads: u32,
    /// How long it works on after it was told to stop, while /readyz says that it is not ready
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().drain_delay.as_secs(), value_parser = value_parser!(u64).range(0..=300))]
    drain_delay: u64,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs the origin until it is told to stop, or checks a storage.
///
/// # Errors
/// Why it does not start, or what the check found.
pub fn run(args: OriginArgs) -> Result<(), CommandError> {
    match args.command {
        Some(OriginCommand::Check(args)) => check::run(&args),
        None => block_on(serve(args.serve)),
    }
}

async fn serve(args: ServeArgs) -> Result<(), CommandError> {
    let shutdown = begin()?;
    let config = config(args)?;
    let origin = Origin::start(config)
        .await
        .map_err(|error| CommandError::failed("start the origin", error))?;
    shutdown.wait().await;
    tokio::select! {
        () = origin.shutdown() => {}
        // Dropped, it stops where it stands.
        () = shutdown.wait_abandoned() => {}
    }
    Ok(())
}

fn config(args: ServeArgs) -> Result<Config, CommandError> {
    let missing = |flag: &str, cure: &str| {
        CommandError::failed("configure the origin", format!("{flag} is missing; {cure}"))
    };
    let storage = args
        .storage
        .ok_or_else(|| missing("--storage", "file:///dir, s3://bucket/prefix, ..."))?;
    let seal_key = args
        .seal_key
        .ok_or_else(|| missing("--seal-key", "`flotilla pki init` makes one"))?;
    let seal_key = load_seal_key(&seal_key)
        .map_err(|error| CommandError::failed("load the seal key", error))?;
    let region = args.region.unwrap_or_else(|| seal_key.issuer().clone());
    let mut config =
        Config::new(args.listen, storage, region, seal_key, Clock::system()).with_uplink(args.up);
    config.tls = args.tls.identity(WithoutTls::Plain)?;
    config.replicas = Replicas::at(args.replicas);
    config.replica_listen = args.replica_listen;
    config.redirect_blobs = args.redirect_blobs;
    config.threads = available_parallelism().map_or(1, NonZero::get);
    config.limits.connections = args.max_connections as usize;
    config.limits.requests = args.max_requests as usize;
    config.limits.uploads = args.max_uploads as usize;
    config.limits.drain_delay = Duration::from_secs(args.drain_delay);
    Ok(config)
}
