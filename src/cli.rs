//! What people type: the table of commands, and how a command ends.

use std::fmt;
use std::io::{ErrorKind, Write as _, stdout};
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser, Subcommand};
use serde::Serialize;

use crate::bench::{self, BenchArgs};
use crate::completions::{self, CompletionsArgs};
use crate::demo::{self, DemoArgs};
use crate::pki::{self, PkiArgs};
use crate::service::{self, OriginArgs, PeerArgs, TrackerArgs};
use crate::simulate::{self, SimulateArgs};
use crate::up::{self, UpArgs};

/// How long a command that has ended waits for threads that still hash or write.
const LEFTOVERS_BOUND: Duration = Duration::from_secs(5);

/// Container images for serverless fleets that start in bursts.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, about, max_term_width = 120)]
#[command(after_help = "\
Begin with:
  flotilla demo                                 a burst of pulls on this machine, in half a minute
  flotilla up                                   a region on this machine, and what to type next
  flotilla peer status                          what a peer is doing
FLOTILLA_LOG (info, debug, flotilla_peer=debug,warn) selects what services log. Real regions: docs/operations.md.")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show it: an origin, a tracker and some peers in this process, and all peers pull one image
    /// at once
    Demo(DemoArgs),
    /// Start a region on this machine, for trying things out: origin, tracker and two peers
    Up(UpArgs),
    /// Run an origin: the OCI registry on object storage
    Origin(OriginArgs),
    /// Run a tracker: announces in, handouts and leases out
    Tracker(TrackerArgs),
    /// Run a peer: the mirror for this machine's container runtime
    Peer(Box<PeerArgs>),
    /// Make a fleet's certificate authority and keys, and issue certificates
    Pki(PkiArgs),
    /// Run a scenario in the simulator
    Simulate(SimulateArgs),
    /// Print a shell's completions
    Completions(CompletionsArgs),
    /// Measure what the pieces can do on this machine
    Bench(BenchArgs),
}

/// How a command can end other than well.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// Something could not be done.
    #[error("{what}: {source}")]
    Failed {
        /// Verb and noun.
        what: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It ran, and what it measured is not good enough; the output says so already.
    #[error("not ok")]
    NotOk,
    /// Whoever read the output has hung up (`| head`), and wants no more.
    #[error("nobody reads the output")]
    NobodyReads,
}

impl CommandError {
    /// `what` (verb and noun) could not be done because of `source`.
    pub fn failed(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Failed {
            what: what.into(),
            source: source.into(),
        }
    }
}

impl Cli {
    /// Runs the command: 0 if all is well, 1 if not. (clap exits with 2 for a bad flag.)
    pub fn run(self) -> ExitCode {
        let result = match self.command {
            Command::Demo(args) => demo::run(args),
            Command::Up(args) => up::run(&args),
            Command::Origin(args) => service::origin(args),
            Command::Tracker(args) => service::tracker(args),
            Command::Peer(args) => service::peer(*args),
            Command::Pki(args) => pki::run(&args)
                .map_err(|error| CommandError::failed("manage the fleet's keys", error))
                .and_then(print_text),
            Command::Simulate(args) => simulate::run(&args),
            Command::Completions(args) => completions::run(&args, Self::command()),
            Command::Bench(args) => bench::run(args),
        };
        match result {
            Ok(()) | Err(CommandError::NobodyReads) => ExitCode::SUCCESS,
            Err(CommandError::NotOk) => ExitCode::FAILURE,
            Err(error) => {
                eprintln!("flotilla: {error}");
                ExitCode::FAILURE
            }
        }
    }
}

/// Runs a command's future to its end on all cores. Work that nobody waits for any more does not
/// keep it.
///
/// # Errors
/// The future's, or if there can be no runtime.
pub fn block_on(
    command: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    let runtime = runtime.map_err(|error| CommandError::failed("start the runtime", error))?;
    let result = runtime.block_on(command);
    runtime.shutdown_timeout(LEFTOVERS_BOUND);
    result
}

/// Prints one JSON object on stdout.
///
/// # Errors
/// If the value does not encode; as [`print_text`].
pub fn print_json(value: &impl Serialize) -> Result<(), CommandError> {
    let text =
        serde_json::to_string(value).map_err(|error| CommandError::failed("encode JSON", error))?;
    print_text(format_args!("{text}\n"))
}

/// Prints what was found, as JSON or as `text` for people, and ends as it is: well if `ok`.
///
/// # Errors
/// As [`print_json`]; [`CommandError::NotOk`] if it is not `ok`.
pub fn conclude<T: Serialize>(
    outcome: &T,
    json: bool,
    text: impl FnOnce(&T) -> String,
    ok: bool,
) -> Result<(), CommandError> {
    if json {
        print_json(outcome)?;
    } else {
        print_text(text(outcome))?;
    }
    if ok { Ok(()) } else { Err(CommandError::NotOk) }
}

/// Prints text for people on stdout.
///
/// # Errors
/// [`CommandError::NobodyReads`], or that it cannot be written.
pub fn print_text(text: impl fmt::Display) -> Result<(), CommandError> {
    let mut stdout = stdout().lock();
    match write!(stdout, "{text}").and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(CommandError::NobodyReads),
        written => written.map_err(|error| CommandError::failed("print", error)),
    }
}
