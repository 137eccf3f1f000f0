//! One simulated peer.

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::failover::Failover;
use flotilla_common::opening::OpeningInput;
use flotilla_common::swarm::{Input, PeerMachine, TransferId};
use flotilla_common::time::Time;
use flotilla_common::tracker::{ExchangeId, SessionInput, TrackerSession};

use crate::links::LinkTable;
use crate::opening::ImageOpening;
use crate::reads::BlobReads;
use crate::slab::Key;

/// Where a peer is. Zones are numbered across regions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Location {
    pub(crate) zone: u32,
    pub(crate) region: u32,
}

/// One peer.
#[derive(Debug)]
pub(crate) struct SimulatedPeer {
    pub(crate) machine: PeerMachine,
    /// Which origin it asks.
    pub(crate) failover: Failover,
    /// The time of the next `FailoverWake`.
    pub(crate) failover_wake_at: Time,
    /// A stable number, the same in every run.
    pub(crate) key: u64,
    /// Uplink, in bits per second.
    pub(crate) up: u64,
    /// Downlink, in bits per second.
    pub(crate) down: u64,
    /// Whether it sends corrupt bytes.
    pub(crate) is_liar: bool,
    pub(crate) is_alive: bool,
    /// While it is frozen, the inputs that it has not handled.
    pub(crate) frozen: Option<Backlog>,
    pub(crate) links: LinkTable,
    /// Its session with the trackers, once it has started and if there are any.
    pub(crate) session: Option<PeerSession>,
    /// Its opening of the image, until the runtime has the manifest and the proofs are decided.
    pub(crate) opening: Option<Box<ImageOpening>>,
    /// Its fetches of chunks under way.
    pub(crate) fetches: Vec<(TransferId, Key)>,
    /// Its fetches of proofs, and of blobs that are passed through.
    pub(crate) mirror_fetches: Vec<Key>,
    /// The runtime's requests for blobs.
    pub(crate) reads: BlobReads,
    /// The verified chunks of each blob, counted independently of the machine.
    pub(crate) verified: Vec<ChunkMap>,
    /// For each blob, the chunk that the reader waits for.
    pub(crate) cursors: Vec<u32>,
    /// The blobs that the runtime has, or reads to the end from the store.
    pub(crate) delivered: ChunkMap,
    pub(crate) started_at: Time,
    pub(crate) first_byte_at: Option<Time>,
    /// When bytes of the image reached it last; its start before the first ones.
    pub(crate) delivered_at: Time,
    pub(crate) completed_at: Option<Time>,
    /// The time of its next `Wake`.
    pub(crate) wake_at: Time,
}

/// A peer's session with the trackers.
#[derive(Debug)]
pub(crate) struct PeerSession {
    pub(crate) machine: TrackerSession,
    /// The time of its next `SessionWake`.
    pub(crate) wake_at: Time,
    /// The number of each tracker that the machine knows.
    pub(crate) trackers: Vec<u32>,
    /// Its exchanges that have reached a tracker and are not answered, with the tracker's number.
    pub(crate) exchanges: Vec<(ExchangeId, u32, Key)>,
}

/// Inputs of a frozen peer, in order.
#[derive(Debug, Default)]
pub(crate) struct Backlog {
    pub(crate) inputs: Vec<Input>,
    pub(crate) session_inputs: Vec<SessionInput>,
    pub(crate) opening_inputs: Vec<OpeningInput>,
}

impl SimulatedPeer {
    /// The slower of uplink and downlink, in bits per second.
    pub(crate) fn rate(&self) -> u64 {
        self.up.min(self.down)
    }
}
