//! When a transfer will be nearly done, so that its slot can be given away shortly before its end.

use core::time::Duration;

use crate::time::Time;

/// The progress of one transfer in either direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct TransferEta {
    /// Bytes to transfer.
    length: u64,
    started_at: Time,
    /// When its slot counts as free: `Time::MAX` while that is not known.
    free_at: Time,
}

impl TransferEta {
    pub(super) fn new(now: Time, length: u64) -> Self {
        Self {
            length,
            started_at: now,
            free_at: Time::MAX,
        }
    }

    /// The first byte moves now: the time before it was latency, and does not count for the rate.
    pub(super) fn restart(&mut self, now: Time) {
        self.started_at = now;
    }

    /// `moved` bytes have moved by now. At this rate the slot is free `nearly_done` before the end.
    pub(super) fn update(&mut self, now: Time, moved: u64, nearly_done: Duration) {
        let spent = now.saturating_since(self.started_at);
        if moved == 0 || spent.is_zero() {
            return;
        }
        let left = spent.mul_f64(self.length.saturating_sub(moved) as f64 / moved as f64);
        self.free_at = now + left - nearly_done;
    }

    /// Bytes to transfer.
    pub(super) fn length(&self) -> u64 {
        self.length
    }

    pub(super) fn free_at(&self) -> Time {
        self.free_at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_is_free_shortly_before_the_end() {
        let ms = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut eta = TransferEta::new(ms(0), 1000);
        eta.restart(ms(100));
        assert_eq!(eta.free_at(), Time::MAX);
        eta.update(ms(150), 500, Duration::from_millis(10));
        assert_eq!(eta.free_at(), ms(190));
    }
}
