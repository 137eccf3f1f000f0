//! Telling neighbours about newly held chunks: the first one at once, later ones in batches.

use core::time::Duration;

use super::context::Context;
use super::io::{BlobSlot, HaveBatch, Output};
use super::per_blob::PerBlob;
use super::timers::Timer;
use crate::time::Time;

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
        let interval = batch_interval(ctx, slot);
        let Some(batcher) = self.batchers.get_mut(slot) else {
            return;
        };
        if let Some(batch) = batcher.add(ctx.now, chunk, interval) {
            ctx.output(Output::Have { blob: slot, batch });
        } else if let Some(due_at) = batcher.due_at() {
            ctx.timers.wake_by(Timer::Have, due_at);
            if !self.waiting.contains(&slot) {
                self.waiting.push(slot);
            }
        }
    }

    /// Sends the batches whose time has come.
    pub(super) fn send_due(&mut self, ctx: &mut Context) {
        self.waiting.retain(|slot| {
            let interval = batch_interval(ctx, *slot);
            let Some(batcher) = self.batchers.get_mut(*slot) else {
                return false;
            };
            if let Some(batch) = batcher.take_due(ctx.now, interval) {
                ctx.output(Output::Have { blob: *slot, batch });
            }
            let due_at = batcher.due_at();
            if let Some(due_at) = due_at {
                ctx.timers.wake_by(Timer::Have, due_at);
            }
            due_at.is_some()
        });
    }

    /// Drops the chunks of a blob that are not announced yet: a chunk map names them.
    pub(super) fn clear(&mut self, slot: BlobSlot) {
        if let Some(batcher) = self.batchers.get_mut(slot) {
            batcher.clear();
        }
    }
}

/// Minimum time between two batches of a blob.
fn batch_interval(ctx: &Context, slot: BlobSlot) -> Duration {
    ctx.config.have_interval.min(ctx.blobs.chunk_time(slot) / 2)
}

/// The chunks of one blob that are held and not announced yet.
#[derive(Debug, Default)]
struct HaveBatcher {
    batch: HaveBatch,
    /// No batch before this.
    not_before: Time,
}

impl HaveBatcher {
    /// Adds a chunk; the batch to send now, if its time has come or it is full.
    fn add(&mut self, now: Time, chunk: u32, interval: Duration) -> Option<HaveBatch> {
        self.batch.push(chunk);
        if self.batch.is_full() {
            Some(self.take(now, interval))
        } else {
            self.take_due(now, interval)
        }
    }

    /// The batch, if there is one and its time has come.
    fn take_due(&mut self, now: Time, interval: Duration) -> Option<HaveBatch> {
        (!self.batch.is_empty() && self.not_before <= now).then(|| self.take(now, interval))
    }

    fn clear(&mut self) {
        self.batch = HaveBatch::default();
    }

    /// When [`Self::take_due`] will return a batch.
    fn due_at(&self) -> Option<Time> {
        (!self.batch.is_empty()).then_some(self.not_before)
    }

    fn take(&mut self, now: Time, interval: Duration) -> HaveBatch {
        self.not_before = now + interval;
        core::mem::take(&mut self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    #[test]
    fn first_chunk_is_sent_at_once_and_later_ones_per_interval() {
        let mut batcher = HaveBatcher::default();
        let first = batcher
            .add(Time::ZERO, 7, INTERVAL)
            .map(|batch| batch.chunks().to_vec());
        assert_eq!(first, Some(vec![7]));
        assert_eq!(batcher.add(Time::ZERO, 8, INTERVAL), None);
        assert_eq!(batcher.add(Time::ZERO, 9, INTERVAL), None);
        assert_eq!(batcher.due_at(), Some(Time::ZERO + INTERVAL));
        assert_eq!(batcher.take_due(Time::ZERO, INTERVAL), None);
        let second = batcher
            .take_due(Time::ZERO + INTERVAL, INTERVAL)
            .map(|batch| batch.chunks().to_vec());
        assert_eq!(second, Some(vec![8, 9]));
        assert_eq!(batcher.due_at(), None);
    }

    #[test]
    fn full_batch_is_sent_at_once() {
        let mut batcher = HaveBatcher::default();
        batcher.add(Time::ZERO, 0, INTERVAL);
        let full = (1..=8)
            .filter_map(|chunk| batcher.add(Time::ZERO, chunk, INTERVAL))
            .next();
        assert_eq!(
            full.map(|batch| batch.chunks().to_vec()),
            Some((1..=8).collect())
        );
    }
}
