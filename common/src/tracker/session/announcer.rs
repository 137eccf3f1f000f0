//! The announces to one tracker: when the next one is due, and its contents.
//!
//! ```text
//!  Unused ──start──▶ Due, with everything forgotten; and back from any phase: stop
//!  Due{at} ──────▶ AwaitsSnapshot ──▶ InFlight ──accepted, resync──▶ Due
//!   ▲ state changed: at most 5 ms away     └──failed, resync again──▶ BackingOff ──▶ AwaitsSnapshot
//! ```
//!
//! The first announce to a tracker is full, and so is the first one after a resync or a failure;
//! the others carry the changes since the last one that the tracker accepted.

use core::mem;
use core::time::Duration;
use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::time::Time;
use crate::wire::tracker::{BlobState, Change, MAX_CHANGES};

/// Changes within this time go into one announce.
const COALESCE: Duration = Duration::from_millis(5);
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
    has_changed: bool,
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
            has_changed: false,
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

    /// Announces as soon as possible.
    pub(super) fn mark_changed(&mut self, now: Time) {
        self.has_changed = true;
        if let Phase::Due { at } = &mut self.phase {
            *at = (*at).min(now + COALESCE);
        }
    }

    /// Whether an announce is due; then it waits for the peer's state.
    pub(super) fn begin(&mut self, now: Time) -> bool {
        let is_due = self.poll_timeout().is_some_and(|due_at| due_at <= now);
        if is_due {
            self.phase = Phase::AwaitsSnapshot;
            self.has_changed = false;
        }
        is_due
    }

    /// The announce of `blobs`; `None` if none is due.
    pub(super) fn announce(&mut self, blobs: Vec<Change>) -> Option<Announcement> {
        if self.phase != Phase::AwaitsSnapshot {
            return None;
        }
        let full = self.sequence == 0;
        let announcement = Announcement {
            epoch: self.epoch,
            sequence: self.sequence,
            full,
            changes: self.changes(full, &blobs),
        };
        let blobs = blobs.into_iter();
        let blobs = blobs.map(|change| (change.digest, change.state)).collect();
        self.phase = Phase::InFlight { blobs };
        Some(announcement)
    }

    /// The changes since the last accepted announce. Wanted blobs are always among them, because
    /// only they get a handout.
    fn changes(&self, full: bool, blobs: &[Change]) -> Vec<Change> {
        let is_sent = |change: &&Change| {
            full || matches!(change.state, BlobState::Wanted { .. })
                || self.announced.get(&change.digest) != Some(&change.state)
        };
        let mut changes: Vec<Change> = blobs.iter().filter(is_sent).cloned().collect();
        if !full {
            let gone = self
                .announced
                .keys()
                .filter(|digest| blobs.iter().all(|change| change.digest != **digest));
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
        if self.has_changed {
            self.mark_changed(now);
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
    }

    /// The announce was not answered.
    pub(super) fn fail(&mut self, now: Time) {
        self.epoch = 0;
        self.sequence = 0;
        self.phase = Phase::BackingOff { until: now + RETRY };
    }
}
