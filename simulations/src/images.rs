//! The images of a scenario and their blobs. Layers that images share are one blob.

use std::collections::BTreeMap;

use flotilla_common::chunk::Geometry;
use flotilla_common::digest::Digest;
use flotilla_common::units::ByteSize;
use rand::seq::SliceRandom as _;
use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::scenario::{ImageSpec, Scenario};

/// A blob: its number among those of the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlobId(pub(crate) u32);

/// A blob.
#[derive(Debug)]
pub(crate) struct Blob {
    /// Its name in messages to the tracker.
    pub(crate) digest: Digest,
    pub(crate) geometry: Geometry,
    /// The chunks that runtimes read, in this order, if they read lazily.
    lazy_reads: Option<Box<[u32]>>,
}

impl Blob {
    /// The chunk at which the read `number` of this blob starts, from 0; `None` if there are fewer.
    pub(crate) fn read_at(&self, number: u32) -> Option<u32> {
        match &self.lazy_reads {
            Some(reads) => reads.get(number as usize).copied(),
            None => (number == 0).then_some(0),
        }
    }

    /// Whether each read is of one chunk. Otherwise it goes on to the end of the blob.
    pub(crate) fn is_read_lazily(&self) -> bool {
        self.lazy_reads.is_some()
    }
}

/// An image.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its layers, in order.
    pub(crate) blobs: Vec<BlobId>,
    /// The name of a set's image; variants share it.
    name: String,
}

/// All images of a scenario.
#[derive(Debug, Default)]
pub(crate) struct Images {
    blobs: Vec<Blob>,
    by_digest: BTreeMap<Digest, BlobId>,
    images: Vec<Image>,
    /// The sum of the weights of the images up to each one.
    weights: Vec<f64>,
    per_peer: usize,
    /// Share of the chunks that runtimes read, if they read lazily.
    lazy_share: Option<f64>,
}

impl Images {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut images = Self {
            lazy_share: scenario.pulls.lazy_share,
            ..Self::default()
        };
        if scenario.images.is_empty() {
            images.add_single(&scenario.image);
        } else {
            images.add_set(scenario);
        }
        let mut sum = 0.0;
        for place in 1..=images.images.len() {
            sum += libm::pow(place as f64, -scenario.pulls.zipf);
            images.weights.push(sum);
        }
        let all = images.images.len();
        let per_peer = scenario.pulls.images.map(|count| count as usize);
        images.per_peer = per_peer.unwrap_or(all).min(all);
        images
    }

    fn add_single(&mut self, image: &ImageSpec) {
        let blobs = image.layers.iter().map(|size| {
            let geometry = image.geometry(*size);
            self.add_blob(geometry)
        });
        let blobs = blobs.collect();
        self.add_image(String::new(), blobs);
    }

    fn add_set(&mut self, scenario: &Scenario) {
        let layer = |size: &ByteSize| Geometry::for_size(size.0);
        let mut bases: BTreeMap<&str, Vec<BlobId>> = BTreeMap::new();
        for base in &scenario.bases {
            let layers = base.layers.iter().map(|size| self.add_blob(layer(size)));
            bases.insert(&base.name, layers.collect());
        }
        for image in &scenario.images {
            let base = image.base.as_deref().and_then(|name| bases.get(name));
            let base = base.cloned().unwrap_or_default();
            for _ in 0..image.variants {
                let own = image.layers.iter().map(|size| self.add_blob(layer(size)));
                let blobs = base.iter().copied().chain(own.collect::<Vec<_>>());
                self.add_image(image.name.clone(), blobs.collect());
            }
        }
    }

    fn add_blob(&mut self, geometry: Geometry) -> BlobId {
        let id = BlobId(self.blobs.len() as u32);
        let digest = Digest::sha256(&self.blobs.len().to_be_bytes());
        self.by_digest.insert(digest, id);
        let lazy_reads = self
            .lazy_share
            .map(|share| lazy_reads(id, geometry.chunks(), share));
        self.blobs.push(Blob {
            digest,
            geometry,
            lazy_reads,
        });
        id
    }

    fn add_image(&mut self, name: String, blobs: Vec<BlobId>) {
        self.images.push(Image { blobs, name });
    }

    pub(crate) fn blob(&self, id: BlobId) -> &Blob {
        &self.blobs[id.0 as usize]
    }

    pub(crate) fn geometry(&self, id: BlobId) -> &Geometry {
        &self.blob(id).geometry
    }

    /// Number of distinct blobs.
    pub(crate) fn blob_count(&self) -> u32 {
        self.blobs.len() as u32
    }

    pub(crate) fn find(&self, digest: &Digest) -> Option<BlobId> {
        self.by_digest.get(digest).copied()
    }

    pub(crate) fn image(&self, number: u32) -> &Image {
        &self.images[number as usize]
    }

    pub(crate) fn len(&self) -> u32 {
        self.images.len() as u32
    }

    /// Whether all peers pull the same images.
    pub(crate) fn are_pulled_by_all(&self) -> bool {
        self.per_peer == self.images.len()
    }

    /// The number of the first image with this name.
    pub(crate) fn named(&self, name: &str) -> Option<u32> {
        let at = self.images.iter().position(|image| image.name == name)?;
        Some(at as u32)
    }

    /// Draws the images that a peer pulls, in the order in which it does.
    pub(crate) fn draw(&self, rng: &mut impl Rng) -> Vec<u32> {
        if self.are_pulled_by_all() {
            return (0..self.len()).collect();
        }
        let mut drawn: Vec<u32> = Vec::new();
        while drawn.len() < self.per_peer {
            let sum = self.weights.last().copied().unwrap_or_default();
            let at = sum * rng.random::<f64>();
            let image = self.weights.partition_point(|weight| *weight <= at) as u32;
            if image < self.len() && !drawn.contains(&image) {
                drawn.push(image);
            }
        }
        drawn
    }

    /// Sum of the sizes of some images' blobs, each counted once, in bytes.
    pub(crate) fn distinct_bytes(&self, images: impl IntoIterator<Item = u32>) -> u64 {
        let blobs = self.distinct_blobs(images);
        blobs.iter().map(|blob| self.geometry(*blob).size()).sum()
    }

    /// Number of chunks of some images' blobs, each counted once.
    pub(crate) fn distinct_chunks(&self, images: impl IntoIterator<Item = u32>) -> u64 {
        let blobs = self.distinct_blobs(images);
        let chunks = |blob: &BlobId| u64::from(self.geometry(*blob).chunks());
        blobs.iter().map(chunks).sum()
    }

    /// Number of chunks that a peer pulls, if it pulls the largest images.
    pub(crate) fn most_chunks_per_peer(&self) -> u64 {
        if self.are_pulled_by_all() {
            return self.distinct_chunks(0..self.len());
        }
        let images = (0..self.len()).map(|image| self.distinct_chunks([image]));
        let mut chunks: Vec<u64> = images.collect();
        chunks.sort_unstable();
        chunks.iter().rev().take(self.per_peer).sum()
    }

    /// The blobs of some images, each once, in order of their numbers.
    pub(crate) fn distinct_blobs(&self, images: impl IntoIterator<Item = u32>) -> Vec<BlobId> {
        let images = images.into_iter();
        let mut blobs: Vec<BlobId> = images
            .flat_map(|image| self.image(image).blobs.iter().copied())
            .collect();
        blobs.sort_unstable();
        blobs.dedup();
        blobs
    }
}

/// The share of a blob's chunks, one at least, in a random order.
fn lazy_reads(blob: BlobId, chunks: u32, share: f64) -> Box<[u32]> {
    let mut order: Vec<u32> = (0..chunks).collect();
    order.shuffle(&mut Pcg64Mcg::seed_from_u64(blob.0.into()));
    let count = (f64::from(chunks) * share).ceil().max(1.0);
    order.truncate(count as usize);
    order.into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const SET: &str = "name = 'set'\n[[bases]]\nname = 'debian'\nlayers = ['8MiB', '2MiB']\n\
        [[images]]\nname = 'web'\nbase = 'debian'\nlayers = ['1MiB', '1kB']\nvariants = 3\n\
        [[images]]\nname = 'alone'\nlayers = ['4MiB']\n[pulls]\nimages = 2\nzipf = 1.5\n\
        [peers]\ncount = 1\nup = '1Mbit'\ndown = '1Mbit'\n[origin]\nup = '1Mbit'";

    #[test]
    fn images_share_the_blobs_of_their_base_and_no_others() {
        let images = Images::new(&Scenario::parse(SET).unwrap());
        assert_eq!(images.len(), 4);
        // Two of the base, two of each variant, one of the last image.
        assert_eq!(images.blob_count(), 2 + 3 * 2 + 1);
        let own = |image: u32| &images.image(image).blobs[2..];
        assert_eq!(images.image(0).blobs[..2], images.image(2).blobs[..2]);
        assert!(own(0).iter().all(|blob| !own(2).contains(blob)));
        let mib = 1 << 20;
        assert_eq!(images.distinct_bytes([0]), 11 * mib + 1000);
        assert_eq!(images.distinct_bytes([0, 1, 3]), 16 * mib + 2000);
        assert_eq!(images.named("alone"), Some(3));
        let digest = images.blob(BlobId(4)).digest;
        assert_eq!(images.find(&digest), Some(BlobId(4)));
    }

    #[test]
    fn popular_images_are_drawn_more_often_and_none_twice_by_one_peer() {
        let images = Images::new(&Scenario::parse(SET).unwrap());
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut counts = [0_u32; 4];
        for _ in 0..4000 {
            let drawn = images.draw(&mut rng);
            assert_eq!(drawn.len(), 2);
            assert_ne!(drawn[0], drawn[1]);
            counts[drawn[0] as usize] += 1;
        }
        // Weights 1, 0.354, 0.192 and 0.125.
        let shares = counts.map(|count| f64::from(count) / 4000.0);
        for (share, expected) in shares.into_iter().zip([0.598, 0.212, 0.115, 0.075]) {
            assert!((share - expected).abs() < 0.025, "{shares:?}");
        }
    }

    #[test]
    fn lazy_reads_are_a_share_of_the_chunks_in_a_random_order() {
        let lazy = SET.replace("images = 2", "images = 2\nlazy_share = 0.25");
        let images = Images::new(&Scenario::parse(&lazy).unwrap());
        let blob = images.blob(BlobId(0));
        let chunks = blob.geometry.chunks();
        let reads: Vec<u32> = (0..).map_while(|number| blob.read_at(number)).collect();
        assert_eq!(reads.len() as u32, chunks.div_ceil(4));
        assert!(reads.iter().all(|chunk| *chunk < chunks));
        assert!(!reads.is_sorted(), "{reads:?}");
        assert_eq!(images.blob(BlobId(3)).read_at(0), Some(0), "its only chunk");
    }

    #[test]
    fn peers_pull_all_images_in_order_unless_the_scenario_says_otherwise() {
        let scenario = Scenario::parse(&SET.replace("images = 2", "")).unwrap();
        let images = Images::new(&scenario);
        assert_eq!(images.draw(&mut Pcg64Mcg::seed_from_u64(1)), [0, 1, 2, 3]);
    }
}
