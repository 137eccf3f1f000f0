//! Everything that happens at a time of its own, and its part in the trace hash.

use flotilla_common::failover::{Outcome as CallOutcome, ProbeId, SourceId};
use flotilla_common::swarm::{BlobSlot, RefusalReason};

use crate::network::FlowEvent;
use crate::slab::Key;

/// An event in the queue.
#[derive(Debug)]
pub(crate) enum Event {
    /// A peer starts its pull.
    Start { peer: u32 },
    /// A deadline of a peer's machine.
    Wake { peer: u32 },
    /// A deadline of a peer's opening of the image.
    OpeningWake { peer: u32 },
    /// A deadline of a peer's requests for blobs.
    ReadWake { peer: u32 },
    /// The runtime repeats a request for a manifest.
    ManifestRequested { peer: u32, pull: u32 },
    /// The runtime repeats a request for a blob.
    BlobRequested { peer: u32, blob: BlobSlot },
    /// The handshake of a dial is over.
    Dialled { peer: u32, slot: u32 },
    /// A dial to a dead peer times out.
    DialTimeout { peer: u32, slot: u32 },
    /// The other side of a connection learns that it is closed.
    Closed { peer: u32, slot: u32, epoch: u32 },
    /// Newly held chunks reach some neighbours.
    Have { broadcast: Key },
    /// A chunk map reaches a neighbour.
    ChunkMap { message: Key },
    /// A neighbour learns of a free upload slot.
    SlotFree { peer: u32, slot: u32, epoch: u32 },
    /// A fetch request reaches its source.
    Requested { fetch: Key },
    /// A refusal reaches the requesting peer.
    Refused { fetch: Key, reason: RefusalReason },
    /// The first byte reaches the requesting peer.
    FirstByte { fetch: Key },
    /// The last byte reaches the requesting peer.
    Arrived { fetch: Key },
    /// The request of a fetch to the origins is to be looked at.
    RequestWake { fetch: Key },
    /// A request reaches an origin.
    OriginAsked { call: Key },
    /// An origin sends its answer.
    OriginServes { call: Key },
    /// The head of an origin's answer reaches the peer, or an error does.
    OriginAnswered {
        call: Key,
        outcome: Box<CallOutcome>,
    },
    /// The last byte of an origin's answer reaches the peer.
    OriginArrived { call: Key },
    /// The progress of an origin's answer is to be looked at.
    BodyWatched { call: Key },
    /// The connection of a call to an origin breaks.
    BodyBroke { call: Key },
    /// A request of a call's origin reaches the origin of the region `by`.
    RelayAsked { call: Key, by: u32 },
    /// The answer of the region `by`, or of the own storage, reaches a call's origin.
    ReadAnswered {
        call: Key,
        by: Option<u32>,
        outcome: Box<CallOutcome>,
    },
    /// The sources of a call's bytes are to be looked at.
    StorageWake { call: Key },
    /// The bytes of a call's storage did not come for too long, or broke off.
    BodyStalled { call: Key },
    /// A deadline of the failover machine of a peer or an origin, by the number of its end.
    FailoverWake { peer: u32 },
    /// The result of a probe by such a machine arrives.
    Probed {
        peer: u32,
        source: SourceId,
        probe: ProbeId,
        is_good: bool,
    },
    /// A message reaches a tracker.
    ToTracker { message: Key },
    /// A tracker's processor has handled a request.
    TrackerServes { tracker: u32, exchange: Key },
    /// An answer of a tracker reaches a peer.
    FromTracker { answer: Key },
    /// A deadline of a tracker's machine.
    TrackerWake { tracker: u32 },
    /// A deadline of a peer's session with the trackers.
    SessionWake { peer: u32 },
    /// A failure of the scenario starts.
    FailureStarts { failure: usize },
    /// A failure of the scenario ends.
    FailureEnds { failure: usize },
    /// A peer dies, or leaves in an orderly way.
    Departs { peer: u32, is_orderly: bool },
    /// A peer dies, and starts again later.
    Restarts { peer: u32, failure: usize },
    /// A peer that died starts again.
    Returns { peer: u32 },
}

impl Event {
    /// The event's part in the trace hash: its kind, and the number that it is about.
    pub(crate) fn fingerprint(&self) -> (u64, u64) {
        let pair = |one: u32, other: u32| u64::from(one) | u64::from(other) << 32;
        match *self {
            Self::Start { peer } => (3, peer.into()),
            Self::Wake { peer } => (4, peer.into()),
            Self::Dialled { peer, slot } => (5, pair(peer, slot)),
            Self::DialTimeout { peer, slot } => (6, pair(peer, slot)),
            Self::Closed { peer, slot, .. } => (7, pair(peer, slot)),
            Self::Have { broadcast } => (8, broadcast.to_bits()),
            Self::ChunkMap { message } => (9, message.to_bits()),
            Self::SlotFree { peer, slot, .. } => (36, pair(peer, slot)),
            Self::Requested { fetch } => (10, fetch.to_bits()),
            Self::Refused { fetch, .. } => (11, fetch.to_bits()),
            Self::FirstByte { fetch } => (12, fetch.to_bits()),
            Self::Arrived { fetch } => (13, fetch.to_bits()),
            Self::RequestWake { fetch } => (14, fetch.to_bits()),
            Self::OriginAsked { call } => (24, call.to_bits()),
            Self::OriginServes { call } => (25, call.to_bits()),
            Self::OriginAnswered { call, .. } => (26, call.to_bits()),
            Self::OriginArrived { call } => (27, call.to_bits()),
            Self::BodyWatched { call } => (28, call.to_bits()),
            Self::BodyBroke { call } => (29, call.to_bits()),
            Self::ToTracker { message } => (15, message.to_bits()),
            Self::FromTracker { answer } => (16, answer.to_bits()),
            Self::TrackerWake { tracker } => (17, tracker.into()),
            Self::SessionWake { peer } => (18, peer.into()),
            Self::FailureStarts { failure } | Self::FailureEnds { failure } => (19, failure as u64),
            Self::Departs { peer, .. } => (20, peer.into()),
            Self::FailoverWake { peer } => (21, peer.into()),
            Self::TrackerServes { tracker, exchange } => {
                (23, exchange.to_bits() ^ u64::from(tracker) << 40)
            }
            Self::Probed { peer, source, .. } => (22, pair(peer, source.0)),
            Self::OpeningWake { peer } => (30, peer.into()),
            Self::BlobRequested { peer, blob } => (31, pair(peer, blob.0)),
            Self::ReadWake { peer } => (32, peer.into()),
            Self::RelayAsked { call, .. } => (40, call.to_bits()),
            Self::ReadAnswered { call, .. } => (41, call.to_bits()),
            Self::StorageWake { call } => (42, call.to_bits()),
            Self::BodyStalled { call } => (43, call.to_bits()),
            Self::ManifestRequested { peer, pull } => (33, pair(peer, pull)),
            Self::Restarts { peer, .. } => (34, peer.into()),
            Self::Returns { peer } => (35, peer.into()),
        }
    }
}

impl FlowEvent {
    /// As [`Event::fingerprint`].
    pub(crate) fn fingerprint(&self) -> (u64, u64) {
        match *self {
            Self::Progress { tag, moved, .. } => (1, tag ^ moved << 32),
            Self::Done { tag, .. } => (2, tag),
        }
    }
}
