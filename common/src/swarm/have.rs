//! When newly held chunks are told: the first at once, then in batches.

use core::time::Duration;

use super::Batch;
use crate::time::Time;

/// Chunks of one blob that are held and not yet told.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    batch: Batch,
    /// No batch before this.
    not_before: Time,
}

impl Outbox {
    /// Adds a chunk; the batch to send now, if it is time or the batch is full.
    pub(super) fn add(&mut self, now: Time, chunk: u32, interval: Duration) -> Option<Batch> {
        self.batch.push(chunk);
        if self.batch.is_full() {
            Some(self.send(now, interval))
        } else {
            self.take_due(now, interval)
        }
    }

    /// The batch, if there is one and it is time.
    pub(super) fn take_due(&mut self, now: Time, interval: Duration) -> Option<Batch> {
        (!self.batch.is_empty() && self.not_before <= now).then(|| self.send(now, interval))
    }

    /// Forgets what was not told: it is said in another way.
    pub(super) fn clear(&mut self) {
        self.batch = Batch::default();
    }

    /// When [`Self::take_due`] will have something.
    pub(super) fn due_at(&self) -> Option<Time> {
        (!self.batch.is_empty()).then_some(self.not_before)
    }

    fn send(&mut self, now: Time, interval: Duration) -> Batch {
        self.not_before = now + interval;
        core::mem::take(&mut self.batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_millis(50);

    #[test]
    fn the_first_goes_at_once_the_next_with_the_interval() {
        let mut outbox = Outbox::default();
        let first = outbox
            .add(Time::ZERO, 7, INTERVAL)
            .map(|batch| batch.chunks().to_vec());
        assert_eq!(first, Some(vec![7]));
        assert_eq!(outbox.add(Time::ZERO, 8, INTERVAL), None);
        assert_eq!(outbox.add(Time::ZERO, 9, INTERVAL), None);
        assert_eq!(outbox.due_at(), Some(Time::ZERO + INTERVAL));
        assert_eq!(outbox.take_due(Time::ZERO, INTERVAL), None);
        let second = outbox
            .take_due(Time::ZERO + INTERVAL, INTERVAL)
            .map(|batch| batch.chunks().to_vec());
        assert_eq!(second, Some(vec![8, 9]));
        assert_eq!(outbox.due_at(), None);
    }

    #[test]
    fn a_full_batch_does_not_wait() {
        let mut outbox = Outbox::default();
        outbox.add(Time::ZERO, 0, INTERVAL);
        let full = (1..=8)
            .filter_map(|chunk| outbox.add(Time::ZERO, chunk, INTERVAL))
            .next();
        assert_eq!(
            full.map(|batch| batch.chunks().to_vec()),
            Some((1..=8).collect())
        );
    }
}
