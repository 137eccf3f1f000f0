//! `[links]`: the delays between peers, trackers and origins, how they vary, what is lost, and the
//! capacities of shared links.

use flotilla_common::units::BitRate;
use serde::{Deserialize, Serialize};

use super::ScenarioError;
use super::check::{WRITE_MILLIS, WRITE_RATE, is_time, require, require_millis};

/// Largest mean jitter, in one-way delays.
const MAX_JITTER: f64 = 10.0;
/// Largest share of lost packets; with more, connections fail.
const MAX_LOSS: f64 = 0.3;
/// Most regions of a scenario, and most zones of a region: each pair has a link.
const MAX_PLACES: u32 = 256;

/// One-way delays, in milliseconds, how they vary from message to message, and what is lost.
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
    /// The same between regions; `loss` if not set.
    pub wan_loss: Option<f64>,
    /// Capacity between two zones of a region, in each direction, per second. All transfers between
    /// them share it, except those from the region's origin. Not limited if not set.
    pub region_rate: Option<BitRate>,
    /// Capacity between two regions, in each direction, per second. All transfers between them
    /// share it. Not limited if not set.
    pub wan_rate: Option<BitRate>,
    /// Whether connections between regions begin with a small congestion window, which grows with
    /// each round trip.
    pub slow_start: bool,
    /// Whether a request to an origin waits for the handshakes of a connection, unless one is idle.
    pub handshakes: bool,
    /// Pairs of regions whose links differ from those between all others.
    pub between: Vec<LinkBetween>,
}

/// The link between two regions, as far as it differs from those between all others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkBetween {
    /// The two regions, from 0, in any order.
    pub regions: [u32; 2],
    /// One-way delay, in milliseconds; `wan_ms` if not set.
    pub one_way_ms: Option<f64>,
    /// Share of the packets that are lost; `wan_loss` if not set.
    pub loss: Option<f64>,
    /// Capacity in each direction, per second; `wan_rate` if not set.
    pub rate: Option<BitRate>,
}

/// The link from one region to another, or that within a region to its origin.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct RegionLinkSettings {
    pub(crate) one_way_ms: f64,
    pub(crate) loss: f64,
    pub(crate) rate: Option<BitRate>,
}

impl Links {
    /// The link between two regions.
    pub(crate) fn between(&self, one: u32, other: u32) -> RegionLinkSettings {
        if one == other {
            return RegionLinkSettings {
                one_way_ms: self.region_ms,
                loss: self.loss,
                rate: None,
            };
        }
        let pair = self.between.iter().find(|it| it.is_of(one, other));
        let of_pair = |value: fn(&LinkBetween) -> Option<f64>| pair.and_then(value);
        RegionLinkSettings {
            one_way_ms: of_pair(|it| it.one_way_ms).unwrap_or(self.wan_ms),
            loss: of_pair(|it| it.loss).or(self.wan_loss).unwrap_or(self.loss),
            rate: pair.and_then(|it| it.rate).or(self.wan_rate),
        }
    }

    pub(super) fn check(&self, regions: u32, zones: u32) -> Result<(), ScenarioError> {
        let Self {
            zone_ms,
            region_ms,
            wan_ms,
            death_noticed_ms,
            jitter,
            loss,
            wan_loss,
            region_rate,
            wan_rate,
            slow_start: _,
            handshakes: _,
            ref between,
        } = *self;
        require(
            (0.0..=MAX_JITTER).contains(&jitter),
            "links.jitter",
            "write a share of the one-way delay from 0 to 10, such as 0.1",
        )?;
        require(is_loss(loss), "links.loss", WRITE_LOSS)?;
        require(wan_loss.is_none_or(is_loss), "links.wan_loss", WRITE_LOSS)?;
        require(is_capacity(region_rate), "links.region_rate", WRITE_RATE)?;
        require(is_capacity(wan_rate), "links.wan_rate", WRITE_RATE)?;
        for (at, link) in between.iter().enumerate() {
            link.check(regions)?;
            let [one, other] = link.regions;
            require(
                !between[..at].iter().any(|it| it.is_of(one, other)),
                "links.between.regions",
                "name each pair of regions once",
            )?;
        }
        let places = "write a number from 1 to 256";
        require(regions <= MAX_PLACES, "peers.regions", places)?;
        require(
            region_rate.is_none() || zones <= MAX_PLACES,
            "peers.zones",
            places,
        )?;
        require_millis(zone_ms, "links.zone_ms")?;
        require_millis(region_ms, "links.region_ms")?;
        require_millis(wan_ms, "links.wan_ms")?;
        require_millis(death_noticed_ms, "links.death_noticed_ms")
    }
}

impl LinkBetween {
    fn is_of(&self, one: u32, other: u32) -> bool {
        self.regions == [one, other] || self.regions == [other, one]
    }

    fn check(&self, regions: u32) -> Result<(), ScenarioError> {
        let [one, other] = self.regions;
        require(
            one != other && one.max(other) < regions,
            "links.between.regions",
            "write the numbers of two regions, from 0 to one below peers.regions",
        )?;
        require(
            self.one_way_ms.is_none_or(is_time),
            "links.between.one_way_ms",
            WRITE_MILLIS,
        )?;
        require(
            self.loss.is_none_or(is_loss),
            "links.between.loss",
            WRITE_LOSS,
        )?;
        require(is_capacity(self.rate), "links.between.rate", WRITE_RATE)
    }
}

/// The fix for a value that must be a share of lost packets.
const WRITE_LOSS: &str = "write a share of the packets from 0 to 0.3, such as 0.001";

fn is_loss(value: f64) -> bool {
    (0.0..=MAX_LOSS).contains(&value)
}

fn is_capacity(rate: Option<BitRate>) -> bool {
    rate.is_none_or(|rate| rate.0 > 0)
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
            wan_loss: None,
            region_rate: None,
            wan_rate: None,
            slow_start: false,
            handshakes: false,
            between: Vec::new(),
        }
    }
}
