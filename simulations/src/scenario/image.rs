//! `[image]`: what all peers pull.

use flotilla_common::chunk::Geometry;
use flotilla_common::units::ByteSize;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::require;

/// Maximum number of layers of an image.
pub(super) const MAX_LAYERS: usize = 256;

/// The image. It is empty if the scenario has a set of images instead.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Sizes of its layers. A layer's size determines the size of its chunks.
    pub layers: Vec<ByteSize>,
    /// Whether the layers have no seal. Then each one is exchanged as a whole.
    #[serde(default)]
    pub digest_only: bool,
    /// Size of all chunks, for comparisons: a power of two from 256 KiB to 64 MiB.
    #[serde(default)]
    pub chunk: Option<ByteSize>,
}

impl ImageSpec {
    /// Size of the image, in bytes.
    pub fn bytes(&self) -> u64 {
        self.layers.iter().map(|size| size.0).sum()
    }

    /// Number of chunks of all layers.
    pub fn chunks(&self) -> u32 {
        let layers = self.layers.iter();
        layers.map(|size| self.geometry(*size).chunks()).sum()
    }

    /// The chunks of a layer of this size.
    pub(crate) fn geometry(&self, size: ByteSize) -> Geometry {
        match self.chunk {
            _ if self.digest_only => Geometry::whole(size.0),
            Some(chunk) => Geometry::with_chunk_log2(size.0, chunk.0.ilog2() as u8),
            None => Geometry::for_size(size.0),
        }
    }

    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        let is_chunk =
            |size: ByteSize| size.0.is_power_of_two() && (1 << 18..=1 << 26).contains(&size.0);
        require(
            self.chunk.is_none_or(is_chunk),
            "image.chunk",
            "write a power of two from \"256KiB\" to \"64MiB\"",
        )?;
        require_layers(&self.layers, "image.layers")
    }
}

/// Checks the layers of an image or a base.
pub(super) fn require_layers(layers: &[ByteSize], key: &'static str) -> Result<(), ScenarioError> {
    require(
        !layers.is_empty(),
        key,
        "name at least one size, such as [\"64MiB\"]",
    )?;
    require(layers.len() <= MAX_LAYERS, key, "name at most 256 layers")?;
    require(
        layers.iter().any(|size| size.0 > 0),
        key,
        "the image must not be empty: name a size such as \"64MiB\"",
    )
}
