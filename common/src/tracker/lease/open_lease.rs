//! One open lease: its holder, how long it lasts, and what becomes of its chunk if it fails.

use core::time::Duration;

use super::chunks::ChunkState;
use crate::origin_region::OriginRegion;
use crate::time::Time;
use crate::tracker::config::LeaseSettings;
use crate::tracker::slots::PeerSlot;

/// An open lease.
#[derive(Debug)]
pub(super) struct OpenLease {
    pub(super) chunk: u32,
    pub(super) holder: PeerSlot,
    /// The lease expires then, unless it is renewed with progress.
    pub(super) deadline: Time,
    /// The lease expires then in any case.
    pub(super) last_deadline: Time,
    /// The origin that the holder is to ask first; `None` if it decides itself.
    pub(super) from: Option<OriginRegion>,
    /// When it was granted, or moved to that origin.
    pub(super) asked_at: Time,
    /// The number of regions whose origins the holder may ask.
    pub(super) origins: u8,
    /// Bytes that the holder had at its last renewal.
    pub(super) received: u64,
    /// When it was granted, or renewed with more bytes.
    pub(super) moved_at: Time,
    /// When the holder last said that it waits for the origin.
    pub(super) waiting_at: Option<Time>,
    /// Whether the holder has sent anything since the grant. Until then it may be dead.
    pub(super) is_confirmed: bool,
    /// From then on the lease does not count against the limit, unless it is confirmed.
    pub(super) late_at: Time,
    /// The state of the chunk if this lease fails: its former state, or held by a peer whose
    /// transfer ended after its own lease had expired.
    pub(super) fallback: ChunkState,
}

impl OpenLease {
    pub(super) fn is_counted(&self, now: Time) -> bool {
        self.is_confirmed || now < self.late_at
    }

    /// The origin that a holder names, if it may ask it.
    pub(super) fn known_origin(&self, named: Option<OriginRegion>) -> Option<OriginRegion> {
        named.filter(|origin| origin.0 < self.origins)
    }

    /// Whether the holder has said within half a term that it waits for the origin.
    pub(super) fn is_waiting(&self, now: Time, term: Duration) -> bool {
        self.waiting_at.is_some_and(|at| now < at + term / 2)
    }

    /// Extends an expired lease whose holder waits for an origin that serves none of the holders.
    /// False if the holder does not wait, or has waited for too long.
    pub(super) fn extend_stalled(&mut self, now: Time, config: &LeaseSettings) -> bool {
        let last = (self.moved_at + config.longest_stall).min(self.last_deadline);
        if last <= now || !self.is_waiting(now, config.term) {
            return false;
        }
        self.deadline = (now + config.term).min(last);
        true
    }
}
