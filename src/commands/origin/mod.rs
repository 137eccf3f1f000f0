//! `flotilla origin`: runs an origin, checks or repairs its storage, sets its policy, or waits for
//! a region.

mod check;
mod check_regions;
mod format;
mod policy;
mod repair;
mod restamp;
mod wait;

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

use self::check::CheckArgs;
use self::format::FormatArgs;
use self::policy::PolicyArgs;
use self::restamp::RestampArgs;
use self::wait::WaitArgs;
use super::admin::AdminArgs;
use super::service::{init, parse_address, parse_rate_limit};
use super::tls::{TlsArgs, WithoutTls};
use crate::command::{CommandError, block_on};

/// The arguments of `flotilla origin`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Without a command it runs an origin. Each flag can also be set in the --config file (seal-key = \"...\") or in the
environment (FLOTILLA_SEAL_KEY).
Acknowledged data is in the storage: an origin can be restarted at any time, and several replicas can share a storage.
A change is visible at once on replicas that know each other (--replicas), and within seconds on others.

Examples:
  flotilla pki init --dir pki
  flotilla origin --storage file:///var/lib/flotilla/origin --seal-key pki/local.seal.key
  flotilla origin --config origin.toml --replica-listen 0.0.0.0:5001 --replicas origin-replicas.internal:5001
  flotilla origin --config /etc/flotilla/origin.toml
  flotilla origin check --storage file:///var/lib/flotilla/origin
  flotilla origin policy set policy.toml --storage file:///var/lib/flotilla/origin")]
pub struct OriginArgs {
    #[command(subcommand)]
    command: Option<OriginCommand>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum OriginCommand {
    /// Verify that a storage is complete: records, segments, references, uploads
    Check(CheckArgs),
    /// Show, set or check the policy: regions, and what each repository needs of them
    Policy(PolicyArgs),
    /// Wait until a region has an image
    Wait(WaitArgs),
    /// Show the id of a storage, or renew it after the storage was restored from a backup
    Format(FormatArgs),
    /// End stamps in the future, after a clock ran ahead
    Restamp(RestampArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// The address for clients and peers
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5000", value_parser = parse_address)]
    listen: SocketAddr,
    /// Where images are stored: file:///dir, s3://bucket/prefix, gs://bucket/prefix,
    /// az://container/prefix or memory:///
    #[arg(long, value_name = "URL")]
    storage: Option<String>,
    /// This origin's region; the seal key must belong to it [default: the seal key's region]
    #[arg(long, value_name = "NAME")]
    region: Option<RegionName>,
    /// The key that signs seals, from `flotilla pki init`
    #[arg(long, value_name = "FILE")]
    seal_key: Option<PathBuf>,
    /// Rate limit for the blob bytes sent to all clients, per second: 500Mbit, 10Gbit [default:
    /// none]
    #[arg(long, value_name = "RATE", value_parser = parse_rate_limit)]
    up: Option<BitRate>,
    /// Rate limit for blobs that are copied from other regions in the background, per second: 1Gbit
    /// [default: none]
    #[arg(long, value_name = "RATE", value_parser = parse_rate_limit)]
    region_down: Option<BitRate>,
    /// Pass pushes and deletes to another region while this region's storage is out; otherwise they
    /// get 503
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = true)]
    forward_writes: bool,
    /// The address on which this replica receives invalidations from the others
    #[arg(long, value_name = "ADDR", value_parser = parse_address)]
    replica_listen: Option<SocketAddr>,
    /// The --replica-listen addresses of all replicas, with or without this one's; host names are
    /// resolved repeatedly
    #[arg(long, value_name = "HOST:PORT", value_delimiter = ',')]
    replicas: Vec<ReplicaAddress>,
    /// Redirect clients to the storage for blobs, with presigned URLs; peers always get blobs from
    /// the origin
    #[arg(long)]
    redirect_blobs: bool,
    /// Threads that serve connections, each with connections of its own; 0 uses the shared runtime
    /// [default: one per core]
    #[arg(long, value_name = "N")]
    http_threads: Option<usize>,
    /// Send blobs of local storage over plain HTTP by sendfile(2), without copies through this
    /// process
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, default_value_t = cfg!(target_os = "linux"))]
    sendfile: bool,
    /// Concurrent connections; more get 503
    #[arg(long, value_name = "N", default_value_t = Limits::default().connections as u32, value_parser = value_parser!(u32).range(1..))]
    max_connections: u32,
    /// Concurrent requests, each until the last byte of its response; more get 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().requests as u32, value_parser = value_parser!(u32).range(1..))]
    max_requests: u32,
    /// Concurrent uploads, including those that wait for buffers; more get 429
    #[arg(long, value_name = "N", default_value_t = Limits::default().uploads as u32, value_parser = value_parser!(u32).range(1..))]
    max_uploads: u32,
    /// Share of max-requests and max-uploads for the origins of other regions, in percent; beyond
    /// it they get 429, so the rest remains for this region's clients
    #[arg(long, value_name = "PERCENT", default_value_t = Limits::default().region_share, value_parser = value_parser!(u8).range(1..=100))]
    region_share: u8,
    /// How long to keep serving after SIGTERM while /readyz returns 503, so that load balancers can
    /// react
    #[arg(long, value_name = "SECONDS", default_value_t = Limits::default().drain_delay.as_secs(), value_parser = value_parser!(u64).range(0..=300))]
    drain_delay: u64,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Runs an origin until SIGTERM or SIGINT, or one of the commands beside it.
///
/// # Errors
/// If the origin does not start; as the command.
pub fn run(args: OriginArgs) -> Result<(), CommandError> {
    match args.command {
        Some(OriginCommand::Check(args)) => check::run(&args),
        Some(OriginCommand::Policy(args)) => policy::run(&args),
        Some(OriginCommand::Wait(args)) => wait::run(&args),
        Some(OriginCommand::Format(args)) => format::run(&args),
        Some(OriginCommand::Restamp(args)) => restamp::run(&args),
        None => block_on(serve(args.serve)),
    }
}

async fn serve(args: ServeArgs) -> Result<(), CommandError> {
    let shutdown = init()?;
    let config = config(args)?;
    let origin = Origin::start(config)
        .await
        .map_err(|error| CommandError::failed("start the origin", error))?;
    shutdown.wait().await;
    tokio::select! {
        () = origin.shutdown() => {}
        // A second signal: dropping the origin ends it without draining.
        () = shutdown.wait_until_abandoned() => {}
    }
    Ok(())
}

fn config(args: ServeArgs) -> Result<Config, CommandError> {
    let missing = |flag: &str, fix: &str| {
        CommandError::failed("configure the origin", format!("{flag} is missing; {fix}"))
    };
    let storage = args
        .storage
        .ok_or_else(|| missing("--storage", "write file:///dir, s3://bucket/prefix, ..."))?;
    let seal_key = args
        .seal_key
        .ok_or_else(|| missing("--seal-key", "`flotilla pki init` creates one"))?;
    let seal_key = load_seal_key(&seal_key)
        .map_err(|error| CommandError::failed("load the seal key", error))?;
    let region = args.region.unwrap_or_else(|| seal_key.issuer().clone());
    let mut config =
        Config::new(args.listen, storage, region, seal_key, Clock::system()).with_uplink(args.up);
    config.admin = args.admin.into();
    config.tls = args.tls.identity(WithoutTls::PlainHttp)?;
    config.replicas = Replicas::at(args.replicas);
    config.replica_listen = args.replica_listen;
    config.regions.down = args.region_down.into();
    config.regions.forward_writes = args.forward_writes;
    config.redirect_blobs = args.redirect_blobs;
    let one_per_core = || available_parallelism().map_or(1, NonZero::get);
    config.threads = args.http_threads.unwrap_or_else(one_per_core);
    config.sendfile = args.sendfile;
    config.limits.connections = args.max_connections as usize;
    config.limits.requests = args.max_requests as usize;
    config.limits.uploads = args.max_uploads as usize;
    config.limits.region_share = args.region_share;
    config.limits.drain_delay = Duration::from_secs(args.drain_delay);
    Ok(config)
}
