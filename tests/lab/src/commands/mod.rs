//! The benchmarks, a module each.
//!
//! A benchmark connects only to this machine, and leaves no process and no file behind.

mod cpu;
mod growth;
mod memory;
mod origin_memory;
mod passthrough;
mod program;
mod swarm;

use clap::Subcommand;
use flotilla::command::{CommandError, block_on_until_signal};

/// A benchmark and its arguments.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Measure a burst: many peers pull one layer at once, each on its own host with a shaped link
    Swarm(swarm::SwarmArgs),
    /// Compare a pull through a peer that gets no help with a pull straight from the origin
    Passthrough(passthrough::PassthroughArgs),
    /// Measure the cost of requests to a registry as the number of its images grows
    Growth(growth::GrowthArgs),
    /// Measure a peer's memory while it pulls many images at once
    Memory(memory::MemoryArgs),
    /// Measure an origin's memory under many concurrent uploads and pulls
    OriginMemory(origin_memory::OriginMemoryArgs),
}

impl Command {
    /// Runs the benchmark.
    ///
    /// # Errors
    /// If it does not run to its end; [`CommandError::CriteriaNotMet`] if its result is not good
    /// enough.
    pub(crate) fn run(self) -> Result<(), CommandError> {
        match self {
            Self::Swarm(args) => block_on_until_signal(swarm::run(args)),
            Self::Passthrough(args) => block_on_until_signal(passthrough::run(args)),
            Self::Growth(args) => block_on_until_signal(growth::run(args)),
            Self::Memory(args) => block_on_until_signal(memory::run(args)),
            Self::OriginMemory(args) => block_on_until_signal(origin_memory::run(args)),
        }
    }
}
