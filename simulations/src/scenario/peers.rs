//! `[peers]`: how many, where, and what their links carry.

use std::num::NonZeroU32;

use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{WRITE_RATE, require, require_seconds, require_share};

/// Maximum number of peers of a scenario; so many fit into a few GiB of memory.
const MAX_PEERS: u32 = 100_000;

/// The peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// Number of peers.
    pub count: u32,
    /// Uplink of each peer, per second.
    pub up: BitRate,
    /// Downlink of each peer, per second.
    pub down: BitRate,
    /// Share of the peers whose links are a tenth as fast.
    #[serde(default)]
    pub slow_share: f64,
    /// Share of the peers that send corrupt bytes.
    #[serde(default)]
    pub lying_share: f64,
    /// The peers start at random times within so many seconds.
    #[serde(default)]
    pub start_spread_s: f64,
    /// Regions, each with an origin; the peers are spread evenly.
    #[serde(default = "one")]
    pub regions: NonZeroU32,
    /// Zones of each region; the peers are spread evenly.
    #[serde(default = "one")]
    pub zones: NonZeroU32,
    /// Whether peers are configured with the rates of their links (`--up` and `--down`), which they
    /// tell their neighbours. Without it neither knows them, as peers that are not configured.
    #[serde(default)]
    pub knows_rates: bool,
    /// Maximum number of connections of one peer.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

impl Peers {
    pub(super) fn check(&self) -> Result<(), ScenarioError> {
        require(
            (1..=MAX_PEERS).contains(&self.count),
            "peers.count",
            "write a number from 1 to 100000",
        )?;
        require(self.up.0 > 0, "peers.up", WRITE_RATE)?;
        require(self.down.0 > 0, "peers.down", WRITE_RATE)?;
        require_share(self.slow_share, "peers.slow_share")?;
        require_share(self.lying_share, "peers.lying_share")?;
        require_seconds(self.start_spread_s, "peers.start_spread_s")
    }
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}
