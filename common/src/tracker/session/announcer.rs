//! The announces to one tracker: when the next one is due, and its contents.
//!
//! ```text
//!  Unused ──start──▶ Due, with everything forgotten; and back from any phase: stop
//!  Due{at} ──────▶ AwaitsSnapshot ──▶ InFlight ──accepted, resync──▶ Due
//!   ▲ state changed: 5 ms to 1 s away      └──failed, resync again──▶ BackingOff ──▶ AwaitsSnapshot
//! ```
//!
//! A peer that looks for neighbours announces at once. Other changes, such as a blob that is whole
//! now, wait until some time has passed since the last announce: a pull of ten layers then sends
//! three or four announces instead of ten.
//!
//! The first announce to a tracker is full, and so is the first one after a resync or a failure;
//! the others carry the changes since the last one that the tracker accepted.

use core::mem;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::io::Urgency;
use crate::digest::Digest;
use crate::time::Time;
use crate::wire::tracker::{BlobState, Change, MAX_CHANGES, NeighboursWanted};

/// Changes within this time go into one announce.
const COALESCE: Duration = Duration::from_millis(5);
/// Time from an urgent announce to the next one that is not, and from that one to the next.
const GAP_AFTER_URGENT: Duration = Duration::from_millis(250);
const GAP: Duration = Duration::from_secs(1);
/// Pause after a failed announce. Changes of the peer's state do not shorten it.
pub(super) const RETRY: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Unused,
    Due { at: Time },
    AwaitsSnapshot,
    InFlight { blobs: BTreeMap<Digest, BlobState> },
    BackingOff { until: Time },
}

/// The header and changes of one announce.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Announcement {
    pub(super) epoch: u64,
    pub(super) sequence: u64,
    pub(super) full: bool,
    pub(super) changes: Vec<Change>,
}

/// The schedule and the contents of the announces to one tracker.
#[derive(Debug)]
pub(super) struct Announcer {
    phase: Phase,
    /// The tracker's epoch; 0 while it is unknown.
    epoch: u64,
    /// Number of the next announce within the epoch; 0 is a full one.
    sequence: u64,
    /// The blobs in the last announce that the tracker accepted.
    announced: BTreeMap<Digest, BlobState>,
    /// The peer's state changed after the last snapshot was requested.
    changed: Option<Urgency>,
    /// Until then, changes that are not urgent wait.
    not_before: Time,
    /// Whether the next announce is urgent.
    is_urgent: bool,
    accepted: u64,
    /// Whether an announce was answered with a resync, and none was accepted since.
    is_resynced: bool,
}

impl Announcer {
    /// The first announce is due `now`.
    pub(super) fn new(now: Time) -> Self {
        Self {
            phase: Phase::Due { at: now },
            epoch: 0,
            sequence: 0,
            announced: BTreeMap::new(),
            changed: None,
            not_before: Time::ZERO,
            is_urgent: true,
            accepted: 0,
            is_resynced: false,
        }
    }

    /// Nothing is announced before [`Self::start`].
    pub(super) fn unused() -> Self {
        Self {
            phase: Phase::Unused,
            ..Self::new(Time::ZERO)
        }
    }

    /// The first announce is due `now`.
    pub(super) fn start(&mut self, now: Time) {
        *self = Self {
            accepted: self.accepted,
            ..Self::new(now)
        };
    }

    /// Nothing is announced any more. Exchanges in flight must be cancelled.
    pub(super) fn stop(&mut self) {
        *self = Self {
            accepted: self.accepted,
            ..Self::unused()
        };
    }

    /// Announces that the tracker has accepted.
    pub(super) fn accepted_count(&self) -> u64 {
        self.accepted
    }

    /// Whether the last announce that the tracker accepted had the blob.
    pub(super) fn has_announced(&self, digest: &Digest) -> bool {
        self.announced.contains_key(digest)
    }

    pub(super) fn poll_timeout(&self) -> Option<Time> {
        match self.phase {
            Phase::Due { at } => Some(at),
            Phase::BackingOff { until } => Some(until),
            Phase::Unused | Phase::AwaitsSnapshot | Phase::InFlight { .. } => None,
        }
    }

    /// Announces the peer's state at once or soon.
    pub(super) fn mark_changed(&mut self, now: Time, urgency: Urgency) {
        self.changed = self.changed.max(Some(urgency));
        if let Phase::Due { at } = &mut self.phase {
            let due = match urgency {
                Urgency::Now => now + COALESCE,
                Urgency::Soon => self.not_before.max(now + COALESCE),
            };
            *at = (*at).min(due);
            self.is_urgent |= urgency == Urgency::Now;
        }
    }

    /// Whether an announce is due; then it waits for the peer's state.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        let is_due = self.poll_timeout().is_some_and(|due_at| due_at <= now);
        if is_due {
            self.phase = Phase::AwaitsSnapshot;
            self.changed = None;
            let gap = if self.is_urgent {
                GAP_AFTER_URGENT
            } else {
                GAP
            };
            self.not_before = now + gap;
            self.is_urgent = false;
        }
        is_due
    }

    /// The announce of `blobs` by a peer that looks for these neighbours; `None` if none is due.
    pub(super) fn announce(
        &mut self,
        blobs: Vec<Change>,
        neighbours: &[NeighboursWanted],
    ) -> Option<Announcement> {
        if self.phase != Phase::AwaitsSnapshot {
            return None;
        }
        let full = self.sequence == 0;
        let announcement = Announcement {
            epoch: self.epoch,
            sequence: self.sequence,
            full,
            changes: self.changes(full, &blobs, neighbours),
        };
        let blobs = blobs.into_iter();
        let blobs = blobs.map(|change| (change.digest, change.state)).collect();
        self.phase = Phase::InFlight { blobs };
        Some(announcement)
    }

    /// The changes since the last accepted announce, and the blobs for which the peer looks for
    /// neighbours: trackers of older builds answer with neighbours for the wanted blobs among the
    /// changes.
    fn changes(
        &self,
        full: bool,
        blobs: &[Change],
        neighbours: &[NeighboursWanted],
    ) -> Vec<Change> {
        let sought: BTreeSet<&Digest> = neighbours.iter().map(|wanted| &wanted.digest).collect();
        let is_sent = |change: &&Change| {
            full || sought.contains(&change.digest)
                || self.announced.get(&change.digest) != Some(&change.state)
        };
        let mut changes: Vec<Change> = blobs.iter().filter(is_sent).cloned().collect();
        if !full {
            let present: BTreeSet<&Digest> = blobs.iter().map(|change| &change.digest).collect();
            let announced = self.announced.keys();
            let gone = announced.filter(|digest| !present.contains(digest));
            changes.extend(gone.map(|digest| Change {
                digest: *digest,
                state: BlobState::Gone,
            }));
        }
        changes.truncate(MAX_CHANGES);
        changes
    }

    /// The tracker accepted the announce and expects the next one after `next`.
    pub(super) fn accept(&mut self, now: Time, epoch: u64, next: Duration) {
        let due = Phase::Due { at: now + next };
        if let Phase::InFlight { blobs } = mem::replace(&mut self.phase, due) {
            self.announced = blobs;
        }
        self.epoch = epoch;
        self.sequence += 1;
        self.accepted += 1;
        self.is_resynced = false;
        if let Some(urgency) = self.changed {
            self.mark_changed(now, urgency);
        }
    }

    /// The tracker did not accept the announce and expects a full one. It gets one soon, and if it
    /// does not accept that one either, after a pause.
    pub(super) fn resync(&mut self, now: Time, epoch: u64) {
        if self.is_resynced {
            return self.fail(now);
        }
        self.is_resynced = true;
        self.epoch = epoch;
        self.sequence = 0;
        self.phase = Phase::Due { at: now + COALESCE };
        self.is_urgent = true;
    }

    /// The announce was not answered.
    pub(super) fn fail(&mut self, now: Time) {
        self.epoch = 0;
        self.sequence = 0;
        self.phase = Phase::BackingOff { until: now + RETRY };
    }
}
