//! `GET /flotilla/v1/regions`: the regions as one origin sees them, for operators and pipelines.
//!
//! Unlike [`region`](super::region), it is JSON, and any client may ask. It has no secrets: the
//! policy's names and addresses, and figures that `/metrics` has, too.

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::name::RegionName;

/// The path. With the parameter `repository=NAME`, [`ListedRegion::keeps`] is set.
pub const REGIONS_PATH: &str = "/flotilla/v1/regions";

/// The regions, as the replica that answers sees them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegionList {
    /// The region of the replica.
    pub region: RegionName,
    /// Identifies the content of the policy in use; `None` if there is none.
    pub policy: Option<Digest>,
    /// How far the replica uses its storage.
    pub storage: ListedStanding,
    /// Whether its region has all that the other regions had when it joined.
    pub whole: bool,
    /// All regions of the policy, in its order. Empty if the origin belongs to a single region.
    pub regions: Vec<ListedRegion>,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedRegion {
    /// The name.
    pub name: RegionName,
    /// Where its origins are reached: `https://HOST` or `https://HOST:PORT`.
    pub url: String,
    /// Whether the policy keeps the repository of the request in this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keeps: Option<bool>,
    /// How far the replica uses this region; for its own region, its storage.
    pub standing: ListedStanding,
    /// What of this region is not merged yet. Only the replica that follows it knows.
    pub lag: Option<ListedLag>,
}

/// What a region owes to the region of the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListedLag {
    /// The age of the oldest change that is not merged, in seconds.
    pub seconds: u64,
    /// Journal entries that are not merged.
    pub entries: u64,
    /// Those that wait for a region that does not answer.
    pub blocked: u64,
}

/// How far a replica uses a storage or a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ListedStanding {
    /// It answers.
    Usable,
    /// It is out, and gets no requests.
    Out,
    /// It answers again, and gets a share of the requests.
    Returning,
}
