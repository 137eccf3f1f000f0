//! The events that change where a peer may look: origins and trackers come and go, and peers of
//! other regions are used while neither helps.

use super::PeerMachine;
use crate::swarm::context::Work;
use crate::swarm::io::BlobSlot;
use crate::swarm::timers::Timer;

impl PeerMachine {
    pub(super) fn on_origin_usable(&mut self) {
        self.ctx.has_origin = true;
        for at in 0..self.ctx.blobs.wanted().len() {
            let slot = self.ctx.blobs.wanted()[at];
            self.downloads.clear_origin_delay(slot);
        }
        self.ctx.due.add(Work::SeekLeases);
        self.ctx.timers.wake_by(Timer::Fallback, self.ctx.now);
    }

    pub(super) fn set_has_tracker(&mut self, has_tracker: bool) {
        if self.ctx.has_tracker && !has_tracker {
            self.claims.restart_wanted(&mut self.ctx);
        }
        self.ctx.has_tracker = has_tracker;
        self.ctx.due.add(Work::SeekLeases);
        self.ctx.timers.wake_by(Timer::Fallback, self.ctx.now);
        self.use_all_far_peers();
    }

    pub(super) fn on_origin_unusable(&mut self) {
        self.ctx.has_origin = false;
        self.ctx.due.add(Work::SeekLeases);
        self.use_all_far_peers();
    }

    /// Peers of other regions become candidates of a blob, if they are used for it.
    pub(super) fn use_far_peers(&mut self, slot: BlobSlot) {
        let peers = self.far_peers.take(&self.ctx, slot);
        if !peers.is_empty() {
            self.on_handout(slot, peers);
        }
    }

    fn use_all_far_peers(&mut self) {
        for at in 0..self.ctx.blobs.wanted().len() {
            let slot = self.ctx.blobs.wanted()[at];
            self.use_far_peers(slot);
        }
    }
}
