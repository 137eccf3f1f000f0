//! The failures of a scenario: peers that die, leave or freeze. Those of trackers are in
//! `tracker_failures.rs`, those of regions in `region_failures.rs`.

use core::time::Duration;

use flotilla_common::chunk_map::ChunkMap;
use flotilla_common::swarm::BlobSlot;
use flotilla_common::time::Time;
use flotilla_common::tracker::SessionInput;
use rand::RngExt as _;

use crate::event::Event;
use crate::peer::{Backlog, SimulatedPeer};
use crate::reads::ReadTimes;
use crate::scenario::{FailureKind, FailureSubject, millis, seconds};
use crate::world::World;

/// The rate of a frozen peer's links, in bytes per second: less than a byte in any run.
pub(crate) const FROZEN: f64 = 1e-6;

impl World<'_> {
    pub(crate) fn on_failure(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        match failure.kind.subject() {
            FailureSubject::Peers => self.fail_peers(number),
            FailureSubject::Trackers => self.fail_trackers(number),
            FailureSubject::Regions => self.fail_regions(number),
        }
        // Peers that restart return one by one.
        if let Some(for_s) = failure.for_s
            && failure.kind != FailureKind::RestartPeers
        {
            self.queue.push(
                self.now + seconds(for_s),
                Event::FailureEnds { failure: number },
            );
        }
    }

    pub(crate) fn on_recovery(&mut self, number: usize) {
        let kind = self.scenario.failures[number].kind;
        match kind.subject() {
            FailureSubject::Peers if kind == FailureKind::FreezePeers => self.thaw(),
            // Peers that died or left do not come back.
            FailureSubject::Peers => {}
            FailureSubject::Trackers => self.recover_trackers(number),
            FailureSubject::Regions => self.recover_regions(number),
        }
    }

    fn fail_peers(&mut self, number: usize) {
        match self.scenario.failures[number].kind {
            FailureKind::KillPeers => self.schedule_departures(number, self.living(), false),
            FailureKind::KillLeaseHolders => {
                self.schedule_departures(number, self.lease_holders(), false);
            }
            FailureKind::LeavePeers => self.schedule_departures(number, self.living(), true),
            FailureKind::RestartPeers => self.schedule_restarts(number),
            FailureKind::FreezePeers => self.freeze(number),
            _ => {}
        }
    }

    /// A peer dies; or it tells the tracker, closes its connections and leaves.
    pub(crate) fn on_departure(&mut self, peer: u32, is_orderly: bool) {
        if self.peers[peer as usize].is_alive {
            self.stop_peer(peer, is_orderly);
            let is_incomplete = self.peers[peer as usize].completed_at.is_none();
            self.unfinished -= u32::from(is_incomplete);
        }
    }

    fn stop_peer(&mut self, peer: u32, is_orderly: bool) {
        self.count_as_holder(peer, false);
        if is_orderly {
            self.feed_session(peer, SessionInput::Leave);
        }
        for slot in self.peers[peer as usize].links.up_slots() {
            let other = self.peers[peer as usize].links.at(slot).peer;
            let notice = if is_orderly {
                self.quic_delay(peer, other)
            } else {
                millis(self.scenario.links.death_noticed_ms)
            };
            self.hang_up(peer, slot, notice);
        }
        let simulated = &mut self.peers[peer as usize];
        simulated.is_alive = false;
        let fetches = simulated.fetches.iter().map(|(_, key)| *key);
        let keys: Vec<_> = fetches.chain(simulated.mirror_fetches.clone()).collect();
        for key in keys {
            self.end_fetch(key);
        }
    }

    /// Counts a peer's chunks as held by one more peer, or by one less.
    fn count_as_holder(&mut self, peer: u32, is_held: bool) {
        let region = self.locations[peer as usize].region;
        for (_, blob) in self.peers[peer as usize].blobs.iter() {
            for chunk in blob.verified.iter() {
                if is_held {
                    let bytes = self.images.geometry(blob.id).chunk_len(chunk);
                    self.holders.add(region, blob.id, chunk, bytes);
                } else {
                    self.holders.remove(region, blob.id, chunk);
                }
            }
        }
    }

    /// A peer dies, and starts again after the failure's `for_s`.
    pub(crate) fn on_restart(&mut self, peer: u32, failure: usize) {
        if !self.peers[peer as usize].is_alive {
            return;
        }
        self.stop_peer(peer, false);
        let failure = &self.scenario.failures[failure];
        let down_for = seconds(failure.for_s.unwrap_or_default());
        for pull in &mut self.peers[peer as usize].pulls {
            if pull.is_under_way() {
                // The time for which the peer is down is not the pull's.
                pull.started_at = pull.started_at.map(|at| at + down_for);
            }
        }
        if let Some(kept_share) = failure.kept_share {
            self.lose_chunks(peer, 1.0 - kept_share);
        }
        self.queue
            .push(self.now + down_for, Event::Returns { peer });
    }

    /// Chunks of blobs that the runtime does not have are lost, each with this probability.
    fn lose_chunks(&mut self, peer: u32, share: f64) {
        for (_, blob) in self.peers[peer as usize].blobs.iter_mut() {
            let mut kept = ChunkMap::empty(blob.verified.len());
            for chunk in 0..blob.verified.len() {
                let is_lost = !blob.is_delivered && self.rng.random_bool(share);
                if blob.verified.contains(chunk) && !is_lost {
                    kept.insert(chunk);
                }
            }
            blob.verified = kept;
        }
    }

    /// A peer that died starts again with what its store has. The runtime repeats its pulls, and
    /// keeps the blobs that it has.
    pub(crate) fn on_return(&mut self, peer: u32) {
        self.count_as_holder(peer, true);
        let &SimulatedPeer { up, down, key, .. } = &self.peers[peer as usize];
        let (machine, failover) = self.new_machines(up, down, key);
        let simulated = &mut self.peers[peer as usize];
        let known: Vec<BlobSlot> = simulated
            .blobs
            .iter()
            .map(|(slot, _)| slot)
            .filter(|slot| simulated.machine.held(*slot).is_some())
            .collect();
        (simulated.machine, simulated.failover) = (machine, failover);
        simulated.frozen = None;
        simulated.is_alive = true;
        (simulated.wake_at, simulated.failover_wake_at) = (Time::MAX, Time::MAX);
        simulated.reads = ReadTimes::default();
        simulated.delivered_at = self.now;
        for (_, blob) in simulated.blobs.iter_mut() {
            (blob.read, blob.is_requested, blob.is_passing) = (None, false, false);
            let read = self.images.blob(blob.id).read_at(blob.reads_done);
            blob.cursor = read.unwrap_or_default();
        }
        for slot in known {
            let id = self.peers[peer as usize].blobs.at(slot).id;
            self.add_blob(peer, id);
        }
        self.begin_session(peer);
        for pull in 0..self.peers[peer as usize].pulls.len() as u32 {
            let pull_under_way = &mut self.peers[peer as usize].pulls[pull as usize];
            pull_under_way.opening = None;
            if pull_under_way.is_under_way() {
                self.request_manifest(peer, pull);
            }
        }
        self.start_pulls(peer);
    }

    /// Freezes the failure's share of the living peers.
    fn freeze(&mut self, number: usize) {
        let mut candidates = self.living();
        candidates.retain(|peer| self.peers[*peer as usize].frozen.is_none());
        let count =
            (candidates.len() as f64 * self.scenario.failures[number].share).ceil() as usize;
        for _ in 0..count.min(candidates.len()) {
            let peer =
                candidates.swap_remove(self.rng.random_range(0..candidates.len() as u64) as usize);
            self.peers[peer as usize].frozen = Some(Backlog::default());
            self.network.set_rates(self.now, peer, FROZEN, FROZEN);
        }
    }

    /// All frozen peers go on.
    fn thaw(&mut self) {
        for peer in self.living() {
            let simulated = &mut self.peers[peer as usize];
            let Some(backlog) = simulated.frozen.take() else {
                continue;
            };
            let up = simulated.up as f64 / 8.0;
            let down = simulated.down as f64 / 8.0;
            simulated.delivered_at = self.now;
            simulated.machine.handle_timeout(self.now);
            self.network.set_rates(self.now, peer, up, down);
            self.drain(peer);
            for input in backlog.inputs {
                self.feed(peer, input);
            }
            self.thaw_session(peer, backlog.session_inputs);
            self.thaw_openings(peer, backlog.manifests, backlog.opening_inputs);
            self.schedule_read_wake(peer);
        }
    }

    /// The numbers of the living peers that hold a lease.
    fn lease_holders(&self) -> Vec<u32> {
        let holds = |simulated: &SimulatedPeer| {
            simulated.is_alive && simulated.machine.leases().next().is_some()
        };
        (0_u32..)
            .zip(&self.peers)
            .filter(|(_, simulated)| holds(simulated))
            .map(|(number, _)| number)
            .collect()
    }

    fn living(&self) -> Vec<u32> {
        let lives =
            |simulated: &SimulatedPeer| simulated.is_alive && simulated.started_at <= self.now;
        (0_u32..)
            .zip(&self.peers)
            .filter(|(_, simulated)| lives(simulated))
            .map(|(number, _)| number)
            .collect()
    }

    fn schedule_departures(&mut self, number: usize, candidates: Vec<u32>, is_orderly: bool) {
        for (peer, at) in self.choose(number, candidates) {
            self.queue.push(at, Event::Departs { peer, is_orderly });
        }
    }

    fn schedule_restarts(&mut self, failure: usize) {
        for (peer, at) in self.choose(failure, self.living()) {
            self.queue.push(at, Event::Restarts { peer, failure });
        }
    }

    /// Chooses the failure's share of the candidates, each with a random time within `over_s`.
    fn choose(&mut self, number: usize, mut candidates: Vec<u32>) -> Vec<(u32, Time)> {
        let failure = &self.scenario.failures[number];
        let count = (candidates.len() as f64 * failure.share).ceil() as usize;
        let mut chosen = Vec::new();
        for _ in 0..count.min(candidates.len()) {
            let peer =
                candidates.swap_remove(self.rng.random_range(0..candidates.len() as u64) as usize);
            let after = Duration::from_secs_f64(failure.over_s * self.rng.random::<f64>());
            chosen.push((peer, self.now + after));
        }
        chosen
    }
}
