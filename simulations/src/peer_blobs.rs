//! The blobs that one peer has or pulls. The peer's machine knows them by the slots here.

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::opening::BlobRead;
use flotilla_common::swarm::BlobSlot;

use crate::images::{BlobId, Images};

/// A blob as one peer knows it.
#[derive(Debug)]
pub(crate) struct PeerBlob {
    pub(crate) id: BlobId,
    /// The verified chunks, counted independently of the machine.
    pub(crate) verified: ChunkMap,
    /// The chunk that the reader waits for.
    pub(crate) cursor: u32,
    /// Reads that the runtime has finished.
    pub(crate) reads_done: u32,
    /// The runtime's request, while it is answered from the store.
    pub(crate) read: Option<BlobRead>,
    /// Whether the runtime has requested it.
    pub(crate) is_requested: bool,
    /// Whether it is passed through to the runtime.
    pub(crate) is_passing: bool,
    /// Whether the runtime has it, or reads it to the end from the store.
    pub(crate) is_delivered: bool,
}

/// The blobs of a peer, by slot: those of all images that it pulls, in order of their numbers.
#[derive(Debug)]
pub(crate) struct PeerBlobs {
    blobs: Vec<PeerBlob>,
    /// Whether the peer has every blob of the scenario, so that slots and numbers are the same.
    has_all: bool,
}

impl PeerBlobs {
    pub(crate) fn new(images: &Images, pulled: &[u32]) -> Self {
        let ids = images.distinct_blobs(pulled.iter().copied());
        let blob = |id: BlobId| PeerBlob {
            id,
            verified: ChunkMap::empty(images.geometry(id).chunks()),
            cursor: images.blob(id).read_at(0).unwrap_or_default(),
            reads_done: 0,
            read: None,
            is_requested: false,
            is_passing: false,
            is_delivered: false,
        };
        Self {
            has_all: ids.len() as u32 == images.blob_count(),
            blobs: ids.into_iter().map(blob).collect(),
        }
    }

    /// The slot of a blob; `None` if the peer does not pull it.
    pub(crate) fn slot(&self, id: BlobId) -> Option<BlobSlot> {
        if self.has_all {
            return Some(BlobSlot(id.0));
        }
        let at = self.blobs.binary_search_by_key(&id, |blob| blob.id).ok()?;
        Some(BlobSlot(at as u32))
    }

    /// The blob in a slot that was given out.
    pub(crate) fn at(&self, slot: BlobSlot) -> &PeerBlob {
        &self.blobs[slot.0 as usize]
    }

    /// As [`Self::at`].
    pub(crate) fn at_mut(&mut self, slot: BlobSlot) -> &mut PeerBlob {
        &mut self.blobs[slot.0 as usize]
    }

    /// All blobs with their slots.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (BlobSlot, &PeerBlob)> {
        (0_u32..).map(BlobSlot).zip(&self.blobs)
    }

    /// As [`Self::iter`].
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (BlobSlot, &mut PeerBlob)> {
        (0_u32..).map(BlobSlot).zip(&mut self.blobs)
    }

    /// Whether the runtime has a blob.
    pub(crate) fn is_delivered(&self, id: BlobId) -> bool {
        self.slot(id).is_some_and(|slot| self.at(slot).is_delivered)
    }
}
