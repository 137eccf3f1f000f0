//! `flotilla bench`: measurements that operators run on their own machines, with real processes
//! and sockets. (The laboratory in `tests/lab` has the benchmarks of the project itself.)
//!
//! A benchmark connects only to this machine and to a `--url` that it is given, and leaves no
//! process and no file behind. Its exit status is 1 if the result does not meet its criteria.

mod load;
mod page_cache;
mod quic_baseline;
mod registry;
mod tracker;
mod transfer;

use clap::{Args, Subcommand};

use crate::command::{CommandError, block_on_until_signal};

/// The arguments of `flotilla bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Measure the throughput and latency of a registry: an origin, or any other
    Registry(registry::RegistryArgs),
    /// Measure a peer-to-peer transfer, including disk writes and verification, against a bare QUIC
    /// stream
    Transfer(transfer::TransferArgs),
    /// Measure a tracker with thousands of simulated VMs: latency, processor time and memory
    Tracker(tracker::TrackerArgs),
}

/// Runs a benchmark.
///
/// # Errors
/// If it does not run to its end; [`CommandError::CriteriaNotMet`] if its result is not good
/// enough.
pub fn run(args: BenchArgs) -> Result<(), CommandError> {
    match args.command {
        BenchCommand::Registry(args) => block_on_until_signal(registry::run(args)),
        BenchCommand::Transfer(args) => block_on_until_signal(transfer::run(args)),
        BenchCommand::Tracker(args) => block_on_until_signal(tracker::run(args)),
    }
}
