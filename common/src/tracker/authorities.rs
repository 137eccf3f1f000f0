//! The lease authorities of all blobs and regions, and the bound of their memory.
//!
//! An authority has a state for each chunk of its blob, so a short request for a large blob creates
//! a large authority. The chunks are bounded: of the authorities that one peer's requests created,
//! and of all of them.

use super::config::LeaseSettings;
use super::lease::Authority;
use super::slots::{BlobSlot, PeerSlot, RegionSlot};
use crate::interner::Slot as _;

/// The authorities of a tracker.
#[derive(Debug, Default)]
pub(super) struct Authorities {
    /// By blob slot: those of its few regions.
    by_blob: Vec<Vec<Created>>,
    /// Chunks of all of them.
    chunks: u64,
    /// By peer slot.
    creators: Vec<Creator>,
}

/// An authority, and whose request created it.
#[derive(Debug)]
struct Created {
    authority: Authority,
    peer: PeerSlot,
    /// [`Creator::stay`] at that time.
    stay: u32,
}

/// A peer whose requests create authorities.
#[derive(Clone, Copy, Debug, Default)]
struct Creator {
    /// Number of the peers that had the slot before and left.
    stay: u32,
    /// Chunks of the authorities that its requests created.
    chunks: u32,
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
    pub(super) fn of(&self, blob: BlobSlot) -> impl Iterator<Item = &Authority> + Clone {
        let regions = self.by_blob.get(blob.index() as usize).into_iter();
        regions.flatten().map(|created| &created.authority)
    }

    /// All of them, in order of blobs.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlobSlot, &Authority)> {
        let blobs = (0_u32..).map(BlobSlot::at).zip(&self.by_blob);
        blobs.flat_map(|(blob, regions)| regions.iter().map(move |it| (blob, &it.authority)))
    }

    pub(super) fn get(&self, blob: BlobSlot, region: RegionSlot) -> Option<&Authority> {
        self.of(blob).find(|it| it.region() == region)
    }

    pub(super) fn get_mut(&mut self, blob: BlobSlot, region: RegionSlot) -> Option<&mut Authority> {
        let regions = self.by_blob.get_mut(blob.index() as usize)?;
        let mut authorities = regions.iter_mut().map(|created| &mut created.authority);
        authorities.find(|it| it.region() == region)
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
        if self.creators.len() <= peer_index {
            self.creators.resize(peer_index + 1, Creator::default());
        }
        let creator = &mut self.creators[peer_index];
        let of_peer = creator.chunks.saturating_add(chunks);
        let of_all = self.chunks + u64::from(chunks);
        if of_peer > settings.created_chunks_limit || of_all > settings.all_chunks_limit {
            return Prepared::NoRoom;
        }
        creator.chunks = of_peer;
        let stay = creator.stay;
        self.chunks = of_all;
        if self.by_blob.len() <= blob_index {
            self.by_blob.resize_with(blob_index + 1, Vec::new);
        }
        self.by_blob[blob_index].push(Created {
            authority: Authority::new(blob, region, chunks),
            peer,
            stay,
        });
        Prepared::Ready
    }

    /// Removes the authority of a blob that no peer of the region has or wants any more.
    pub(super) fn remove(&mut self, blob: BlobSlot, region: RegionSlot) {
        let Some(regions) = self.by_blob.get_mut(blob.index() as usize) else {
            return;
        };
        let is_of_region = |created: &Created| created.authority.region() == region;
        if let Some(at) = regions.iter().position(is_of_region) {
            let removed = regions.remove(at);
            let chunks = removed.authority.chunks();
            self.chunks -= u64::from(chunks);
            let creator = &mut self.creators[removed.peer.index() as usize];
            if creator.stay == removed.stay {
                creator.chunks -= chunks;
            }
        }
    }

    /// A peer has left. The next peer with its slot has created nothing.
    pub(super) fn forget_peer(&mut self, peer: PeerSlot) {
        if let Some(creator) = self.creators.get_mut(peer.index() as usize) {
            creator.stay += 1;
            creator.chunks = 0;
        }
    }
}
