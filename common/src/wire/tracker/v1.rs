//! Announces and lease requests of version 1, which peers and trackers of older builds send.
//!
//! Every wanted blob in an announce gets a handout, and each handout repeats the peers' addresses.
//! Leases do not say which origin a chunk comes from.

use bincode::{Decode, Encode};

use super::{Change, HeldLease, NamedPeer, NeighboursWanted, PeerInfo};
use crate::chunk_map::ChunkMap;
use crate::digest::Digest;
use crate::name::PeerId;
use crate::wire::tracker::{self as v2, BlobState};

/// The path of announces.
pub const ANNOUNCE_PATH: &str = "/flotilla/v1/announce";
/// The path of lease requests.
pub const LEASE_PATH: &str = "/flotilla/v1/lease";
/// Neighbours that version 1 looks for with each wanted blob; the tracker names fewer.
const NEIGHBOURS: u8 = u8::MAX;

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
    /// What changed, and every wanted blob.
    pub changes: Vec<Change>,
    /// Leases held, all of them.
    pub leases: Vec<HeldLease>,
    /// Peers that it is connected to: they are preferred among equals.
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
        /// Neighbours for each blob wanted.
        handouts: Vec<Handout>,
    },
}

/// Neighbours for one blob.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Handout {
    /// The blob.
    pub digest: Digest,
    /// Peers that hold or want it.
    pub peers: Vec<PeerInfo>,
}

/// A request about leases.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LeaseRequest {
    /// The requesting peer, which must have announced.
    pub peer: PeerId,
    /// The blob.
    pub digest: Digest,
    /// Whether the peer could not reach the first tracker of this blob.
    pub first_unreachable: bool,
    /// The request itself.
    pub ask: LeaseAsk,
}

/// A request to the lease authority; see [`v2::LeaseAsk`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseAsk {
    /// A lease, on any chunk.
    Take {
        /// Sequence number of the peer's Take requests.
        number: u64,
        /// Chunks that neither the peer nor any neighbour of it holds.
        missing: ChunkMap,
        /// Whether the peer has nothing else to fetch.
        starving: bool,
        /// Holders that it could not reach.
        unreachable: Vec<PeerId>,
    },
    /// The parked [`Self::Take`] is needed no more.
    Drop,
    /// The transfer makes progress.
    Renew {
        /// The chunk.
        chunk: u32,
        /// Bytes of the chunk received so far.
        received: u64,
    },
    /// The chunk is held now.
    Done {
        /// The chunk.
        chunk: u32,
    },
    /// The origin did not serve the chunk.
    Failed {
        /// The chunk.
        chunk: u32,
    },
    /// The transfer makes no progress, and the holder waits for the origin.
    Waiting {
        /// The chunk.
        chunk: u32,
    },
}

/// The response of the lease authority; see [`v2::LeaseAnswer`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LeaseAnswer {
    /// Fetch this chunk from the origin.
    Granted {
        /// The chunk.
        chunk: u32,
        /// Milliseconds until it runs out, unless renewed.
        term_ms: u32,
    },
    /// Nothing to grant now.
    Wait {
        /// Milliseconds until the next request.
        retry_ms: u32,
    },
    /// A live peer holds chunks that the starving peer lacks: dial it.
    Dial {
        /// The holder.
        peer: PeerInfo,
    },
    /// The request was applied.
    Noted,
    /// The lease is not (or no longer) the peer's.
    NotHeld,
    /// This tracker does not know the peer: announce first.
    Unknown,
    /// Another tracker, the first of this blob, grants.
    NotFirst,
}

impl From<v2::LeaseRequest> for LeaseRequest {
    fn from(request: v2::LeaseRequest) -> Self {
        Self {
            peer: request.peer,
            digest: request.digest,
            first_unreachable: request.first_unreachable,
            ask: match request.ask {
                v2::LeaseAsk::Take {
                    number,
                    missing,
                    starving,
                    unreachable,
                    ..
                } => LeaseAsk::Take {
                    number,
                    missing,
                    starving,
                    unreachable,
                },
                v2::LeaseAsk::Drop => LeaseAsk::Drop,
                v2::LeaseAsk::Renew {
                    chunk, received, ..
                } => LeaseAsk::Renew { chunk, received },
                v2::LeaseAsk::Done { chunk, .. } => LeaseAsk::Done { chunk },
                v2::LeaseAsk::Failed { chunk } => LeaseAsk::Failed { chunk },
                v2::LeaseAsk::Waiting { chunk, .. } => LeaseAsk::Waiting { chunk },
            },
        }
    }
}

impl From<LeaseRequest> for v2::LeaseRequest {
    fn from(request: LeaseRequest) -> Self {
        Self {
            peer: request.peer,
            digest: request.digest,
            first_unreachable: request.first_unreachable,
            ask: match request.ask {
                LeaseAsk::Take {
                    number,
                    missing,
                    starving,
                    unreachable,
                } => v2::LeaseAsk::Take {
                    number,
                    missing,
                    starving,
                    unreachable,
                    origins: 0,
                },
                LeaseAsk::Drop => v2::LeaseAsk::Drop,
                LeaseAsk::Renew { chunk, received } => v2::LeaseAsk::Renew {
                    chunk,
                    received,
                    from: None,
                },
                LeaseAsk::Done { chunk } => v2::LeaseAsk::Done { chunk, from: None },
                LeaseAsk::Failed { chunk } => v2::LeaseAsk::Failed { chunk },
                LeaseAsk::Waiting { chunk } => v2::LeaseAsk::Waiting { chunk, from: None },
            },
        }
    }
}

impl From<v2::LeaseAnswer> for LeaseAnswer {
    fn from(answer: v2::LeaseAnswer) -> Self {
        match answer {
            v2::LeaseAnswer::Granted { chunk, term_ms, .. } => Self::Granted { chunk, term_ms },
            v2::LeaseAnswer::Wait { retry_ms } => Self::Wait { retry_ms },
            v2::LeaseAnswer::Dial { peer } => Self::Dial { peer },
            // A lease is moved only if its holder named other origins, which version 1 cannot.
            v2::LeaseAnswer::Noted | v2::LeaseAnswer::Moved { .. } => Self::Noted,
            v2::LeaseAnswer::NotHeld => Self::NotHeld,
            v2::LeaseAnswer::Unknown => Self::Unknown,
            v2::LeaseAnswer::NotFirst => Self::NotFirst,
        }
    }
}

impl From<LeaseAnswer> for v2::LeaseAnswer {
    fn from(answer: LeaseAnswer) -> Self {
        match answer {
            LeaseAnswer::Granted { chunk, term_ms } => Self::Granted {
                chunk,
                term_ms,
                from: None,
            },
            LeaseAnswer::Wait { retry_ms } => Self::Wait { retry_ms },
            LeaseAnswer::Dial { peer } => Self::Dial { peer },
            LeaseAnswer::Noted => Self::Noted,
            LeaseAnswer::NotHeld => Self::NotHeld,
            LeaseAnswer::Unknown => Self::Unknown,
            LeaseAnswer::NotFirst => Self::NotFirst,
        }
    }
}

impl From<v2::AnnounceRequest> for AnnounceRequest {
    fn from(request: v2::AnnounceRequest) -> Self {
        Self {
            peer: request.peer,
            epoch: request.epoch,
            sequence: request.sequence,
            full: request.full,
            changes: request.changes,
            leases: request.leases,
            connected: request.connected,
            unreachable: request.unreachable,
            leaving: request.leaving,
        }
    }
}

impl From<AnnounceRequest> for v2::AnnounceRequest {
    fn from(request: AnnounceRequest) -> Self {
        let wanted = |change: &&Change| matches!(change.state, BlobState::Wanted { .. });
        let neighbours = request.changes.iter().filter(wanted);
        let neighbours = neighbours.map(|change| NeighboursWanted {
            digest: change.digest,
            count: NEIGHBOURS,
        });
        Self {
            neighbours: neighbours.collect(),
            peer: request.peer,
            epoch: request.epoch,
            sequence: request.sequence,
            full: request.full,
            changes: request.changes,
            leases: request.leases,
            connected: request.connected,
            unreachable: request.unreachable,
            leaving: request.leaving,
        }
    }
}

impl From<v2::AnnounceAnswer> for AnnounceAnswer {
    fn from(answer: v2::AnnounceAnswer) -> Self {
        match answer {
            v2::AnnounceAnswer::Resync { epoch } => Self::Resync { epoch },
            v2::AnnounceAnswer::Accepted {
                epoch,
                next_ms,
                peers,
                handouts,
                ..
            } => {
                let info = |named: &NamedPeer| peers.get(usize::from(named.index)).cloned();
                let handouts = handouts.iter().map(|handout| Handout {
                    digest: handout.digest,
                    peers: handout.peers.iter().filter_map(info).collect(),
                });
                Self::Accepted {
                    epoch,
                    next_ms,
                    handouts: handouts.collect(),
                }
            }
        }
    }
}

impl From<AnnounceAnswer> for v2::AnnounceAnswer {
    fn from(answer: AnnounceAnswer) -> Self {
        match answer {
            AnnounceAnswer::Resync { epoch } => Self::Resync { epoch },
            AnnounceAnswer::Accepted {
                epoch,
                next_ms,
                handouts,
            } => {
                let mut peers = Vec::new();
                let mut named = |info: PeerInfo| {
                    // A handout of version 1 has no progress.
                    let index = u16::try_from(peers.len()).ok()?;
                    peers.push(info);
                    Some(NamedPeer { index, progress: 0 })
                };
                let handouts = handouts.into_iter().map(|handout| v2::Handout {
                    digest: handout.digest,
                    peers: handout.peers.into_iter().filter_map(&mut named).collect(),
                });
                let handouts = handouts.collect();
                Self::Accepted {
                    epoch,
                    next_ms,
                    lease_delay_ms: 0,
                    peers,
                    handouts,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use proptest::prelude::*;

    use super::*;
    use crate::codec;

    proptest! {
        #[test]
        fn decoders_do_not_panic(mut body: Vec<u8>) {
            body.insert(0, codec::VERSION);
            let _ = codec::decode::<AnnounceRequest>(&body);
            let _ = codec::decode::<AnnounceAnswer>(&body);
        }
    }

    fn info(id: &str) -> PeerInfo {
        PeerInfo {
            id: id.parse().expect("a label"),
            addr: SocketAddr::from(([10, 0, 0, 1], 4001)),
            region: "eu".parse().expect("a label"),
            zone: "eu-a".parse().expect("a label"),
        }
    }

    #[test]
    fn wanted_blobs_of_version_1_look_for_neighbours() {
        let wanted = Change {
            digest: Digest::sha256(b"wanted"),
            state: BlobState::Wanted { progress: 3 },
        };
        let held = Change {
            digest: Digest::sha256(b"held"),
            state: BlobState::Held { progress: 15 },
        };
        let old = AnnounceRequest {
            peer: info("vm-1"),
            epoch: 7,
            sequence: 3,
            full: false,
            changes: vec![wanted.clone(), held],
            leases: Vec::new(),
            connected: Vec::new(),
            unreachable: Vec::new(),
            leaving: false,
        };
        let new = v2::AnnounceRequest::from(old.clone());
        let digests: Vec<Digest> = new.neighbours.iter().map(|it| it.digest).collect();
        assert_eq!(digests, [wanted.digest]);
        assert_eq!(AnnounceRequest::from(new), old);
    }

    #[test]
    fn peers_of_a_handout_survive_the_other_version() {
        let handout = |name: &str, peers: &[&str]| Handout {
            digest: Digest::sha256(name.as_bytes()),
            peers: peers.iter().map(|id| info(id)).collect(),
        };
        let old = AnnounceAnswer::Accepted {
            epoch: 7,
            next_ms: 5000,
            handouts: vec![handout("a", &["vm-1", "vm-2"]), handout("b", &["vm-2"])],
        };
        let new = v2::AnnounceAnswer::from(old.clone());
        assert_eq!(AnnounceAnswer::from(new), old);
    }

    #[test]
    fn index_beyond_the_list_of_peers_is_skipped() {
        let new = v2::AnnounceAnswer::Accepted {
            epoch: 7,
            next_ms: 5000,
            lease_delay_ms: 0,
            peers: Vec::new(),
            handouts: vec![v2::Handout {
                digest: Digest::sha256(b"a"),
                peers: vec![NamedPeer {
                    index: 3,
                    progress: 0,
                }],
            }],
        };
        let AnnounceAnswer::Accepted { handouts, .. } = new.into() else {
            panic!("accepted")
        };
        assert!(handouts[0].peers.is_empty());
    }
}
