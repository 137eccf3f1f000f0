//! What keeps a pull alive when nobody helps: fetching from the origin without a lease.
//!
//! A wanted blob that could be fetched and has not moved for its patience takes its lowest missing
//! chunk from an origin. Patience is long while a tracker answers, for then somebody else holds the
//! lease and the chunk is on its way; it is nothing without a tracker and without neighbours. It
//! shrinks with each chunk that the origin gives and is restored by neighbours; failures stretch
//! it.
//!
//! Without a tracker the known peers share the work first: each chunk is fetched at once by the
//! peer that ranks highest for it among those it knows.

use core::time::Duration;

use super::download::Permission;
use super::machine::PeerMachine;
use super::neighbours::Peer;
use super::rng::mix;
use super::timers::Timer;
use super::{BlobSlot, PeerSlot, Source};
use crate::time::Time;

/// Patience is this many times the configured bound at most, as a power of two; and at least, as a
/// negative one.
const MAX_PATIENCE_LOG2: i32 = 3;
const MIN_PATIENCE_LOG2: i32 = -6;
/// A chunk may take so many chunk times on its way through the swarm before something must be
/// wrong.
const CHUNK_TIMES: u32 = 16;
/// As `CHUNK_TIMES`, before the tracker is told that we starve.
const STARVING_CHUNK_TIMES: u32 = 4;
/// Fetches without a lease at once while there are neighbours.
const AMONG_NEIGHBOURS: usize = 1;

impl PeerMachine {
    /// Fetches from the origin what has waited too long; sets the next deadline.
    pub(super) fn escalate(&mut self, now: Time) {
        for at in 0..self.wanted.len() {
            let slot = self.wanted[at];
            if !self.is_tracker_reachable {
                self.fetch_ranked(now, slot);
            }
            while self.escalate_blob(now, slot) {}
        }
    }

    /// When the tracker is to be told that the blob starves. Sooner each time that it was right to
    /// say so.
    pub(super) fn starves_at(&self, slot: BlobSlot) -> Time {
        let Some(blob) = self.blobs.get(slot) else {
            return Time::MAX;
        };
        let bound = self.config.starving + self.chunk_time(slot) * STARVING_CHUNK_TIMES;
        let log2 = (-blob.starved_log2).max(MIN_PATIENCE_LOG2);
        blob.moved_at + bound.mul_f64(blob.jitter * libm::exp2(f64::from(log2)))
    }

    /// Starts one fetch if it is time; true if it did, so that another may follow.
    fn escalate_blob(&mut self, now: Time, slot: BlobSlot) -> bool {
        let Some(blob) = self.blobs.get(slot) else {
            return false;
        };
        let is_alone = blob.who.is_empty() && !self.is_tracker_reachable;
        let patience = if is_alone {
            Duration::ZERO
        } else {
            self.patience(slot)
        };
        let at_once = if is_alone {
            self.slots as usize
        } else {
            AMONG_NEIGHBOURS
        };
        let deadline = (blob.moved_at + patience).max(blob.rests_until);
        if deadline > now {
            self.timers.by(Timer::Escalate, deadline);
            return false;
        }
        let is_moving = !is_alone && self.transfers.of_blob(slot).next().is_some();
        if is_moving || !self.has_free_slot(now) || self.transfers.escalated() >= at_once {
            self.timers
                .by(Timer::Escalate, now + self.config.escalate / 4);
            return false;
        }
        let Some(chunk) = blob.lowest_missing() else {
            return false;
        };
        self.fetch_unleased(now, slot, chunk)
    }

    /// Fetches the chunks for which we rank highest among the peers we know.
    fn fetch_ranked(&mut self, now: Time, slot: BlobSlot) {
        while self.transfers.escalated() < self.slots as usize {
            let Some(blob) = self.blobs.get(slot).filter(|blob| blob.rests_until <= now) else {
                return;
            };
            let rivals: Vec<u64> = blob.who.iter().map(|peer| self.key_of(*peer)).collect();
            if rivals.is_empty() {
                return;
            }
            let own = self.config.key;
            let ranks_first = |chunk: &u32| {
                let rank = |key: u64| mix(u64::from(*chunk), key);
                rivals.iter().all(|rival| rank(*rival) <= rank(own))
            };
            let Some(chunk) = blob.unseen_chunks().find(ranks_first) else {
                return;
            };
            if !self.fetch_unleased(now, slot, chunk) {
                return;
            }
        }
    }

    fn fetch_unleased(&mut self, now: Time, slot: BlobSlot, chunk: u32) -> bool {
        if let Some(origin) = self.health.choose(now) {
            self.start(
                now,
                slot,
                chunk,
                Source::Origin(origin),
                Permission::Escalated,
            );
            return true;
        }
        if let Some(ready_at) = self.health.ready_at() {
            self.timers.by(Timer::Escalate, ready_at);
        }
        false
    }

    fn patience(&self, slot: BlobSlot) -> Duration {
        let Some(blob) = self.blobs.get(slot) else {
            return Duration::MAX;
        };
        let configured = if self.is_tracker_reachable {
            self.config.escalate_with_tracker
        } else {
            self.config.escalate
        };
        let log2 = blob
            .patience_log2
            .clamp(MIN_PATIENCE_LOG2, MAX_PATIENCE_LOG2);
        // Of a blob that is one chunk of any size, a reader gets nothing before all of it is here.
        let is_waited_for = blob.geometry.is_whole() && blob.reader.is_some();
        let chunk_times = if is_waited_for { 0 } else { CHUNK_TIMES };
        (configured + self.chunk_time(slot) * chunk_times)
            .mul_f64(blob.jitter * libm::exp2(f64::from(log2)))
    }

    fn key_of(&self, peer: PeerSlot) -> u64 {
        self.peers
            .get(peer.0 as usize)
            .map_or(0, |peer: &Peer| peer.key)
    }
}
