//! The failures of a scenario: peers that die, leave or freeze. Those of trackers are in
//! `tracker_failures.rs`, those of regions in `region_failures.rs`.

use core::time::Duration;

use flotilla_common::tracker::SessionInput;
use rand::RngExt as _;

use crate::event::Event;
use crate::peer::{Backlog, SimulatedPeer};
use crate::scenario::{FailureKind, millis, seconds};
use crate::world::World;

/// The rate of a frozen peer's links, in bytes per second: less than a byte in any run.
pub(crate) const FROZEN: f64 = 1e-6;

impl World<'_> {
    pub(crate) fn on_failure(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        match failure.kind {
            FailureKind::KillPeers => self.schedule_departures(number, self.living(), false),
            FailureKind::KillLeaseHolders => {
                self.schedule_departures(number, self.lease_holders(), false)
            }
            FailureKind::LeavePeers => self.schedule_departures(number, self.living(), true),
            FailureKind::FreezePeers => self.freeze(number),
            FailureKind::StopTracker
            | FailureKind::RestartTracker
            | FailureKind::SlowTracker
            | FailureKind::SilentTracker => self.fail_trackers(number),
            FailureKind::StopOrigin
            | FailureKind::HangOrigin
            | FailureKind::SlowOrigin
            | FailureKind::LagOrigin
            | FailureKind::HangStorage
            | FailureKind::RefuseStorage
            | FailureKind::SlowStorage
            | FailureKind::Partition => self.fail_regions(number),
        }
        if let Some(for_s) = failure.for_s {
            self.queue.push(
                self.now + seconds(for_s),
                Event::FailureEnds { failure: number },
            );
        }
    }

    pub(crate) fn on_recovery(&mut self, number: usize) {
        match self.scenario.failures[number].kind {
            FailureKind::StopTracker
            | FailureKind::RestartTracker
            | FailureKind::SlowTracker
            | FailureKind::SilentTracker => self.recover_trackers(number),
            FailureKind::StopOrigin
            | FailureKind::HangOrigin
            | FailureKind::SlowOrigin
            | FailureKind::LagOrigin
            | FailureKind::HangStorage
            | FailureKind::RefuseStorage
            | FailureKind::SlowStorage
            | FailureKind::Partition => self.recover_regions(number),
            FailureKind::FreezePeers => self.thaw(),
            FailureKind::KillPeers | FailureKind::KillLeaseHolders | FailureKind::LeavePeers => {}
        }
    }

    /// A peer dies; or it tells the tracker, closes its connections and leaves.
    pub(crate) fn on_departure(&mut self, peer: u32, is_orderly: bool) {
        if !self.peers[peer as usize].is_alive {
            return;
        }
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
        self.unfinished -= u32::from(simulated.completed_at.is_none());
        let fetches = simulated.fetches.iter().map(|(_, key)| *key);
        let keys: Vec<_> = fetches.chain(simulated.mirror_fetches.clone()).collect();
        for key in keys {
            self.end_fetch(key);
        }
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
            self.thaw_opening(peer, backlog.opening_inputs);
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

    /// Chooses the failure's share of the candidates. Each departs at a random time within
    /// `over_s`.
    fn schedule_departures(&mut self, number: usize, mut candidates: Vec<u32>, is_orderly: bool) {
        let failure = &self.scenario.failures[number];
        let count = (candidates.len() as f64 * failure.share).ceil() as usize;
        for _ in 0..count.min(candidates.len()) {
            let peer =
                candidates.swap_remove(self.rng.random_range(0..candidates.len() as u64) as usize);
            let after = Duration::from_secs_f64(failure.over_s * self.rng.random::<f64>());
            self.queue
                .push(self.now + after, Event::Departs { peer, is_orderly });
        }
    }
}
