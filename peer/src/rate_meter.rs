//! The rate of a flow of bytes, over about the last second.

use core::time::Duration;

use flotilla_common::time::Time;

/// The time over which the rate is measured.
const WINDOW: Duration = Duration::from_secs(1);
/// The shortest time over which a rate is meaningful.
const MIN_ELAPSED: Duration = Duration::from_millis(50);

/// Measures one flow of bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct RateMeter {
    /// Bytes since the start.
    total: u64,
    /// Bytes since `window_start`.
    window: u64,
    window_start: Time,
    /// The rate in the window before, in bytes per second.
    previous: Option<f64>,
}

impl RateMeter {
    pub(crate) fn add(&mut self, now: Time, bytes: u64) {
        let elapsed = now.saturating_since(self.window_start);
        if elapsed >= WINDOW {
            // After a pause, there is no previous rate.
            let is_continuous = elapsed < 2 * WINDOW && self.window > 0;
            self.previous = is_continuous.then(|| self.window as f64 / elapsed.as_secs_f64());
            self.window = 0;
            self.window_start = now;
        }
        self.total += bytes;
        self.window += bytes;
    }

    /// Bytes since the start.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// The rate at `now`, in bytes per second; 0 while it is not known.
    pub(crate) fn rate(&self, now: Time) -> f64 {
        let elapsed = now.saturating_since(self.window_start);
        match self.previous {
            Some(previous) if elapsed < WINDOW => previous,
            _ if self.window == 0 || elapsed < MIN_ELAPSED => 0.0,
            _ => self.window as f64 / elapsed.as_secs_f64(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: u64) -> Time {
        Time::from_nanos(millis * 1_000_000)
    }

    #[test]
    fn rate_of_a_steady_flow_and_after_its_end() {
        let mut meter = RateMeter::default();
        for tick in 100..150 {
            meter.add(ms(tick * 100), 1000);
        }
        let rate = meter.rate(ms(15_000));
        assert!((9_000.0..=11_000.0).contains(&rate), "{rate}");
        assert!(meter.rate(ms(60_000)) < 300.0);
        assert_eq!(meter.total(), 50_000);
    }

    #[test]
    fn rate_of_a_flow_that_just_began() {
        let mut meter = RateMeter::default();
        meter.add(ms(10_000), 500);
        assert_eq!(meter.rate(ms(10_001)), 0.0);
        meter.add(ms(10_100), 500);
        assert!((meter.rate(ms(10_100)) - 10_000.0).abs() < 1.0);
    }
}
