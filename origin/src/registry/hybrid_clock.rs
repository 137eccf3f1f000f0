//! The hybrid clock of tags, manifests and referrers: the wall clock, but never behind a stamp that
//! was seen.
//!
//! The wall clock is read once, at the start. From then on it advances with the monotonic clock, so
//! a wall clock that is set wrongly while the process runs moves no stamp;
//! [`HybridClock::set_offset`] corrects it after a comparison with the storage's clock.
//!
//! A stamp by a client's request is at least two above the value that it replaces. A machine that
//! deletes something by itself (retention) stamps one above, so that any request that replaced the
//! same value wins over it, in whatever region it was made.

use core::time::Duration;
use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::name::RegionName;
use flotilla_common::stamp::Stamp;
use flotilla_runtime::clock::Clock;

/// How far a stamp may be ahead of this replica's clock. No region merges a stamp that is further
/// ahead, so a write that would need one is refused.
pub(crate) const MAX_AHEAD: Duration = Duration::from_mins(10);

/// The present value was stamped by a clock that is more than [`MAX_AHEAD`] ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct StampAhead {
    /// How far it is ahead.
    pub(crate) by: Duration,
}

/// Makes the stamps of one replica.
#[derive(Debug)]
pub(crate) struct HybridClock {
    clock: Clock,
    region: RegionName,
    /// Unix time minus monotonic time, in nanoseconds.
    offset: AtomicU64,
    last: AtomicU64,
}

impl HybridClock {
    pub(crate) fn new(clock: Clock, region: RegionName) -> Self {
        let offset = clock.unix_nanos().saturating_sub(clock.now().as_nanos());
        Self {
            clock,
            region,
            offset: AtomicU64::new(offset),
            last: AtomicU64::new(0),
        }
    }

    /// The region whose stamps it makes.
    pub(crate) const fn region(&self) -> &RegionName {
        &self.region
    }

    /// The time of all stamps, in nanoseconds since 1970.
    pub(crate) fn unix_nanos(&self) -> u64 {
        self.clock
            .now()
            .as_nanos()
            .saturating_add(self.offset.load(Ordering::Relaxed))
    }

    /// Takes over the wall clock, after it was found to agree with the storage's clock.
    pub(crate) fn set_offset(&self) {
        let offset = self
            .clock
            .unix_nanos()
            .saturating_sub(self.clock.now().as_nanos());
        self.offset.store(offset, Ordering::Relaxed);
    }

    /// A stamp above this replica's clock, above all stamps returned before, and at least two above
    /// each clock in `seen`.
    ///
    /// # Errors
    /// [`StampAhead`] if a clock in `seen` is too far ahead.
    pub(crate) fn stamp(&self, seen: impl IntoIterator<Item = u64>) -> Result<Stamp, StampAhead> {
        let now = self.unix_nanos();
        let before = self
            .last
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
                Some(last.max(now).saturating_add(1))
            });
        let own = before
            .unwrap_or_else(|last| last)
            .max(now)
            .saturating_add(1);
        let least = seen.into_iter().max().unwrap_or(0).saturating_add(2);
        let ahead = Duration::from_nanos(least.saturating_sub(now));
        if ahead > MAX_AHEAD {
            return Err(StampAhead { by: ahead });
        }
        Ok(Stamp {
            clock: own.max(least),
            region: self.region.clone(),
        })
    }

    /// How far a stamp of another region is ahead of this replica's clock, if it is too far to be
    /// merged.
    pub(crate) fn too_far_ahead(&self, stamp: &Stamp) -> Option<Duration> {
        let ahead = Duration::from_nanos(stamp.clock.saturating_sub(self.unix_nanos()));
        (ahead > MAX_AHEAD).then_some(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clock() -> HybridClock {
        HybridClock::new(Clock::tokio(), "eu-1".parse().expect("a label"))
    }

    #[test]
    fn stamps_increase_even_if_the_wall_clock_is_behind() {
        let clock = clock();
        let first = clock.stamp([]).expect("a stamp");
        let second = clock.stamp([]).expect("a stamp");
        assert!(second > first);
        let ahead = first.clock + 60_000_000_000;
        let third = clock.stamp([5, ahead]).expect("within the bound");
        assert_eq!(third.clock, ahead + 2);
        let fourth = clock.stamp([]).expect("a stamp");
        assert!(
            fourth < third,
            "a stamp that was seen does not move the clock"
        );
    }

    #[test]
    fn values_from_the_future_are_not_replaced() {
        let clock = clock();
        let now = clock.stamp([]).expect("a stamp").clock;
        let year = 365 * 86_400 * 1_000_000_000;
        assert!(clock.stamp([now + year]).is_err());
        let stamp = Stamp {
            clock: now + year,
            region: "us-1".parse().expect("a label"),
        };
        assert!(clock.too_far_ahead(&stamp).is_some());
    }
}
