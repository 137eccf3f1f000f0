//! `[links]`: the delays between peers, trackers and origins, and how they vary.

use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{require, require_millis};

/// Largest mean jitter, in one-way delays.
const MAX_JITTER: f64 = 10.0;
/// Largest share of lost packets; with more, connections fail.
const MAX_LOSS: f64 = 0.3;

/// One-way delays, in milliseconds, and how they vary from message to message.
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
    /// Mean of what is added to each message's delay, as a share of that delay. Messages on one
    /// stream or connection keep their order; all others may overtake each other.
    pub jitter: f64,
    /// Share of the packets that are lost and sent again.
    pub loss: f64,
}

impl Links {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        let Self {
            zone_ms,
            region_ms,
            wan_ms,
            death_noticed_ms,
            jitter,
            loss,
        } = *self;
        require(
            (0.0..=MAX_JITTER).contains(&jitter),
            "links.jitter",
            "write a share of the one-way delay from 0 to 10, such as 0.1",
        )?;
        require(
            (0.0..=MAX_LOSS).contains(&loss),
            "links.loss",
            "write a share of the packets from 0 to 0.3, such as 0.001",
        )?;
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
            jitter: 0.1,
            loss: 0.0,
        }
    }
}
