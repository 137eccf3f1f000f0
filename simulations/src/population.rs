//! The peers of a run: their links, places and images, and when they start and end.

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::failover::Failover;
use flotilla_common::swarm::{PeerMachine, SwarmConfig};
use flotilla_common::time::Time;
use rand::{Rng, RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64Mcg;

use crate::event::Event;
use crate::images::BlobId;
use crate::links::LinkTable;
use crate::names::peer_info;
use crate::origins::failover_machine;
use crate::peer::{Location, SimulatedPeer};
use crate::peer_blobs::PeerBlobs;
use crate::pulls::Pull;
use crate::reads::ReadTimes;
use crate::region_links::RegionLinks;
use crate::rng::mix;
use crate::scenario::{Arrivals, RecordedStart, seconds};
use crate::world::World;

impl World<'_> {
    /// Creates the peers, then the origins, then the links between regions. The number of a peer is
    /// the number of its end in the network; the origins follow.
    pub(crate) fn populate(&mut self) {
        let scenario = self.scenario;
        let (arrivals, seeders) = (&scenario.arrivals, scenario.peers.seeders);
        let mut arrival_rng = Pcg64Mcg::seed_from_u64(mix(self.rng_seed ^ 2));
        let mut last_start_s = 0.0;
        for number in 0..scenario.peers.count {
            let (start_s, stop_s) = match number.checked_sub(seeders) {
                None => {
                    self.add_peer(number, &[]);
                    (0.0, None)
                }
                Some(row) => match arrivals.recorded.get(row as usize) {
                    Some(recorded) => self.add_recorded(number, recorded, &mut arrival_rng),
                    None => {
                        let images = self.images.draw(&mut arrival_rng);
                        let spread_s = self.add_peer(number, &images);
                        let start_s = arrivals.per_s.map_or(spread_s, |per_s| {
                            next_start_s(arrivals, per_s, last_start_s, &mut arrival_rng)
                        });
                        last_start_s = start_s;
                        let lifetime = |mean_s| start_s + mean_s * exponential(&mut arrival_rng);
                        (start_s, arrivals.lifetime_s.map(lifetime))
                    }
                },
            };
            let started_at = Time::ZERO + seconds(start_s);
            let peer = number;
            let simulated = &mut self.peers[peer as usize];
            (simulated.started_at, simulated.delivered_at) = (started_at, started_at);
            self.queue.push(started_at, Event::Start { peer });
            if let Some(stop_s) = stop_s {
                let is_orderly =
                    arrivals.trace.is_none() && arrival_rng.random_bool(arrivals.warned_share);
                let departs = Event::Departs { peer, is_orderly };
                self.queue.push(Time::ZERO + seconds(stop_s), departs);
            }
        }
        for _ in 0..scenario.peers.regions.get() {
            let (up, down) = scenario.origin.rates();
            self.network.add_end(up, down);
        }
        let (links, peers) = (&scenario.links, &scenario.peers);
        self.region_links = RegionLinks::new(links, peers, &mut self.network);
    }

    /// Adds a peer of a trace. Returns when it starts and ends.
    fn add_recorded(
        &mut self,
        number: u32,
        recorded: &RecordedStart,
        rng: &mut impl Rng,
    ) -> (f64, Option<f64>) {
        let images = match &recorded.image {
            Some(name) => self.images.named(name).into_iter().collect(),
            None => self.images.draw(rng),
        };
        self.add_peer(number, &images);
        (recorded.start_s, recorded.stop_s)
    }

    /// Adds a peer that pulls these images; without any it has all of them. Returns the seconds
    /// after which it starts, if all peers start within `peers.start_spread_s`.
    fn add_peer(&mut self, number: u32, pulled: &[u32]) -> f64 {
        let peers = &self.scenario.peers;
        let regions = peers.regions.get();
        let is_seeder = pulled.is_empty();
        let may_be_faulty = is_seeder || peers.seeders == 0;
        let is_slow = self.rng.random_bool(peers.slow_share) && may_be_faulty;
        let (up, down) = match peers.classes.is_empty() {
            true => (peers.up.0, peers.down.0),
            false => peers.rates_at(self.rng.random()),
        };
        let divisor = if is_slow { 10 } else { 1 };
        let (up, down) = ((up / divisor).max(1), (down / divisor).max(1));
        self.network.add_end(up as f64 / 8.0, down as f64 / 8.0);
        let key = mix(u64::from(number) + 1);
        let (machine, failover) = self.new_machines(up, down, key);
        let region = number % regions;
        let zone = region * peers.zones.get() + number / regions % peers.zones.get();
        let place = Location { zone, region };
        self.locations.push(place);
        self.infos.push(peer_info(number, place));
        let fault = peers.fault_at(self.rng.random());
        let spread_s = peers.start_spread_s * self.rng.random::<f64>();
        let all: Vec<u32> = (0..self.images.len()).collect();
        let blobs = PeerBlobs::new(&self.images, if is_seeder { &all } else { pulled });
        self.peers.push(SimulatedPeer {
            machine,
            failover,
            failover_wake_at: Time::MAX,
            key,
            up,
            down,
            fault: fault.filter(|_| may_be_faulty),
            is_alive: true,
            frozen: None,
            links: LinkTable::default(),
            session: None,
            pulls: pulled.iter().map(|image| Pull::new(*image)).collect(),
            failed_closures: Vec::new(),
            fetches: Vec::new(),
            mirror_fetches: Vec::new(),
            reads: ReadTimes::default(),
            blobs,
            started_at: Time::ZERO,
            delivered_at: Time::ZERO,
            completed_at: is_seeder.then_some(Time::ZERO),
            wake_at: Time::MAX,
        });
        if is_seeder {
            self.fill_store(number);
        } else {
            self.unfinished += 1;
            let bytes = self.images.distinct_bytes(pulled.iter().copied());
            self.recorder.expect_bytes(bytes);
        }
        spread_s
    }

    /// A seeder's store has all blobs.
    fn fill_store(&mut self, peer: u32) {
        let region = self.locations[peer as usize].region;
        for (_, blob) in self.peers[peer as usize].blobs.iter_mut() {
            blob.verified = ChunkMap::full(blob.verified.len());
            blob.is_delivered = true;
        }
        for blob in (0..self.images.blob_count()).map(BlobId) {
            let geometry = self.images.geometry(blob);
            for chunk in 0..geometry.chunks() {
                self.holders
                    .add(region, blob, chunk, geometry.chunk_len(chunk));
            }
            self.add_blob(peer, blob);
        }
    }

    /// The machines of a peer that starts, or starts again.
    pub(crate) fn new_machines(&mut self, up: u64, down: u64, key: u64) -> (PeerMachine, Failover) {
        let machine = PeerMachine::new(self.config(up, down), self.rng.random());
        let config = self.scenario.machine.failover_config();
        let failover = failover_machine(config, self.scenario.peers.regions.get(), key);
        (machine, failover)
    }

    /// The configuration of a peer's machine.
    pub(crate) fn config(&self, up: u64, down: u64) -> SwarmConfig {
        let config = self.scenario.machine.swarm_config();
        let knows_rates = self.scenario.peers.knows_rates;
        SwarmConfig {
            up_bits_per_second: knows_rates.then_some(up),
            down_bits_per_second: knows_rates.then_some(down),
            max_connections: self
                .scenario
                .peers
                .max_connections
                .unwrap_or(config.max_connections),
            ..config
        }
    }
}

/// A number of the exponential distribution with a mean of one.
fn exponential(rng: &mut impl Rng) -> f64 {
    -libm::log(1.0 - rng.random::<f64>())
}

/// When the next peer starts, as a Poisson process whose rate changes with the peaks.
fn next_start_s(arrivals: &Arrivals, per_s: f64, last_s: f64, rng: &mut impl Rng) -> f64 {
    // The rest of the interval until the next start, in mean intervals.
    let mut left = exponential(rng);
    let mut now_s = last_s;
    loop {
        let mut rate = per_s;
        let mut changes_at_s = f64::INFINITY;
        for peak in &arrivals.peaks {
            let end_s = peak.at_s + peak.for_s;
            if (peak.at_s..end_s).contains(&now_s) {
                rate *= peak.factor;
            }
            for change_s in [peak.at_s, end_s] {
                if change_s > now_s {
                    changes_at_s = changes_at_s.min(change_s);
                }
            }
        }
        let next_s = now_s + left / rate;
        if next_s <= changes_at_s {
            return next_s;
        }
        left -= (changes_at_s - now_s) * rate;
        now_s = changes_at_s;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::Peak;

    #[test]
    fn starts_follow_the_rate_and_its_peaks() {
        let peak = Peak {
            at_s: 1000.0,
            for_s: 100.0,
            factor: 50.0,
        };
        let arrivals = Arrivals {
            per_s: Some(2.0),
            peaks: vec![peak],
            ..Arrivals::default()
        };
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        let mut starts = Vec::new();
        let mut last_s = 0.0;
        while last_s < 2000.0 {
            last_s = next_start_s(&arrivals, 2.0, last_s, &mut rng);
            starts.push(last_s);
        }
        let within = |from_s: f64, to_s: f64| {
            let inside = starts.iter().filter(|start| (from_s..to_s).contains(start));
            inside.count() as f64
        };
        assert!((within(0.0, 1000.0) / 2000.0 - 1.0).abs() < 0.06);
        assert!((within(1000.0, 1100.0) / 10_000.0 - 1.0).abs() < 0.03);
        assert!((within(1100.0, 2000.0) / 1800.0 - 1.0).abs() < 0.06);
    }
}
