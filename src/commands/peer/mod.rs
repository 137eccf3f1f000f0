//! `flotilla peer`: runs a peer, and the commands that work with a running peer.

mod byte_progress;
mod image_reference;
mod mirror;
mod pull;
mod runtime_config;
mod serve;
mod status;
mod status_text;
mod warm;

use clap::{Args, Subcommand};

pub use self::image_reference::ImageReference;
use self::pull::PullArgs;
use self::runtime_config::RuntimeConfigArgs;
use self::serve::ServeArgs;
use self::status::StatusArgs;
use self::warm::WarmArgs;
use crate::command::{CommandError, block_on};

/// The arguments of `flotilla peer`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "\
Without a command it runs a peer. Each flag can also be set in the --config file (zone = \"a\") or in the environment
(FLOTILLA_ZONE=a); lists are arrays in the file.

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
    /// Show a peer's pulls: their sources, rates and progress, and why they stall
    Status(StatusArgs),
    /// Pull an image through a peer as containerd would, verify it, and discard it
    Pull(PullArgs),
    /// Fetch an image into a peer's store ahead of the first pull
    Warm(WarmArgs),
    /// Print the configuration that makes a container runtime use the mirror
    HostsToml(RuntimeConfigArgs),
}

/// Runs a peer until SIGTERM or SIGINT, or runs one of the commands.
///
/// # Errors
/// If the peer does not start, or the command fails.
pub fn run(args: PeerArgs) -> Result<(), CommandError> {
    match args.command {
        Some(PeerCommand::HostsToml(args)) => runtime_config::run(args),
        Some(PeerCommand::Status(args)) => status::run(&args),
        Some(PeerCommand::Pull(args)) => pull::run(args),
        Some(PeerCommand::Warm(args)) => warm::run(args),
        None => block_on(serve::run(args.serve)),
    }
}
