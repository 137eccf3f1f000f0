//! `[tracker]`: the trackers.

use core::num::NonZeroU32;
use core::ops::Range;

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{is_time, require};

/// Maximum number of trackers in one group.
const MAX_TRACKERS: u32 = 16;

/// The trackers. They are equal.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracker {
    /// Whether there is a tracker. Without one, each peer knows `known_peers` others.
    pub enabled: bool,
    /// Whether each region has trackers of its own. Otherwise all peers share the trackers, and
    /// each of them is as near to every peer as if it were in the peer's region.
    pub per_region: bool,
    /// Number of trackers, in each region if `per_region` is set. They share the blobs.
    pub count: NonZeroU32,
    /// Whether peers also know the trackers of the other regions, which they use while those of
    /// the own one are lost.
    pub fallback_to_other_regions: bool,
    /// Open leases per blob and region; the tracker's own default if not set.
    pub open_leases: Option<usize>,
    /// Neighbours in a handout; the tracker's own default if not set.
    pub handout: Option<usize>,
    /// Of each 16 neighbours in a handout, so many are of the peer's own zone; the tracker's own
    /// default if not set.
    pub near_of_16: Option<usize>,
    /// Shortest time between two announces of a peer, in seconds; the tracker's own default if not
    /// set.
    pub min_interval_s: Option<f64>,
    /// Number of peers that each peer knows from earlier, if there is no tracker.
    pub known_peers: u32,
    /// Time for which an announce occupies the tracker, in microseconds. Requests are served one
    /// after the other. The defaults of the four times add up to what one start was measured to
    /// cost (`docs/benchmarks/simulated-swarm.md`).
    pub announce_us: f64,
    /// Time added by each connected peer that the announce names.
    pub named_us: f64,
    /// Time added by each blob for which the answer names neighbours.
    pub handout_us: f64,
    /// Time for which a lease request occupies the tracker.
    pub lease_us: f64,
    /// Maximum number of requests that are served or parked at once, each on a connection of its
    /// own; further ones wait until one ends. The default is the tracker's own.
    pub connections: u32,
}

impl Tracker {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(
            self.open_leases != Some(0),
            "tracker.open_leases",
            "write a number of 1 or more, because without leases no chunk leaves the origin",
        )?;
        require(
            self.handout != Some(0),
            "tracker.handout",
            "write a number of 1 or more",
        )?;
        require(
            self.near_of_16.is_none_or(|near| near <= 16),
            "tracker.near_of_16",
            "write a number from 0 to 16",
        )?;
        require(
            self.min_interval_s
                .is_none_or(|interval_s| is_time(interval_s) && interval_s > 0.0),
            "tracker.min_interval_s",
            "write seconds above 0",
        )?;
        for (value, key) in [
            (self.announce_us, "tracker.announce_us"),
            (self.named_us, "tracker.named_us"),
            (self.handout_us, "tracker.handout_us"),
            (self.lease_us, "tracker.lease_us"),
        ] {
            require(is_time(value), key, "write microseconds, 0 or more")?;
        }
        require(
            self.connections > 0,
            "tracker.connections",
            "write a number of 1 or more",
        )?;
        require(
            self.count.get() <= MAX_TRACKERS,
            "tracker.count",
            "write a number from 1 to 16",
        )?;
        require(
            self.per_region || !self.fallback_to_other_regions,
            "tracker.fallback_to_other_regions",
            "set per_region, too; without it all regions share the trackers",
        )
    }

    /// The number of trackers in `regions` regions.
    pub(crate) fn total(&self, regions: u32) -> u32 {
        self.count.get() * if self.per_region { regions } else { 1 }
    }

    /// The region of a tracker; `None` if all regions share it.
    pub(crate) fn region(&self, number: u32) -> Option<u32> {
        self.per_region.then(|| number / self.count)
    }

    /// The numbers of the trackers that share the blobs of one, with its own.
    pub(crate) fn group_of(&self, number: u32) -> Range<u32> {
        let first = number / self.count * self.count.get();
        first..first + self.count.get()
    }

    /// The numbers of the trackers that peers of a region know, its own ones first.
    pub(crate) fn known_in(&self, region: u32, regions: u32) -> impl Iterator<Item = u32> + use<> {
        let count = self.count.get();
        let first = if self.per_region { region * count } else { 0 };
        let known = if self.fallback_to_other_regions {
            count * regions
        } else {
            count
        };
        let total = self.total(regions);
        (first..first + known).map(move |number| number % total)
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            enabled: true,
            per_region: false,
            count: NonZeroU32::MIN,
            fallback_to_other_regions: false,
            open_leases: None,
            handout: None,
            near_of_16: None,
            min_interval_s: None,
            known_peers: 16,
            announce_us: 27.0,
            named_us: 1.4,
            handout_us: 17.0,
            lease_us: 24.0,
            connections: 20_000,
        }
    }
}
