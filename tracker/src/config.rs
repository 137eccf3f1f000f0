//! The tracker's configuration, with defaults for a region of some thousand peers.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use flotilla_common::tracker as machine;
use flotilla_runtime::address_range::AddressRange;
use flotilla_runtime::admin::AdminSettings;
use serde::{Deserialize, Serialize};

/// The settings of a tracker. Times are in milliseconds, sizes in bytes. An unknown key is an
/// error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The address for peers. With port 0 the system chooses a free one. Default 127.0.0.1:7070.
    pub listen: SocketAddr,
    /// The listener for operators. Default a free port on loopback.
    pub admin: AdminSettings,
    /// The URLs of all trackers of this one's region, itself included, exactly as the peers have
    /// them. Those of other regions share no blobs with it. Empty, the default, if this is the only tracker. The first tracker of a blob by rendezvous
    /// hashing grants its leases.
    pub trackers: Vec<String>,
    /// This tracker's own URL in `trackers`. Needed exactly when `trackers` is not empty.
    pub own_url: Option<String>,
    /// Where peers may be that announce another address than the source address of their request,
    /// because a proxy or an address translation is between them and the tracker. Default empty: a
    /// peer is at its source address.
    pub advertised_from: Vec<AddressRange>,
    /// Shortest time between two announces of a peer. Default 5000.
    pub min_interval_ms: u32,
    /// Longest time between two announces of a peer. Default 120000.
    pub max_interval_ms: u32,
    /// Announces per second of all peers together that the tracker aims at: the interval grows with
    /// the number of peers. Default 2000.
    pub announces_per_second: u32,
    /// Intervals without an announce after which a peer is forgotten. Default 3.
    pub intervals_to_expiry: u32,
    /// Neighbours in a handout. Default 16.
    pub handout: u32,
    /// After a start, how long no lease is granted on blobs that peers already have parts of. In
    /// this time peers report the chunks that they hold. Default 2000.
    pub settle_ms: u32,
    /// The folder for a recording of the state machine's inputs and outputs, a diagnostic
    /// ([`flotilla_common::recording`]). Default none.
    pub record: Option<PathBuf>,
    /// Limits.
    pub limits: LimitsConfig,
    /// Settings of leases.
    pub lease: LeaseConfig,
}

/// Limits of a tracker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Maximum number of peers. Further ones get 503. Default 1000000.
    pub peers: u32,
    /// Maximum number of swarms that one peer may be in; further ones are ignored. Default 10000.
    pub swarms_per_peer: u32,
    /// Maximum number of regions, and of zones in all of them. Default 1024.
    pub zones: u32,
    /// Longest body of an announce, in bytes; the encoding allows at most 4 MiB. Default 2 MiB.
    pub announce_bytes: u32,
    /// Longest body of a lease request, in bytes. Default 512 KiB.
    pub lease_bytes: u32,
    /// Maximum number of connections. A parked lease request holds one. Default 20000.
    pub connections: u32,
}

/// Settings of the lease authorities.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LeaseConfig {
    /// Leases open at once for one blob in one region. Default 4; 6 when a chunk takes 10 ms or
    /// less, 8 to 24 when the origin is ten times faster than the peers.
    pub open: u32,
    /// How long a lease lasts, and by how much progress extends it. Default 1000.
    pub term_ms: u32,
    /// Longest total time of a lease, however much progress it makes. Default 30000.
    pub longest_ms: u32,
    /// Longest time that a request is parked. Default 10000.
    pub park_ms: u32,
    /// Longest time that the request of a starving peer is parked. Default 1000.
    pub park_starving_ms: u32,
    /// Maximum number of requests parked for one blob in one region. Default 20000.
    pub parked: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            admin: AdminSettings::default(),
            trackers: Vec::new(),
            own_url: None,
            advertised_from: Vec::new(),
            min_interval_ms: 5_000,
            max_interval_ms: 120_000,
            announces_per_second: 2_000,
            intervals_to_expiry: 3,
            handout: 16,
            settle_ms: 2_000,
            record: None,
            limits: LimitsConfig::default(),
            lease: LeaseConfig::default(),
        }
    }
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            peers: 1_000_000,
            swarms_per_peer: 10_000,
            zones: 1_024,
            announce_bytes: 2 << 20,
            lease_bytes: 512 << 10,
            connections: 20_000,
        }
    }
}

impl Default for LeaseConfig {
    fn default() -> Self {
        Self {
            open: 4,
            term_ms: 1_000,
            longest_ms: 30_000,
            park_ms: 10_000,
            park_starving_ms: 1_000,
            parked: 20_000,
        }
    }
}

/// An invalid setting, and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// The setting must be at least one.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The first setting must be at most the second.
    #[error("{0} must be at most {1}")]
    Above(&'static str, &'static str),
    /// `own_url` is not in `trackers`, or only one of the two is set.
    #[error(
        "own-url must be one of trackers, exactly as it is written there; give both, or neither for one tracker alone"
    )]
    OwnUrl,
}

impl Config {
    /// Checks every setting.
    ///
    /// # Errors
    /// The first invalid setting.
    pub fn validate(&self) -> Result<(), InvalidSetting> {
        let at_least_one = [
            ("min_interval_ms", self.min_interval_ms),
            ("announces_per_second", self.announces_per_second),
            ("intervals_to_expiry", self.intervals_to_expiry),
            ("handout", self.handout),
            ("limits.peers", self.limits.peers),
            ("limits.swarms_per_peer", self.limits.swarms_per_peer),
            ("limits.zones", self.limits.zones),
            ("limits.announce_bytes", self.limits.announce_bytes),
            ("limits.lease_bytes", self.limits.lease_bytes),
            ("limits.connections", self.limits.connections),
            ("lease.open", self.lease.open),
            ("lease.term_ms", self.lease.term_ms),
            ("lease.park_ms", self.lease.park_ms),
            ("lease.park_starving_ms", self.lease.park_starving_ms),
            ("lease.parked", self.lease.parked),
        ];
        if let Some((key, _)) = at_least_one.into_iter().find(|(_, value)| *value == 0) {
            return Err(InvalidSetting::Zero(key));
        }
        if self.min_interval_ms > self.max_interval_ms {
            return Err(InvalidSetting::Above("min_interval_ms", "max_interval_ms"));
        }
        if self.lease.term_ms > self.lease.longest_ms {
            return Err(InvalidSetting::Above("lease.term_ms", "lease.longest_ms"));
        }
        let is_listed = self
            .own_url
            .as_ref()
            .is_some_and(|own| self.trackers.contains(own));
        if is_listed == self.trackers.is_empty() || self.own_url.is_some() != is_listed {
            return Err(InvalidSetting::OwnUrl);
        }
        Ok(())
    }

    /// The machine's configuration.
    pub(crate) fn machine(&self) -> machine::TrackerConfig {
        machine::TrackerConfig {
            min_interval: millis(self.min_interval_ms),
            max_interval: millis(self.max_interval_ms),
            announces_per_second: self.announces_per_second,
            intervals_to_expiry: self.intervals_to_expiry,
            peers_limit: self.limits.peers,
            swarms_per_peer_limit: self.limits.swarms_per_peer as usize,
            handout: self.handout as usize,
            settle: millis(self.settle_ms),
            lease: machine::LeaseSettings {
                open_limit: self.lease.open as usize,
                term: millis(self.lease.term_ms),
                longest: millis(self.lease.longest_ms),
                park: millis(self.lease.park_ms),
                park_starving: millis(self.lease.park_starving_ms),
                parked_limit: self.lease.parked as usize,
                ..machine::LeaseSettings::default()
            },
            ..machine::TrackerConfig::default()
        }
    }
}

fn millis(millis: u32) -> Duration {
    Duration::from_millis(u64::from(millis))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        assert_eq!(Config::default().validate(), Ok(()));
        assert_eq!(toml::from_str::<Config>(""), Ok(Config::default()));
    }

    /// The simulator runs the machine with its own defaults.
    #[test]
    fn defaults_are_those_of_the_machine() {
        let shipped = Config::default().machine();
        assert_eq!(shipped, machine::TrackerConfig::default());
    }

    #[test]
    fn errors_name_the_setting() {
        let error = |text| {
            let config: Config = toml::from_str(text).expect("parses");
            config.validate().expect_err("not valid").to_string()
        };
        assert_eq!(error("[lease]\nopen = 0"), "lease.open must be at least 1");
        assert_eq!(
            error("min_interval_ms = 200000"),
            "min_interval_ms must be at most max_interval_ms"
        );
        assert!(error("trackers = ['http://a']").starts_with("own-url must be one of trackers"));
        assert!(error("own_url = 'http://a'").starts_with("own-url must be one of trackers"));
        let unknown = toml::from_str::<Config>("intervall = 3")
            .expect_err("unknown key")
            .to_string();
        assert!(unknown.contains("intervall"), "{unknown}");
    }
}
