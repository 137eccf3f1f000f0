//! What goes wrong: peers that die or leave, a tracker or an origin that does not answer.

use core::time::Duration;

use flotilla_common::tracker::SessionInput;
use rand::RngExt as _;

use crate::scenario::FailureKind;
use crate::world::{Backlog, Event, Node, World, millis, seconds};

/// What a frozen peer's links carry, in bytes per second: less than a byte in any run.
const FROZEN: f64 = 1e-6;

impl World<'_> {
    pub(crate) fn on_failure(&mut self, number: usize) {
        let failure = &self.scenario.failures[number];
        match failure.kind {
            FailureKind::KillPeers => self.doom(number, self.living(), false),
            FailureKind::KillLeaseHolders => self.doom(number, self.lease_holders(), false),
            FailureKind::LeavePeers => self.doom(number, self.living(), true),
            FailureKind::FreezePeers => self.freeze(number),
            FailureKind::RestartTracker => self.restart_tracker(),
            FailureKind::StopTracker => self.tracking.stop(),
            FailureKind::StopOrigin => self.origins_up[0] = false,
        }
        if let Some(for_s) = failure.for_s {
            self.queue.push(
                self.now + seconds(for_s),
                Event::Recovers { failure: number },
            );
        }
    }

    pub(crate) fn on_recovery(&mut self, number: usize) {
        match self.scenario.failures[number].kind {
            FailureKind::StopTracker => self.restart_tracker(),
            FailureKind::StopOrigin => self.origins_up[0] = true,
            FailureKind::FreezePeers => self.thaw(),
            FailureKind::KillPeers
            | FailureKind::KillLeaseHolders
            | FailureKind::LeavePeers
            | FailureKind::RestartTracker => {}
        }
    }

    /// A peer is no more, or closes its connections and goes.
    pub(crate) fn on_goes(&mut self, peer: u32, says_so: bool) {
        if !self.nodes[peer as usize].alive {
            return;
        }
        if says_so {
            self.feed_session(peer, SessionInput::Leave);
        }
        for slot in self.nodes[peer as usize].links.up_slots() {
            let other = self.nodes[peer as usize].links.at(slot).peer;
            let notice = if says_so {
                self.delay(peer, other)
            } else {
                millis(self.scenario.links.death_noticed_ms)
            };
            self.hang_up(peer, slot, notice);
        }
        let node = &mut self.nodes[peer as usize];
        node.alive = false;
        self.unfinished -= u32::from(node.completed_at.is_none());
        let keys: Vec<_> = node.fetches.iter().map(|(_, key)| *key).collect();
        for key in keys {
            self.end_request(key);
        }
    }

    /// The failure's share of the living stops at once.
    fn freeze(&mut self, number: usize) {
        let mut candidates = self.living();
        candidates.retain(|peer| self.nodes[*peer as usize].frozen.is_none());
        let count =
            (candidates.len() as f64 * self.scenario.failures[number].share).ceil() as usize;
        for _ in 0..count.min(candidates.len()) {
            let peer =
                candidates.swap_remove(self.rng.random_range(0..candidates.len() as u64) as usize);
            self.nodes[peer as usize].frozen = Some(Backlog::default());
            self.network.set_rates(self.now, peer, FROZEN, FROZEN);
        }
    }

    /// Whoever is frozen goes on.
    fn thaw(&mut self) {
        for peer in self.living() {
            let node = &mut self.nodes[peer as usize];
            let Some(backlog) = node.frozen.take() else {
                continue;
            };
            let (up, down) = (node.up as f64 / 8.0, node.down as f64 / 8.0);
            node.machine.handle_timeout(self.now);
            self.network.set_rates(self.now, peer, up, down);
            self.drain(peer);
            for input in backlog.inputs {
                self.feed(peer, input);
            }
            self.thaw_session(peer, backlog.session_inputs);
        }
    }

    /// The peers that hold a lease now, by number.
    fn lease_holders(&self) -> Vec<u32> {
        let holds = |node: &Node| node.alive && node.machine.leases().next().is_some();
        (0_u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| holds(node))
            .map(|(number, _)| number)
            .collect()
    }

    fn living(&self) -> Vec<u32> {
        let lives = |node: &Node| node.alive && node.started_at <= self.now;
        (0_u32..)
            .zip(&self.nodes)
            .filter(|(_, node)| lives(node))
            .map(|(number, _)| number)
            .collect()
    }

    /// Chooses the failure's share of the candidates; each goes within the failure's time.
    fn doom(&mut self, number: usize, mut candidates: Vec<u32>, says_so: bool) {
        let failure = &self.scenario.failures[number];
        let count = (candidates.len() as f64 * failure.share).ceil() as usize;
        for _ in 0..count.min(candidates.len()) {
            let peer =
                candidates.swap_remove(self.rng.random_range(0..candidates.len() as u64) as usize);
            let after = Duration::from_secs_f64(failure.over_s * self.rng.random::<f64>());
            self.queue
                .push(self.now + after, Event::Goes { peer, says_so });
        }
    }
}
