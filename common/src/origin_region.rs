//! The number by which a peer and its trackers name the origins of a region.

use bincode::{Decode, Encode};

/// The origins of one region, by the region's index in the list of the peers: their own region is
/// the first, and the others follow in the order of preference. All peers of a region have the same
/// list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct OriginRegion(pub u8);

impl OriginRegion {
    /// The peer's own region.
    pub const OWN: Self = Self(0);
}
