//! A chunk on its way from a source to a peer.

use flotilla_common::failover::Request;
use flotilla_common::swarm::{BlobSlot, TransferId};

use crate::slab::Key;

/// A fetch under way, as both of its sides see it.
#[derive(Debug)]
pub(crate) struct SimulatedFetch {
    /// The requesting peer.
    pub(crate) peer: u32,
    pub(crate) transfer: TransferId,
    pub(crate) source: FetchSource,
    pub(crate) blob: BlobSlot,
    pub(crate) chunk: u32,
    /// The flow of its bytes, while they flow.
    pub(crate) flow: Option<Key>,
    /// The request to the origins, until one of them answers.
    pub(crate) request: Option<Request>,
}

/// Where the bytes of a fetch come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FetchSource {
    /// A peer, and the slot of the requesting peer there.
    Peer { peer: u32, requester: u32 },
    /// The origin of a region.
    Origin { region: u32 },
}
