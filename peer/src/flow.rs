//! How fast bytes flow in one direction: over the last second or so.

use core::time::Duration;

use flotilla_common::time::Time;

/// The time that a rate is taken over.
const WINDOW: Duration = Duration::from_secs(1);
/// A rate over less than this says nothing.
const TOO_SHORT: Duration = Duration::from_millis(50);

/// Bytes that flow.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Flow {
    total: u64,
    /// Since `began`.
    window: u64,
    began: Time,
    /// Of the window before, bytes per second.
    before: Option<f64>,
}

impl Flow {
    pub(crate) fn add(&mut self, now: Time, bytes: u64) {
        let spent = now.saturating_since(self.began);
        if spent >= WINDOW {
            // A flow that begins again after a pause has no rate before.
            let goes_on = spent < 2 * WINDOW && self.window > 0;
            self.before = goes_on.then(|| self.window as f64 / spent.as_secs_f64());
            (self.window, self.began) = (0, now);
        }
        self.total += bytes;
        self.window += bytes;
    }

    /// Bytes so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }

    /// Bytes per second, as far as can be said at `now`.
    pub(crate) fn rate(&self, now: Time) -> f64 {
        let spent = now.saturating_since(self.began);
        match self.before {
            Some(before) if spent < WINDOW => before,
            _ if self.window == 0 || spent < TOO_SHORT => 0.0,
            _ => self.window as f64 / spent.as_secs_f64(),
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
    fn a_steady_flow_has_its_rate_and_a_flow_that_stops_loses_it() {
        let mut flow = Flow::default();
        for tick in 100..150 {
            flow.add(ms(tick * 100), 1000);
        }
        let rate = flow.rate(ms(15_000));
        assert!((9_000.0..=11_000.0).contains(&rate), "{rate}");
        assert!(flow.rate(ms(60_000)) < 300.0);
        assert_eq!(flow.total(), 50_000);
    }

    #[test]
    fn a_flow_that_just_began_has_a_rate_soon() {
        let mut flow = Flow::default();
        flow.add(ms(10_000), 500);
        assert_eq!(flow.rate(ms(10_001)), 0.0);
        flow.add(ms(10_100), 500);
        assert!((flow.rate(ms(10_100)) - 10_000.0).abs() < 1.0);
    }
}
