//! Inputs and outputs of the tracker's machine: the messages of the wire protocol, with slots in
//! place of names.

use core::time::Duration;

use bincode::{Decode, Encode};

use super::roster::Progress;
use super::slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};
use crate::chunk_map::ChunkMap;
use crate::origin_region::OriginRegion;

/// The driver's name for a request that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct RequestId(pub u64);

/// An event for the machine.
#[derive(Clone, Debug, Encode, Decode)]
pub enum TrackerInput {
    /// A peer announces; answered by [`TrackerOutput::Announced`].
    Announce(Announce),
    /// A peer requests a lease; answered by [`TrackerOutput::Lease`], at once or when the request
    /// was parked for the longest time.
    Take(Take),
    /// A peer reports the state of a lease; answered by [`TrackerOutput::Lease`] at once.
    Lease(Lease),
    /// The peer needs no lease for the blob any more: its parked request, if any, is answered.
    Drop {
        /// The peer.
        peer: PeerSlot,
        /// The blob.
        blob: BlobSlot,
    },
    /// The driver knows that the peer is gone.
    Gone {
        /// The peer.
        peer: PeerSlot,
    },
}

/// One announce: a peer's changes, all blobs together.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Announce {
    /// Names the answer.
    pub request: RequestId,
    /// The announcing peer.
    pub peer: PeerSlot,
    /// Its zone.
    pub zone: ZoneSlot,
    /// Its region.
    pub region: RegionSlot,
    /// The tracker's epoch as the peer knows it.
    pub epoch: u64,
    /// Number of this announce within the epoch; a repetition has the same one.
    pub sequence: u64,
    /// Whether `changes` are the peer's whole state; then epoch and sequence are ignored.
    pub full: bool,
    /// The changes.
    pub changes: Vec<RoleChange>,
    /// Leases that the peer believes it holds.
    pub leases: Vec<ReportedLease>,
    /// The blobs for which the peer looks for neighbours, and how many.
    pub neighbours: Vec<(BlobSlot, u8)>,
    /// Peers it is connected to.
    pub connected: Vec<PeerSlot>,
    /// Peers that it could not reach lately; they are left out of its handouts.
    pub unreachable: Vec<PeerSlot>,
    /// Whether the peer leaves; then its whole state is forgotten.
    pub leaving: bool,
}

/// A peer's new role in one swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct RoleChange {
    /// The blob.
    pub blob: BlobSlot,
    /// The role.
    pub state: SwarmRole,
}

/// A peer's role in one swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SwarmRole {
    /// It wants the blob.
    Wanted(Progress),
    /// It holds some of the blob and wants no more.
    Held(Progress),
    /// It is not in the swarm.
    Gone,
}

/// A lease that a peer reports as its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ReportedLease {
    /// The blob.
    pub blob: BlobSlot,
    /// The chunk.
    pub chunk: u32,
    /// Chunks of the blob.
    pub chunks: u32,
}

/// A peer requests permission to fetch a chunk from the origin.
#[derive(Clone, Debug, Encode, Decode)]
pub struct Take {
    /// Names the answer.
    pub request: RequestId,
    /// The requesting peer.
    pub peer: PeerSlot,
    /// The blob.
    pub blob: BlobSlot,
    /// Number of the request in the peer's life: a late request with a lower number does not
    /// replace a newer one.
    pub number: u64,
    /// Chunks that neither the peer nor any neighbour holds. The map's length is the number of the
    /// blob's chunks.
    pub missing: ChunkMap,
    /// Whether no neighbour has anything that the peer lacks.
    pub starving: bool,
    /// Holders that it was named and could not reach.
    pub unreachable: Vec<PeerSlot>,
    /// The number of regions whose origins it may ask; 0 if the tracker does not choose.
    pub origins: u8,
}

/// A peer reports the state of a lease that it was granted.
#[derive(Clone, Copy, Debug, Encode, Decode)]
pub struct Lease {
    /// Names the answer.
    pub request: RequestId,
    /// The reporting peer.
    pub peer: PeerSlot,
    /// The blob.
    pub blob: BlobSlot,
    /// The chunk.
    pub chunk: u32,
    /// The state.
    pub event: LeaseEvent,
}

/// The state of a lease, as its holder reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseEvent {
    /// The lease should be extended; it is if more bytes were received than at the last renewal.
    Renew {
        /// Bytes of the chunk received so far.
        received: u64,
        /// The origin that sends them, if the peer knows it.
        from: Option<OriginRegion>,
    },
    /// No bytes came since the last renewal; the peer waits for the origin. The lease is extended
    /// if the origin serves none of the blob's holders.
    Waiting {
        /// The origin whose answer has stopped; `None` if none has begun.
        from: Option<OriginRegion>,
    },
    /// The peer holds the verified chunk.
    Done {
        /// The origin that sent it; `None` if it came from a neighbour.
        from: Option<OriginRegion>,
    },
    /// The peer gives the lease up.
    Failed,
}

/// An action for the driver.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum TrackerOutput {
    /// Answers an announce.
    Announced {
        /// The request.
        request: RequestId,
        /// The answer.
        answer: AnnounceOutcome,
    },
    /// Answers a lease request.
    Lease {
        /// The request.
        request: RequestId,
        /// The answer.
        answer: LeaseOutcome,
    },
    /// Leases of a region's peers are not fetched from an origin any more, or are again: for the
    /// log.
    OriginChanged {
        /// The region of the peers.
        region: RegionSlot,
        /// The origin, as they name it.
        origin: OriginRegion,
        /// Whether it is out.
        is_out: bool,
    },
    /// The machine forgot this peer: its slot may be reused.
    PeerForgotten(PeerSlot),
    /// The machine forgot this blob: its slot may be reused.
    BlobForgotten(BlobSlot),
}

/// The answer to an announce.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AnnounceOutcome {
    /// The peer must announce in full; this announce was ignored.
    Resync,
    /// There are too many peers; this announce was ignored.
    Full,
    /// The announce was accepted.
    Accepted {
        /// Time until the next announce.
        next: Duration,
        /// Over how long the peer's first requests for leases are spread.
        lease_delay: Duration,
        /// Neighbours for each blob of [`Announce::neighbours`], in that order.
        handouts: Vec<Handout>,
    },
}

/// Neighbours for one blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Handout {
    /// The blob.
    pub blob: BlobSlot,
    /// The neighbours, and how much each held when it last announced.
    pub peers: Vec<(PeerSlot, Progress)>,
}

/// The answer to a lease request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseOutcome {
    /// The peer may fetch this chunk from the origin.
    Granted {
        /// The chunk.
        chunk: u32,
        /// Time until the lease expires, unless it is renewed.
        term: Duration,
        /// The origin to ask first; `None` if the peer decides.
        from: Option<OriginRegion>,
    },
    /// The lease goes on, and its chunk is to be fetched from another origin.
    Moved {
        /// The origin.
        to: OriginRegion,
    },
    /// Nothing can be granted now. The peer may ask again after this time, or at once when it
    /// starves.
    Wait {
        /// The time.
        retry_after: Duration,
    },
    /// The starving peer should dial this holder, which is alive and has a chunk that it lacks.
    Dial {
        /// The holder.
        holder: PeerSlot,
        /// The chunk that it has.
        chunk: u32,
    },
    /// The lease was extended.
    Renewed {
        /// The time.
        term: Duration,
    },
    /// The report was handled.
    Noted,
    /// The peer does not hold the lease, or not any more.
    NotHeld,
    /// The peer is unknown, or not in this swarm; it must announce first.
    Unknown,
    /// The chunk count of the request differs from the blob's, or is too large.
    Mismatch,
}

/// Counts of events since the machine started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TrackerCounts {
    /// Announces accepted.
    pub announces: u64,
    /// Announces answered by a resync.
    pub resyncs: u64,
    /// Peers forgotten because their announces stopped.
    pub peers_expired: u64,
    /// Changes ignored because the peer is in too many swarms.
    pub changes_left_out: u64,
    /// Leases granted.
    pub granted: u64,
    /// Leases granted on chunks that had been in the swarm before.
    pub granted_again: u64,
    /// Leases adopted from reports of their holders.
    pub adopted: u64,
    /// Leases whose holder got the chunk.
    pub done: u64,
    /// Leases given up by their holder.
    pub failed: u64,
    /// Leases that expired.
    pub expired: u64,
    /// Starving peers that were named a holder.
    pub introduced: u64,
    /// Leases moved to the origin of another region.
    pub moved: u64,
    /// Times that an origin began to count as out.
    pub origins_out: u64,
}
