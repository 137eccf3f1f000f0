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
    /// Share of the peers whose links are a tenth as fast. If there are seeders, this share and
    /// the three below are of the seeders only.
    #[serde(default)]
    pub slow_share: f64,
    /// Share of the peers that send corrupt bytes.
    #[serde(default)]
    pub lying_share: f64,
    /// Share of the peers that accept connections and name their chunks, and answer no request.
    #[serde(default)]
    pub mute_share: f64,
    /// Share of the peers that refuse every request, as if all their upload slots were taken.
    #[serde(default)]
    pub busy_share: f64,
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
    /// Number of peers, the first ones, that have all images at the start and pull nothing.
    #[serde(default)]
    pub seeders: u32,
    /// Classes of hosts with other rates. Peers of no class have `up` and `down`.
    #[serde(default)]
    pub classes: Vec<HostClass>,
}

/// A class of hosts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostClass {
    /// Share of the peers that are of this class.
    pub share: f64,
    /// Uplink of each of them, per second.
    pub up: BitRate,
    /// Downlink of each of them, per second.
    pub down: BitRate,
}

/// The fault of a simulated peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It sends corrupt bytes.
    Lies,
    /// It answers no request.
    IsMute,
    /// It refuses every request as busy.
    IsBusy,
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
        require_share(self.mute_share, "peers.mute_share")?;
        require_share(self.busy_share, "peers.busy_share")?;
        require(
            self.lying_share + self.mute_share + self.busy_share <= 1.0 + 1e-9,
            "peers.busy_share",
            "write shares of lying, mute and busy peers whose sum is at most 1",
        )?;
        require_seconds(self.start_spread_s, "peers.start_spread_s")?;
        require(
            self.seeders < self.count,
            "peers.seeders",
            "write a number below peers.count",
        )?;
        let mut shares = 0.0;
        for class in &self.classes {
            require_share(class.share, "peers.classes.share")?;
            require(class.up.0 > 0, "peers.classes.up", WRITE_RATE)?;
            require(class.down.0 > 0, "peers.classes.down", WRITE_RATE)?;
            shares += class.share;
        }
        require(
            shares <= 1.0 + 1e-9,
            "peers.classes.share",
            "write shares whose sum is at most 1",
        )
    }

    /// The fault of a peer; `None` for a sound one. `place`, from 0 to 1, is its place among all
    /// peers in order of their faults.
    pub(crate) fn fault_at(&self, place: f64) -> Option<Fault> {
        let shares = [
            (self.lying_share, Fault::Lies),
            (self.mute_share, Fault::IsMute),
            (self.busy_share, Fault::IsBusy),
        ];
        group_at(place, shares)
    }

    /// The rates of a host, in bits per second: uplink and downlink. `place`, from 0 to 1, is its
    /// place among all hosts in order of their classes.
    pub(crate) fn rates_at(&self, place: f64) -> (u64, u64) {
        let classes = self.classes.iter().map(|class| (class.share, class));
        match group_at(place, classes) {
            Some(class) => (class.up.0, class.down.0),
            None => (self.up.0, self.down.0),
        }
    }
}

/// The group at a place from 0 to 1, if each has its share of the places, in order; `None` behind
/// the last group.
fn group_at<T>(mut place: f64, groups: impl IntoIterator<Item = (f64, T)>) -> Option<T> {
    for (share, group) in groups {
        if place < share {
            return Some(group);
        }
        place -= share;
    }
    None
}

fn one() -> NonZeroU32 {
    NonZeroU32::MIN
}
