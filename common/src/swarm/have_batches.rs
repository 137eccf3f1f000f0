//! Telling neighbours about newly held chunks, in batches.
//!
//! A chunk that few neighbours hold is announced at once, or soon after the batch before it. One
//! that many of them hold is available elsewhere, so it waits for a full batch, at most a second.
//! That saves most messages: a peer gets most chunks when many neighbours have them.

use core::time::Duration;

use super::context::Context;
use super::io::{BlobSlot, HaveBatch, Output};
use super::per_blob::PerBlob;
use super::timers::Timer;
use crate::time::Time;

/// A chunk is common if several neighbours hold it, and one in so many of all, or more.
const COMMON_ONE_IN: usize = 4;
/// How long common chunks wait for a full batch: as long as its chunks take at the own rate, and
/// at most [`MAX_COMMON_DELAY`].
const COMMON_CHUNK_TIMES: u32 = HaveBatch::MAX as u32;
const MAX_COMMON_DELAY: Duration = Duration::from_secs(1);

/// The chunks of all blobs that are held and not announced to neighbours yet.
#[derive(Debug, Default)]
pub(super) struct HaveBatches {
    batchers: PerBlob<HaveBatcher>,
    /// Blobs with chunks to announce, each at most once.
    waiting: Vec<BlobSlot>,
}

impl HaveBatches {
    pub(super) fn add_blob(&mut self, slot: BlobSlot) {
        self.batchers.insert(slot, HaveBatcher::default());
    }

    pub(super) fn remove_blob(&mut self, slot: BlobSlot) {
        self.batchers.remove(slot);
    }

    /// Announces a chunk, now or soon.
    pub(super) fn add(&mut self, ctx: &mut Context, slot: BlobSlot, chunk: u32) {
        let (Some(batcher), Some(blob)) = (self.batchers.get_mut(slot), ctx.blobs.get(slot)) else {
            return;
        };
        let holders = usize::from(blob.availability(chunk));
        let due_at = if holders > 1 && holders * COMMON_ONE_IN >= blob.neighbours().len() {
            ctx.now + common_delay(blob.chunk_time())
        } else {
            batcher.sent_at + ctx.config.batch_interval(blob.chunk_time())
        };
        batcher.add(chunk, due_at);
        if let Some(batch) = batcher.take_due(ctx.now) {
            ctx.output(Output::Have { blob: slot, batch });
        } else {
            ctx.timers.wake_by(Timer::Have, batcher.due_at);
            if !self.waiting.contains(&slot) {
                self.waiting.push(slot);
            }
        }
    }

    /// Sends the batches whose time has come.
    pub(super) fn send_due(&mut self, ctx: &mut Context) {
        self.waiting.retain(|slot| {
            let Some(batcher) = self.batchers.get_mut(*slot) else {
                return false;
            };
            if let Some(batch) = batcher.take_due(ctx.now) {
                ctx.output(Output::Have { blob: *slot, batch });
            }
            ctx.timers.wake_by(Timer::Have, batcher.due_at);
            !batcher.batch.is_empty()
        });
    }

    /// Drops the chunks of a blob that are not announced yet: a chunk map names them.
    pub(super) fn clear(&mut self, slot: BlobSlot) {
        if let Some(batcher) = self.batchers.get_mut(slot) {
            batcher.clear();
        }
    }
}

/// How long a common chunk may wait.
fn common_delay(chunk_time: Duration) -> Duration {
    (chunk_time * COMMON_CHUNK_TIMES).min(MAX_COMMON_DELAY)
}

/// The chunks of one blob that are held and not announced yet.
#[derive(Debug)]
struct HaveBatcher {
    batch: HaveBatch,
    /// When the batch is to be sent; [`Time::MAX`] while it is empty.
    due_at: Time,
    /// When the last batch was sent.
    sent_at: Time,
}

impl Default for HaveBatcher {
    fn default() -> Self {
        Self {
            batch: HaveBatch::default(),
            due_at: Time::MAX,
            sent_at: Time::ZERO,
        }
    }
}

impl HaveBatcher {
    /// Adds a chunk that is to be announced by `due_at`.
    fn add(&mut self, chunk: u32, due_at: Time) {
        self.batch.push(chunk);
        self.due_at = self.due_at.min(due_at);
    }

    /// The batch, if it is full or its time has come.
    fn take_due(&mut self, now: Time) -> Option<HaveBatch> {
        (self.batch.is_full() || self.due_at <= now).then(|| {
            self.due_at = Time::MAX;
            self.sent_at = now;
            core::mem::take(&mut self.batch)
        })
    }

    fn clear(&mut self) {
        self.batch = HaveBatch::default();
        self.due_at = Time::MAX;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Time {
        Time::ZERO + Duration::from_millis(millis)
    }

    fn chunks(batch: Option<HaveBatch>) -> Option<Vec<u32>> {
        batch.map(|batch| batch.chunks().to_vec())
    }

    #[test]
    fn batch_is_sent_when_its_first_chunk_is_due() {
        let mut batcher = HaveBatcher::default();
        batcher.add(7, at(400));
        batcher.add(8, at(150));
        batcher.add(9, at(500));
        assert_eq!(chunks(batcher.take_due(at(149))), None);
        assert_eq!(batcher.due_at, at(150));
        assert_eq!(chunks(batcher.take_due(at(150))), Some(vec![7, 8, 9]));
        assert_eq!((batcher.due_at, batcher.sent_at), (Time::MAX, at(150)));
        assert_eq!(chunks(batcher.take_due(at(1000))), None);
    }

    #[test]
    fn full_batch_is_sent_at_once() {
        let mut batcher = HaveBatcher::default();
        for chunk in 0..HaveBatch::MAX as u32 {
            assert_eq!(chunks(batcher.take_due(at(0))), None);
            batcher.add(chunk, at(1000));
        }
        assert_eq!(chunks(batcher.take_due(at(0))), Some((0..8).collect()));
    }

    #[test]
    fn common_chunks_wait_for_a_full_batch_or_a_second() {
        assert_eq!(
            common_delay(Duration::from_millis(33)),
            Duration::from_millis(264)
        );
        assert_eq!(common_delay(Duration::from_secs(2)), MAX_COMMON_DELAY);
    }
}
