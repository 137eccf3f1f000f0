//! `[[images]]`, `[[bases]]` and `[pulls]`: a set of images, and which of them each peer pulls.

use flotilla_common::units::ByteSize;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{require, require_millis, require_share};
use super::image::{MAX_LAYERS, require_layers};

/// Maximum number of images of a set, counting variants.
const MAX_IMAGES: u32 = 10_000;
/// Maximum number of distinct blobs of a set.
const MAX_BLOBS: u32 = 100_000;
/// Largest Zipf exponent; above it nearly all pulls are of one image.
const MAX_ZIPF: f64 = 5.0;

/// Layers that several images begin with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaseImage {
    /// The name by which images refer to it.
    pub name: String,
    /// Sizes of its layers.
    pub layers: Vec<ByteSize>,
}

/// An image of a set, or several that differ in their own layers only.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetImage {
    /// Its name, to which traces of arrivals may refer.
    pub name: String,
    /// The base whose layers come first; none if not set.
    #[serde(default)]
    pub base: Option<String>,
    /// Sizes of its own layers.
    pub layers: Vec<ByteSize>,
    /// Number of images like this one. They share the base, and each has own layers of these sizes.
    #[serde(default = "one")]
    pub variants: u32,
}

/// Which images each peer pulls.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pulls {
    /// Number of different images that each peer pulls; all of the set if not set.
    pub images: Option<u32>,
    /// Number of pulls that a peer has under way at most; all of them if not set.
    pub at_once: Option<u32>,
    /// How unequally popular the images are: the image at place `k` of the list is chosen with a
    /// weight of `1 / k^zipf`.
    pub zipf: f64,
    /// Share of each layer's chunks that runtimes read, chunk by chunk in one random order for all
    /// peers, as lazy loaders do. A pull is complete with the last of these reads. If not set,
    /// runtimes read each layer from its start to its end.
    pub lazy_share: Option<f64>,
    /// Time between two lazy reads of a layer, in milliseconds.
    pub lazy_pause_ms: f64,
}

impl Default for Pulls {
    fn default() -> Self {
        Self {
            images: None,
            at_once: None,
            zipf: 1.0,
            lazy_share: None,
            lazy_pause_ms: 0.0,
        }
    }
}

/// Checks the tables of an image set, which may be absent.
pub(super) fn check(
    bases: &[BaseImage],
    images: &[SetImage],
    pulls: &Pulls,
) -> Result<(), ScenarioError> {
    for base in bases {
        require_layers(&base.layers, "bases.layers")?;
        let same_name = bases.iter().filter(|other| other.name == base.name);
        require(
            same_name.count() == 1,
            "bases.name",
            "give each base a name of its own",
        )?;
    }
    let (mut image_count, mut blob_count) = (0_u32, 0_u32);
    for image in images {
        let base = match &image.base {
            Some(name) => {
                let base = bases.iter().find(|base| base.name == *name);
                require(
                    base.is_some(),
                    "images.base",
                    "write the name of one of the [[bases]]",
                )?;
                base.map_or(0, |base| base.layers.len())
            }
            None => 0,
        };
        require_layers(&image.layers, "images.layers")?;
        require(
            base + image.layers.len() <= MAX_LAYERS,
            "images.layers",
            "name at most 256 layers with those of the base",
        )?;
        require(
            (1..=MAX_IMAGES).contains(&image.variants),
            "images.variants",
            "write a number from 1 to 10000",
        )?;
        image_count = image_count.saturating_add(image.variants);
        let own = image.layers.len() as u32;
        blob_count = blob_count.saturating_add(image.variants.saturating_mul(own));
    }
    require(
        image_count <= MAX_IMAGES,
        "images",
        "name at most 10000 images, counting variants",
    )?;
    require(
        blob_count <= MAX_BLOBS,
        "images",
        "name at most 100000 own layers, counting variants",
    )?;
    require(
        pulls
            .images
            .is_none_or(|count| (1..=image_count.max(1)).contains(&count)),
        "pulls.images",
        "write a number from 1 to the number of images, counting variants",
    )?;
    require(
        pulls.at_once != Some(0),
        "pulls.at_once",
        "write a number of 1 or more",
    )?;
    require(
        (0.0..=MAX_ZIPF).contains(&pulls.zipf),
        "pulls.zipf",
        "write an exponent from 0 (all images are equally popular) to 5, such as 1.0",
    )?;
    require_share(pulls.lazy_share.unwrap_or_default(), "pulls.lazy_share")?;
    require_millis(pulls.lazy_pause_ms, "pulls.lazy_pause_ms")
}

const fn one() -> u32 {
    1
}
