//! What a pull waits for: time in which a download slot was free and nothing moved, by reason.
//!
//! Kept per wanted blob, and for the peer as a whole, which stands still while nothing moves of any
//! wanted blob. A reason is looked at when a slot or a lease was (never at a byte of progress), and
//! costs a few comparisons; the clock runs from one look to the next. Nothing here decides
//! anything.

use core::ops::{AddAssign, Index, Sub};
use core::time::Duration;

use super::BlobSlot;
use super::blob::Blob;
use super::lease::{ASKED_BLOBS, Asked};
use super::machine::PeerMachine;
use crate::time::Time;

/// Why nothing of a wanted blob moves, though a slot is free.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Wait {
    /// A source was asked, and its first byte is not here yet.
    FirstByte,
    /// Neighbours have what is missing, and all of them are busy, resting, or too far away to be
    /// asked for more.
    Holders,
    /// No neighbour has said yet what it holds.
    Neighbours,
    /// Nobody around has what is missing, and the tracker, which was asked, has given us no lease:
    /// other peers fetch it.
    Lease,
    /// Nobody around has what is missing, and the tracker is asked for leases of blobs wanted
    /// before this one first.
    Turn,
    /// Nobody around has what is missing, and the tracker may not be asked again yet.
    Tracker,
    /// No tracker answers, and other peers come before this one in asking the origin.
    NoTracker,
    /// No origin answers; they rest before they are asked again.
    Origin,
    /// All known holders sent corrupt bytes and are not used.
    Quarantine,
    /// The own store failed, and rests before it is tried again.
    Store,
}

impl Wait {
    /// Every reason, in the order of [`WaitTimes`].
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

/// Time waited, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WaitTimes([Duration; Wait::ALL.len()]);

impl WaitTimes {
    /// The reasons for which any time was spent, longest first.
    pub fn longest(&self) -> Vec<(Wait, Duration)> {
        let mut spent: Vec<_> = Wait::ALL
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

impl Index<Wait> for WaitTimes {
    type Output = Duration;

    fn index(&self, wait: Wait) -> &Duration {
        &self.0[wait as usize]
    }
}

impl AddAssign for WaitTimes {
    fn add_assign(&mut self, more: Self) {
        for (time, more) in self.0.iter_mut().zip(more.0) {
            *time += more;
        }
    }
}

impl Sub for WaitTimes {
    type Output = Self;

    /// What was waited since `earlier`.
    fn sub(self, earlier: Self) -> Self {
        let mut left = self;
        for (time, earlier) in left.0.iter_mut().zip(earlier.0) {
            *time = time.saturating_sub(earlier);
        }
        left
    }
}

/// A clock that runs while there is a reason.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Waiting {
    reason: Option<Wait>,
    since: Time,
    /// Up to `since`.
    spent: WaitTimes,
}

impl Waiting {
    /// From `now` on the reason is this; `None` if there is nothing to wait for.
    pub(super) fn note(&mut self, now: Time, reason: Option<Wait>) {
        if reason == self.reason {
            return;
        }
        if let Some(before) = self.reason {
            self.spent.0[before as usize] += now.saturating_since(self.since);
        }
        (self.reason, self.since) = (reason, now);
    }

    /// The time spent up to `now`.
    fn spent(mut self, now: Time) -> WaitTimes {
        self.note(now, None);
        self.spent
    }
}

impl PeerMachine {
    /// Why nothing of a blob moves at present; `None` if something does, if no slot is free, or if
    /// it is not wanted.
    pub fn waits_for(&self, blob: BlobSlot) -> Option<Wait> {
        self.blobs.get(blob)?.waiting.reason
    }

    /// How long a blob has waited since it was first wanted, by reason.
    pub fn waited(&self, now: Time, blob: BlobSlot) -> WaitTimes {
        self.blobs
            .get(blob)
            .map_or_else(WaitTimes::default, |blob| blob.waiting.spent(now))
    }

    /// How long something was wanted and nothing moved at all since the machine was made, by the
    /// reason of the blob that was wanted first.
    pub fn stood_still(&self, now: Time) -> WaitTimes {
        self.stands_still.spent(now)
    }

    /// Looks at what every wanted blob waits for from now on.
    pub(super) fn account_waits(&mut self, now: Time) {
        let has_free_slot = self.has_free_slot(now);
        let mut still = None;
        let mut any_moves = false;
        let mut turn = 0;
        for at in 0..self.wanted.len() {
            let slot = self.wanted[at];
            let moves = self
                .transfers
                .of_blob(slot)
                .any(|transfer| transfer.has_begun);
            let Some(blob) = self.blobs.get(slot) else {
                continue;
            };
            turn += usize::from(blob.unseen > 0);
            let reason = (has_free_slot && !moves).then(|| self.reason(now, slot, blob, turn));
            any_moves |= moves;
            still = still.or(reason);
            if let Some(blob) = self.blobs.get_mut(slot) {
                blob.waiting.note(now, reason);
            }
        }
        self.stands_still.note(now, still.filter(|_| !any_moves));
    }

    /// Why nothing of a wanted blob moves, which is the `turn`-th of those to ask the tracker for.
    fn reason(&self, now: Time, slot: BlobSlot, blob: &Blob, turn: usize) -> Wait {
        let lacking = blob.chunks() - blob.held_count;
        let is_any_heard = blob.members.iter().any(|member| member.is_heard);
        if blob.rests_until > now {
            Wait::Store
        } else if self.transfers.of_blob(slot).next().is_some() {
            Wait::FirstByte
        } else if blob.unseen < lacking {
            Wait::Holders
        } else if !is_any_heard && self.meets_nobody(now, blob) {
            Wait::Quarantine
        } else if self.health.choose(now).is_none() {
            Wait::Origin
        } else if !self.is_tracker_reachable {
            Wait::NoTracker
        } else if self.dialling > 0 && !is_any_heard {
            Wait::Neighbours
        } else if matches!(blob.asked, Asked::Parked { .. }) {
            Wait::Lease
        } else if turn > ASKED_BLOBS {
            Wait::Turn
        } else {
            Wait::Tracker
        }
    }

    /// Whether there are peers to meet over a blob, and all of them are in quarantine.
    fn meets_nobody(&self, now: Time, blob: &Blob) -> bool {
        let is_banned = |slot: &super::PeerSlot| {
            self.peers
                .get(slot.0 as usize)
                .is_some_and(|peer| peer.is_quarantined(now))
        };
        !blob.handout.is_empty() && blob.handout.iter().all(is_banned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::fixture::{BLOB, PEER, facts, fetches, meet, ms, wanting};
    use crate::swarm::{Failure, Have, Input, Nearness, Refusal};

    #[test]
    fn a_blob_waits_for_its_lease_then_for_the_first_byte_then_not_at_all() {
        let mut machine = wanting(8);
        assert_eq!(machine.waits_for(BLOB), Some(Wait::Lease));
        let term = Duration::from_secs(1);
        machine.handle(
            ms(200),
            Input::LeaseGranted {
                blob: BLOB,
                chunk: 0,
                term,
            },
        );
        assert_eq!(machine.waits_for(BLOB), Some(Wait::FirstByte));
        let transfer = fetches(&mut machine)[0];
        machine.handle(ms(250), Input::FirstByte { transfer });
        assert_eq!(machine.waits_for(BLOB), None);
        machine.handle(ms(900), Input::Received { transfer });
        let waited = machine.waited(ms(1000), BLOB);
        assert_eq!(waited[Wait::Lease], Duration::from_millis(200 + 100));
        assert_eq!(waited[Wait::FirstByte], Duration::from_millis(50));
        assert_eq!(waited.longest()[0].0, Wait::Lease);
        assert_eq!(
            machine.stood_still(ms(1000)),
            waited,
            "it is all that is wanted"
        );
    }

    #[test]
    fn a_busy_holder_is_said_to_be_one() {
        let mut machine = wanting(8);
        meet(&mut machine, ms(10), PEER, Have::Complete);
        let transfer = fetches(&mut machine)[0];
        machine.handle(
            ms(20),
            Input::Refused {
                transfer,
                reason: Refusal::Busy,
            },
        );
        assert_eq!(machine.waits_for(BLOB), Some(Wait::Holders));
    }

    #[test]
    fn a_liar_and_silent_origins_are_told_apart() {
        let mut machine = wanting(8);
        machine.handle(ms(1), Input::TrackerUnreachable);
        let peers = vec![facts(PEER, Nearness::SameZone)];
        machine.handle(ms(1), Input::Handout { blob: BLOB, peers });
        meet(&mut machine, ms(2), PEER, Have::Complete);
        for transfer in fetches(&mut machine) {
            machine.handle(
                ms(3),
                Input::Failed {
                    transfer,
                    why: Failure::Corrupt,
                },
            );
        }
        machine.handle(
            ms(3),
            Input::OriginDown {
                origin: crate::swarm::OriginSlot(0),
            },
        );
        for transfer in fetches(&mut machine) {
            machine.handle(
                ms(4),
                Input::Failed {
                    transfer,
                    why: Failure::Link,
                },
            );
        }
        assert_eq!(machine.waits_for(BLOB), Some(Wait::Quarantine));
        machine.handle(
            ms(5),
            Input::Forgot {
                peer: PEER,
                blob: BLOB,
            },
        );
        machine.forget_handout(BLOB);
        machine.handle(
            ms(5),
            Input::OriginDown {
                origin: crate::swarm::OriginSlot(0),
            },
        );
        machine.account_waits(ms(5));
        assert_eq!(machine.waits_for(BLOB), Some(Wait::Origin));
    }

    #[test]
    fn what_is_complete_or_not_wanted_waits_for_nothing() {
        let mut machine = wanting(8);
        machine.handle(ms(500), Input::Unwant { blob: BLOB });
        assert_eq!(machine.waits_for(BLOB), None);
        assert_eq!(
            machine.waited(ms(9000), BLOB).total(),
            Duration::from_millis(500)
        );
        assert_eq!(
            machine.stood_still(ms(9000)).total(),
            Duration::from_millis(500)
        );
    }
}
