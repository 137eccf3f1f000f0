//! The clocks of a driver: monotonic time for machines, wall time for expiries.
//!
//! Machines get instants as arguments; this is where their drivers read them. The monotonic clock
//! counts while a VM is suspended, so a peer that was frozen sees at once that its leases are over.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_common::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// Where drivers read the time. Never used inside a machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock;

impl Clock {
    /// Nanoseconds since boot, suspension included. Never goes back.
    pub fn now() -> Time {
        let now = clock_gettime(MONOTONIC);
        // Time since boot: neither part is negative.
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
        Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    /// Seconds since 1970 (UTC): for the expiry of grants and certificates, never for measuring.
    pub fn unix_seconds() -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        since_1970.unwrap_or(Duration::ZERO).as_secs()
    }

    /// Sleeps until a machine's deadline; `None` and [`Time::MAX`] mean for ever.
    ///
    /// For a `select!` in a driver: wakes at or after `deadline`, by a millisecond or two.
    pub async fn sleep_until(deadline: Option<Time>) {
        match deadline {
            Some(deadline) if deadline < Time::MAX => {
                tokio::time::sleep(deadline.saturating_since(Self::now())).await;
            }
            _ => std::future::pending().await,
        }
    }
}

#[cfg(target_os = "linux")]
const MONOTONIC: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const MONOTONIC: ClockId = ClockId::Monotonic;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_passes_and_never_goes_back() {
        let mut last = Clock::now();
        for _ in 0..1_000 {
            let now = Clock::now();
            assert!(now >= last);
            last = now;
        }
        assert!(last > Time::ZERO);
    }

    #[test]
    fn the_wall_clock_is_past_the_writing_of_this_test() {
        assert!(Clock::unix_seconds() > 1_700_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_in_the_past_is_due_and_no_deadline_never_is() {
        Clock::sleep_until(Some(Time::ZERO)).await;
        let never = Clock::sleep_until(None);
        assert!(
            tokio::time::timeout(Duration::from_secs(1_000), never)
                .await
                .is_err()
        );
    }
}
