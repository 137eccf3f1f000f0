//! How fast a transfer moves, so that one that is nearly done can be counted as free.

use core::time::Duration;

use crate::time::Time;

/// The progress of one transfer, up or down.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    length: u64,
    begun: Time,
    /// From when on it counts as free: `Time::MAX` while that is not known.
    free_at: Time,
}

impl Pace {
    pub(super) fn new(now: Time, length: u64) -> Self {
        Self {
            length,
            begun: now,
            free_at: Time::MAX,
        }
    }

    /// The first byte moves now: what came before was the way there.
    pub(super) fn begin(&mut self, now: Time) {
        self.begun = now;
    }

    /// `moved` bytes have moved by now; the transfer is free once less than `nearly_done` is left
    /// at this rate.
    pub(super) fn progress(&mut self, now: Time, moved: u64, nearly_done: Duration) {
        let spent = now.saturating_since(self.begun);
        if moved == 0 || spent.is_zero() {
            return;
        }
        let left = spent.mul_f64(self.length.saturating_sub(moved) as f64 / moved as f64);
        self.free_at = now + left - nearly_done;
    }

    pub(super) fn free_at(&self) -> Time {
        self.free_at
    }

    pub(super) fn is_free(&self, now: Time) -> bool {
        self.free_at <= now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_free_shortly_before_its_end() {
        let ms = |millis| Time::ZERO + Duration::from_millis(millis);
        let mut pace = Pace::new(ms(0), 1000);
        pace.begin(ms(100));
        assert!(!pace.is_free(ms(100_000)));
        pace.progress(ms(150), 500, Duration::from_millis(10));
        assert_eq!(pace.free_at(), ms(190));
        assert!(!pace.is_free(ms(189)));
        assert!(pace.is_free(ms(190)));
    }
}
