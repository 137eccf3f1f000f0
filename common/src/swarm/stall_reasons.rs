//! Why pulls stall: the time in which a download slot was free and nothing moved, by reason.
//!
//! The time is kept per wanted blob, and for the peer as a whole, which stalls while nothing of any
//! wanted blob moves. The reason is determined when a slot or a lease changed (never at a byte of
//! progress), and costs a few comparisons; its clock runs until the next time. Nothing here decides
//! anything.

use core::ops::{AddAssign, Index, Sub};
use core::time::Duration;

use super::blob_exchange::BlobExchange;
use super::context::Context;
use super::downloads::Downloads;
use super::io::BlobSlot;
use super::leases::{Leases, MAX_REQUESTS};
use super::neighbours::Neighbours;
use super::per_blob::PerBlob;
use super::pull::Pull;
use crate::time::Time;

/// Why nothing of a wanted blob moves, though a slot is free.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum StallReason {
    /// A source was asked, and its first byte has not arrived.
    FirstByte,
    /// Neighbours hold the missing chunks, and all of them are busy, paused, or in other zones from
    /// which enough chunks come.
    Holders,
    /// No neighbour has sent its chunk map yet.
    Neighbours,
    /// No neighbour holds the missing chunks, and the tracker, which was asked, has granted no
    /// lease: other peers fetch them.
    Lease,
    /// No neighbour holds the missing chunks, and the tracker is asked first for leases of blobs
    /// that were wanted before this one.
    Turn,
    /// No neighbour holds the missing chunks, and the tracker may not be asked again yet.
    Tracker,
    /// No tracker answers, and other peers fetch the missing chunks from the origin.
    NoTracker,
    /// No origin is usable; each has failed and is not asked for a while.
    Origin,
    /// All known holders sent corrupt bytes and are in quarantine.
    Quarantine,
    /// The own store failed, and the pull is paused.
    Store,
}

impl StallReason {
    /// Every reason, in the order of [`StallTimes`].
    pub const ALL: [Self; 10] = [
        Self::FirstByte,
        Self::Holders,
        Self::Neighbours,
        Self::Lease,
        Self::Turn,
        Self::Tracker,
        Self::NoTracker,
        Self::Origin,
        Self::Quarantine,
        Self::Store,
    ];

    /// The reason as logs and metrics name it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::FirstByte => "first_byte",
            Self::Holders => "holders",
            Self::Neighbours => "neighbours",
            Self::Lease => "lease",
            Self::Turn => "turn",
            Self::Tracker => "tracker",
            Self::NoTracker => "no_tracker",
            Self::Origin => "origin",
            Self::Quarantine => "quarantine",
            Self::Store => "store",
        }
    }
}

/// Time spent stalling, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StallTimes([Duration; StallReason::ALL.len()]);

impl StallTimes {
    /// The reasons for which any time was spent, longest first.
    pub fn longest(&self) -> Vec<(StallReason, Duration)> {
        let mut spent: Vec<_> = StallReason::ALL
            .into_iter()
            .map(|wait| (wait, self[wait]))
            .collect();
        spent.retain(|(_, time)| !time.is_zero());
        spent.sort_by_key(|(_, time)| core::cmp::Reverse(*time));
        spent
    }

    /// For all reasons together.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }
}

impl Index<StallReason> for StallTimes {
    type Output = Duration;

    fn index(&self, wait: StallReason) -> &Duration {
        &self.0[wait as usize]
    }
}

impl AddAssign for StallTimes {
    fn add_assign(&mut self, more: Self) {
        for (time, more) in self.0.iter_mut().zip(more.0) {
            *time += more;
        }
    }
}

impl Sub for StallTimes {
    type Output = Self;

    /// The time that was spent since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        let mut left = self;
        for (time, earlier) in left.0.iter_mut().zip(earlier.0) {
            *time = time.saturating_sub(earlier);
        }
        left
    }
}

/// Adds up time by reason.
#[derive(Clone, Copy, Debug, Default)]
struct StallClock {
    reason: Option<StallReason>,
    since: Time,
    /// Up to `since`.
    spent: StallTimes,
}

impl StallClock {
    /// Sets the reason from `now` on; `None` while the blob does not stall.
    fn set(&mut self, now: Time, reason: Option<StallReason>) {
        if reason == self.reason {
            return;
        }
        if let Some(before) = self.reason {
            self.spent.0[before as usize] += now.saturating_since(self.since);
        }
        self.reason = reason;
        self.since = now;
    }

    /// The time spent up to `now`.
    fn spent(mut self, now: Time) -> StallTimes {
        self.set(now, None);
        self.spent
    }
}

/// Which blobs stall, and for how long they and the peer have.
#[derive(Debug, Default)]
pub(super) struct StallReasons {
    clocks: PerBlob<StallClock>,
    /// Runs while something is wanted and nothing moves.
    peer_clock: StallClock,
    /// Whether a clock may run. Usually none does, and then there is nothing to stop.
    may_run: bool,
}

impl StallReasons {
    /// The blob is added, or wanted from now on.
    pub(super) fn reset(&mut self, slot: BlobSlot) {
        self.clocks.insert(slot, StallClock::default());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.clocks.remove(slot);
    }

    /// The blob is not wanted any longer, or complete.
    pub(super) fn stop(&mut self, now: Time, slot: BlobSlot) {
        if let Some(clock) = self.clocks.get_mut(slot).filter(|_| self.may_run) {
            clock.set(now, None);
        }
    }

    /// Bytes of the blob came.
    pub(super) fn on_moved(&mut self, now: Time, slot: BlobSlot) {
        self.stop(now, slot);
        self.peer_clock.set(now, None);
    }

    /// Why nothing of a blob moves at present.
    pub(super) fn reason(&self, slot: BlobSlot) -> Option<StallReason> {
        self.clocks.get(slot)?.reason
    }

    /// How long a blob has stalled since it was wanted.
    pub(super) fn of_blob(&self, now: Time, slot: BlobSlot) -> StallTimes {
        self.clocks
            .get(slot)
            .map_or_else(StallTimes::default, |clock| clock.spent(now))
    }

    /// How long the peer as a whole has stalled.
    pub(super) fn of_peer(&self, now: Time) -> StallTimes {
        self.peer_clock.spent(now)
    }

    /// Determines why each wanted blob stalls from now on.
    pub(super) fn update(
        &mut self,
        ctx: &Context,
        neighbours: &Neighbours,
        downloads: &Downloads,
        leases: &Leases,
    ) {
        let has_free_slot = downloads.has_free_slot(ctx);
        if !has_free_slot && !self.may_run {
            return;
        }
        self.may_run = false;
        let mut first_reason = None;
        let mut any_moves = false;
        let mut lease_turn = 0;
        for slot in ctx.blobs.wanted() {
            let (Some(blob), Some(pull)) = (ctx.blobs.get(*slot), downloads.pull(*slot)) else {
                continue;
            };
            lease_turn += usize::from(blob.unavailable() > 0);
            let is_moving = downloads.is_moving(*slot);
            any_moves |= is_moving;
            let pulled = PulledBlob {
                slot: *slot,
                blob,
                pull,
                lease_turn,
            };
            let reason = (has_free_slot && !is_moving)
                .then(|| pulled.stall_reason(ctx, neighbours, downloads, leases));
            first_reason = first_reason.or(reason);
            if let Some(clock) = self.clocks.get_mut(*slot) {
                clock.set(ctx.now, reason);
                self.may_run |= reason.is_some();
            }
        }
        let reason = first_reason.filter(|_| !any_moves);
        self.peer_clock.set(ctx.now, reason);
    }
}

/// A wanted blob.
struct PulledBlob<'a> {
    slot: BlobSlot,
    blob: &'a BlobExchange,
    pull: &'a Pull,
    /// Its position, from 1, among the blobs for which the tracker is to be asked.
    lease_turn: usize,
}

impl PulledBlob<'_> {
    /// Why nothing of the blob moves.
    fn stall_reason(
        &self,
        ctx: &Context,
        neighbours: &Neighbours,
        downloads: &Downloads,
        leases: &Leases,
    ) -> StallReason {
        let missing = self.blob.chunks() - self.blob.held_count();
        let has_any_announced = self.blob.has_any_announced();
        if self.pull.is_paused(ctx.now) {
            StallReason::Store
        } else if downloads.count(self.slot) > 0 {
            StallReason::FirstByte
        } else if self.blob.unavailable() < missing {
            StallReason::Holders
        } else if !has_any_announced && neighbours.are_candidates_quarantined(ctx.now, self.slot) {
            StallReason::Quarantine
        } else if !downloads.may_ask_origin(ctx, self.slot) {
            StallReason::Origin
        } else if !ctx.has_tracker {
            StallReason::NoTracker
        } else if neighbours.dialing() > 0 && !has_any_announced {
            StallReason::Neighbours
        } else if leases.is_parked(self.slot) {
            StallReason::Lease
        } else if self.lease_turn > MAX_REQUESTS {
            StallReason::Turn
        } else {
            StallReason::Tracker
        }
    }
}
