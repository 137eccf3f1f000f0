//! `flotilla peer`, and what people ask of a peer.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use flotilla_common::chunk::MAX_CHUNK_LOG2;
use flotilla_common::name::{DEFAULT_REGION, RegionName, ZoneName};
use flotilla_common::units::{BitRate, ByteSize, UnitError};
use flotilla_peer::{
    Config, CongestionControl, Peer, check_url, docker_daemon_json, hosts_toml, registries_conf,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::config::{self, ConfigFile};
use flotilla_runtime::identity::LiveKeys;

use super::tls::{TlsArgs, WithoutTls};
use super::{address, begin, useful_rate};
use crate::cli::{CommandError, block_on, print_text};
use crate::peer::{self, PullArgs, StatusArgs, WarmArgs};

/// One chunk of the largest size.
const LEAST_QUOTA: ByteSize = ByteSize(1 << MAX_CHUNK_LOG2);

/// The arguments of `flotilla peer`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Without a command it runs a peer. Every flag is also a line of the --config file (zone = \"a\") and an environment
variable (FLOTILLA_ZONE=a); lists are arrays there.

Examples:
  flotilla peer --config /etc/flotilla/peer.toml
  flotilla peer --origin http://origin:5000 --tracker http://tracker:7070 --store /var/lib/flotilla/peer \\
      --trusted-keys pki/trusted-keys --tls-cert pki/vm-1.pem --tls-key pki/vm-1.key --tls-ca pki/ca.pem
  flotilla peer status --watch")]
pub struct PeerArgs {
    #[command(subcommand)]
    command: Option<PeerCommand>,
    #[command(flatten)]
    serve: ServeArgs,
}

#[derive(Debug, Subcommand)]
enum PeerCommand {
    /// Show what a peer is doing: what it pulls, from whom, how fast, how far, and why it waits
    Status(StatusArgs),
    /// Pull an image through a peer as containerd would, check it, and throw it away
    Pull(PullArgs),
    /// Fetch an image into a peer's store before anybody pulls it
    Warm(WarmArgs),
    /// Print the configuration that makes a container runtime ask a mirror first
    HostsToml(HostsTomlArgs),
}

#[derive(Debug, Args)]
struct HostsTomlArgs {
    /// Take mirror, origin and authority from this configuration of a peer (or FLOTILLA_CONFIG, or
    /// FLOTILLA_MIRROR, FLOTILLA_ORIGIN and FLOTILLA_TLS_CA) as far as they are not given here
    #[arg(long = "config", id = "peer_config", value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the mirror listens [default: 127.0.0.1:5001]
    #[arg(long, value_name = "ADDR", value_parser = address)]
    mirror: Option<SocketAddr>,
    /// Where the runtime turns to when the mirror is not there; needed for podman and crio
    #[arg(long, value_name = "URL", value_parser = service_url)]
    origin: Option<String>,
    /// The authority of an https:// origin's certificate, PEM, where that is the fleet's own
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// For which container runtime
    #[arg(long = "for", value_enum, default_value_t = Runtime::Containerd)]
    runtime: Runtime,
}

/// A container runtime that can be told to ask a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Runtime {
    /// containerd: a hosts.toml
    Containerd,
    /// Docker: a daemon.json; Docker asks mirrors for images of Docker Hub only
    Docker,
    /// Podman, Buildah, skopeo: a registries.conf
    Podman,
    /// CRI-O: a registries.conf
    Crio,
}

impl HostsTomlArgs {
    fn text(self) -> Result<String, CommandError> {
        let peer = ServeArgs::of_this_machine(self.config.as_deref())?;
        let mirror = self.mirror.unwrap_or(peer.mirror);
        let ca = self.ca.or_else(|| peer.tls.authority());
        let origin = self.origin.or_else(|| peer.origin.into_iter().next());
        match (self.runtime, origin) {
            (Runtime::Containerd, origin) => {
                Ok(hosts_toml(mirror, origin.as_deref(), ca.as_deref()))
            }
            (Runtime::Docker, _) => Ok(docker_daemon_json(mirror)),
            (Runtime::Podman | Runtime::Crio, Some(origin)) => Ok(registries_conf(mirror, &origin)),
            (Runtime::Podman | Runtime::Crio, None) => {
                let cure =
                    "--origin is missing; a registries.conf names the registry that is mirrored";
                Err(CommandError::failed("print the configuration", cure))
            }
        }
    }
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Where the container runtime asks; loopback, for whoever reaches it may pull what this
    /// machine may pull
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:5001", value_parser = address)]
    mirror: SocketAddr,
    /// Where neighbours connect: UDP
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:5002", value_parser = address)]
    quic: SocketAddr,
    /// The origins, the own region's first
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',', value_parser = service_url)]
    origin: Vec<String>,
    /// Names of the registries whose images the origins have, as clients write them (host:port);
    /// the mirror refuses requests for another one. All are taken if none is named
    #[arg(long, value_name = "NAME[,NAME]", value_delimiter = ',')]
    registry: Vec<String>,
    /// The trackers; without one, the origins serve alone
    #[arg(long, value_name = "URL[,URL]", value_delimiter = ',', value_parser = service_url)]
    tracker: Vec<String>,
    /// The folder of the chunk store
    #[arg(long, value_name = "DIR", help_heading = "Store")]
    store: Option<PathBuf>,
    /// What the blobs in it may have together: 50GiB, 500GB
    #[arg(long, value_name = "SIZE", help_heading = "Store", default_value_t = ByteSize(50 << 30), value_parser = useful_quota)]
    quota: ByteSize,
    /// The region of this machine; another region's peers come last
    #[arg(long, value_name = "NAME", help_heading = "Place", default_value = DEFAULT_REGION)]
    region: RegionName,
    /// Its zone, within which traffic is cheap; peers of the same zone come first
    #[arg(
        long,
        value_name = "NAME",
        help_heading = "Place",
        default_value = "default"
    )]
    zone: ZoneName,
    /// Cap on what is sent to neighbours, per second: 500Mbit, 2Gbit [default: none]
    #[arg(long, value_name = "RATE", help_heading = "Caps", value_parser = useful_rate)]
    up: Option<BitRate>,
    /// Cap on what comes from neighbours and origins, per second [default: none]
    #[arg(long, value_name = "RATE", help_heading = "Caps", value_parser = useful_rate)]
    down: Option<BitRate>,
    /// The congestion controller of connections to neighbours: delay, cubic or bbr
    #[arg(long, value_name = "NAME", default_value_t = CongestionControl::default())]
    congestion: CongestionControl,
    /// Serve a neighbour only what an origin's grant to it names; needs origins with https://
    #[arg(long)]
    require_grants: bool,
    /// The origin keys that are trusted, as `flotilla pki init` makes them
    #[arg(long, value_name = "FILE", help_heading = "Trust")]
    trusted_keys: Option<PathBuf>,
    #[command(flatten)]
    tls: TlsArgs,
    #[command(flatten)]
    config: ConfigFile,
}

/// The configuration of a peer, without flags.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct FileArgs {
    #[command(flatten)]
    serve: ServeArgs,
}

impl ServeArgs {
    /// What a peer would be told by the environment and by a file, if there is one.
    fn of_this_machine(file: Option<&Path>) -> Result<Self, CommandError> {
        let arguments = file.map(|path| ["--config".into(), path.as_os_str().to_owned()]);
        let read = config::try_parse_from::<FileArgs, _>(arguments.into_iter().flatten());
        let failed = |error| CommandError::failed("read the peer's configuration", error);
        read.map(|file| file.serve).map_err(failed)
    }
}

/// The URL of an origin or a tracker.
fn service_url(text: &str) -> Result<String, String> {
    check_url(text)
        .map(|()| text.to_owned())
        .map_err(|why| format!("it is {why}"))
}

/// A quota in which blobs of images can be.
fn useful_quota(text: &str) -> Result<ByteSize, String> {
    let quota: ByteSize = text.parse().map_err(|error: UnitError| error.to_string())?;
    if quota < LEAST_QUOTA {
        return Err(format!(
            "{quota} is too small for a layer, and nothing would be shared; the least is {LEAST_QUOTA}, and several \
             images are useful: 50GiB"
        ));
    }
    Ok(quota)
}

/// Runs the peer until it is told to stop, or answers a question about peers.
///
/// # Errors
/// Why it does not start.
pub fn run(args: PeerArgs) -> Result<(), CommandError> {
    match args.command {
        Some(PeerCommand::HostsToml(args)) => print_text(args.text()?),
        Some(PeerCommand::Status(args)) => peer::status(&args),
        Some(PeerCommand::Pull(args)) => peer::pull(args),
        Some(PeerCommand::Warm(args)) => peer::warm(args),
        None => block_on(serve(args.serve)),
    }
}

async fn serve(args: ServeArgs) -> Result<(), CommandError> {
    let shutdown = begin()?;
    let config = configured(args)?;
    let peer = Peer::start(config, &shutdown.child())
        .await
        .map_err(|error| CommandError::failed("start the peer", error))?;
    shutdown.wait().await;
    peer.shutdown().await;
    Ok(())
}

fn configured(args: ServeArgs) -> Result<Config, CommandError> {
    let missing = |flag: &str, cure: &str| {
        CommandError::failed("configure the peer", format!("{flag} is missing; {cure}"))
    };
    let issue = "`flotilla pki issue --peer ID` makes certificate and key";
    let identity = args
        .tls
        .identity(WithoutTls::Refused)?
        .ok_or_else(|| missing("tls-cert", issue))?;
    let id = identity
        .peer_id()
        .ok_or_else(|| missing("a peer's name in tls-cert", issue))?;
    let store = args
        .store
        .ok_or_else(|| missing("store", "name a folder for the chunk store"))?;
    let trusted = args.trusted_keys.ok_or_else(|| {
        missing(
            "trusted-keys",
            "it is the file trusted-keys of `flotilla pki init`",
        )
    })?;
    let trusted_keys = LiveKeys::load(&trusted)
        .map_err(|error| CommandError::failed("load the trusted keys", error))?;
    Ok(Config {
        trusted_keys,
        mirror: args.mirror,
        quic: args.quic,
        origins: args.origin,
        registries: args.registry,
        trackers: args.tracker,
        quota: args.quota,
        up: args.up,
        down: args.down,
        congestion: args.congestion,
        requires_grants: args.require_grants,
        ..Config::new(id, identity, store, args.region, args.zone, Clock::system())
    })
}
