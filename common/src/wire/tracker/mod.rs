//! Between a peer and a tracker, over HTTP: announces with handouts, and separate lease requests.
//!
//! Both have version 2; [`v1`] has the messages of older builds. A peer that meets an older tracker
//! sends version 1, and a tracker serves both.

pub mod v1;

use core::net::SocketAddr;

use bincode::{Decode, Encode};

use crate::chunk_map::ChunkMap;
use crate::digest::Digest;
use crate::name::{PeerId, RegionName, ZoneName};
use crate::origin_region::OriginRegion;

/// The path of announces.
pub const ANNOUNCE_PATH: &str = "/flotilla/v2/announce";
/// The path of lease requests.
pub const LEASE_PATH: &str = "/flotilla/v2/lease";
/// Progress of a peer that holds the whole blob; 0 is none of it.
pub const PROGRESS_COMPLETE: u8 = 15;
/// The maximum number of changes of one announce.
pub const MAX_CHANGES: usize = 10_000;

/// The address and the location of a peer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct PeerInfo {
    /// Its id, as in its certificate.
    pub id: PeerId,
    /// The address of its QUIC endpoint.
    pub addr: SocketAddr,
    /// Its region.
    pub region: RegionName,
    /// Its zone.
    pub zone: ZoneName,
}

/// What changed for one blob since the last announce, or its state in a full announce.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// The blob.
    pub digest: Digest,
    /// The peer's part in its swarm now.
    pub state: BlobState,
}

/// A peer's part in one swarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum BlobState {
    /// It wants the blob.
    Wanted {
        /// Fifteenths held, rounded down.
        progress: u8,
    },
    /// It holds this much and wants no more.
    Held {
        /// Fifteenths held, rounded down; [`PROGRESS_COMPLETE`] only for the whole blob.
        progress: u8,
    },
    /// It neither wants nor holds the blob any more.
    Gone,
}

impl BlobState {
    /// The state of a peer that holds the chunks in `held`; `None` if it has no part in the swarm.
    pub fn of(held: &ChunkMap, is_wanted: bool) -> Option<Self> {
        let progress = progress(held.count(), held.len());
        match (is_wanted, held.is_empty()) {
            (true, _) => Some(Self::Wanted { progress }),
            (false, false) => Some(Self::Held { progress }),
            (false, true) => None,
        }
    }
}

/// Fifteenths of `chunks` that are held, rounded down.
fn progress(held: u32, chunks: u32) -> u8 {
    let fifteenths = u64::from(held) * u64::from(PROGRESS_COMPLETE) / u64::from(chunks.max(1));
    u8::try_from(fifteenths).unwrap_or(PROGRESS_COMPLETE)
}

/// A lease that the peer believes it holds.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeldLease {
    /// The blob.
    pub digest: Digest,
    /// The chunk.
    pub chunk: u32,
    /// Chunks of the blob.
    pub chunks: u32,
}

/// How many neighbours a peer looks for to exchange a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NeighboursWanted {
    /// The blob.
    pub digest: Digest,
    /// Their number; the tracker may name fewer.
    pub count: u8,
}

/// One announce: the peer's changes, all blobs together.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AnnounceRequest {
    /// The announcing peer.
    pub peer: PeerInfo,
    /// The tracker's epoch as the peer knows it; 0 for none.
    pub epoch: u64,
    /// Counts the peer's announces within the epoch, from 0, which is always full.
    pub sequence: u64,
    /// Whether `changes` are the peer's whole state.
    pub full: bool,
    /// What changed, and the state of each blob in `neighbours`.
    pub changes: Vec<Change>,
    /// Leases held, all of them.
    pub leases: Vec<HeldLease>,
    /// The blobs for which it looks for neighbours.
    pub neighbours: Vec<NeighboursWanted>,
    /// Peers that it is connected to: they are preferred among equals. Empty if `neighbours` is.
    pub connected: Vec<PeerId>,
    /// Peers that it recently could not reach.
    pub unreachable: Vec<PeerId>,
    /// Whether the peer is leaving, so that the tracker forgets its state.
    pub leaving: bool,
}

/// The tracker's answer to an announce.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum AnnounceAnswer {
    /// The epoch or sequence is not what the tracker expects: announce in full, with this epoch and
    /// sequence 0.
    Resync {
        /// The tracker's epoch.
        epoch: u64,
    },
    /// The announce was applied.
    Accepted {
        /// The tracker's epoch.
        epoch: u64,
        /// Milliseconds until the next announce.
        next_ms: u32,
        /// In milliseconds: the peer waits for a random part of this time before it first asks for
        /// a lease on a blob, unless it starves. Large swarms need the requests of some peers only.
        lease_delay_ms: u32,
        /// The peers that `handouts` name.
        peers: Vec<PeerInfo>,
        /// Neighbours for each blob in [`AnnounceRequest::neighbours`].
        handouts: Vec<Handout>,
    },
}

/// Neighbours for one blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Handout {
    /// The blob.
    pub digest: Digest,
    /// Peers that hold or want it.
    pub peers: Vec<NamedPeer>,
}

/// A peer in a handout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct NamedPeer {
    /// Its index in the answer's list of peers.
    pub index: u16,
    /// Fifteenths of the blob that it held when it last announced; 0 also if unknown.
    pub progress: u8,
}

/// A request about leases.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseRequest {
    /// The requesting peer, which must have announced.
    pub peer: PeerId,
    /// The blob.
    pub digest: Digest,
    /// Whether the peer could not reach the first tracker of this blob: only then the second one
    /// grants.
    pub first_unreachable: bool,
    /// The request itself.
    pub ask: LeaseAsk,
}

/// A request to the lease authority.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseAsk {
    /// A lease, on any chunk. Parked until one can be granted, or the tracker's bound has passed.
    Take {
        /// Sequence number of the peer's Take requests. Requests may be reordered; the highest
        /// number wins.
        number: u64,
        /// Chunks that neither the peer nor any neighbour of it holds. Its length is the blob's.
        missing: ChunkMap,
        /// Whether the peer has nothing else to fetch.
        starving: bool,
        /// Holders that it could not reach after [`LeaseAnswer::Dial`] named them.
        unreachable: Vec<PeerId>,
        /// The number of regions whose origins it may ask; 0 if the tracker is not to choose. The
        /// peers of a region name them in the same order.
        origins: u8,
    },
    /// The parked [`Self::Take`] is needed no more: it is answered now, with [`LeaseAnswer::Wait`].
    /// Hanging up alone does not tell the tracker.
    Drop,
    /// The transfer makes progress: another term, if more was received than at the last renewal.
    Renew {
        /// The chunk.
        chunk: u32,
        /// Bytes of the chunk received so far.
        received: u64,
        /// The origin that sends them, if the peer knows it.
        from: Option<OriginRegion>,
    },
    /// The chunk is held now.
    Done {
        /// The chunk.
        chunk: u32,
        /// The origin that sent it; `None` if it came from a neighbour.
        from: Option<OriginRegion>,
    },
    /// The origin did not serve the chunk; another peer may try.
    Failed {
        /// The chunk.
        chunk: u32,
    },
    /// The transfer has made no progress since the last renewal, and the holder still waits for
    /// the origin. It may be answered with [`LeaseAnswer::Moved`].
    Waiting {
        /// The chunk.
        chunk: u32,
        /// The origin whose answer has stopped; `None` if none has begun.
        from: Option<OriginRegion>,
    },
}

/// The response of the lease authority.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseAnswer {
    /// Fetch this chunk from the origin.
    Granted {
        /// The chunk.
        chunk: u32,
        /// Milliseconds until it runs out, unless renewed.
        term_ms: u32,
        /// The origin to ask first; `None` if the peer decides.
        from: Option<OriginRegion>,
    },
    /// The lease goes on, and its chunk is to be fetched from another origin: the one that is asked
    /// serves no peer.
    Moved {
        /// The origin to ask.
        to: OriginRegion,
    },
    /// Nothing to grant now: the chunks come from neighbours. Retry after this time.
    Wait {
        /// Milliseconds.
        retry_ms: u32,
    },
    /// A live peer holds chunks that the starving peer lacks: dial it.
    Dial {
        /// The holder.
        peer: PeerInfo,
    },
    /// The request was applied (drop, renew, waiting, done, failed).
    Noted,
    /// The lease is not (or no longer) the peer's.
    NotHeld,
    /// This tracker does not know the peer: announce first.
    Unknown,
    /// Another tracker, the first of this blob, grants.
    NotFirst,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    proptest! {
        #[test]
        fn decoders_do_not_panic(mut body: Vec<u8>) {
            body.insert(0, codec::VERSION);
            let _ = codec::decode::<AnnounceRequest>(&body);
            let _ = codec::decode::<AnnounceAnswer>(&body);
            let _ = codec::decode::<LeaseRequest>(&body);
            let _ = codec::decode::<LeaseAnswer>(&body);
            let _ = codec::decode::<v1::LeaseRequest>(&body);
            let _ = codec::decode::<v1::LeaseAnswer>(&body);
        }
    }

    #[test]
    fn lease_requests_of_version_1_survive_the_way_to_version_2_and_back() {
        let take = v1::LeaseAsk::Take {
            number: 7,
            missing: ChunkMap::full(9),
            starving: true,
            unreachable: vec!["vm-2".parse().expect("a label")],
        };
        let chunk = 3;
        let asks = [
            take,
            v1::LeaseAsk::Drop,
            v1::LeaseAsk::Renew { chunk, received: 5 },
            v1::LeaseAsk::Done { chunk },
            v1::LeaseAsk::Failed { chunk },
            v1::LeaseAsk::Waiting { chunk },
        ];
        for ask in asks {
            let request = v1::LeaseRequest {
                peer: "vm-1".parse().expect("a label"),
                digest: Digest::sha256(b"x"),
                first_unreachable: true,
                ask,
            };
            let newer = LeaseRequest::from(request.clone());
            assert_eq!(v1::LeaseRequest::from(newer), request);
        }
    }

    #[test]
    fn lease_answers_of_version_1_name_no_origin() {
        let granted = LeaseAnswer::Granted {
            chunk: 3,
            term_ms: 1_000,
            from: Some(OriginRegion(1)),
        };
        let older = v1::LeaseAnswer::from(granted);
        let expected = v1::LeaseAnswer::Granted {
            chunk: 3,
            term_ms: 1_000,
        };
        assert_eq!(older, expected);
        let from = None;
        let (chunk, term_ms) = (3, 1_000);
        let granted = LeaseAnswer::Granted {
            chunk,
            term_ms,
            from,
        };
        assert_eq!(LeaseAnswer::from(older), granted);
        let moved = LeaseAnswer::Moved {
            to: OriginRegion(1),
        };
        assert_eq!(v1::LeaseAnswer::from(moved), v1::LeaseAnswer::Noted);
    }

    #[test]
    fn progress_is_complete_only_for_the_whole_blob() {
        for chunks in [1, 2, 16, 100, 262_144] {
            assert_eq!(progress(0, chunks), 0);
            assert_eq!(progress(chunks, chunks), PROGRESS_COMPLETE);
            for held in [1, chunks / 2, chunks - 1] {
                assert!(held == chunks || progress(held, chunks) < PROGRESS_COMPLETE);
            }
        }
    }

    #[test]
    fn blob_state_follows_chunks_and_demand() {
        let mut held = ChunkMap::empty(2);
        assert_eq!(BlobState::of(&held, false), None);
        assert_eq!(
            BlobState::of(&held, true),
            Some(BlobState::Wanted { progress: 0 })
        );
        held.insert(0);
        assert_eq!(
            BlobState::of(&held, false),
            Some(BlobState::Held { progress: 7 })
        );
    }

    #[test]
    fn announce_round_trip() {
        let request = AnnounceRequest {
            peer: PeerInfo {
                id: "vm-1".parse().expect("a label"),
                addr: SocketAddr::from(([10, 0, 0, 1], 4001)),
                region: "eu".parse().expect("a label"),
                zone: "eu-a".parse().expect("a label"),
            },
            epoch: 7,
            sequence: 3,
            full: false,
            changes: vec![Change {
                digest: Digest::sha256(b"x"),
                state: BlobState::Wanted { progress: 3 },
            }],
            leases: vec![HeldLease {
                digest: Digest::sha256(b"x"),
                chunk: 4,
                chunks: 9,
            }],
            neighbours: vec![NeighboursWanted {
                digest: Digest::sha256(b"x"),
                count: 16,
            }],
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        let bytes = codec::encode(&request).expect("encodes");
        assert_eq!(
            codec::decode::<AnnounceRequest>(&bytes).expect("own bytes"),
            request
        );
    }
}
