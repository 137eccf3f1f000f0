//! The peers of other regions: sources of last resort.
//!
//! Bytes between regions are slow and expensive. While a tracker answers and an origin serves, each
//! chunk comes into a region once, under a lease. So peers of other regions are not used then: a
//! peer that a tracker names is set aside, and the chunks that it says it holds are ignored. They
//! are used for a blob once no origin has delivered a chunk of it, and for all blobs while no
//! origin is worth asking, or no tracker answers.

use super::context::Context;
use super::io::{BlobSlot, Nearness, PeerFacts, PeerSlot};
use super::per_blob::PerBlob;

/// Peers that are set aside for one blob; further ones are dropped.
const MAX_SET_ASIDE: usize = 16;

/// The peers of other regions that one blob has.
#[derive(Debug, Default)]
struct FarPeersOfBlob {
    set_aside: Vec<PeerFacts>,
    /// No origin delivered a chunk of the blob since it was wanted.
    is_used: bool,
}

/// The peers of other regions, by blob.
#[derive(Debug, Default)]
pub(super) struct FarPeers {
    blobs: PerBlob<FarPeersOfBlob>,
}

impl FarPeers {
    pub(super) fn add_blob(&mut self, slot: BlobSlot) {
        self.blobs.insert(slot, FarPeersOfBlob::default());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.blobs.remove(slot);
    }

    /// Whether peers of other regions are used for the blob.
    pub(super) fn is_used(&self, ctx: &Context, slot: BlobSlot) -> bool {
        !ctx.has_tracker || !ctx.has_origin || self.blobs.get(slot).is_some_and(|blob| blob.is_used)
    }

    /// The peers of a handout that are used; the others are set aside.
    pub(super) fn admit(
        &mut self,
        ctx: &Context,
        slot: BlobSlot,
        mut peers: Vec<PeerFacts>,
    ) -> Vec<PeerFacts> {
        if !self.is_used(ctx, slot)
            && let Some(blob) = self.blobs.get_mut(slot)
        {
            for facts in peers.extract_if(.., |facts| facts.nearness == Nearness::Elsewhere) {
                let is_known = blob.set_aside.iter().any(|it| it.peer == facts.peer);
                if !is_known && blob.set_aside.len() < MAX_SET_ASIDE {
                    blob.set_aside.push(facts);
                }
            }
        }
        peers
    }

    /// No origin delivered a chunk of the blob: its peers elsewhere are used from now on.
    pub(super) fn use_for(&mut self, slot: BlobSlot) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            blob.is_used = true;
        }
    }

    /// Takes the peers that were set aside, if they are used now.
    pub(super) fn take(&mut self, ctx: &Context, slot: BlobSlot) -> Vec<PeerFacts> {
        if !self.is_used(ctx, slot) {
            return Vec::new();
        }
        let blob = self.blobs.get_mut(slot);
        blob.map(|blob| core::mem::take(&mut blob.set_aside))
            .unwrap_or_default()
    }

    /// Whether the peer is set aside for a blob.
    pub(super) fn contains(&self, peer: PeerSlot) -> bool {
        let mut blobs = self.blobs.values();
        blobs.any(|blob| blob.set_aside.iter().any(|facts| facts.peer == peer))
    }
}
