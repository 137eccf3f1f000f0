//! The figures of a burst.

use std::time::Duration;

use flotilla_common::bounds::{percentile, pipelined_s};
use flotilla_common::chunk::Geometry;
use flotilla_lab::{Lab, LabError, LinkTraffic};
use flotilla_peer::Stats;
use serde::Serialize;

use super::SwarmArgs;
use super::probes::RoundTrips;

/// The criteria: p99 relative to the bound, bytes that the origins sent relative to the layer's
/// size, and seconds to the first byte of the layer.
pub(super) const MAX_P99_OVER_BOUND: f64 = 1.25;
pub(super) const MAX_ORIGIN_COPIES: f64 = 1.1;
pub(super) const MAX_FIRST_BYTE_S: f64 = 2.0;

/// What a burst has shown.
pub(super) struct Measured {
    pub(super) peers: Vec<PeerOutcome>,
    /// Blob bytes that the origin of each region sent.
    pub(super) origin_bytes: Vec<u64>,
    /// Bytes that each region sent to the others, headers included.
    pub(super) sent_to_others: Vec<u64>,
    pub(super) traffic: Traffic,
    /// The longest time in which any running pull delivered no byte.
    pub(super) longest_stall: Duration,
    pub(super) round_trips: RoundTrips,
    /// The busy share of the machine's processors, from 0 to 1.
    pub(super) cpu_busy: f64,
}

/// The outcome of one peer's pull.
pub(super) struct PeerOutcome {
    /// The peer's region, by number from 0.
    pub(super) region: usize,
    pub(super) total: Result<Duration, String>,
    pub(super) first_byte: Duration,
    pub(super) stats: Stats,
}

/// The traffic of all links: it shows the overhead of sharing, and dropped packets.
pub(super) struct Traffic {
    /// Size of the layer in bytes.
    pub(super) size: u64,
    pub(super) origins: [LinkTraffic; 2],
    pub(super) peers: [LinkTraffic; 2],
}

impl Traffic {
    pub(super) fn read(lab: &Lab, args: &SwarmArgs) -> Result<Self, LabError> {
        let mut peers = [LinkTraffic::default(); 2];
        for index in 0..lab.peer_count() {
            add(&mut peers, lab.peer_link(index)?.traffic()?);
        }
        let mut origins = [LinkTraffic::default(); 2];
        for region in 0..args.regions as usize {
            add(&mut origins, lab.origin_link(region)?.traffic()?);
        }
        Ok(Self {
            size: args.size.0,
            origins,
            peers,
        })
    }
}

fn add(sums: &mut [LinkTraffic; 2], link: [LinkTraffic; 2]) {
    for (sum, one) in sums.iter_mut().zip(link) {
        sum.bytes += one.bytes;
        sum.dropped += one.dropped;
    }
}

/// The figures that are printed.
#[derive(Debug, Serialize)]
pub(super) struct Outcome<'a> {
    pub(super) peers: u32,
    pub(super) p50_s: f64,
    pub(super) p99_s: f64,
    pub(super) first_byte_p99_s: f64,
    /// Per region.
    pub(super) origin_copies: f64,
    pub(super) pipelined_bound_s: f64,
    pub(super) p99_over_bound: f64,
    /// The longest time in which any running pull delivered no byte, in seconds; the time to its
    /// first byte counts.
    pub(super) stall_s: f64,
    pub(super) round_trips: &'a RoundTrips,
    /// The busy share of the processors, from 0 to 1.
    pub(super) cpu_busy: f64,
    /// Bytes on the peers' downlinks over the bytes of their layers: headers, acknowledgements and
    /// control messages are more than 1.
    pub(super) wire_overhead: f64,
    /// Packets that links dropped.
    pub(super) dropped_packets: u64,
    /// Bytes that crossed between regions, headers and control messages included, in layers.
    pub(super) wan_copies: f64,
    pub(super) regions: Vec<RegionOutcome>,
    /// Whether an origin was suspended: the limit of the time does not apply then.
    #[serde(skip)]
    pub(super) has_outage: bool,
    pub(super) ok: bool,
}

/// The figures of one region.
#[derive(Debug, Serialize)]
pub(super) struct RegionOutcome {
    pub(super) peers: u32,
    pub(super) p50_s: f64,
    pub(super) p99_s: f64,
    /// Blob bytes that the region's origin sent.
    pub(super) origin_bytes: u64,
    /// Bytes from the region to others, headers and control messages included.
    pub(super) bytes_to_other_regions: u64,
}

impl<'a> Outcome<'a> {
    pub(super) fn of(args: &SwarmArgs, measured: &'a Measured) -> Self {
        let Measured { peers, traffic, .. } = measured;
        let totals = ascending(peers.iter().filter_map(total_s));
        let first_bytes = ascending(peers.iter().map(|peer| peer.first_byte.as_secs_f64()));
        let layers = |bytes: u64| bytes as f64 / args.size.0.max(1) as f64;
        let chunks = u64::from(Geometry::for_size(args.size.0).chunks());
        let bound = pipelined_s(
            args.size.0,
            u64::from(args.peers.div_ceil(args.regions)),
            chunks,
            args.rate.bytes_per_second(),
        );
        let p99_s = percentile(&totals, 0.99);
        let first_byte_p99_s = percentile(&first_bytes, 0.99);
        let origin_copies = layers(measured.origin_bytes.iter().sum()) / f64::from(args.regions);
        let p99_over_bound = p99_s / bound;
        let dropped = traffic.origins.iter().chain(&traffic.peers);
        Self {
            peers: args.peers,
            p50_s: percentile(&totals, 0.5),
            p99_s,
            first_byte_p99_s,
            origin_copies,
            pipelined_bound_s: bound,
            p99_over_bound,
            round_trips: &measured.round_trips,
            stall_s: measured.longest_stall.as_secs_f64(),
            cpu_busy: measured.cpu_busy,
            wire_overhead: layers(traffic.peers[1].bytes) / f64::from(args.peers),
            dropped_packets: dropped.map(|link| link.dropped).sum(),
            wan_copies: layers(measured.sent_to_others.iter().sum()),
            regions: (0..args.regions as usize)
                .map(|region| RegionOutcome::of(region, measured))
                .collect(),
            has_outage: args.stop_origin.is_some(),
            ok: totals.len() == peers.len()
                && (args.stop_origin.is_some() || p99_over_bound <= MAX_P99_OVER_BOUND)
                && origin_copies <= MAX_ORIGIN_COPIES
                && first_byte_p99_s <= MAX_FIRST_BYTE_S,
        }
    }
}

impl RegionOutcome {
    fn of(region: usize, measured: &Measured) -> Self {
        let peers = || measured.peers.iter().filter(|peer| peer.region == region);
        let totals = ascending(peers().filter_map(total_s));
        Self {
            peers: peers().count() as u32,
            p50_s: percentile(&totals, 0.5),
            p99_s: percentile(&totals, 0.99),
            origin_bytes: measured.origin_bytes[region],
            bytes_to_other_regions: measured.sent_to_others[region],
        }
    }
}

/// The seconds of a pull that succeeded.
fn total_s(peer: &PeerOutcome) -> Option<f64> {
    peer.total.as_ref().ok().map(Duration::as_secs_f64)
}

pub(super) fn ascending(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}
