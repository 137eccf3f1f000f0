//! The end of a run: its figures, the bounds that they are compared with, and the oracle's verdict.

use flotilla_common::bounds::{fluid_s, percentile, pipelined_s};
use flotilla_common::time::Time;

use crate::burst::Burst;
use crate::oracle::BarFigures;
use crate::outcome::{Details, Outcome};
use crate::peer::SimulatedPeer;
use crate::pulls::Pull;
use crate::world::World;

/// Lower bounds of the time of a pull, in seconds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    fluid_s: f64,
    pipelined_s: f64,
}

impl Bounds {
    fn greater_s(self) -> f64 {
        self.fluid_s.max(self.pipelined_s)
    }
}

impl World<'_> {
    /// The outcome, when the run has ended.
    pub(crate) fn outcome(mut self) -> Outcome {
        let scenario = self.scenario;
        self.check_maps();
        let (bounds, p99_over_bound) = self.bounds();
        let completions = self.times(|pull| pull.completed_at);
        let first_bytes = self.times(|pull| pull.first_byte_at);
        let copies_by_region = self.copies_by_region();
        let regions = copies_by_region.len() as f64;
        let bytes = self.wanted_bytes(None);
        let wan_copies = self.wan_bytes as f64 / bytes;
        let wan_repeats = self.repeated_wan_bytes as f64 / bytes;
        let is_unfinished = |simulated: &&SimulatedPeer| {
            let has_started = simulated.started_at <= self.now;
            has_started && simulated.is_alive && simulated.completed_at.is_none()
        };
        let stranded = self.peers.iter().filter(is_unfinished).count() as u32;
        let is_violated = self.oracle.has_complaints() || stranded > 0;
        let percentile_of = |share| percentile(&completions, share);
        let [p50_s, p99_s, max_s] = [0.5, 0.99, 1.0].map(percentile_of);
        let first_byte_p99_s = percentile(&first_bytes, 0.99);
        let stall_s = self.longest_stall.as_secs_f64();
        let figures = BarFigures {
            stranded,
            p99_over_bound,
            p50_s,
            most_origin_copies: copies_by_region.iter().copied().fold(0.0, f64::max),
            wan_copies,
            wan_repeats,
            stall_s,
        };
        self.oracle.judge(&scenario.bars, figures);
        let mut details = Details {
            pulls: self.started_pulls(),
            completions_s: completions,
            first_chunks_s: first_bytes,
            is_violated,
            cross_zone_copies: self.cross_zone_bytes as f64 / bytes,
            ..Details::default()
        };
        for simulated in &self.peers {
            let counters = simulated.machine.counters();
            details.served += counters.served;
            details.refused_busy += counters.refused_busy;
            details.unleased += counters.from_origin_unleased;
            details.failures += counters.failures;
            details.corrupt += counters.corrupt;
        }
        (details.timeline, details.last_events) = self.take_record();
        details.complaints = self.oracle.take_complaints();
        details.missed_bars = self.oracle.take_missed_bars();
        Outcome {
            scenario: scenario.name.clone(),
            rng_seed: self.rng_seed,
            peers: scenario.peers.count,
            simulated_s: self.now.as_secs_f64(),
            wall_s: 0.0,
            events: self.events(),
            tracker_messages: self.sent_tracker_messages,
            p50_s,
            p99_s,
            max_s,
            first_byte_p99_s,
            fluid_bound_s: bounds.fluid_s,
            pipelined_bound_s: bounds.pipelined_s,
            p99_over_bound,
            origin_copies: copies_by_region.iter().sum::<f64>() / regions,
            copies_by_region,
            wan_bytes: self.wan_bytes,
            wan_copies,
            wan_repeats,
            stall_s,
            stranded,
            trace_hash: format!("{:016x}", self.trace_hash),
            ok: details.complaints.is_empty(),
            details,
        }
    }

    fn started_pulls(&self) -> usize {
        let pulls = self.judged().flat_map(|simulated| &simulated.pulls);
        pulls.filter(|pull| pull.started_at.is_some()).count()
    }

    /// The peers whose times count: not those that lie, because sound peers stop serving them.
    fn judged(&self) -> impl Iterator<Item = &SimulatedPeer> {
        let peers = self.peers.iter();
        peers.filter(|simulated| !simulated.lies())
    }

    /// Seconds from the start of each pull to a point of it, ascending.
    fn times(&self, point: impl Fn(&Pull) -> Option<Time>) -> Vec<f64> {
        let pulls = self.judged().flat_map(|simulated| &simulated.pulls);
        let mut times: Vec<f64> = pulls
            .filter_map(|pull| {
                let took = point(pull)?.saturating_since(pull.started_at?);
                Some(took.as_secs_f64())
            })
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }

    /// The lower bounds, and the 99th percentile of the pulls' times over theirs.
    fn bounds(&self) -> (Bounds, f64) {
        let over_bound = |bound_s: &dyn Fn(&SimulatedPeer, &Pull) -> f64| {
            let mut ratios = Vec::new();
            for simulated in self.judged() {
                for pull in &simulated.pulls {
                    if let (Some(from), Some(to)) = (pull.started_at, pull.completed_at) {
                        let took_s = to.saturating_since(from).as_secs_f64();
                        ratios.push(took_s / bound_s(simulated, pull));
                    }
                }
            }
            ratios.sort_by(f64::total_cmp);
            percentile(&ratios, 0.99)
        };
        if self.is_burst() {
            let bounds = self.burst_bounds();
            let greater_s = bounds.greater_s().max(self.outage_bound_s());
            return (bounds, over_bound(&|_, _| greater_s));
        }
        // A pull that lacks nothing takes no longer than the requests for manifest and proofs, so
        // it is measured as if it lacked a byte.
        let own = |simulated: &SimulatedPeer, pull: &Pull| {
            pull.lacking.max(1) as f64 / (simulated.rate() as f64 / 8.0)
        };
        let pulls = self.peers.iter().flat_map(|simulated| {
            let pulls = simulated.pulls.iter();
            pulls.map(move |pull| own(simulated, pull))
        });
        let greatest_s = pulls.fold(0.0, f64::max);
        let bounds = Bounds {
            fluid_s: greatest_s,
            pipelined_s: greatest_s,
        };
        (bounds, over_bound(&own))
    }

    /// The bounds of a burst: fluid and pipelined. Each region has its own origin.
    fn burst_bounds(&self) -> Bounds {
        let scenario = self.scenario;
        let burst = self.burst();
        let seeders = scenario.peers.seeders as usize;
        let rates = |simulated: &SimulatedPeer| simulated.rate() as f64 / 8.0;
        let up_sum: f64 = self.peers.iter().map(rates).sum();
        let pullers = self.peers.iter().skip(seeders);
        let slowest = pullers.map(rates).fold(f64::INFINITY, f64::min);
        let seeders = self.peers.iter().take(seeders);
        let seeders_up: f64 = seeders.map(|seeder| seeder.up as f64 / 8.0).sum();
        let origin_up = scenario.origin.up.bytes_per_second();
        let source_up = origin_up + seeders_up;
        let others_up = origin_up * f64::from(burst.regions - 1) + up_sum - seeders_up;
        let Burst { bytes, chunks, .. } = burst;
        let peers_per_region = u64::from(burst.peers / burst.regions);
        Bounds {
            fluid_s: fluid_s(bytes, u64::from(burst.peers), source_up, slowest, others_up),
            pipelined_s: pipelined_s(bytes, peers_per_region, chunks, burst.peer_rate),
        }
    }

    /// Bytes that came from origins into each region, in copies of what its peers pulled.
    fn copies_by_region(&self) -> Vec<f64> {
        let regions = (0_u32..).zip(&self.origin_bytes);
        regions
            .map(|(region, bytes)| {
                let renewed = self.holders.renewed_bytes(region) as f64;
                *bytes as f64 / (self.wanted_bytes(Some(region)) + renewed)
            })
            .collect()
    }

    /// Bytes of the images that peers of a region, or of all regions, pulled, each blob once.
    fn wanted_bytes(&self, region: Option<u32>) -> f64 {
        let mut images: Vec<u32> = Vec::new();
        for (simulated, location) in self.peers.iter().zip(&self.locations) {
            if region.is_none_or(|region| location.region == region) {
                let started = simulated
                    .pulls
                    .iter()
                    .filter(|pull| pull.started_at.is_some());
                images.extend(started.map(|pull| pull.image));
            }
        }
        images.sort_unstable();
        images.dedup();
        self.images.distinct_bytes(images).max(1) as f64
    }

    /// Checks that each machine holds exactly the chunks that were verified.
    fn check_maps(&mut self) {
        for (number, simulated) in self.peers.iter().enumerate() {
            let is_wrong = simulated.blobs.iter().any(|(slot, blob)| {
                let held = simulated.machine.held(slot);
                held.is_some_and(|held| *held != blob.verified)
            });
            if simulated.is_alive && is_wrong {
                self.oracle.complain(|| {
                    format!(
                        "peer {number} holds chunks that were not verified, or lost verified ones"
                    )
                });
            }
        }
    }
}
