//! The machine itself: its one door for inputs and its one stream of outputs.

use std::collections::VecDeque;

use super::{BlobSlot, Config, Input, Output, PeerSlot};
use crate::map::ChunkMap;
use crate::time::Time;

/// What the machine has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Chunks received from neighbours.
    pub from_peers: u64,
    /// Chunks received from origins under a lease.
    pub from_origin_leased: u64,
    /// Chunks received from origins without a lease.
    pub from_origin_unleased: u64,
    /// Chunks served to neighbours.
    pub served: u64,
    /// Requests refused because all slots were taken.
    pub refused_busy: u64,
    /// Requests of ours that were refused.
    pub refusals_met: u64,
    /// Downloads that failed or stalled.
    pub failures: u64,
    /// Chunks that failed their check.
    pub corrupt: u64,
}

/// The deciding half of one peer process. See the module's documentation.
#[derive(Debug)]
pub struct PeerMachine {
    config: Config,
    outputs: VecDeque<Output>,
    stats: Stats,
}

impl PeerMachine {
    /// A machine that knows no blob and no peer.
    pub fn new(config: Config, _rng_seed: u64) -> Self {
        Self { config, outputs: VecDeque::new(), stats: Stats::default() }
    }

    /// Something happened at `now`. Time must not go backwards.
    pub fn handle(&mut self, _now: Time, _input: Input) {}

    /// The next thing to do, in order; `None` when all is said.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; may be earlier than needed, and changes with every input.
    pub fn poll_timeout(&self) -> Option<Time> {
        None
    }

    /// The deadline of [`Self::poll_timeout`] has come. Too early or too often does no harm.
    pub fn handle_timeout(&mut self, _now: Time) {}

    /// The chunks held of a blob; `None` if no such blob was added.
    pub fn held(&self, _blob: BlobSlot) -> Option<&ChunkMap> {
        None
    }

    /// Who is to be told about newly held chunks of a blob: its neighbours that are not known to hold all of it.
    pub fn audience(&self, _blob: BlobSlot) -> impl Iterator<Item = PeerSlot> + '_ {
        core::iter::empty()
    }

    /// The blobs wanted and not complete.
    pub fn wanted(&self) -> impl Iterator<Item = BlobSlot> + '_ {
        core::iter::empty()
    }

    /// The leases held, for the tracker's announce.
    pub fn leases(&self) -> impl Iterator<Item = (BlobSlot, u32)> + '_ {
        core::iter::empty()
    }

    /// Whether nothing refers to the peer, so that its slot may be given to another one.
    pub fn is_idle(&self, _peer: PeerSlot) -> bool {
        true
    }

    /// Counters since the start.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The settings it was made with.
    pub fn config(&self) -> &Config {
        &self.config
    }
}
