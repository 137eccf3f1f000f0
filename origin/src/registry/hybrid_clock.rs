//! The hybrid clock of tags, manifests and referrers: the wall clock, but never behind a stamp that
//! was seen.

use std::sync::atomic::{AtomicU64, Ordering};

use flotilla_common::name::RegionName;
use flotilla_runtime::clock::Clock;

use crate::record::Stamp;

/// Makes the stamps of one replica.
#[derive(Debug)]
pub(crate) struct HybridClock {
    clock: Clock,
    region: RegionName,
    last: AtomicU64,
}

impl HybridClock {
    pub(crate) fn new(clock: Clock, region: RegionName) -> Self {
        Self {
            clock,
            region,
            last: AtomicU64::new(0),
        }
    }

    /// A stamp above the wall clock, above all stamps returned before, and above the stamp of the
    /// version that it replaces.
    pub(crate) fn stamp(&self, replaced: Option<&Stamp>) -> Stamp {
        let least = self
            .clock
            .unix_nanos()
            .max(replaced.map_or(0, |stamp| stamp.clock));
        let before = self
            .last
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |last| {
                Some(last.max(least).saturating_add(1))
            });
        let before = before.unwrap_or_else(|last| last);
        Stamp {
            clock: before.max(least).saturating_add(1),
            region: self.region.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_increase_even_if_the_wall_clock_is_behind() {
        let clock = HybridClock::new(Clock::tokio(), "eu-1".parse().expect("a label"));
        let first = clock.stamp(None);
        let second = clock.stamp(None);
        assert!(second > first);
        let future = Stamp {
            clock: first.clock + (1 << 60),
            region: first.region,
        };
        let third = clock.stamp(Some(&future));
        assert!(third > future && clock.stamp(None) > third);
    }
}
