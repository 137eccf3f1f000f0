//! The fallback to the origin: fetching without a lease when the swarm does not deliver.
//!
//! A wanted blob that could be fetched and has not moved for its timeout takes its lowest missing
//! chunk from an origin. The timeout is long while a tracker answers, because then another peer
//! holds the lease and the chunk is on its way; without tracker and neighbours it is zero. It
//! shrinks with each chunk that the origin delivers this way, and grows with each failure.
//!
//! Without a tracker the known peers share the work by rendezvous hashing: each chunk is fetched at
//! once by the peer that ranks highest for it among those it knows.

use core::time::Duration;

use super::context::Context;
use super::downloads::Downloads;
use super::io::{BlobSlot, ChunkSource};
use super::neighbours::Neighbours;
use super::per_blob::PerBlob;
use super::rng::mix;
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
/// Maximum number of concurrent fetches without a lease while there are neighbours.
const MAX_AMONG_NEIGHBOURS: usize = 1;

/// When each blob falls back to the origin.
#[derive(Debug, Default)]
pub(super) struct OriginFallback {
    /// By how much the timeout of each blob differs from the configured one, as a power of two.
    timeout_log2: PerBlob<i32>,
}

impl OriginFallback {
    /// The blob is added, or wanted from now on.
    pub(super) fn reset(&mut self, slot: BlobSlot) {
        self.timeout_log2.insert(slot, 0);
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.timeout_log2.remove(slot);
    }

    /// An origin delivered a chunk without a lease: the next one is fetched sooner.
    pub(super) fn on_received(&mut self, ctx: &mut Context, slot: BlobSlot) {
        if let Some(log2) = self.timeout_log2.get_mut(slot) {
            *log2 -= 1;
        }
        if !ctx.has_tracker {
            // No tracker decides who fetches next: a pull on its own must not wait for a timer.
            ctx.timers.wake_by(Timer::Fallback, ctx.now);
        }
    }

    /// No origin delivered a chunk without a lease: the next one is fetched later.
    pub(super) fn on_failed(&mut self, ctx: &mut Context, slot: BlobSlot) {
        if let Some(log2) = self.timeout_log2.get_mut(slot) {
            *log2 += 1;
        }
        ctx.timers.wake_by(Timer::Fallback, ctx.now);
    }

    /// Fetches from the origin for all pulls that have waited too long, and sets the next deadline.
    pub(super) fn run(
        &self,
        ctx: &mut Context,
        neighbours: &Neighbours,
        downloads: &mut Downloads,
    ) {
        for at in 0..ctx.blobs.wanted().len() {
            let slot = ctx.blobs.wanted()[at];
            if !ctx.has_tracker {
                fetch_ranked(ctx, neighbours, downloads, slot);
            }
            while self.fetch_if_due(ctx, downloads, slot) {}
        }
    }

    /// Starts one fetch if it is time; true if it did, so that another may follow.
    fn fetch_if_due(&self, ctx: &mut Context, downloads: &mut Downloads, slot: BlobSlot) -> bool {
        let (Some(blob), Some(pull)) = (ctx.blobs.get(slot), downloads.pull(slot)) else {
            return false;
        };
        let is_alone = blob.neighbours().is_empty() && !ctx.has_tracker;
        let (at, max_fetches) = if is_alone {
            (pull.moved_at(), ctx.slots as usize)
        } else {
            (self.deadline(ctx, downloads, slot), MAX_AMONG_NEIGHBOURS)
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
        if is_moving || !downloads.has_free_slot(ctx) || downloads.fallbacks() >= max_fetches {
            let look_again_at = ctx.now + ctx.config.fallback_timeout / 4;
            ctx.timers.wake_by(Timer::Fallback, look_again_at);
            return false;
        }
        let Some(chunk) = blob.lowest_missing() else {
            return false;
        };
        fetch(ctx, downloads, slot, chunk);
        true
    }

    /// When a blob that does not move falls back.
    fn deadline(&self, ctx: &Context, downloads: &Downloads, slot: BlobSlot) -> Time {
        let (Some(blob), Some(pull), Some(log2)) = (
            ctx.blobs.get(slot),
            downloads.pull(slot),
            self.timeout_log2.get(slot),
        ) else {
            return Time::MAX;
        };
        let configured = if ctx.has_tracker {
            ctx.config.fallback_timeout_with_tracker
        } else {
            ctx.config.fallback_timeout
        };
        // A blob of one chunk, whatever its size, gives a reader nothing before all of it is here.
        let is_waited_for = blob.is_single_chunk() && pull.cursor().is_some();
        let on_the_way = if is_waited_for {
            Duration::ZERO
        } else {
            blob.chunk_time() * TIMEOUT_CHUNK_TIMES
        };
        let log2 = (*log2).clamp(MIN_TIMEOUT_LOG2, MAX_TIMEOUT_LOG2);
        pull.deadline(configured + on_the_way, log2)
    }
}

/// Fetches the chunks for which this peer ranks highest among the blob's neighbours.
fn fetch_ranked(
    ctx: &mut Context,
    neighbours: &Neighbours,
    downloads: &mut Downloads,
    slot: BlobSlot,
) {
    while downloads.fallbacks() < ctx.slots as usize {
        let (Some(blob), Some(pull)) = (ctx.blobs.get(slot), downloads.pull(slot)) else {
            return;
        };
        let retry_at = pull.origin_retry_at();
        if ctx.has_origin && retry_at > ctx.now {
            ctx.timers.wake_by(Timer::Fallback, retry_at);
        }
        if pull.is_paused(ctx.now)
            || blob.neighbours().is_empty()
            || !downloads.may_ask_origin(ctx, slot)
        {
            return;
        }
        let keys = blob.neighbours().iter().map(|peer| neighbours.key(*peer));
        let keys: Vec<u64> = keys.collect();
        let ranks_highest = |chunk: &u32| {
            let rank = |key: u64| mix(u64::from(*chunk), key);
            let own = rank(ctx.config.key);
            keys.iter().all(|key| rank(*key) <= own)
        };
        let Some(chunk) = blob.unavailable_chunks().find(ranks_highest) else {
            return;
        };
        fetch(ctx, downloads, slot, chunk);
    }
}

/// Fetches a chunk from an origin without a lease.
fn fetch(ctx: &mut Context, downloads: &mut Downloads, slot: BlobSlot, chunk: u32) {
    let source = ChunkSource::Origin;
    downloads.start(ctx, slot, chunk, source, Permission::Fallback);
}
