//! The result of a run, compared with the lower bounds.

use serde::{Deserialize, Serialize};

use crate::record::Timeline;

/// The figures of a run. The serialized form has exactly the fields that `flotilla simulate --json`
/// prints.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// The generator's seed.
    pub rng_seed: u64,
    /// Peers at the start.
    pub peers: u32,
    /// Simulated seconds until the last event.
    pub simulated_s: f64,
    /// Wall-clock seconds: 0 until the caller sets it, because the simulator has no clock.
    pub wall_s: f64,
    /// Number of events.
    pub events: u64,
    /// Messages between peers and trackers, in both directions.
    pub tracker_messages: u64,
    /// Median of the seconds from the start of a pull to its completion.
    pub p50_s: f64,
    /// 99th percentile of the same.
    pub p99_s: f64,
    /// Maximum of the same.
    pub max_s: f64,
    /// 99th percentile of the seconds from the start of a pull until the peer held the first chunk of
    /// the image's first layer.
    pub first_byte_p99_s: f64,
    /// The fluid bound: `max(F/u_s, F/d_min, N F / (u_s + sum of u_i))`. If peers do not pull the same
    /// images at once, the greatest time that a pull's missing bytes take on its peer's own link.
    pub fluid_bound_s: f64,
    /// The pipelined bound: `(F/u)(1 + floor(log2 N)/M)`; as the fluid bound if peers do not pull the
    /// same images at once.
    pub pipelined_bound_s: f64,
    /// `p99_s` over the greater bound, or over that of what remains after an outage, if that is
    /// greater still. If peers do not pull the same images at once, the 99th
    /// percentile of the times of the pulls, each over its own bound.
    pub p99_over_bound: f64,
    /// Mean of `copies_by_region`.
    pub origin_copies: f64,
    /// Bytes that each region's peers received from origins, own and other ones, divided by the
    /// bytes of the images that they pulled, each layer once. Bytes that were fetched again after
    /// their last holder in the region had gone count as pulled once more.
    pub copies_by_region: Vec<f64>,
    /// Bytes sent from one region to another.
    pub wan_bytes: u64,
    /// `wan_bytes`, divided by the bytes of all images that were pulled, each layer once.
    pub wan_copies: f64,
    /// The part of `wan_copies` that are chunks which a living peer of the receiving region held
    /// already.
    pub wan_repeats: f64,
    /// Longest time in which any pull under way delivered no byte, in seconds. Peers that were
    /// frozen or died do not count.
    pub stall_s: f64,
    /// Peers that were alive at the end and not complete.
    pub stranded: u32,
    /// Hash of all events in order: equal runs have equal hashes.
    pub trace_hash: String,
    /// Whether nothing was violated and the scenario's bars are kept.
    pub ok: bool,
    /// Further figures for reports and tests.
    #[serde(skip)]
    pub details: Details,
}

/// Figures that `flotilla simulate --json` does not print.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Pulls that started.
    pub pulls: usize,
    /// Seconds to completion of each pull that completed, ascending.
    pub completions_s: Vec<f64>,
    /// Seconds to the first chunk of the first layer, of each pull that got it, ascending.
    pub first_chunks_s: Vec<f64>,
    /// Violations and missed bars; empty if `ok`.
    pub complaints: Vec<String>,
    /// The missed bars among them.
    pub missed_bars: Vec<MissedBar>,
    /// Whether anything but a bar was violated.
    pub is_violated: bool,
    /// Bytes sent between zones of a region, divided as for `wan_copies`.
    pub cross_zone_copies: f64,
    /// Chunks sent by peers.
    pub served: u64,
    /// Requests between peers that were refused because all slots were taken.
    pub refused_busy: u64,
    /// Chunks fetched from origins without a lease.
    pub unleased: u64,
    /// Transfers that failed or stalled.
    pub failures: u64,
    /// Corrupt chunks that were detected.
    pub corrupt: u64,
    /// Curves over time, if they were recorded.
    pub timeline: Option<Timeline>,
    /// The last events before the first violation, if there was one and events were kept.
    pub last_events: Vec<String>,
}

/// A bar that a run missed.
#[derive(Clone, Debug, PartialEq)]
pub struct MissedBar {
    /// Its key in the scenario's `[bars]`; `max_stranded` is a bar of every scenario.
    pub bar: &'static str,
    /// The bar.
    pub limit: f64,
    /// The run's figure, which is above it.
    pub figure: f64,
}
