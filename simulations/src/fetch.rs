//! Bytes on their way from a source to a peer: a chunk, a manifest, the proofs of an image's blobs,
//! or a blob that is passed through.

use core::time::Duration;

use flotilla_common::chunk::Geometry;
use flotilla_common::failover::{Need, Request};
use flotilla_common::swarm::TransferId;
use flotilla_common::time::Time;

use crate::images::BlobId;
use crate::slab::Key;

/// A fetch under way, as both of its sides see it.
#[derive(Debug)]
pub(crate) struct SimulatedFetch {
    /// The requesting peer.
    pub(crate) peer: u32,
    pub(crate) purpose: FetchPurpose,
    pub(crate) source: FetchSource,
    /// The blob; unused if the manifest or the proofs are fetched.
    pub(crate) blob: BlobId,
    /// The flow of its bytes from a peer, while they flow.
    pub(crate) flow: Option<Key>,
    /// Bytes from a peer that have arrived.
    pub(crate) moved: u64,
    /// The delay from a peer to the requesting peer, drawn once: the bytes of one stream keep their
    /// order.
    pub(crate) way_back: Duration,
    /// The calls to origins; `None` if the source is a peer.
    pub(crate) origin: Option<Box<OriginFetch>>,
}

/// A fetch from the origins.
#[derive(Debug)]
pub(crate) struct OriginFetch {
    /// The content that the request names to the failover machine.
    pub(crate) need: Need,
    /// The request, until one of the origins answers that it serves it.
    pub(crate) request: Option<Request>,
    /// The time of its next `RequestWake`.
    pub(crate) wake_at: Time,
    /// The calls that are open.
    pub(crate) calls: Vec<Key>,
    /// The call whose body is received.
    pub(crate) body: Option<Key>,
    /// How many more bodies may break off.
    pub(crate) attempts_left: u32,
}

/// The object of a fetch, and the part of the peer that receives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchPurpose {
    /// A chunk, for the swarm's machine.
    Chunk { transfer: TransferId, chunk: u32 },
    /// The manifest of a pull's image.
    Manifest { pull: u32 },
    /// The proofs of the blobs of a pull's image, for the peer's opening of the image.
    Proofs { pull: u32 },
    /// Bytes of a blob that are passed through to the runtime: from `from` up to `to`.
    PassThrough { from: u64, to: u64 },
}

impl FetchPurpose {
    /// Whether it is a manifest or proofs, which the origin has in memory in any case.
    pub(crate) fn is_metadata(self) -> bool {
        matches!(self, Self::Manifest { .. } | Self::Proofs { .. })
    }

    /// Bytes of the transfer. Those of metadata are not simulated.
    pub(crate) fn bytes(self, geometry: &Geometry) -> u64 {
        match self {
            Self::Chunk { chunk, .. } => geometry.chunk_len(chunk),
            Self::Manifest { .. } | Self::Proofs { .. } => 0,
            Self::PassThrough { from, to } => to - from,
        }
    }
}

/// Where the bytes of a fetch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchSource {
    /// A peer, and the slot of the requesting peer there.
    Peer { peer: u32, requester: u32 },
    /// The origins; which one, the calls say.
    Origin,
}

impl SimulatedFetch {
    /// The requesting peer and the state of the fetch from the origins; `None` if its source is a
    /// peer.
    pub(crate) fn origins_mut(&mut self) -> Option<(u32, &mut OriginFetch)> {
        Some((self.peer, self.origin.as_deref_mut()?))
    }

    /// The call whose body is received.
    pub(crate) fn body(&self) -> Option<Key> {
        self.origin.as_ref()?.body
    }
}
