//! Which origin to ask: the own region's while it is healthy, otherwise the next one.

use core::time::Duration;

use super::io::OriginSlot;
use crate::time::Time;

/// How often the rest after a failure doubles at most.
const DOUBLINGS: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct OriginState {
    /// Failures since the last success.
    failures: u32,
    /// Not asked before this, if there is another.
    rests_until: Time,
}

/// The machine's opinion of the origins.
#[derive(Debug)]
pub(super) struct OriginHealth {
    origins: Vec<OriginState>,
    rest: Duration,
}

impl OriginHealth {
    pub(super) fn new(origins: u32, rest: Duration) -> Self {
        Self {
            origins: vec![OriginState::default(); origins as usize],
            rest,
        }
    }

    /// The first origin, in configured order, that is not resting.
    pub(super) fn choose(&self, now: Time) -> Option<OriginSlot> {
        (0_u32..)
            .zip(&self.origins)
            .find(|(_, origin)| origin.rests_until <= now)
            .map(|(i, _)| OriginSlot(i))
    }

    /// When [`Self::choose`] may answer again; `None` if there is no origin at all.
    pub(super) fn ready_at(&self) -> Option<Time> {
        self.origins.iter().map(|origin| origin.rests_until).min()
    }

    pub(super) fn succeeded(&mut self, origin: OriginSlot) {
        if let Some(origin) = self.origins.get_mut(origin.0 as usize) {
            *origin = OriginState::default();
        }
    }

    /// A failure rests the origin, twice as long each time in a row.
    pub(super) fn failed(&mut self, now: Time, origin: OriginSlot) {
        let rest = self.rest;
        if let Some(origin) = self.origins.get_mut(origin.0 as usize) {
            origin.rests_until = now + rest * (1 << origin.failures.min(DOUBLINGS));
            origin.failures = origin.failures.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_next_origin_stands_in_while_the_first_rests() {
        let mut health = OriginHealth::new(2, SECOND);
        assert_eq!(health.choose(Time::ZERO), Some(OriginSlot(0)));
        health.failed(Time::ZERO, OriginSlot(0));
        assert_eq!(health.choose(Time::ZERO), Some(OriginSlot(1)));
        assert_eq!(health.choose(Time::ZERO + SECOND), Some(OriginSlot(0)));
    }

    #[test]
    fn rests_double_and_a_success_ends_them() {
        let mut health = OriginHealth::new(1, SECOND);
        for _ in 0..20 {
            health.failed(Time::ZERO, OriginSlot(0));
        }
        assert_eq!(health.choose(Time::ZERO), None);
        assert_eq!(health.ready_at(), Some(Time::ZERO + 16 * SECOND));
        health.succeeded(OriginSlot(0));
        assert_eq!(health.choose(Time::ZERO), Some(OriginSlot(0)));
        health.failed(Time::ZERO, OriginSlot(0));
        assert_eq!(health.ready_at(), Some(Time::ZERO + SECOND));
    }

    #[test]
    fn without_an_origin_there_is_nothing_to_choose() {
        let health = OriginHealth::new(0, SECOND);
        assert_eq!(health.choose(Time::ZERO), None);
        assert_eq!(health.ready_at(), None);
    }
}
