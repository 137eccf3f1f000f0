//! `[links]`: the delays between peers, trackers and origins.

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::require_millis;

/// One-way delays, in milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Links {
    /// Within a zone.
    pub zone_ms: f64,
    /// Between zones of a region, and to the region's tracker and origin.
    pub region_ms: f64,
    /// Between regions.
    pub wan_ms: f64,
    /// Time until a peer notices that a neighbour has died.
    pub death_noticed_ms: f64,
}

impl Links {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        let Self {
            zone_ms,
            region_ms,
            wan_ms,
            death_noticed_ms,
        } = *self;
        require_millis(zone_ms, "links.zone_ms")?;
        require_millis(region_ms, "links.region_ms")?;
        require_millis(wan_ms, "links.wan_ms")?;
        require_millis(death_noticed_ms, "links.death_noticed_ms")
    }
}

impl Default for Links {
    fn default() -> Self {
        Self {
            zone_ms: 0.25,
            region_ms: 0.5,
            wan_ms: 40.0,
            death_noticed_ms: 1000.0,
        }
    }
}
