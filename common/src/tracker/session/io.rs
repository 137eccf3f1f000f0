//! Inputs and outputs of the session, in the words of the wire protocol.

use core::time::Duration;

use bincode::{Decode, Encode};

use super::exchanges::ExchangeId;
use crate::chunk_map::ChunkMap;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::origin_region::OriginRegion;
use crate::wire::tracker::{
    AnnounceAnswer, AnnounceRequest, Change, HeldLease, LeaseAnswer, LeaseAsk, LeaseRequest,
    NeighboursWanted, PeerInfo,
};

/// The part of a peer's state that announces carry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct PeerSnapshot {
    /// Every blob that the peer holds some of or wants.
    pub blobs: Vec<Change>,
    /// Leases that it believes it holds.
    pub leases: Vec<HeldLease>,
    /// The wanted blobs for which it looks for neighbours.
    pub neighbours: Vec<NeighboursWanted>,
    /// Peers that it is connected to.
    pub connected: Vec<PeerId>,
    /// Peers that it could not reach lately; the session sends a bounded number of them.
    pub unreachable: Vec<PeerId>,
}

/// How soon the trackers need to know a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub enum Urgency {
    /// With the next announce: soon after the last one, but not at once.
    Soon,
    /// At once: the peer looks for neighbours.
    Now,
}

/// Peers that a tracker named for one blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NamedPeers {
    /// The blob.
    pub digest: Digest,
    /// The peers.
    pub peers: Vec<PeerInfo>,
}

/// An event for the session.
#[derive(Clone, Debug, Encode, Decode)]
pub enum SessionInput {
    /// The peer's state changed: all trackers get an announce.
    StateChanged(Urgency),
    /// The answer to [`SessionOutput::NeedSnapshot`].
    Snapshot {
        /// Index of the tracker that the snapshot was requested for.
        tracker: usize,
        /// The peer's state.
        snapshot: PeerSnapshot,
    },
    /// Request a lease. The outcome is [`SessionOutput::LeaseGranted`] or
    /// [`SessionOutput::LeaseWait`]; a newer request for the same blob replaces the older one.
    RequestLease {
        /// The blob.
        digest: Digest,
        /// Chunks that neither the peer nor any neighbour holds.
        missing: ChunkMap,
        /// Whether the peer can fetch nothing else.
        starving: bool,
        /// Holders that the peer could not reach.
        unreachable: Vec<PeerId>,
        /// The number of regions whose origins the peer may ask.
        origins: u8,
    },
    /// The peer does not need the requested lease any more. No outcome is reported.
    WithdrawRequest {
        /// The blob.
        digest: Digest,
    },
    /// Report the state of a lease to the tracker.
    UpdateLease {
        /// The blob.
        digest: Digest,
        /// The update.
        update: LeaseUpdate,
    },
    /// A tracker answered an announce.
    AnnounceAnswered {
        /// The exchange.
        exchange: ExchangeId,
        /// The answer.
        answer: AnnounceAnswer,
    },
    /// A tracker answered a lease request.
    LeaseAnswered {
        /// The exchange.
        exchange: ExchangeId,
        /// The answer.
        answer: LeaseAnswer,
    },
    /// An exchange ended without an answer.
    Failed {
        /// The exchange.
        exchange: ExchangeId,
    },
    /// The peer leaves: every tracker gets a last announce, and nothing else is sent any more.
    Leave,
}

/// The state of a lease that a peer was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseUpdate {
    /// The transfer makes progress; the lease should be extended.
    Renew {
        /// The chunk.
        chunk: u32,
        /// Bytes of the chunk received so far.
        received: u64,
        /// The origin that sends them, if it is known.
        from: Option<OriginRegion>,
    },
    /// The transfer makes no progress; the peer waits for the origin. The outcome may be
    /// [`SessionOutput::LeaseMoved`] or [`SessionOutput::LeaseLost`].
    Waiting {
        /// The chunk.
        chunk: u32,
        /// The origin whose answer has stopped; `None` if none has begun.
        from: Option<OriginRegion>,
    },
    /// The peer holds the chunk.
    Done {
        /// The chunk.
        chunk: u32,
        /// The origin that sent it; `None` if it came from a neighbour.
        from: Option<OriginRegion>,
    },
    /// The peer gives the chunk up.
    Failed {
        /// The chunk.
        chunk: u32,
    },
}

impl From<LeaseUpdate> for LeaseAsk {
    fn from(update: LeaseUpdate) -> Self {
        match update {
            LeaseUpdate::Renew {
                chunk,
                received,
                from,
            } => Self::Renew {
                chunk,
                received,
                from,
            },
            LeaseUpdate::Waiting { chunk, from } => Self::Waiting { chunk, from },
            LeaseUpdate::Done { chunk, from } => Self::Done { chunk, from },
            LeaseUpdate::Failed { chunk } => Self::Failed { chunk },
        }
    }
}

/// A request to one tracker.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum TrackerRequest {
    /// For [`crate::wire::tracker::ANNOUNCE_PATH`].
    Announce(AnnounceRequest),
    /// For [`crate::wire::tracker::LEASE_PATH`].
    Lease(LeaseRequest),
}

/// Why the session does not wait for an answer any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CancelReason {
    /// The announce timed out.
    AnnounceTimeout,
    /// The lease request or update timed out; it goes to the next tracker.
    LeaseTimeout,
    /// The tracker became unresponsive; the request goes to the next tracker.
    Unresponsive,
    /// A tracker of a nearer group answers again; the request goes to that one.
    GroupUnused,
}

/// An action for the shell.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum SessionOutput {
    /// Pass the peer's state in with [`SessionInput::Snapshot`]. Until then this tracker gets no
    /// announce.
    NeedSnapshot {
        /// Index of the tracker.
        tracker: usize,
    },
    /// Post the request and pass the answer or the failure in.
    Post {
        /// Names the answer.
        exchange: ExchangeId,
        /// Index of the tracker.
        tracker: usize,
        /// The request.
        request: TrackerRequest,
    },
    /// Abort the exchange. Its answer, if it comes nevertheless, is ignored.
    Cancel {
        /// The exchange.
        exchange: ExchangeId,
        /// Index of the tracker.
        tracker: usize,
        /// Why.
        reason: CancelReason,
    },
    /// Neighbours that a tracker named.
    Handouts(Vec<NamedPeers>),
    /// The requested lease was granted.
    LeaseGranted {
        /// The blob.
        digest: Digest,
        /// The chunk to fetch from the origin.
        chunk: u32,
        /// Time until the lease expires, unless it is renewed.
        term: Duration,
        /// The origin to ask first; `None` if the peer decides.
        from: Option<OriginRegion>,
    },
    /// The chunk of a lease is to be fetched from another origin.
    LeaseMoved {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: u32,
        /// The origin.
        to: OriginRegion,
    },
    /// The requested lease was not granted.
    LeaseWait {
        /// The blob.
        digest: Digest,
        /// When the peer may request again at the earliest.
        retry_after: Duration,
    },
    /// A renewal came too late: the peer does not hold the lease any more.
    LeaseLost {
        /// The blob.
        digest: Digest,
        /// The chunk.
        chunk: u32,
    },
    /// A tracker answers although it did not before.
    Reachable,
    /// No tracker answers any more.
    Unreachable,
}
