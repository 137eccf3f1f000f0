//! How many living peers of each region hold each chunk.
//!
//! The copies that a region fetches are judged by it: content whose last holder has gone must come
//! from an origin again, and that is no fault of the swarm.

use crate::images::{BlobId, Images};

/// The holders of the chunks of one region.
#[derive(Debug)]
struct RegionHolders {
    /// By chunk, over all blobs.
    counts: Vec<u32>,
    /// Whether the last holder of a chunk has gone, and no peer has fetched it since.
    is_lost: Vec<bool>,
    /// Bytes of chunks that were fetched again after their last holder had gone.
    renewed_bytes: u64,
}

/// The holders of all chunks, by region.
#[derive(Debug)]
pub(crate) struct Holders {
    /// The place of each blob's first chunk among all chunks.
    offsets: Vec<u32>,
    regions: Vec<RegionHolders>,
}

impl Holders {
    pub(crate) fn new(images: &Images, regions: u32) -> Self {
        let mut offsets = Vec::new();
        let mut chunks = 0;
        for blob in (0..images.blob_count()).map(BlobId) {
            offsets.push(chunks);
            chunks += images.geometry(blob).chunks();
        }
        let region = || RegionHolders {
            counts: vec![0; chunks as usize],
            is_lost: vec![false; chunks as usize],
            renewed_bytes: 0,
        };
        Self {
            offsets,
            regions: (0..regions).map(|_| region()).collect(),
        }
    }

    fn index(&self, blob: BlobId, chunk: u32) -> usize {
        (self.offsets[blob.0 as usize] + chunk) as usize
    }

    /// Whether a living peer of a region holds a chunk.
    pub(crate) fn has_holder(&self, region: u32, blob: BlobId, chunk: u32) -> bool {
        self.regions[region as usize].counts[self.index(blob, chunk)] > 0
    }

    /// A peer of a region holds a chunk of so many bytes from now on.
    pub(crate) fn add(&mut self, region: u32, blob: BlobId, chunk: u32, bytes: u64) {
        let at = self.index(blob, chunk);
        let region = &mut self.regions[region as usize];
        region.counts[at] += 1;
        if core::mem::take(&mut region.is_lost[at]) {
            region.renewed_bytes += bytes;
        }
    }

    /// A peer of a region has gone, or lost a chunk.
    pub(crate) fn remove(&mut self, region: u32, blob: BlobId, chunk: u32) {
        let at = self.index(blob, chunk);
        let region = &mut self.regions[region as usize];
        region.counts[at] -= 1;
        region.is_lost[at] = region.counts[at] == 0;
    }

    /// Bytes that a region had to fetch again because their last holder had gone.
    pub(crate) fn renewed_bytes(&self, region: u32) -> u64 {
        self.regions[region as usize].renewed_bytes
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;
    use crate::scenario::Scenario;

    #[test]
    fn chunks_whose_last_holder_has_gone_are_renewed_once() {
        let scenario = "name = 'one'\n[image]\nlayers = ['1MiB', '1kB']\n[peers]\ncount = 1\n\
                        up = '1Mbit'\ndown = '1Mbit'\n[origin]\nup = '1Mbit'";
        let images = Images::new(&Scenario::parse(scenario).unwrap());
        let mut holders = Holders::new(&images, 2);
        let blob = BlobId(1);
        holders.add(0, blob, 0, 1000);
        holders.add(0, blob, 0, 1000);
        holders.add(1, blob, 0, 1000);
        holders.remove(0, blob, 0);
        holders.add(0, blob, 0, 1000);
        assert_eq!(holders.renewed_bytes(0), 0, "one holder was left");
        holders.remove(0, blob, 0);
        holders.remove(0, blob, 0);
        assert!(!holders.has_holder(0, blob, 0) && holders.has_holder(1, blob, 0));
        holders.add(0, blob, 0, 1000);
        holders.add(0, blob, 0, 1000);
        assert_eq!(holders.renewed_bytes(0), 1000);
        assert_eq!(holders.renewed_bytes(1), 0);
    }
}
