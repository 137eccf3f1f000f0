//! `flotilla bench`: what the pieces can do on this machine, measured on real processes and
//! sockets.
//!
//! A measurement never touches the network beyond this machine, leaves no process and no file
//! behind, and says [`CommandError::NotOk`] when what was to be measured did not happen.

mod content;
mod growth;
mod load;
mod memory;
mod origin;
mod origin_memory;
mod page_cache;
mod passthrough;
mod peers;
mod plain;
mod process;
mod processor;
mod registry;
mod room;
mod service;
mod swarm;
mod transfer;

use clap::{Args, Subcommand};
use flotilla_runtime::shutdown::Shutdown;

use crate::cli::{CommandError, block_on};

/// The arguments of `flotilla bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// What a registry answers in a second: ours, or any other
    Registry(registry::RegistryArgs),
    /// What a request costs at a registry with few images, and at one with many
    Growth(growth::GrowthArgs),
    /// One peer to another, disk to verified disk, beside a plain QUIC stream of the same bytes
    Transfer(transfer::TransferArgs),
    /// Many peers pull one layer at once, each on a host of its own with a shaped link
    Swarm(swarm::SwarmArgs),
    /// A pull through a mirror that nobody helps, beside a pull straight from the origin
    Passthrough(passthrough::PassthroughArgs),
    /// What a peer has in memory while it pulls many images at once
    Memory(memory::MemoryArgs),
    /// What an origin has in memory under many uploads and pulls at once
    OriginMemory(origin_memory::OriginMemoryArgs),
}

/// Runs a benchmark.
///
/// # Errors
/// If it cannot be run; [`CommandError::NotOk`] if what it measured is not good enough.
pub fn run(args: BenchArgs) -> Result<(), CommandError> {
    match args.command {
        BenchCommand::Registry(args) => block_on(until_signal(registry::run(args))),
        BenchCommand::Growth(args) => block_on(until_signal(growth::run(args))),
        BenchCommand::Transfer(args) => block_on(until_signal(transfer::run(args))),
        BenchCommand::Swarm(args) => block_on(until_signal(swarm::run(args))),
        BenchCommand::Passthrough(args) => block_on(until_signal(passthrough::run(args))),
        BenchCommand::Memory(args) => block_on(until_signal(memory::run(args))),
        BenchCommand::OriginMemory(args) => block_on(until_signal(origin_memory::run(args))),
    }
}

/// Whatever a benchmark started ends with it, also when it is told to stop.
async fn until_signal(
    work: impl Future<Output = Result<(), CommandError>>,
) -> Result<(), CommandError> {
    let shutdown = Shutdown::on_signals()
        .map_err(|error| CommandError::failed("listen for signals", error))?;
    tokio::select! {
        done = work => done,
        () = shutdown.wait() => Err(CommandError::failed("run the benchmark", "it was told to stop")),
    }
}
