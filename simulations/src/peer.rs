//! One simulated peer.

use flotilla_common::failover::Failover;
use flotilla_common::opening::OpeningInput;
use flotilla_common::swarm::{Input, PeerMachine, TransferId};
use flotilla_common::time::Time;
use flotilla_common::tracker::{ExchangeId, SessionInput, TrackerSession};

use crate::images::{BlobId, Images};
use crate::links::LinkTable;
use crate::peer_blobs::PeerBlobs;
use crate::pulls::Pull;
use crate::reads::ReadTimes;
use crate::scenario::Fault;
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
    /// Its fault, if it has one.
    pub(crate) fault: Option<Fault>,
    pub(crate) is_alive: bool,
    /// While it is frozen, the inputs that it has not handled.
    pub(crate) frozen: Option<Backlog>,
    pub(crate) links: LinkTable,
    /// Its session with the trackers, once it has started and if there are any.
    pub(crate) session: Option<PeerSession>,
    /// The images that it pulls, in order.
    pub(crate) pulls: Vec<Pull>,
    /// The regions whose origins failed its first request for proofs.
    pub(crate) failed_closures: Vec<u32>,
    /// Its fetches of chunks under way.
    pub(crate) fetches: Vec<(TransferId, Key)>,
    /// Its fetches of manifests and proofs, and of blobs that are passed through.
    pub(crate) mirror_fetches: Vec<Key>,
    /// The blobs of its images.
    pub(crate) blobs: PeerBlobs,
    pub(crate) reads: ReadTimes,
    pub(crate) started_at: Time,
    /// When bytes of its images reached it last; the start of the pull before the first ones.
    pub(crate) delivered_at: Time,
    /// When all its pulls were complete.
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
    /// The pulls whose manifests arrived.
    pub(crate) manifests: Vec<u32>,
    /// With the pull that each is for.
    pub(crate) opening_inputs: Vec<(u32, OpeningInput)>,
}

impl SimulatedPeer {
    /// Whether it sends corrupt bytes.
    pub(crate) fn lies(&self) -> bool {
        self.fault == Some(Fault::Lies)
    }

    /// Whether the proof of a blob is being asked for.
    pub(crate) fn expects(&self, images: &Images, blob: BlobId) -> bool {
        let mut openings = self.pulls.iter().filter(|pull| pull.opening.is_some());
        openings.any(|pull| images.image(pull.image).blobs.contains(&blob))
    }

    /// The slower of uplink and downlink, in bits per second.
    pub(crate) fn rate(&self) -> u64 {
        self.up.min(self.down)
    }
}
