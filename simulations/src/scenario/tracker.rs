//! `[tracker]`: the tracker.

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::require;

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
}

impl Tracker {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(
            self.open_leases != Some(0),
            "tracker.open_leases",
            "write a number of 1 or more, because without leases no chunk leaves the origin",
        )
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self {
            enabled: true,
            open_leases: None,
            known_peers: 16,
        }
    }
}
