//! The progress of one transfer: when it will be nearly done, so that its slot can be given away
//! shortly before its end, and whether it is so slow that it should not hold a slot.

use core::time::Duration;

use crate::time::Time;

/// Reports of progress in each transfer, at least: fewer bytes than one in so many are not known.
const REPORTS: u64 = 4;

/// The progress of one transfer in either direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferProgress {
    /// Bytes to transfer.
    length: u64,
    /// Bytes that have moved, as far as they were reported.
    moved: u64,
    started_at: Time,
    /// Bytes that had moved when it started; more than none if it goes on after a break.
    moved_before: u64,
    /// The bytes that all transfers in this direction had moved when it started.
    total_before: u64,
    /// When its slot counts as free: `Time::MAX` while that is not known.
    free_at: Time,
}

impl TransferProgress {
    /// A transfer in a direction in which `total` bytes have moved so far.
    pub(super) fn new(now: Time, length: u64, total: u64) -> Self {
        Self {
            length,
            moved: 0,
            started_at: now,
            moved_before: 0,
            total_before: total,
            free_at: Time::MAX,
        }
    }

    /// The first byte moves now: the time before it was latency, and does not count for the rate.
    pub(super) fn restart(&mut self, now: Time, total: u64) {
        self.started_at = now;
        self.moved_before = self.moved;
        self.total_before = total;
    }

    /// Bytes moved before its first byte was reported: what the others moved until now was not at the
    /// same time.
    pub(super) fn compare_from(&mut self, total: u64) {
        self.total_before = total;
    }

    /// `moved` bytes have moved by now. At this rate the slot is free `nearly_done` before the end.
    pub(super) fn update(&mut self, now: Time, moved: u64, nearly_done: Duration) {
        self.moved = moved;
        let spent = now.saturating_since(self.started_at);
        let since = self.moved_since_start();
        if since == 0 || spent.is_zero() {
            return;
        }
        let left = spent.mul_f64(self.left() as f64 / since as f64);
        self.free_at = now + left - nearly_done;
    }

    /// Bytes that have moved, as far as they were reported.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes that have not moved, as far as reported.
    pub(super) fn left(&self) -> u64 {
        self.length.saturating_sub(self.moved)
    }

    fn moved_since_start(&self) -> u64 {
        self.moved.saturating_sub(self.moved_before)
    }

    pub(super) fn free_at(&self) -> Time {
        self.free_at
    }

    /// Whether it is slow for the link: since it started, each other slot has moved more than
    /// `factor` times as many bytes. `total` is what all transfers have moved so far.
    pub(super) fn is_slow(&self, total: u64, slots: u32, factor: u64) -> bool {
        let meanwhile = total.saturating_sub(self.total_before);
        let since = self.moved_since_start();
        let by_others = meanwhile.saturating_sub(since);
        let moved = since.max(self.length / REPORTS);
        let other_slots = u64::from(slots.saturating_sub(1).max(1));
        by_others > factor * other_slots * moved
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_free_shortly_before_the_end() {
        let ms = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut progress = TransferProgress::new(ms(0), 1000, 0);
        progress.restart(ms(100), 0);
        assert_eq!(progress.free_at(), Time::MAX);
        progress.update(ms(150), 500, Duration::from_millis(10));
        assert_eq!(progress.free_at(), ms(190));
    }

    #[test]
    fn transfer_is_slow_compared_with_the_other_slots() {
        let mut progress = TransferProgress::new(Time::ZERO, 1000, 5000);
        // Three slots: 2 x 2 x 250 bytes, because a quarter may have moved without a report.
        assert!(!progress.is_slow(6000, 3, 2));
        assert!(progress.is_slow(6001, 3, 2));
        progress.update(Time::from_nanos(1), 500, Duration::ZERO);
        assert!(!progress.is_slow(5000 + 2000 + 500, 3, 2));
        assert!(progress.is_slow(5000 + 2001 + 500, 3, 2));
        assert!(!progress.is_slow(5000 + 500, 1, 2), "alone");
    }
}
