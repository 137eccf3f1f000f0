//! Announces of version 1, which peers and trackers of older builds send.
//!
//! Every wanted blob in an announce gets a handout, and each handout repeats the peers' addresses.

use bincode::{Decode, Encode};

use super::{Change, HeldLease, NamedPeer, NeighboursWanted, PeerInfo};
use crate::digest::Digest;
use crate::name::PeerId;
use crate::wire::tracker::{self as v2, BlobState};

/// The path of announces.
pub const ANNOUNCE_PATH: &str = "/flotilla/v1/announce";
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
