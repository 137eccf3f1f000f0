//! Leases: asking the tracker for the right to fetch from the origin, and keeping it.
//!
//! For at most [`MAX_REQUESTS`] wanted blobs at a time, in the order in which they were wanted, a
//! request is parked at the tracker while there are chunks that neither we nor any neighbour holds.
//! Small blobs have requests beside these: the configuration of an image, which its runtime reads
//! first, must not wait until large layers are in the swarm.
//! A neighbour that leaves may have been the only one with a chunk: then the request is made again,
//! and the tracker learns at once which chunks went with it. A lease is renewed while its download
//! moves; while it does not, the tracker is told that this peer still waits for the origin.

use core::time::Duration;

use super::context::{Context, Work};
use super::downloads::Downloads;
use super::io::{BlobSlot, Output};
use super::neighbours::Neighbours;
use super::per_blob::PerBlob;
use super::timers::Timer;
use crate::origin_region::OriginRegion;
use crate::time::Time;

/// Blobs for which a request is parked at once: the next blob's copy from the origin begins while
/// the last chunks of the first are on their way, and all peers still start with the same blob.
pub(super) const MAX_REQUESTS: usize = 2;
/// As [`MAX_REQUESTS`], for small blobs.
const MAX_SMALL_REQUESTS: usize = 8;
/// A blob of one chunk is small up to this size, in bytes. One that cannot be cut into chunks may
/// be of any size.
const SMALL_BLOB_LEN: u64 = 1 << 20;
/// After so many leases in a row for starving requests, a pull without any neighbour that holds a
/// chunk holds several leases at once. A pull whose dials are not answered does so from the start.
const STARVED_LEASES_WHEN_ALONE: i32 = 3;
/// Minimum time between two requests for one blob.
const REQUEST_INTERVAL: Duration = Duration::from_millis(100);
/// Chunk times that are added to the starving timeout: a chunk may take so long on its way through
/// the swarm before something must be wrong.
const STARVING_CHUNK_TIMES: u32 = 4;
/// The starving timeout is halved this many times at most.
const MAX_HALVINGS: i32 = 6;
/// The starving timeout is doubled this many times while other blobs have all download slots.
const BUSY_DOUBLINGS: i32 = 3;

/// The state of the request for a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    /// None is under way; the next not before a time.
    None { not_before: Time },
    /// The tracker has it.
    Parked {
        is_starving: bool,
        since: Time,
        /// [`BlobExchange::departures`] when it was made: the request is outdated once a neighbour
        /// has left, because chunks that only that neighbour held are missing now.
        ///
        /// [`BlobExchange::departures`]: super::blob_exchange::BlobExchange::departures
        departures: u64,
    },
}

/// The request for one blob.
#[derive(Clone, Copy, Debug)]
struct LeaseRequest {
    state: RequestState,
    /// How often in a row a starving request brought a lease, with no chunk from neighbours in
    /// between: the starving timeout is halved as often.
    starved_leases: i32,
}

impl LeaseRequest {
    const NEW: Self = Self {
        state: RequestState::None {
            not_before: Time::ZERO,
        },
        starved_leases: 0,
    };

    fn is_parked(&self) -> bool {
        matches!(self.state, RequestState::Parked { .. })
    }
}

/// A lease that we hold.
#[derive(Debug)]
struct HeldLease {
    blob: BlobSlot,
    chunk: u32,
    term: Duration,
    renew_at: Time,
    /// Bytes received when it was last renewed.
    reported: u64,
}

/// The leases held and the requests for more.
#[derive(Debug, Default)]
pub(super) struct Leases {
    held: Vec<HeldLease>,
    requests: PerBlob<LeaseRequest>,
}

impl Leases {
    pub(super) fn add_blob(&mut self, slot: BlobSlot) {
        self.requests.insert(slot, LeaseRequest::NEW);
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.requests.remove(slot);
    }

    /// The blob is wanted from now on, or a neighbour delivered a chunk of it.
    pub(super) fn reset_starving(&mut self, slot: BlobSlot) {
        if let Some(request) = self.requests.get_mut(slot) {
            request.starved_leases = 0;
        }
    }

    /// The leases held.
    pub(super) fn held(&self) -> impl Iterator<Item = (BlobSlot, u32)> + '_ {
        self.held.iter().map(|lease| (lease.blob, lease.chunk))
    }

    /// Whether the tracker has a request for the blob.
    pub(super) fn is_parked(&self, slot: BlobSlot) -> bool {
        self.requests.get(slot).is_some_and(LeaseRequest::is_parked)
    }

    /// Takes up a lease; false if it is not used.
    pub(super) fn on_granted(
        &mut self,
        ctx: &mut Context,
        slot: BlobSlot,
        chunk: u32,
        term: Duration,
        may_ask_origin: bool,
    ) -> bool {
        ctx.due.add(Work::SeekLeases);
        let (Some(blob), Some(request)) = (ctx.blobs.get(slot), self.requests.get_mut(slot)) else {
            return false;
        };
        if let RequestState::Parked {
            is_starving: true, ..
        } = request.state
        {
            request.starved_leases += 1;
        }
        request.state = RequestState::None {
            not_before: ctx.now,
        };
        if chunk >= blob.chunks() {
            return false;
        }
        if blob.held().contains(chunk) || blob.availability(chunk) > 0 {
            ctx.output(Output::LeaseDone {
                blob: slot,
                chunk,
                from: None,
            });
            return false;
        }
        if !blob.is_wanted() || !may_ask_origin {
            ctx.output(Output::LeaseFailed { blob: slot, chunk });
            return false;
        }
        let renew_at = ctx.now + term / 4;
        self.held.push(HeldLease {
            blob: slot,
            chunk,
            term,
            renew_at,
            reported: 0,
        });
        ctx.timers.wake_by(Timer::Lease, renew_at);
        // Renewed at once: until then the tracker cannot tell the holder from a dead peer.
        ctx.output(Output::LeaseRenew {
            blob: slot,
            chunk,
            received: 0,
            from: None,
        });
        true
    }

    /// The origin of a lease that was just granted is known to be out: the tracker may move the lease
    /// at once.
    pub(super) fn report_waiting(&self, ctx: &mut Context, slot: BlobSlot, chunk: u32) {
        ctx.output(Output::LeaseWaiting {
            blob: slot,
            chunk,
            from: None,
        });
    }

    /// A request came back without a lease.
    pub(super) fn on_wait(&mut self, ctx: &mut Context, slot: BlobSlot, retry_after: Duration) {
        if let Some(request) = self.requests.get_mut(slot) {
            let not_before = ctx.now + retry_after.max(REQUEST_INTERVAL);
            request.state = RequestState::None { not_before };
            ctx.timers.wake_by(Timer::Lease, not_before);
        }
    }

    /// The tracker gave the lease to another peer.
    pub(super) fn on_lost(&mut self, slot: BlobSlot, chunk: u32) {
        self.remove(slot, chunk);
    }

    /// The chunk is here: a lease on it has served its purpose.
    pub(super) fn on_chunk_received(
        &mut self,
        ctx: &mut Context,
        slot: BlobSlot,
        chunk: u32,
        sent_from: Option<OriginRegion>,
    ) {
        ctx.due.add(Work::SeekLeases);
        if self.remove(slot, chunk) {
            ctx.output(Output::LeaseDone {
                blob: slot,
                chunk,
                from: sent_from,
            });
        }
    }

    /// No origin gave the chunk.
    pub(super) fn on_fetch_failed(&mut self, ctx: &mut Context, slot: BlobSlot, chunk: u32) {
        ctx.due.add(Work::SeekLeases);
        if self.remove(slot, chunk) {
            ctx.output(Output::LeaseFailed { blob: slot, chunk });
        }
    }

    /// Returns the leases of a blob and withdraws the request for it.
    pub(super) fn release_blob(&mut self, ctx: &mut Context, slot: BlobSlot) {
        while let Some(at) = self.held.iter().position(|lease| lease.blob == slot) {
            let lease = self.held.swap_remove(at);
            ctx.output(Output::LeaseFailed {
                blob: slot,
                chunk: lease.chunk,
            });
        }
        self.withdraw(ctx, slot);
    }

    /// The tracker is gone: requests will not be answered, and leases mean nothing.
    pub(super) fn on_tracker_lost(&mut self, ctx: &Context) {
        for slot in ctx.blobs.wanted() {
            if let Some(request) = self.requests.get_mut(*slot) {
                request.state = RequestState::None {
                    not_before: ctx.now,
                };
            }
        }
        self.held.clear();
    }

    /// Parks requests for blobs with unavailable chunks, and withdraws those that are needed no
    /// longer.
    pub(super) fn seek(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &Downloads,
    ) {
        ctx.due.remove(Work::SeekLeases);
        if !ctx.has_tracker {
            return;
        }
        let (mut requests, mut small_requests) = (0, 0);
        for at in 0..ctx.blobs.wanted().len() {
            let slot = ctx.blobs.wanted()[at];
            let Some(blob) = ctx.blobs.get(slot) else {
                continue;
            };
            if blob.unavailable() == 0 {
                self.withdraw(ctx, slot);
                continue;
            }
            let is_small = blob.chunks() == 1 && blob.chunk_len(0) <= SMALL_BLOB_LEN;
            let (count, limit) = if is_small {
                (&mut small_requests, MAX_SMALL_REQUESTS)
            } else {
                (&mut requests, MAX_REQUESTS)
            };
            *count += 1;
            if *count <= limit {
                self.seek_for(ctx, neighbours, downloads, slot);
            }
        }
    }

    /// Renews the leases whose downloads moved since the last time, and reports the others.
    pub(super) fn renew(&mut self, ctx: &mut Context, downloads: &Downloads) {
        for lease in &mut self.held {
            if lease.renew_at <= ctx.now {
                let (received, from) = downloads.received(lease.blob, lease.chunk);
                let has_moved = received > lease.reported;
                // A tracker that knows soon that the holders of leases wait can move them soon.
                let next = lease.term / if has_moved { 4 } else { 8 };
                if has_moved {
                    lease.reported = received;
                    ctx.output(Output::LeaseRenew {
                        blob: lease.blob,
                        chunk: lease.chunk,
                        received,
                        from,
                    });
                } else {
                    ctx.output(Output::LeaseWaiting {
                        blob: lease.blob,
                        chunk: lease.chunk,
                        from,
                    });
                }
                lease.renew_at = ctx.now + next;
            }
            ctx.timers.wake_by(Timer::Lease, lease.renew_at);
        }
    }

    /// Makes the request for a blob with unavailable chunks, if it is time for one.
    fn seek_for(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &Downloads,
        slot: BlobSlot,
    ) {
        let (Some(blob), Some(pull), Some(request)) = (
            ctx.blobs.get(slot),
            downloads.pull(slot),
            self.requests.get_mut(slot),
        ) else {
            return;
        };
        let timeout = ctx.config.starving_timeout + blob.chunk_time() * STARVING_CHUNK_TIMES;
        let mut doublings = (-request.starved_leases).max(-MAX_HALVINGS);
        if !downloads.has_free_slot(ctx) {
            // The blob may only have to wait for the peer's other blobs.
            doublings += BUSY_DOUBLINGS;
        }
        let starving_at = pull.deadline(timeout, doublings);
        let is_alone = neighbours.is_abandoned(ctx, slot)
            || (request.starved_leases >= STARVED_LEASES_WHEN_ALONE && !blob.is_offered());
        let transfers = downloads.count(slot);
        let is_starving = if is_alone {
            transfers < ctx.slots as usize
        } else {
            starving_at <= ctx.now && transfers == 0
        };
        let look_again_at = starving_at.max(ctx.now + REQUEST_INTERVAL);
        let not_before = match request.state {
            RequestState::None { not_before } => not_before,
            RequestState::Parked {
                is_starving: true, ..
            } => return,
            RequestState::Parked { .. } if is_starving => ctx.now,
            RequestState::Parked {
                since, departures, ..
            } if departures != blob.departures() => since + REQUEST_INTERVAL,
            RequestState::Parked { .. } => {
                return ctx.timers.wake_by(Timer::Lease, look_again_at);
            }
        };
        if !ctx.has_origin {
            return;
        }
        let not_before = not_before.max(pull.origin_retry_at());
        if not_before > ctx.now {
            return ctx.timers.wake_by(Timer::Lease, not_before);
        }
        ctx.timers.wake_by(Timer::Lease, look_again_at);
        let missing = blob.unavailable_map();
        if missing.is_empty() {
            return;
        }
        request.state = RequestState::Parked {
            is_starving,
            since: ctx.now,
            departures: blob.departures(),
        };
        ctx.output(Output::LeaseTake {
            blob: slot,
            missing,
            starving: is_starving,
        });
    }

    fn withdraw(&mut self, ctx: &mut Context, slot: BlobSlot) {
        if let Some(request) = self.requests.get_mut(slot)
            && request.is_parked()
        {
            request.state = LeaseRequest::NEW.state;
            ctx.output(Output::LeaseDrop { blob: slot });
        }
    }

    /// Removes a lease; false if it was not held.
    fn remove(&mut self, slot: BlobSlot, chunk: u32) -> bool {
        let before = self.held.len();
        self.held
            .retain(|lease| (lease.blob, lease.chunk) != (slot, chunk));
        self.held.len() < before
    }
}
