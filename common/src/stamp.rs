//! Stamps: when and where a tag, a manifest or a referrer was last changed.
//!
//! Regions merge changes by stamp: the higher clock wins, and a tie goes by the region's name. So
//! all regions come to the same value, in whatever order they hear of the changes.

use bincode::{Decode, Encode};

use crate::name::RegionName;

/// When and where a key was last changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Stamp {
    /// A hybrid clock: nanoseconds since 1970, and above the clock of the value that was replaced.
    pub clock: u64,
    /// The region in which it was changed.
    pub region: RegionName,
}
