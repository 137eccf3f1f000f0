//! The table of commands.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::command;
use crate::commands::bench::{self, BenchArgs};
use crate::commands::completions::{self, CompletionsArgs};
use crate::commands::demo::{self, DemoArgs};
use crate::commands::origin::{self, OriginArgs};
use crate::commands::peer::{self, PeerArgs};
use crate::commands::pki::{self, PkiArgs};
use crate::commands::simulate::{self, SimulateArgs};
use crate::commands::tracker::{self, TrackerArgs};
use crate::commands::up::{self, UpArgs};

/// Container image distribution for serverless fleets that start in bursts
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, about, max_term_width = 120)]
#[command(after_help = "\
Start with:
  flotilla demo                                 a burst of pulls on this machine, in half a minute
  flotilla up                                   a region on this machine, with instructions
  flotilla peer status                          the current state of a peer
FLOTILLA_LOG (info, debug, flotilla_peer=debug,warn) selects what services log. Production: docs/operations.md.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Demonstrate a burst: an origin, a tracker and peers in this process pull one image at once
    Demo(DemoArgs),
    /// Start one or several regions on this machine to try things out, and break their storage
    Up(UpArgs),
    /// Run an origin: the OCI registry on object storage
    Origin(Box<OriginArgs>),
    /// Run a tracker: peer discovery, and leases for downloads from the origin
    Tracker(TrackerArgs),
    /// Run a peer: the mirror for this machine's container runtime
    Peer(Box<PeerArgs>),
    /// Create a fleet's certificate authority and keys, and issue certificates
    Pki(PkiArgs),
    /// Run a scenario in the simulator
    Simulate(SimulateArgs),
    /// Print a shell's completion script
    Completions(CompletionsArgs),
    /// Measure a registry, or the transfer between two peers, on this machine
    Bench(BenchArgs),
}

impl Cli {
    /// Runs the command and returns its exit status, as [`command::exit_code`].
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Demo(args) => demo::run(args),
            Command::Up(args) => up::run(&args),
            Command::Origin(args) => origin::run(*args),
            Command::Tracker(args) => tracker::run(args),
            Command::Peer(args) => peer::run(*args),
            Command::Pki(args) => pki::run(&args),
            Command::Simulate(args) => simulate::run(&args),
            Command::Completions(args) => completions::run(&args, Self::command()),
            Command::Bench(args) => bench::run(args),
        };
        command::exit_code("flotilla", result)
    }
}
