//! Runs a peer: its flags, and the configuration that they make.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use flotilla_common::chunk::MAX_CHUNK_LOG2;
use flotilla_common::name::{DEFAULT_REGION, RegionName, ZoneName};
use flotilla_common::tracker::TrackerUrl;
use flotilla_common::units::{BitRate, ByteSize, UnitError};
use flotilla_peer::{Config, CongestionControl, OriginUrl, Peer, check_url, parse_tracker};
use flotilla_runtime::address_range::AddressRange;
use flotilla_runtime::clock::Clock;
use flotilla_runtime::config::{self, ConfigFile};
use flotilla_runtime::identity::LiveKeys;

use crate::command::CommandError;
use crate::commands::admin::AdminArgs;
use crate::commands::service::{init, parse_address, parse_rate_limit};
use crate::commands::tls::{TlsArgs, WithoutTls};

/// The least quota: one chunk of the largest size.
const MIN_QUOTA: ByteSize = ByteSize(1 << MAX_CHUNK_LOG2);

/// The flags of a peer.
#[derive(Debug, Args)]
pub(super) struct ServeArgs {
    /// The address for the container runtime; keep it on loopback: all clients that reach it may
    /// pull what this machine may pull
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5001", value_parser = parse_address)]
    pub(super) mirror: SocketAddr,
    /// The UDP address for other peers
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:5002", value_parser = parse_address)]
    quic: SocketAddr,
    /// The origins. Without REGION=, an origin is in this region; several origins of one region are
    /// replicas, of which the first is preferred. Other regions are used while this one is out
    #[arg(long, value_name = "[REGION=]URL[,...]", value_delimiter = ',')]
    pub(super) origin: Vec<OriginUrl>,
    /// The registry names (host:port) that the origins serve, as clients write them; the mirror
    /// refuses requests for other registries [default: any name]
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    registry: Vec<String>,
    /// The trackers; list the same ones on all peers. Without REGION=, a tracker is in this region.
    /// Those of other regions are used while none of this one answers [default: none; all bytes
    /// come from the origins]
    #[arg(long, value_name = "[REGION=]URL[,...]", value_delimiter = ',', value_parser = parse_tracker)]
    tracker: Vec<TrackerUrl>,
    /// The addresses at which peers that a tracker names are dialled: 10.0.0.0/8,fd00::/8
    /// [default: all but multicast and, unless this peer listens there, loopback addresses]
    #[arg(long, value_name = "CIDR[,CIDR]", value_delimiter = ',')]
    peers_from: Vec<AddressRange>,
    /// The directory of the chunk store
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    store: Option<PathBuf>,
    /// Limit for the total size of the blobs in the store: 50GiB, 500GB
    #[arg(long, value_name = "SIZE", help_heading = "Store", default_value_t = ByteSize(50 << 30), value_parser = parse_quota)]
    quota: ByteSize,
    /// This machine's region; peers in other regions are used last
    #[arg(long, value_name = "NAME", help_heading = "Location", default_value = DEFAULT_REGION)]
    region: RegionName,
    /// This machine's zone, within which traffic is cheap; peers in the same zone are used first
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Location",
        default_value = "default"
    )]
    zone: ZoneName,
    /// Rate limit for bytes sent to other peers, per second: 500Mbit, 2Gbit [default: none]
    #[arg(long, value_name = "RATE", help_heading = "Rate limits", value_parser = parse_rate_limit)]
    up: Option<BitRate>,
    /// Rate limit for bytes received from peers and origins, per second [default: none]
    #[arg(long, value_name = "RATE", help_heading = "Rate limits", value_parser = parse_rate_limit)]
    down: Option<BitRate>,
    /// The congestion controller for connections to other peers: delay, cubic or bbr
    #[arg(long, value_name = "NAME", default_value_t = CongestionControl::default())]
    congestion: CongestionControl,
    /// Send another peer only blobs that an origin's grant to that peer names; requires https://
    /// origins
    #[arg(long)]
    require_grants: bool,
    /// The public keys of trusted origins, from `flotilla pki init`
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    trusted_keys: Option<PathBuf>,
    /// Record what the state machines are told and what they decide, in files of this directory
    /// that `flotilla simulate replay` repeats; for developers: each may grow to 1 GiB
    #[arg(long, value_name = "DIR", help_heading = "Diagnostics")]
    record: Option<PathBuf>,
    #[command(flatten)]
    admin: AdminArgs,
    #[command(flatten)]
    pub(super) tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// Parses a peer's configuration without a command line.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct ConfigurationParser {
    #[command(flatten)]
    serve: ServeArgs,
}

impl ServeArgs {
    /// The configuration in the environment and in `file`.
    ///
    /// # Errors
    /// If a value is not valid.
    pub(super) fn from_environment(file: Option<&Path>) -> Result<Self, CommandError> {
        let arguments = file.map(|path| ["--config".into(), path.as_os_str().to_owned()]);
        let parsed =
            config::try_parse_from::<ConfigurationParser, _>(arguments.into_iter().flatten());
        let failed = |error| CommandError::failed("read the peer's configuration", error);
        parsed.map(|parsed| parsed.serve).map_err(failed)
    }
}

/// Parses the URL of a service.
pub(super) fn parse_service_url(text: &str) -> Result<String, String> {
    check_url(text)
        .map(|()| text.to_owned())
        .map_err(str::to_owned)
}

/// Parses a quota, and rejects one that is too small for layers.
fn parse_quota(text: &str) -> Result<ByteSize, String> {
    let quota: ByteSize = text.parse().map_err(|error: UnitError| error.to_string())?;
    if quota < MIN_QUOTA {
        return Err(format!(
            "{quota} is too small to store a layer and share it; the minimum is {MIN_QUOTA}; \
             allow for several images: 50GiB"
        ));
    }
    Ok(quota)
}

/// Runs a peer until SIGTERM or SIGINT.
pub(super) async fn run(args: ServeArgs) -> Result<(), CommandError> {
    let shutdown = init()?;
    let config = config(args)?;
    let peer = Peer::start(config, &shutdown.child())
        .await
        .map_err(|error| CommandError::failed("start the peer", error))?;
    shutdown.wait().await;
    peer.shutdown().await;
    Ok(())
}

fn config(args: ServeArgs) -> Result<Config, CommandError> {
    let missing = |key: &str, fix: &str| {
        CommandError::failed("configure the peer", format!("{key} is missing; {fix}"))
    };
    let issue = "`flotilla pki issue --peer ID` creates certificate and key";
    let identity = args
        .tls
        .identity(WithoutTls::RefusePeer)?
        .ok_or_else(|| missing("tls-cert", issue))?;
    let id = identity
        .peer_id()
        .ok_or_else(|| missing("a peer's name in tls-cert", issue))?;
    let store = args
        .store
        .ok_or_else(|| missing("store", "name a directory for the chunk store"))?;
    let trusted = args.trusted_keys.ok_or_else(|| {
        missing(
            "trusted-keys",
            "name the file trusted-keys that `flotilla pki init` created",
        )
    })?;
    let trusted_keys = LiveKeys::load(&trusted)
        .map_err(|error| CommandError::failed("load the trusted keys", error))?;
    Ok(Config {
        trusted_keys,
        mirror: args.mirror,
        admin: args.admin.into(),
        quic: args.quic,
        origins: args.origin,
        registries: args.registry,
        trackers: args.tracker,
        peers_from: args.peers_from,
        quota: args.quota,
        up: args.up,
        down: args.down,
        congestion: args.congestion,
        requires_grants: args.require_grants,
        record: args.record,
        ..Config::new(id, identity, store, args.region, args.zone, Clock::system())
    })
}
