//! Scenarios, as TOML files.
//!
//! Unknown keys are errors, so a misspelt key is not silently ignored. `scenarios/` has examples.

use core::time::Duration;
use std::num::NonZeroU32;

use flotilla_common::chunk::Geometry;
use flotilla_common::units::{BitRate, ByteSize};
use serde::{Deserialize, Serialize};

/// Maximum number of peers of a scenario; so many fit into a few GiB of memory.
const MAX_PEERS: u32 = 100_000;
/// Maximum number of layers of an image.
const MAX_LAYERS: usize = 256;

/// Why a text is not a valid scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is not valid TOML, or has an unknown key or value.
    #[error("parse scenario: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value is out of range.
    #[error("scenario key `{key}`: {cure}")]
    Value {
        /// The key, with its table.
        key: &'static str,
        /// How to fix it.
        cure: String,
    },
}

/// A simulated world: peers, links, an image and failures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in results.
    pub name: String,
    /// The run ends after so many simulated seconds; peers that are not complete by then are
    /// stranded.
    #[serde(default = "default_time_limit_s")]
    pub time_limit_s: f64,
    /// The image that all peers pull.
    pub image: ImageSpec,
    /// The peers.
    pub peers: Peers,
    /// The origins.
    pub origin: Origins,
    /// The delays between them.
    #[serde(default)]
    pub links: Links,
    /// The tracker.
    #[serde(default)]
    pub tracker: Tracker,
    /// Settings of the peers' machines, for comparisons.
    #[serde(default)]
    pub machine: MachineSettings,
    /// Failures, and when they happen.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// The bars that the outcome must keep.
    #[serde(default)]
    pub bars: Bars,
}

/// The image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageSpec {
    /// Sizes of its layers. A layer's size determines the size of its chunks.
    pub layers: Vec<ByteSize>,
    /// Whether the layers have no seal. Then each one is exchanged as a whole.
    #[serde(default)]
    pub digest_only: bool,
}

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
    /// Maximum number of connections of one peer.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// The origins, one per region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origins {
    /// Uplink of each origin, per second.
    pub up: BitRate,
    /// Time to the first byte, without network delays, in milliseconds.
    #[serde(default = "default_think_ms")]
    pub think_ms: f64,
}

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

/// Settings of the peers' machines that differ from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSettings {
    /// Transfers in each direction at the median rate.
    pub slots: Option<u32>,
    /// One of so many chunk choices is in order; 0 for none.
    pub in_order_one_in: Option<u32>,
    /// Minimum time between two Have batches, in milliseconds.
    pub have_interval_ms: Option<u64>,
    /// How long before its end a transfer counts as nearly done, in milliseconds.
    pub nearly_done_ms: Option<u64>,
}

/// A failure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// When it happens, in simulated seconds.
    pub at_s: f64,
    /// Its kind.
    pub kind: FailureKind,
    /// The share of the possible peers that fail.
    #[serde(default = "all")]
    pub share: f64,
    /// Seconds after which the failure ends (frozen peers, trackers and origins only).
    pub for_s: Option<f64>,
    /// The peers fail at random times within so many seconds.
    #[serde(default)]
    pub over_s: f64,
}

/// The kinds of failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Peers die without telling the tracker or their neighbours.
    KillPeers,
    /// As `kill-peers`, of the peers that hold a lease at that time.
    KillLeaseHolders,
    /// Peers stop as under SIGSTOP: their connections stay open, and no byte moves on them. With
    /// `for_s` they continue after that time.
    FreezePeers,
    /// Peers tell the tracker that they leave, and close their connections.
    LeavePeers,
    /// The tracker stops answering; messages to it are lost.
    StopTracker,
    /// The tracker restarts with an empty memory.
    RestartTracker,
    /// The first region's origin stops answering.
    StopOrigin,
}

/// Upper limits of the outcome's figures: an outcome above one of them is not `ok`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bars {
    /// 99th percentile of the times to completion, divided by the greater lower bound.
    pub max_p99_over_bound: Option<f64>,
    /// Bytes from origins per region, divided by the image's bytes.
    pub max_origin_copies: Option<f64>,
}

impl Scenario {
    /// Parses a scenario.
    ///
    /// # Errors
    /// The text is not valid TOML, a key is unknown, or a value is out of range; the message names
    /// it.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Size of the image, in bytes.
    pub fn image_bytes(&self) -> u64 {
        self.image.layers.iter().map(|size| size.0).sum()
    }

    /// The chunks of a layer of this size.
    pub(crate) fn geometry(&self, size: ByteSize) -> Geometry {
        if self.image.digest_only {
            Geometry::whole(size.0)
        } else {
            Geometry::for_size(size.0)
        }
    }

    fn check(&self) -> Result<(), ScenarioError> {
        require(
            !self.image.layers.is_empty(),
            "image.layers",
            "name at least one size, such as [\"64MiB\"]",
        )?;
        require(
            self.image.layers.len() <= MAX_LAYERS,
            "image.layers",
            "name at most 256 layers",
        )?;
        require(
            self.image_bytes() > 0,
            "image.layers",
            "the image must not be empty: name a size such as \"64MiB\"",
        )?;
        require(
            (1..=MAX_PEERS).contains(&self.peers.count),
            "peers.count",
            "write a number from 1 to 100000",
        )?;
        require(
            self.peers.up.0 > 0,
            "peers.up",
            "write a rate above zero, such as \"50Mbit\"",
        )?;
        require(
            self.peers.down.0 > 0,
            "peers.down",
            "write a rate above zero, such as \"50Mbit\"",
        )?;
        require(
            self.origin.up.0 > 0,
            "origin.up",
            "write a rate above zero, such as \"50Mbit\"",
        )?;
        require(
            is_share(self.peers.slow_share),
            "peers.slow_share",
            "write a share from 0 to 1",
        )?;
        require(
            is_share(self.peers.lying_share),
            "peers.lying_share",
            "write a share from 0 to 1",
        )?;
        require(
            is_time(self.peers.start_spread_s),
            "peers.start_spread_s",
            "write seconds, 0 or more",
        )?;
        require(
            is_time(self.time_limit_s) && self.time_limit_s > 0.0,
            "time_limit_s",
            "write seconds above zero",
        )?;
        require(
            is_time(self.origin.think_ms),
            "origin.think_ms",
            "write milliseconds, 0 or more",
        )?;
        let Links {
            zone_ms,
            region_ms,
            wan_ms,
            death_noticed_ms,
        } = self.links;
        for (value, key) in [
            (zone_ms, "links.zone_ms"),
            (region_ms, "links.region_ms"),
            (wan_ms, "links.wan_ms"),
            (death_noticed_ms, "links.death_noticed_ms"),
        ] {
            require(is_time(value), key, "write milliseconds, 0 or more")?;
        }
        for failure in &self.failures {
            require(
                is_time(failure.at_s),
                "failures.at_s",
                "write seconds, 0 or more",
            )?;
            require(
                is_time(failure.over_s),
                "failures.over_s",
                "write seconds, 0 or more",
            )?;
            require(
                failure.for_s.is_none_or(is_time),
                "failures.for_s",
                "write seconds, 0 or more",
            )?;
            require(
                is_share(failure.share),
                "failures.share",
                "write a share from 0 to 1",
            )?;
        }
        Ok(())
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

impl Default for Tracker {
    fn default() -> Self {
        Self {
            enabled: true,
            open_leases: None,
            known_peers: 16,
        }
    }
}

/// A time of a scenario, in seconds.
pub(crate) fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

/// A delay of a scenario, in milliseconds.
pub(crate) fn millis(millis: f64) -> Duration {
    Duration::from_nanos((millis * 1e6) as u64)
}

fn require(holds: bool, key: &'static str, cure: &str) -> Result<(), ScenarioError> {
    if holds {
        Ok(())
    } else {
        Err(ScenarioError::Value {
            key,
            cure: cure.to_owned(),
        })
    }
}

fn is_share(value: f64) -> bool {
    (0.0..=1.0).contains(&value)
}

/// Whether a number of seconds or milliseconds fits into a duration.
fn is_time(value: f64) -> bool {
    (0.0..=1e9).contains(&value)
}

fn default_time_limit_s() -> f64 {
    3600.0
}

fn default_think_ms() -> f64 {
    1.0
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}

fn all() -> f64 {
    1.0
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use super::*;

    const SMALL: &str = r#"
        name = "small"
        [image]
        layers = ["64MiB", 1000]
        [peers]
        count = 16
        up = "50Mbit"
        down = "50Mbit"
        [origin]
        up = "50Mbit"
    "#;

    #[test]
    fn missing_keys_have_defaults() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!(scenario.image_bytes(), (64 << 20) + 1000);
        assert_eq!(scenario.peers.zones.get(), 1);
        assert!(scenario.tracker.enabled);
        assert!(scenario.failures.is_empty());
    }

    #[test]
    fn errors_name_the_key_and_the_fix() {
        let error = |from: &str, to: &str| {
            Scenario::parse(&SMALL.replace(from, to))
                .unwrap_err()
                .to_string()
        };
        assert!(error("count = 16", "count = 0").contains("`peers.count`: write a number from 1"));
        assert!(error("count = 16", "cuont = 16").contains("cuont"));
        assert!(error("\"64MiB\"", "\"64 elephants\"").contains("use a number and B, KiB, MiB"));
        assert!(error("\"64MiB\", 1000", "").contains("`image.layers`"));
        assert!(error("count = 16", "count = 16\nslow_share = 2").contains("`peers.slow_share`"));
        assert!(error("count = 16", "count = 16\nzones = 0").contains("zones"));
    }
}
