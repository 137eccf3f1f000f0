//! `[origin]`: the origins, one per region.

use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{WRITE_RATE, require, require_millis};

/// The origins, one per region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origins {
    /// Uplink of each origin, per second.
    pub up: BitRate,
    /// Time to the first byte, without network delays, in milliseconds.
    #[serde(default = "default_think_ms")]
    pub think_ms: f64,
    /// Whether each origin answers the first request of each peer for the proofs of the image's
    /// blobs with an error.
    #[serde(default)]
    pub fail_first_closures: bool,
}

impl Origins {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(self.up.0 > 0, "origin.up", WRITE_RATE)?;
        require_millis(self.think_ms, "origin.think_ms")
    }
}

fn default_think_ms() -> f64 {
    1.0
}
