//! Scenarios: what is simulated, as TOML.
//!
//! Unknown keys are errors, so that a misspelt one cannot be taken for its default. `scenarios/`
//! has examples.

use std::num::NonZeroU32;

use flotilla_common::units::{BitRate, ByteSize};
use serde::{Deserialize, Serialize};

/// Most peers of a scenario: what a machine with a few GiB of memory can hold.
const MAX_PEERS: u32 = 100_000;
/// Most layers of an image.
const MAX_LAYERS: usize = 256;

/// Why a text is no scenario.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The text is not TOML, or has a key or value that is not known.
    #[error("parse scenario: {0}")]
    Parse(#[from] toml::de::Error),
    /// A value makes no sense.
    #[error("scenario key `{key}`: {cure}")]
    Value {
        /// The key, with the table it is in.
        key: &'static str,
        /// What to write instead.
        cure: String,
    },
}

/// A world and what happens in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// What it is called in results.
    pub name: String,
    /// When it ends at the latest, in simulated seconds; who is not done by then is stranded.
    #[serde(default = "default_time_limit_s")]
    pub time_limit_s: f64,
    /// What all peers pull.
    pub image: Image,
    /// Who pulls it.
    pub peers: Peers,
    /// Where it comes from.
    pub origin: Origins,
    /// How far apart they are.
    #[serde(default)]
    pub links: Links,
    /// Who introduces them.
    #[serde(default)]
    pub tracker: Tracker,
    /// Settings of the peers' machines, for comparisons.
    #[serde(default)]
    pub machine: MachineSettings,
    /// What goes wrong, and when.
    #[serde(default)]
    pub failures: Vec<Failure>,
    /// What the outcome is measured against.
    #[serde(default)]
    pub bars: Bars,
}

/// The image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// Sizes of its layers; each is cut into chunks as its size demands.
    pub layers: Vec<ByteSize>,
    /// Whether the layers have no seal, so that they are exchanged as a whole.
    #[serde(default)]
    pub digest_only: bool,
}

/// The peers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peers {
    /// How many.
    pub count: u32,
    /// Uplink of each, per second.
    pub up: BitRate,
    /// Downlink of each, per second.
    pub down: BitRate,
    /// This share of them has links a tenth as fast.
    #[serde(default)]
    pub slow_share: f64,
    /// This share of them sends corrupt bytes.
    #[serde(default)]
    pub lying_share: f64,
    /// They start at random times within so many seconds.
    #[serde(default)]
    pub start_spread_s: f64,
    /// Regions, each with an origin; the peers are spread evenly.
    #[serde(default = "one")]
    pub regions: NonZeroU32,
    /// Zones of each region; the peers are spread evenly.
    #[serde(default = "one")]
    pub zones: NonZeroU32,
    /// Connections of one peer at most.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// The origins, one per region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origins {
    /// Uplink of each, per second.
    pub up: BitRate,
    /// Time to the first byte besides the way, in milliseconds.
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
    /// Until a peer notices that a connection has died with the machine at its other end.
    pub death_noticed_ms: f64,
}

/// The tracker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracker {
    /// Whether there is one. Without, each peer knows `known_peers` others.
    pub enabled: bool,
    /// Leases open at once per blob and region; its own default if not given.
    pub open_leases: Option<usize>,
    /// Peers known from earlier, when there is no tracker.
    pub known_peers: u32,
}

/// Settings of the peers' machines that differ from the defaults.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MachineSettings {
    /// Transfers each way at the median rate.
    pub slots: Option<u32>,
    /// One pick in so many is in order; 0 for none.
    pub in_order_one_in: Option<u32>,
    /// Least time between two Have batches, in milliseconds.
    pub have_interval_ms: Option<u64>,
    /// When a transfer counts as nearly done, in milliseconds before its end.
    pub nearly_done_ms: Option<u64>,
}

/// Something that goes wrong.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// When, in simulated seconds.
    pub at_s: f64,
    /// What.
    pub kind: FailureKind,
    /// Of those it can befall, this share.
    #[serde(default = "all")]
    pub share: f64,
    /// If given, the failure ends after so many seconds (frozen peers, trackers and origins only).
    pub for_s: Option<f64>,
    /// If given, the peers fail one after the other within so many seconds.
    #[serde(default)]
    pub over_s: f64,
}

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// Peers vanish without a word.
    KillPeers,
    /// As `kill-peers`, of those that hold a lease at that time.
    KillLeaseHolders,
    /// Peers stop where they are and nobody is told: connections stand, nothing moves on them. With
    /// `for_s` they go on after that time as if nothing had been.
    FreezePeers,
    /// Peers say good-bye to the tracker and hang up.
    LeavePeers,
    /// The tracker does not answer.
    StopTracker,
    /// The tracker has forgotten everything.
    RestartTracker,
    /// The first region's origin does not answer.
    StopOrigin,
}

/// What the outcome must not exceed to be `ok`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Bars {
    /// p99 of the times to completion over the bound.
    pub max_p99_over_bound: Option<f64>,
    /// Bytes from origins over the image's bytes; per region.
    pub max_origin_copies: Option<f64>,
}

impl Scenario {
    /// Reads a scenario.
    ///
    /// # Errors
    /// A text that is not TOML, keys that are not known, and values that make no sense; the message
    /// says which.
    pub fn parse(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text)?;
        scenario.check()?;
        Ok(scenario)
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> u64 {
        self.image.layers.iter().map(|size| size.0).sum()
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
            "an image has bytes: name a size such as \"64MiB\"",
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

/// Seconds or milliseconds that fit into a duration with room to spare.
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
    fn what_is_not_said_has_a_default() {
        let scenario = Scenario::parse(SMALL).unwrap();
        assert_eq!(scenario.image_bytes(), (64 << 20) + 1000);
        assert_eq!(scenario.peers.zones.get(), 1);
        assert!(scenario.tracker.enabled);
        assert!(scenario.failures.is_empty());
    }

    #[test]
    fn errors_name_the_key_and_the_cure() {
        let says = |from: &str, to: &str| {
            Scenario::parse(&SMALL.replace(from, to))
                .unwrap_err()
                .to_string()
        };
        assert!(says("count = 16", "count = 0").contains("`peers.count`: write a number from 1"));
        assert!(says("count = 16", "cuont = 16").contains("cuont"));
        assert!(says("\"64MiB\"", "\"64 elephants\"").contains("write a number and B, KiB, MiB"));
        assert!(says("\"64MiB\", 1000", "").contains("`image.layers`"));
        assert!(says("count = 16", "count = 16\nslow_share = 2").contains("`peers.slow_share`"));
        assert!(says("count = 16", "count = 16\nzones = 0").contains("zones"));
    }
}
