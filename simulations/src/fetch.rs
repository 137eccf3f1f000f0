//! Bytes on their way from a source to a peer: a chunk, the proofs of the image's blobs, or a blob
//! that is passed through.

use flotilla_common::chunk::Geometry;
use flotilla_common::failover::Request;
use flotilla_common::swarm::{BlobSlot, TransferId};

use crate::slab::Key;

/// A fetch under way, as both of its sides see it.
#[derive(Debug)]
pub(crate) struct SimulatedFetch {
    /// The requesting peer.
    pub(crate) peer: u32,
    pub(crate) purpose: FetchPurpose,
    pub(crate) source: FetchSource,
    /// The blob; unused if the proofs are fetched.
    pub(crate) blob: BlobSlot,
    /// The flow of its bytes, while they flow.
    pub(crate) flow: Option<Key>,
    /// The request to the origins, until one of them answers.
    pub(crate) request: Option<Request>,
}

/// What is fetched, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchPurpose {
    /// A chunk, for the swarm's machine.
    Chunk { transfer: TransferId, chunk: u32 },
    /// The proofs of the image's blobs, for the peer's opening of the image.
    Proofs,
    /// A blob that is passed through to the runtime, from this offset to its end.
    PassThrough { from: u64 },
}

impl FetchPurpose {
    /// Bytes of the transfer. Those of proofs are not simulated.
    pub(crate) fn bytes(self, geometry: &Geometry) -> u64 {
        match self {
            Self::Chunk { chunk, .. } => geometry.chunk_len(chunk),
            Self::Proofs => 0,
            Self::PassThrough { from } => geometry.size() - from,
        }
    }
}

/// Where the bytes of a fetch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchSource {
    /// A peer, and the slot of the requesting peer there.
    Peer { peer: u32, requester: u32 },
    /// The origin of a region.
    Origin { region: u32 },
}
