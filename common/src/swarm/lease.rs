//! Leases: asking the tracker who may fetch from the origin, and keeping its answer alive.
//!
//! For at most [`ASKED_BLOBS`] wanted blobs at a time, in the order they were wanted, a request is
//! parked at the tracker while there are chunks that neither we nor any neighbour has. A neighbour
//! that is gone may have been the only one around with a chunk: then the request is made again, and
//! the tracker hears at once what went with it. A lease is kept while its download moves.

use core::time::Duration;

use super::download::Permission;
use super::machine::PeerMachine;
use super::timers::Timer;
use super::{BlobSlot, Output, Source};
use crate::time::Time;

/// Blobs for which a request is parked at once: the next one's origin copy begins while the last
/// chunks of the first are on their way, and yet all peers begin with the same blob.
pub(super) const ASKED_BLOBS: usize = 2;
/// So often in a row a starving request must have been right, as a power of two of its patience,
/// that a pull without any neighbour that has something goes on with several at once. One whose
/// dials nobody answers does so from the start.
const SURELY_ALONE: i32 = 3;
/// Least time between two requests for one blob.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// Where our request for a lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asked {
    /// None is under way; the next not before a time.
    No { not_before: Time },
    /// The tracker has it. It is outdated once a neighbour is gone: chunks that only that one had
    /// are missing now.
    Parked {
        starving: bool,
        since: Time,
        is_outdated: bool,
    },
}

impl Default for Asked {
    fn default() -> Self {
        Self::No {
            not_before: Time::ZERO,
        }
    }
}

/// A lease that we hold.
#[derive(Debug)]
pub(super) struct Lease {
    pub(super) blob: BlobSlot,
    pub(super) chunk: u32,
    term: Duration,
    renew_at: Time,
    /// Bytes received when it was last renewed.
    renewed: u64,
}

impl PeerMachine {
    pub(super) fn on_lease_granted(
        &mut self,
        now: Time,
        slot: BlobSlot,
        chunk: u32,
        term: Duration,
    ) {
        self.wants_leases = true;
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        if matches!(blob.asked, Asked::Parked { starving: true, .. }) {
            blob.starved_log2 += 1;
        }
        blob.asked = Asked::No { not_before: now };
        if chunk >= blob.chunks() {
            return;
        }
        if blob.held.contains(chunk) || blob.availability[chunk as usize] > 0 {
            self.outputs
                .push_back(Output::LeaseDone { blob: slot, chunk });
            return;
        }
        let source = self.health.choose(now).map(Source::Origin);
        let Some(source) = source.filter(|_| blob.is_wanted()) else {
            self.outputs
                .push_back(Output::LeaseFailed { blob: slot, chunk });
            return;
        };
        let renew_at = now + term / 2;
        self.leases.push(Lease {
            blob: slot,
            chunk,
            term,
            renew_at,
            renewed: 0,
        });
        self.timers.by(Timer::Lease, renew_at);
        // A first word at once: until it comes, the tracker cannot tell us from the dead.
        self.outputs.push_back(Output::LeaseRenew {
            blob: slot,
            chunk,
            received: 0,
        });
        // An escalated fetch of the same chunk goes on, under the lease now.
        if let Some(transfer) = self.transfers.of_chunk(slot, chunk) {
            transfer.permission = Permission::Leased;
        } else {
            self.start(now, slot, chunk, source, Permission::Leased);
        }
    }

    pub(super) fn on_lease_wait(&mut self, now: Time, slot: BlobSlot, retry_after: Duration) {
        if let Some(blob) = self.blobs.get_mut(slot) {
            let not_before = now + retry_after.max(ASK_AGAIN);
            blob.asked = Asked::No { not_before };
            self.timers.by(Timer::Lease, not_before);
        }
    }

    /// The lease is another's now. A fetch that has brought something goes on, for the rest is on
    /// its way.
    pub(super) fn on_lease_lost(&mut self, slot: BlobSlot, chunk: u32) {
        self.leases
            .retain(|lease| (lease.blob, lease.chunk) != (slot, chunk));
        if let Some(transfer) = self.transfers.of_chunk(slot, chunk)
            && transfer.permission == Permission::Leased
            && transfer.received == 0
        {
            let id = transfer.id;
            self.cancel_transfer(id);
        }
    }

    /// The chunk is here: if there was a lease on it, it is over.
    pub(super) fn lease_done(&mut self, slot: BlobSlot, chunk: u32) {
        if self.end_lease(slot, chunk) {
            self.outputs
                .push_back(Output::LeaseDone { blob: slot, chunk });
        }
    }

    /// The origin did not give the chunk.
    pub(super) fn lease_failed(&mut self, now: Time, slot: BlobSlot, chunk: u32) {
        if self.end_lease(slot, chunk) {
            self.outputs
                .push_back(Output::LeaseFailed { blob: slot, chunk });
        }
        if let Some(ready_at) = self.health.ready_at() {
            self.timers.by(Timer::Lease, ready_at.max(now));
        }
    }

    /// Gives back everything that hangs on a blob nobody waits for.
    pub(super) fn drop_leases(&mut self, slot: BlobSlot) {
        while let Some(lease) = self.leases.iter().position(|lease| lease.blob == slot) {
            let lease = self.leases.swap_remove(lease);
            self.outputs.push_back(Output::LeaseFailed {
                blob: slot,
                chunk: lease.chunk,
            });
        }
        self.drop_request(slot);
    }

    /// Requests that went to a tracker which is gone will not be answered.
    pub(super) fn void_requests(&mut self, now: Time) {
        for slot in &self.wanted {
            if let Some(blob) = self.blobs.get_mut(*slot) {
                blob.asked = Asked::No { not_before: now };
            }
        }
        self.leases.clear();
    }

    /// Parks requests where there is something to ask for, and withdraws those that are needed no
    /// more.
    pub(super) fn seek_leases(&mut self, now: Time) {
        self.wants_leases = false;
        if !self.is_tracker_reachable {
            return;
        }
        let mut asked = 0;
        for at in 0..self.wanted.len() {
            let slot = self.wanted[at];
            let Some(blob) = self.blobs.get_mut(slot) else {
                continue;
            };
            if blob.unseen == 0 {
                self.drop_request(slot);
                continue;
            }
            asked += 1;
            if asked <= ASKED_BLOBS {
                self.seek_lease(now, slot);
            }
        }
    }

    fn seek_lease(&mut self, now: Time, slot: BlobSlot) {
        let starves_at = self.starves_at(slot);
        let is_abandoned = self.is_abandoned(slot);
        let Some(blob) = self.blobs.get_mut(slot) else {
            return;
        };
        let is_alone = is_abandoned || (blob.starved_log2 >= SURELY_ALONE && !blob.is_offered());
        let running = self.transfers.of_blob(slot).count();
        let is_starving = if is_alone {
            running < self.slots as usize
        } else {
            starves_at <= now && running == 0
        };
        let not_before = match blob.asked {
            Asked::Parked { starving: true, .. } => return,
            Asked::Parked {
                is_outdated: true,
                since,
                ..
            } if !is_starving => since + ASK_AGAIN,
            Asked::Parked { .. } if !is_starving => {
                return self
                    .timers
                    .by(Timer::Lease, starves_at.max(now + ASK_AGAIN));
            }
            Asked::Parked { .. } => now,
            Asked::No { not_before } => not_before,
        };
        let not_before = not_before.max(self.health.ready_at().unwrap_or(Time::MAX));
        if not_before > now {
            return self.timers.by(Timer::Lease, not_before);
        }
        self.timers
            .by(Timer::Lease, starves_at.max(now + ASK_AGAIN));
        let missing = blob.missing();
        if missing.is_empty() {
            return;
        }
        blob.asked = Asked::Parked {
            starving: is_starving,
            since: now,
            is_outdated: false,
        };
        self.outputs.push_back(Output::LeaseTake {
            blob: slot,
            missing,
            starving: is_starving,
        });
    }

    /// Renews the leases whose downloads moved since the last time.
    pub(super) fn renew_leases(&mut self, now: Time) {
        for at in 0..self.leases.len() {
            let Lease {
                blob,
                chunk,
                term,
                renew_at,
                renewed,
            } = self.leases[at];
            if renew_at <= now {
                let mut transfers = self.transfers.of_blob(blob);
                let received = transfers
                    .find(|transfer| transfer.chunk == chunk)
                    .map_or(0, |t| t.received);
                let lease = &mut self.leases[at];
                if received > renewed {
                    lease.renewed = received;
                    self.outputs.push_back(Output::LeaseRenew {
                        blob,
                        chunk,
                        received,
                    });
                }
                lease.renew_at = now + term / 4;
            }
            self.timers.by(Timer::Lease, self.leases[at].renew_at);
        }
    }

    fn drop_request(&mut self, slot: BlobSlot) {
        if let Some(blob) = self.blobs.get_mut(slot)
            && matches!(blob.asked, Asked::Parked { .. })
        {
            blob.asked = Asked::default();
            self.outputs.push_back(Output::LeaseDrop { blob: slot });
        }
    }

    fn end_lease(&mut self, slot: BlobSlot, chunk: u32) -> bool {
        let before = self.leases.len();
        self.leases
            .retain(|lease| (lease.blob, lease.chunk) != (slot, chunk));
        self.wants_leases = true;
        self.leases.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swarm::fixture::{PEER, meet, ms, outputs, wanting};
    use crate::swarm::{Batch, Have, Input};

    #[test]
    fn what_went_with_a_neighbour_is_asked_for_again() {
        let mut machine = wanting(8);
        let mut batch = Batch::default();
        batch.push(0);
        meet(&mut machine, ms(0), PEER, Have::Chunks(batch));
        assert_eq!(asked_for(&mut machine), vec![8], "before anybody was met");
        machine.handle(ms(50), Input::Disconnected { peer: PEER });
        machine.handle_timeout(ms(99));
        assert!(asked_for(&mut machine).is_empty(), "not too often");
        machine.handle_timeout(ms(100));
        assert_eq!(asked_for(&mut machine), vec![8]);
    }

    /// How many chunks each request for a lease names.
    fn asked_for(machine: &mut PeerMachine) -> Vec<u32> {
        let missing = |output| match output {
            Output::LeaseTake { missing, .. } => Some(missing.count()),
            _ => None,
        };
        outputs(machine).into_iter().filter_map(missing).collect()
    }
}
