//! The lease authorities of all blobs and regions, and the bound of their memory.
//!
//! An authority has a state for each chunk of its blob, so a short request for a large blob creates
//! a long one. Each peer may have created so many chunk states, and all peers together.

use super::config::LeaseSettings;
use super::lease::Authority;
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use crate::interner::Slot as _;

/// The authorities of a tracker.
#[derive(Debug, Default)]
pub(super) struct Authorities {
    /// By blob slot: those of its few regions.
    by_blob: Vec<Vec<Authority>>,
    /// Chunks of all of them.
    chunks: u64,
    /// By peer slot: the chunks of those that the peer's requests created since it joined.
    created: Vec<u32>,
}

/// Whether an authority can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Prepared {
    Ready,
    /// The number of chunks is impossible, or differs from that of the authority.
    Mismatch,
    /// There would be too many chunks.
    NoRoom,
}

impl Authorities {
    /// Those of a blob.
    pub(super) fn of(&self, blob: BlobSlot) -> &[Authority] {
        let regions = self.by_blob.get(blob.index() as usize);
        regions.map_or(&[], Vec::as_slice)
    }

    /// All of them, in order of blobs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlobSlot, &Authority)> {
        let blobs = (0_u32..).map(BlobSlot::at).zip(&self.by_blob);
        blobs.flat_map(|(blob, regions)| regions.iter().map(move |it| (blob, it)))
    }

    pub(super) fn get(&self, blob: BlobSlot, region: RegionSlot) -> Option<&Authority> {
        let mut regions = self.of(blob).iter();
        regions.find(|authority| authority.region() == region)
    }

    pub(super) fn get_mut(&mut self, blob: BlobSlot, region: RegionSlot) -> Option<&mut Authority> {
        let regions = self.by_blob.get_mut(blob.index() as usize)?;
        regions
            .iter_mut()
            .find(|authority| authority.region() == region)
    }

    /// Creates the authority of a blob for a request of a peer, if there is none.
    pub(super) fn prepare(
        &mut self,
        settings: &LeaseSettings,
        peer: PeerSlot,
        (blob, region): (BlobSlot, RegionSlot),
        chunks: u32,
    ) -> Prepared {
        if let Some(authority) = self.get(blob, region) {
            return match authority.chunks() == chunks {
                true => Prepared::Ready,
                false => Prepared::Mismatch,
            };
        }
        if !(1..=settings.chunks_limit).contains(&chunks) {
            return Prepared::Mismatch;
        }
        let (blob_index, peer_index) = (blob.index() as usize, peer.index() as usize);
        if self.created.len() <= peer_index {
            self.created.resize(peer_index + 1, 0);
        }
        let created = self.created[peer_index].saturating_add(chunks);
        let all = self.chunks + u64::from(chunks);
        if created > settings.created_chunks_limit || all > settings.all_chunks_limit {
            return Prepared::NoRoom;
        }
        self.created[peer_index] = created;
        self.chunks = all;
        if self.by_blob.len() <= blob_index {
            self.by_blob.resize_with(blob_index + 1, Vec::new);
        }
        self.by_blob[blob_index].push(Authority::new(blob, region, chunks));
        Prepared::Ready
    }

    /// Removes the authority of a blob that no peer of the region has or wants any more.
    pub(super) fn remove(&mut self, blob: BlobSlot, region: RegionSlot) {
        if let Some(regions) = self.by_blob.get_mut(blob.index() as usize)
            && let Some(at) = regions.iter().position(|it| it.region() == region)
        {
            self.chunks -= u64::from(regions.remove(at).chunks());
        }
    }

    /// A peer has gone: its slot may be another one's.
    pub(super) fn forget_peer(&mut self, peer: PeerSlot) {
        if let Some(created) = self.created.get_mut(peer.index() as usize) {
            *created = 0;
        }
    }
}
