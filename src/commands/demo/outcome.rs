//! The outcome of a demonstration, compared with the pipelined bound.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_common::bounds::{percentile, pipelined_s};
use flotilla_common::units::BitRate;
use serde::Serialize;

use crate::breakable_storage::Outage;

/// The criterion: bytes that the origin may send, as a multiple of the image's size.
pub(super) const MAX_ORIGIN_COPIES: f64 = 1.2;
/// The criterion in an outage: the longest stall of a pull, in seconds.
pub(super) const MAX_STALL_S: f64 = 3.0;
/// The criterion in an outage: bytes that may cross between regions, as a multiple of the bytes
/// that the own origin had not yet sent.
pub(super) const MAX_WAN_COPIES: f64 = 1.1;

/// The time of one peer's pull, and the sources of its bytes.
#[derive(Clone, Debug)]
pub(super) struct PeerOutcome {
    /// The peer's id.
    pub id: String,
    /// The peer's zone.
    pub zone: String,
    /// From the common start until all digests were verified; `Err` with the error that a container
    /// runtime would have got.
    pub total: Result<Duration, String>,
    /// From the common start to the first byte of a blob.
    pub first_byte: Duration,
    /// Verified bytes that came from other peers.
    pub from_peers: u64,
    /// Verified bytes that came from the origin.
    pub from_origin: u64,
    /// Bytes that were in the peer's store before the pull.
    pub from_store: u64,
}

/// The parameters of the demonstration.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    /// Peers that pull concurrently.
    pub peers: u32,
    /// Zones among which the peers are divided.
    pub zones: u32,
    /// Bytes of the image's blobs.
    pub image_bytes: u64,
    /// Chunks of the image's blobs.
    pub image_chunks: u32,
    /// The rate limit of the origin's uplink and of each peer's uplink and downlink.
    pub rate: BitRate,
    /// The name of the peers' region.
    pub home: String,
}

/// Blob bytes that the origins had sent in total at moments of the demonstration, by region, and
/// how long pulls stalled.
#[derive(Clone, Debug)]
pub(super) struct Sent {
    /// Before the pulls.
    pub before: BTreeMap<String, u64>,
    /// When the storage broke; `None` if it never did.
    pub at_outage: Option<SentAtOutage>,
    /// After the pulls.
    pub after: BTreeMap<String, u64>,
    /// The longest time in which any running pull delivered no byte.
    pub longest_stall: Duration,
}

/// What had been sent when the storage of the peers' region broke.
#[derive(Clone, Debug)]
pub(super) struct SentAtOutage {
    /// How it broke.
    pub outage: Outage,
    /// Blob bytes, by region.
    pub sent: BTreeMap<String, u64>,
}

impl Sent {
    /// Blob bytes that each origin sent during the pulls.
    fn during_pulls(&self) -> BTreeMap<String, u64> {
        let during = |(region, after): (&String, &u64)| {
            let before = self.before.get(region).copied().unwrap_or_default();
            (region.clone(), after.saturating_sub(before))
        };
        self.after.iter().map(during).collect()
    }
}

/// The object that `demo --json` prints.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcome {
    /// Peers that pulled.
    pub peers: u32,
    /// Zones among which the peers were divided.
    pub zones: u32,
    /// Bytes of the image's blobs.
    pub image_bytes: u64,
    /// Blob bytes that the origins of all regions sent from their storages during the pulls.
    pub origin_bytes: u64,
    /// Blob bytes that peers received from peers.
    pub peer_bytes: u64,
    /// `origin_bytes / image_bytes`.
    pub origin_copies: f64,
    /// Median time of a pull, seconds.
    pub p50_s: f64,
    /// 99th percentile (nearest rank) of the time of a pull, seconds.
    pub p99_s: f64,
    /// The rate limit, bits per second.
    pub rate_bit_s: u64,
    /// The pipelined lower bound of the time of a pull, seconds.
    pub pipelined_bound_s: f64,
    /// `p99_s / pipelined_bound_s`.
    pub p99_over_bound: f64,
    /// With several regions: how many, and who sent the bytes.
    #[serde(flatten)]
    pub regions: Option<RegionsOutcome>,
    /// With an outage.
    #[serde(flatten)]
    pub outage: Option<OutageOutcome>,
    /// Whether every pull succeeded, and the origin sent at most [`MAX_ORIGIN_COPIES`] or, with an
    /// outage, [`OutageOutcome::is_ok`].
    pub ok: bool,
}

/// What `demo --regions --json` adds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RegionsOutcome {
    /// Regions.
    pub regions: usize,
    /// Blob bytes that each region's origin sent from its storage during the pulls.
    pub bytes_by_region: BTreeMap<String, u64>,
}

/// What `demo --outage --json` adds.
#[derive(Clone, Debug, Serialize)]
pub(super) struct OutageOutcome {
    /// The form of the outage.
    pub outage: String,
    /// The longest time in which any running pull delivered no byte, seconds. It includes the time
    /// to a pull's first byte.
    pub stall_s: f64,
    /// Bytes of the image that the origin of the peers' region had not yet sent from its storage
    /// when that broke.
    pub unsent_bytes: u64,
    /// Blob bytes that the origins of the other regions sent from then on.
    pub wan_bytes: u64,
    /// `wan_bytes / unsent_bytes`.
    pub wan_copies: f64,
}

impl OutageOutcome {
    fn of(setup: &Setup, sent: &Sent, at_outage: &SentAtOutage) -> Self {
        let bytes =
            |at: &BTreeMap<String, u64>, of: &String| at.get(of).copied().unwrap_or_default();
        let sent_by_home =
            bytes(&at_outage.sent, &setup.home).saturating_sub(bytes(&sent.before, &setup.home));
        let unsent_bytes = setup.image_bytes.saturating_sub(sent_by_home);
        let others = sent.after.iter().filter(|(name, _)| **name != setup.home);
        let wan_bytes = others
            .map(|(name, after)| after.saturating_sub(bytes(&at_outage.sent, name)))
            .sum();
        Self {
            outage: at_outage.outage.to_string(),
            stall_s: sent.longest_stall.as_secs_f64(),
            unsent_bytes,
            wan_bytes,
            wan_copies: wan_bytes as f64 / unsent_bytes.max(1) as f64,
        }
    }

    /// Whether no pull stalled for more than [`MAX_STALL_S`], and at most [`MAX_WAN_COPIES`] crossed
    /// between regions.
    fn is_ok(&self) -> bool {
        self.stall_s <= MAX_STALL_S && self.wan_copies <= MAX_WAN_COPIES
    }
}

impl Outcome {
    /// Summarizes the pulls and what the origins sent.
    pub(super) fn of(setup: &Setup, peers: &[PeerOutcome], sent: &Sent) -> Self {
        let by_region = sent.during_pulls();
        let origin_bytes: u64 = by_region.values().sum();
        let outage = sent
            .at_outage
            .as_ref()
            .map(|at_outage| OutageOutcome::of(setup, sent, at_outage));
        let mut times: Vec<f64> = peers
            .iter()
            .filter_map(|peer| peer.total.as_ref().ok())
            .map(Duration::as_secs_f64)
            .collect();
        times.sort_by(f64::total_cmp);
        let origin_copies = origin_bytes as f64 / setup.image_bytes.max(1) as f64;
        let bound = pipelined_s(
            setup.image_bytes,
            u64::from(setup.peers),
            u64::from(setup.image_chunks),
            setup.rate.bytes_per_second(),
        );
        let p99_s = percentile(&times, 0.99);
        Self {
            peers: setup.peers,
            zones: setup.zones,
            image_bytes: setup.image_bytes,
            origin_bytes,
            peer_bytes: peers.iter().map(|peer| peer.from_peers).sum(),
            origin_copies,
            p50_s: percentile(&times, 0.5),
            p99_s,
            rate_bit_s: setup.rate.0,
            pipelined_bound_s: bound,
            p99_over_bound: p99_s / bound,
            ok: times.len() == setup.peers as usize
                && outage
                    .as_ref()
                    .map_or(origin_copies <= MAX_ORIGIN_COPIES, OutageOutcome::is_ok),
            regions: (by_region.len() > 1).then_some(RegionsOutcome {
                regions: by_region.len(),
                bytes_by_region: by_region,
            }),
            outage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(total: Result<Duration, String>) -> PeerOutcome {
        PeerOutcome {
            id: "peer-1".to_owned(),
            zone: "zone-1".to_owned(),
            total,
            first_byte: Duration::ZERO,
            from_peers: 10,
            from_origin: 0,
            from_store: 0,
        }
    }

    const SETUP: fn() -> Setup = || Setup {
        peers: 2,
        zones: 1,
        image_bytes: 1_000,
        image_chunks: 1,
        rate: BitRate(8_000),
        home: "a".to_owned(),
    };

    fn good() -> PeerOutcome {
        peer(Ok(Duration::from_secs(2)))
    }

    fn by_region(bytes: &[(&str, u64)]) -> BTreeMap<String, u64> {
        let owned = bytes
            .iter()
            .map(|(name, bytes)| ((*name).to_owned(), *bytes));
        owned.collect()
    }

    fn sent(bytes: u64) -> Sent {
        Sent {
            before: by_region(&[("a", 70)]),
            at_outage: None,
            after: by_region(&[("a", 70 + bytes)]),
            longest_stall: Duration::from_secs(9),
        }
    }

    #[test]
    fn a_failed_pull_or_too_many_origin_bytes_are_not_ok() {
        let setup = SETUP();
        assert!(Outcome::of(&setup, &[good(), good()], &sent(1_100)).ok);
        assert!(!Outcome::of(&setup, &[good(), good()], &sent(1_300)).ok);
        let failed = peer(Err("cut".to_owned()));
        assert!(!Outcome::of(&setup, &[good(), failed], &sent(1_000)).ok);
        let outcome = Outcome::of(&setup, &[good(), good()], &sent(1_000));
        assert_eq!(outcome.origin_copies, 1.0);
        let json = serde_json::to_value(&outcome).expect("it can be encoded");
        assert!(json.get("stall_s").is_none() && json.get("regions").is_none());
    }

    #[test]
    fn an_outage_is_judged_by_stall_and_bytes_between_regions() {
        let of = |stall_ms, wan_bytes: u64| {
            let sent = Sent {
                before: by_region(&[("a", 1_000), ("b", 50)]),
                at_outage: Some(SentAtOutage {
                    outage: Outage::Hang,
                    sent: by_region(&[("a", 1_600), ("b", 60)]),
                }),
                after: by_region(&[("a", 1_700), ("b", 60 + wan_bytes)]),
                longest_stall: Duration::from_millis(stall_ms),
            };
            Outcome::of(&SETUP(), &[good(), good()], &sent)
        };
        let outcome = of(3_000, 440);
        let outage = outcome.outage.as_ref().expect("there was an outage");
        assert_eq!((outage.unsent_bytes, outage.wan_bytes), (400, 440));
        assert!(outcome.ok, "{outcome:?}");
        assert!(!of(3_001, 400).ok);
        assert!(!of(1_000, 441).ok);
        let json = serde_json::to_value(&outcome).expect("it can be encoded");
        assert_eq!(json["bytes_by_region"]["a"], 700);
        assert_eq!(json["wan_copies"], 1.1);
    }
}
