//! `[tracker]`: the tracker.

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{is_time, require};

/// The tracker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracker {
    /// Whether there is a tracker. Without one, each peer knows `known_peers` others.
    pub enabled: bool,
    /// Open leases per blob and region; the tracker's own default if not set.
    pub open_leases: Option<usize>,
    /// Number of peers that each peer knows from earlier, if there is no tracker.
    pub known_peers: u32,
    /// Time for which an announce occupies the tracker, in microseconds. Requests are served one
    /// after the other.
    pub announce_us: f64,
    /// The same for a lease request.
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
        for (value, key) in [
            (self.announce_us, "tracker.announce_us"),
            (self.lease_us, "tracker.lease_us"),
        ] {
            require(is_time(value), key, "write microseconds, 0 or more")?;
        }
        require(
            self.connections > 0,
            "tracker.connections",
            "write a number of 1 or more",
        )
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            enabled: true,
            open_leases: None,
            known_peers: 16,
            announce_us: 150.0,
            lease_us: 20.0,
            connections: 20_000,
        }
    }
}
