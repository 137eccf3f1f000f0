//! What goes into the tracker's machine and what comes out: the wire's messages with slots in place
//! of names.

use core::time::Duration;

use super::roster::Progress;
use super::slots::{BlobSlot, PeerSlot, RegionSlot, ZoneSlot};
use crate::map::ChunkMap;

/// The driver's name for something that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// Something happened.
#[derive(Clone, Debug)]
pub enum Input {
    /// A peer announces; answered by [`Output::Announced`].
    Announce(Announce),
    /// A peer asks for a lease; answered by [`Output::Lease`], now or within the parking bound.
    Take(Take),
    /// A peer says something about a lease; answered by [`Output::Lease`] now.
    Lease(Lease),
    /// The peer needs no lease for the blob now: its parked request, if any, is answered.
    Drop {
        /// Who asked.
        peer: PeerSlot,
        /// For which blob.
        blob: BlobSlot,
    },
    /// The driver knows that the peer is gone for good.
    Gone {
        /// Who.
        peer: PeerSlot,
    },
}

/// One announce: a peer's changes, all blobs together.
#[derive(Clone, Debug)]
pub struct Announce {
    /// Names the answer.
    pub request: RequestId,
    /// Who announces.
    pub peer: PeerSlot,
    /// Where it is.
    pub zone: ZoneSlot,
    /// Where that is.
    pub region: RegionSlot,
    /// The tracker's epoch as the peer knows it.
    pub epoch: u64,
    /// Number of this announce within the epoch; a repetition has the same one.
    pub sequence: u64,
    /// Whether `changes` are the whole state: then epoch and sequence may be any.
    pub full: bool,
    /// What changed.
    pub changes: Vec<Change>,
    /// Leases that the peer believes it holds.
    pub leases: Vec<HeldLease>,
    /// Peers it is connected to.
    pub connected: Vec<PeerSlot>,
    /// Peers it could not reach lately: not handed to it.
    pub unreachable: Vec<PeerSlot>,
    /// Whether the peer is going: then all that is known of it is forgotten.
    pub leaving: bool,
}

/// A peer's part in one swarm, as it is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The blob.
    pub blob: BlobSlot,
    /// The peer's part.
    pub state: BlobState,
}

/// A peer's part in one swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobState {
    /// It wants the blob, and a handout.
    Wanted(Progress),
    /// It is in the swarm and needs no neighbours.
    Held(Progress),
    /// It is not in the swarm.
    Gone,
}

/// A lease that a peer believes it holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// The blob.
    pub blob: BlobSlot,
    /// The chunk.
    pub chunk: u32,
    /// Chunks of the blob.
    pub chunks: u32,
}

/// A peer asks for permission to fetch a chunk from the origin.
#[derive(Clone, Debug)]
pub struct Take {
    /// Names the answer.
    pub request: RequestId,
    /// Who asks.
    pub peer: PeerSlot,
    /// For which blob.
    pub blob: BlobSlot,
    /// Grows with each take of the peer's life: an older one that comes late does not replace a
    /// newer one.
    pub number: u64,
    /// Chunks that neither the peer nor any neighbour holds; as long as the blob has chunks.
    pub missing: ChunkMap,
    /// Whether no neighbour has anything that the peer lacks.
    pub starving: bool,
    /// Holders that it was told to dial and could not reach.
    pub unreachable: Vec<PeerSlot>,
}

/// A peer says something about a lease that it was granted.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// Names the answer.
    pub request: RequestId,
    /// Who says it.
    pub peer: PeerSlot,
    /// The blob.
    pub blob: BlobSlot,
    /// The chunk.
    pub chunk: u32,
    /// What is said.
    pub event: LeaseEvent,
}

/// What became of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// Another term, if there are more bytes than at the last renewal.
    Renew {
        /// Bytes of the chunk received so far.
        received: u64,
    },
    /// The peer holds the chunk and it is verified.
    Done,
    /// The origin did not give it.
    Failed,
}

/// Something to do for the driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Answers an announce.
    Announced {
        /// Which.
        request: RequestId,
        /// How.
        answer: AnnounceAnswer,
    },
    /// Answers a lease request.
    Lease {
        /// Which.
        request: RequestId,
        /// How.
        answer: LeaseAnswer,
    },
    /// The machine knows nothing of this peer: its slot may be used again.
    PeerForgotten(PeerSlot),
    /// The machine knows nothing of this blob: its slot may be used again.
    BlobForgotten(BlobSlot),
}

/// The answer to an announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnnounceAnswer {
    /// Announce in full; nothing was taken.
    Resync,
    /// There are too many peers; nothing was taken.
    Full,
    /// Taken.
    Accepted {
        /// Time until the next announce.
        next: Duration,
        /// Neighbours for each blob wanted, in the order of the changes, nearest first.
        handouts: Vec<(BlobSlot, Vec<PeerSlot>)>,
    },
}

/// The answer to a lease request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseAnswer {
    /// Fetch this chunk from the origin.
    Granted {
        /// The chunk.
        chunk: u32,
        /// Time until it runs out, unless renewed.
        term: Duration,
    },
    /// Nothing to grant for now. Ask again after this time, or at once when starving.
    Wait {
        /// How long.
        retry_after: Duration,
    },
    /// This peer is alive and has a chunk that the starving asker lacks: dial it.
    Dial {
        /// The holder.
        holder: PeerSlot,
        /// The chunk that it has.
        chunk: u32,
    },
    /// The lease is good for this long.
    Renewed {
        /// How long.
        term: Duration,
    },
    /// Taken note of.
    Noted,
    /// The lease is not the peer's, or no longer.
    NotHeld,
    /// The peer, or its part in this swarm, is not known: announce first.
    Unknown,
    /// The blob has another number of chunks, or more than any blob may have.
    Mismatch,
}

/// What a machine has done since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Announces accepted.
    pub announces: u64,
    /// Announces answered by a resync.
    pub resyncs: u64,
    /// Peers forgotten because they were silent.
    pub peers_expired: u64,
    /// Changes left out because the peer is in too many swarms.
    pub changes_left_out: u64,
    /// Leases granted.
    pub granted: u64,
    /// Of these, leases of chunks that had been in the swarm before.
    pub granted_again: u64,
    /// Leases taken up from peers after a restart.
    pub adopted: u64,
    /// Leases that ended with the chunk.
    pub done: u64,
    /// Leases given up by their holder.
    pub failed: u64,
    /// Leases whose term ran out.
    pub expired: u64,
    /// Starving peers that were told a holder to dial.
    pub introduced: u64,
}
