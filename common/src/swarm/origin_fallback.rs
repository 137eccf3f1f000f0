//! The fallback to the origin: fetching without a lease when the swarm does not deliver.
//!
//! A wanted blob that could be fetched and has not moved for its timeout takes its lowest missing
//! chunk from an origin. The timeout is long while a tracker answers, because then another peer
//! holds the lease and the chunk is on its way; without tracker and neighbours it is zero. It
//! shrinks with each chunk that the origin delivers this way, and grows with each failure.
//!
//! Without a tracker, chunks that no neighbour holds are fetched as [`Claims`] says, and only
//! chunks that neighbours hold and do not deliver have a timeout.

use core::time::Duration;

use super::blob_exchange::BlobExchange;
use super::claims::Claims;
use super::context::Context;
use super::downloads::Downloads;
use super::io::{BlobSlot, ChunkSource};
use super::neighbours::Neighbours;
use super::per_blob::PerBlob;
use super::pull::Pull;
use super::timers::Timer;
use super::transfer::Permission;
use crate::time::Time;

/// The timeout is the configured one multiplied by two to the power of at most this.
const MAX_TIMEOUT_LOG2: i32 = 3;
/// Lower bound of the same exponent.
const MIN_TIMEOUT_LOG2: i32 = -6;
/// Chunk times that are added to the timeout: a chunk may take so long on its way through the swarm
/// before something must be wrong.
const TIMEOUT_CHUNK_TIMES: u32 = 16;
/// Maximum number of concurrent fetches without a lease while there are neighbours, except those
/// of claimed chunks.
const MAX_AMONG_NEIGHBOURS: usize = 1;
/// A pull whose candidates are being dialed is looked at so many times in the dial's timeout.
const DIAL_LOOKS: u32 = 8;

/// When each blob falls back to the origin.
#[derive(Debug, Default)]
pub(super) struct OriginFallback {
    waits: PerBlob<Wait>,
}

/// The wait of one blob for the swarm.
#[derive(Clone, Copy, Debug, Default)]
struct Wait {
    /// By how much the timeout differs from the configured one, as a power of two.
    timeout_log2: i32,
    /// Without a tracker: since when neighbours hold a missing chunk, as far as this is known.
    offered_since: Option<Time>,
}

impl OriginFallback {
    /// The blob is added, or wanted from now on.
    pub(super) fn reset(&mut self, slot: BlobSlot) {
        self.waits.insert(slot, Wait::default());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.waits.remove(slot);
    }

    /// An origin delivered a chunk without a lease. If it was due because of the timeout, the next
    /// one is fetched sooner.
    pub(super) fn on_received(&mut self, ctx: &mut Context, slot: BlobSlot, was_claimed: bool) {
        if let Some(wait) = self.waits.get_mut(slot).filter(|_| !was_claimed) {
            wait.timeout_log2 -= 1;
        }
        if !ctx.has_tracker {
            // No tracker decides who fetches next: a pull on its own must not wait for a timer.
            ctx.timers.wake_by(Timer::Fallback, ctx.now);
        }
    }

    /// No origin delivered a chunk without a lease. If it was due because of the timeout, the next
    /// one is fetched later.
    pub(super) fn on_failed(&mut self, ctx: &mut Context, slot: BlobSlot, was_claimed: bool) {
        if let Some(wait) = self.waits.get_mut(slot).filter(|_| !was_claimed) {
            wait.timeout_log2 += 1;
        }
        ctx.timers.wake_by(Timer::Fallback, ctx.now);
    }

    /// Fetches from the origin for all pulls that have waited too long, and sets the next deadline.
    pub(super) fn run(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &mut Downloads,
        claims: &mut Claims,
    ) {
        for at in 0..ctx.blobs.wanted().len() {
            let slot = ctx.blobs.wanted()[at];
            if !ctx.has_tracker {
                fetch_claimed(ctx, neighbours, downloads, claims, slot);
            }
            while self.fetch_if_due(ctx, neighbours, downloads, slot) {}
        }
    }

    /// Starts one fetch if it is time; true if it did, so that another may follow.
    fn fetch_if_due(
        &mut self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &mut Downloads,
        slot: BlobSlot,
    ) -> bool {
        let (Some(blob), Some(pull), Some(wait)) = (
            ctx.blobs.get(slot),
            downloads.pull(slot),
            self.waits.get_mut(slot),
        ) else {
            return false;
        };
        let is_alone = blob.neighbours().is_empty() && !ctx.has_tracker;
        if is_alone && neighbours.awaits_candidate(slot) {
            // It may know a peer that is a neighbour in a moment.
            let look_again_at = ctx.now + ctx.config.dial_timeout / DIAL_LOOKS;
            ctx.timers.wake_by(Timer::Fallback, look_again_at);
            return false;
        }
        let (at, max_fetches) = if is_alone {
            (pull.moved_at(), ctx.slots as usize)
        } else {
            (wait.deadline(ctx, blob, pull), MAX_AMONG_NEIGHBOURS)
        };
        if !ctx.has_origin {
            return false;
        }
        let deadline = at.max(pull.paused_until()).max(pull.origin_retry_at());
        if deadline > ctx.now {
            ctx.timers.wake_by(Timer::Fallback, deadline);
            return false;
        }
        let is_moving = !is_alone && downloads.count(slot) > 0;
        if is_moving || !downloads.has_free_slot(ctx) || downloads.unleased() >= max_fetches {
            let look_again_at = ctx.now + ctx.config.fallback_timeout / 4;
            ctx.timers.wake_by(Timer::Fallback, look_again_at);
            return false;
        }
        let chunk = if is_alone || ctx.has_tracker {
            blob.lowest_missing()
        } else {
            blob.lowest_offered()
        };
        let Some(chunk) = chunk else {
            return false;
        };
        fetch(ctx, downloads, slot, chunk, Permission::Fallback);
        true
    }
}

impl Wait {
    /// When a blob that does not move falls back.
    fn deadline(&mut self, ctx: &Context, blob: &BlobExchange, pull: &Pull) -> Time {
        // A blob of one chunk, whatever its size, gives a reader nothing before all of it is here.
        let is_waited_for = blob.is_single_chunk() && pull.cursor().is_some();
        let on_the_way = if is_waited_for {
            Duration::ZERO
        } else {
            blob.chunk_time() * TIMEOUT_CHUNK_TIMES
        };
        let log2 = self.timeout_log2.clamp(MIN_TIMEOUT_LOG2, MAX_TIMEOUT_LOG2);
        if ctx.has_tracker {
            return pull.deadline(ctx.config.fallback_timeout_with_tracker + on_the_way, log2);
        }
        let timeout = ctx.config.fallback_timeout + on_the_way;
        if blob.lowest_offered().is_none() {
            self.offered_since = None;
            return ctx.now + timeout;
        }
        let offered_since = *self.offered_since.get_or_insert(ctx.now);
        pull.deadline(timeout, log2)
            .max(offered_since + pull.spread(timeout, log2))
    }
}

/// Fetches the chunks that it is this peer's turn to claim.
fn fetch_claimed(
    ctx: &mut Context,
    neighbours: &Neighbours,
    downloads: &mut Downloads,
    claims: &mut Claims,
    slot: BlobSlot,
) {
    loop {
        let (Some(blob), Some(pull)) = (ctx.blobs.get(slot), downloads.pull(slot)) else {
            return;
        };
        let retry_at = pull.origin_retry_at().max(pull.paused_until());
        if retry_at > ctx.now {
            ctx.timers.wake_by(Timer::Fallback, retry_at);
        }
        let may_fetch = ctx.has_origin
            && retry_at <= ctx.now
            && !blob.neighbours().is_empty()
            && downloads.unleased() < ctx.slots as usize;
        let Some(chunk) = claims.next_chunk(ctx, neighbours, downloads, slot, may_fetch) else {
            return;
        };
        fetch(ctx, downloads, slot, chunk, Permission::Claimed);
    }
}

/// Fetches a chunk from an origin without a lease.
fn fetch(
    ctx: &mut Context,
    downloads: &mut Downloads,
    slot: BlobSlot,
    chunk: u32,
    permission: Permission,
) {
    downloads.start(ctx, slot, chunk, ChunkSource::Origin, permission);
}
