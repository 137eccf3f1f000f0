//! What came of a run, against the lower bounds.

use flotilla_common::figures::{fluid_s, pipelined_s};
use serde::Serialize;

use crate::scenario::Scenario;

/// The figures of a run. Serialized, it has exactly the fields that `flotilla simulate --json`
/// prints.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The scenario's name.
    pub scenario: String,
    /// The generator's seed.
    pub rng_seed: u64,
    /// Peers at the start.
    pub peers: u32,
    /// Simulated seconds until nobody had anything left to do.
    pub simulated_s: f64,
    /// Wall seconds: 0 until the caller, who has a clock, sets it.
    pub wall_s: f64,
    /// Events that took place.
    pub events: u64,
    /// Seconds from a peer's start to its completion; half of the peers took no longer.
    pub p50_s: f64,
    /// As `p50_s`, for 99 of 100 peers.
    pub p99_s: f64,
    /// As `p50_s`, for all.
    pub max_s: f64,
    /// Seconds from a peer's start until it held the first chunk of the first layer, for 99 of 100
    /// peers.
    pub first_byte_p99_s: f64,
    /// The fluid bound: `max(F/u_s, F/d_min, N F / (u_s + sum of u_i))`.
    pub fluid_bound_s: f64,
    /// The pipelined bound: `(F/u)(1 + floor(log2 N)/M)`.
    pub pipelined_bound_s: f64,
    /// `p99_s` over the greater bound.
    pub p99_over_bound: f64,
    /// Bytes that left the origins, over the image's bytes and the number of regions.
    pub origin_copies: f64,
    /// Bytes that crossed from one region to another.
    pub wan_bytes: u64,
    /// Peers that were alive at the end and not done.
    pub stranded: u32,
    /// Hash of every event in order: equal for equal runs.
    pub trace_hash: String,
    /// Whether the oracle has nothing to say and the scenario's bars are kept.
    pub ok: bool,
    /// More than the command prints, for reports and tests.
    #[serde(skip)]
    pub details: Details,
}

/// What reports and tests look at besides the figures.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Details {
    /// Seconds to completion of each peer that completed, ascending.
    pub completions_s: Vec<f64>,
    /// Seconds to the first chunk of the first layer, of each peer that got so far, ascending.
    pub first_chunks_s: Vec<f64>,
    /// What the oracle or a bar has to say; empty if `ok`.
    pub complaints: Vec<String>,
    /// Bytes that crossed zones within a region, over the image's bytes.
    pub cross_zone_copies: f64,
    /// Chunks served by peers.
    pub served: u64,
    /// Requests between peers that were refused because all slots were taken.
    pub refused_busy: u64,
    /// Chunks fetched from origins without a lease.
    pub unleased: u64,
    /// Transfers that failed or stalled.
    pub failures: u64,
    /// Corrupt chunks that were found out.
    pub corrupt: u64,
}

/// The lower bounds of a scenario, in seconds: fluid and pipelined. Every region has an origin of
/// its own.
pub(crate) fn bounds(scenario: &Scenario, up_sum: f64, slowest_down: f64) -> (f64, f64) {
    let (bytes, peers) = (scenario.image_bytes(), scenario.peers.count);
    let regions = scenario.peers.regions.get();
    let origin_up = scenario.origin.up.bytes_per_second();
    let other_origins = origin_up * f64::from(regions - 1);
    let fluid = fluid_s(
        bytes,
        u64::from(peers),
        origin_up,
        slowest_down,
        other_origins + up_sum,
    );
    let rate = scenario
        .peers
        .up
        .bytes_per_second()
        .min(scenario.peers.down.bytes_per_second());
    let chunks: u32 = scenario
        .image
        .layers
        .iter()
        .map(|size| crate::world::geometry(scenario, *size).chunks())
        .sum();
    let pipelined = pipelined_s(bytes, u64::from(peers / regions), u64::from(chunks), rate);
    (fluid, pipelined)
}
