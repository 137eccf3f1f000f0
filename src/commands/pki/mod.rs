//! `flotilla pki`: creates a fleet's keys and certificates ([`crate::pki`]).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand};
use flotilla_common::name::{DEFAULT_REGION, PeerId, RegionName};

use crate::command::{CommandError, print_text};
use crate::pki::{IfExists, PkiError, PkiReport, init, issue_peer, issue_seal_key, issue_server};

/// The arguments of `flotilla pki`.
#[derive(Clone, Debug, Args)]
pub struct PkiArgs {
    #[command(subcommand)]
    command: PkiCommand,
}

#[derive(Clone, Debug, Subcommand)]
enum PkiCommand {
    /// Create a fleet: its certificate authority, its first origin's seal key, the list of keys
    /// that peers trust
    Init(InitArgs),
    /// Issue a certificate to a peer or a server, or a seal key to an origin
    Issue(IssueArgs),
}

#[derive(Clone, Debug, Args)]
struct InitArgs {
    /// The directory of the fleet's files; it is created if it does not exist
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// The region of the first origin
    #[arg(long, value_name = "NAME", default_value = DEFAULT_REGION)]
    region: RegionName,
}

#[derive(Clone, Debug, Args)]
struct IssueArgs {
    /// The directory that `flotilla pki init` created
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    #[command(flatten)]
    subject: Subject,
    /// The region whose origin the server is: origins of other regions accept its certificate as
    /// this region's
    #[arg(long, value_name = "REGION", requires = "server", conflicts_with_all = ["peer", "origin"])]
    region: Option<RegionName>,
    /// How long the certificate is valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: u32,
    /// Replace the certificate that was issued under this name; for an origin, add a second key
    /// beside the first
    #[arg(long)]
    renew: bool,
}

#[derive(Clone, Debug, Args)]
#[group(required = true, multiple = false)]
struct Subject {
    /// A peer's id: 1 to 63 of a-z, 0-9 and '-'
    #[arg(long, value_name = "ID")]
    peer: Option<PeerId>,
    /// DNS names and IP addresses of an origin or a tracker
    #[arg(long, value_name = "NAME", num_args = 1..)]
    server: Vec<String>,
    /// A region: create a seal key for its origin and add it to the peers' trusted keys
    #[arg(long, value_name = "REGION")]
    origin: Option<RegionName>,
}

/// Runs `flotilla pki init` or `flotilla pki issue`, and prints what it wrote.
///
/// # Errors
/// If a file exists and `--renew` is not given: nothing is written then. If a file cannot be
/// written.
pub fn run(args: &PkiArgs) -> Result<(), CommandError> {
    let action = match &args.command {
        PkiCommand::Init(_) => "create the fleet's keys",
        PkiCommand::Issue(_) => "issue a key or certificate",
    };
    let report = execute(args).map_err(|error| CommandError::failed(action, error))?;
    print_text(report)
}

fn execute(args: &PkiArgs) -> Result<PkiReport, PkiError> {
    match &args.command {
        PkiCommand::Init(InitArgs { dir, region }) => init(dir, region),
        PkiCommand::Issue(args) => {
            let dir = &args.dir;
            let validity = Duration::from_secs(u64::from(args.days) * 24 * 60 * 60);
            let if_exists = if args.renew {
                IfExists::Renew
            } else {
                IfExists::Fail
            };
            match &args.subject {
                Subject {
                    peer: Some(peer), ..
                } => issue_peer(dir, peer, validity, if_exists),
                Subject {
                    origin: Some(region),
                    ..
                } => issue_seal_key(dir, region, if_exists),
                Subject { server, .. } => {
                    issue_server(dir, server, args.region.as_ref(), validity, if_exists)
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
