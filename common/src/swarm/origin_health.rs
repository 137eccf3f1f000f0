//! Which origin to ask: the own region's while it is healthy, otherwise the next one in order.

use core::time::Duration;

use super::io::OriginSlot;
use crate::time::Time;

/// How often the cooldown after a failure doubles.
const MAX_DOUBLINGS: u32 = 4;

#[derive(Clone, Copy, Debug, Default)]
struct OriginState {
    /// Failures since the last success.
    failures: u32,
    /// Not asked before this.
    cools_until: Time,
}

/// The health of all origins, in configured order.
#[derive(Debug)]
pub(super) struct OriginHealth {
    origins: Vec<OriginState>,
    /// The cooldown after a first failure.
    cooldown: Duration,
}

impl OriginHealth {
    pub(super) fn new(origins: u32, cooldown: Duration) -> Self {
        Self {
            origins: vec![OriginState::default(); origins as usize],
            cooldown,
        }
    }

    /// The first origin, in configured order, that is not in its cooldown.
    pub(super) fn choose(&self, now: Time) -> Option<OriginSlot> {
        (0_u32..)
            .zip(&self.origins)
            .find(|(_, origin)| origin.cools_until <= now)
            .map(|(i, _)| OriginSlot(i))
    }

    /// When [`Self::choose`] next returns an origin; `None` if no origin is configured.
    pub(super) fn ready_at(&self) -> Option<Time> {
        self.origins.iter().map(|origin| origin.cools_until).min()
    }

    pub(super) fn succeeded(&mut self, origin: OriginSlot) {
        if let Some(origin) = self.origins.get_mut(origin.0 as usize) {
            *origin = OriginState::default();
        }
    }

    /// Starts the cooldown of an origin, twice as long each time in a row.
    pub(super) fn failed(&mut self, now: Time, origin: OriginSlot) {
        let cooldown = self.cooldown;
        if let Some(origin) = self.origins.get_mut(origin.0 as usize) {
            origin.cools_until = now + cooldown * (1 << origin.failures.min(MAX_DOUBLINGS));
            origin.failures = origin.failures.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn next_origin_is_used_during_the_cooldown_of_the_first() {
        let mut health = OriginHealth::new(2, SECOND);
        assert_eq!(health.choose(Time::ZERO), Some(OriginSlot(0)));
        health.failed(Time::ZERO, OriginSlot(0));
        assert_eq!(health.choose(Time::ZERO), Some(OriginSlot(1)));
        assert_eq!(health.choose(Time::ZERO + SECOND), Some(OriginSlot(0)));
    }

    #[test]
    fn cooldown_doubles_until_a_success() {
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
    fn no_configured_origin() {
        let health = OriginHealth::new(0, SECOND);
        assert_eq!(health.choose(Time::ZERO), None);
        assert_eq!(health.ready_at(), None);
    }
}
