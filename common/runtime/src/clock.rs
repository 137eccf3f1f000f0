//! The clock of drivers and services: monotonic time for machines, wall time for expiries.
//!
//! Machines get instants as arguments; their drivers read them from a [`Clock`] value that was
//! passed in. Only a program's entry point makes [`Clock::system`], so a test can run a whole
//! service on tokio's clock, which it can pause and advance.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flotilla_common::time::Time;
use rustix::time::{ClockId, clock_gettime};

/// The source of time of drivers and services. Never used inside a machine.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    source: Source,
}

#[derive(Clone, Copy, Debug)]
enum Source {
    /// The kernel's monotonic clock, suspension included.
    System,
    /// Tokio's clock: the time since `started`.
    Tokio { started: tokio::time::Instant },
}

impl Clock {
    /// The kernel's clock. It counts while a VM is suspended, so a peer that was suspended
    /// notices at once that its leases have expired.
    pub const fn system() -> Self {
        Self {
            source: Source::System,
        }
    }

    /// Tokio's clock, which `tokio::time::pause` stops and `advance` moves. It begins at 1 s, so
    /// that [`Time::ZERO`] lies in the past.
    pub fn tokio() -> Self {
        Self {
            source: Source::Tokio {
                started: tokio::time::Instant::now(),
            },
        }
    }

    /// Nanoseconds since an arbitrary start. Never goes back.
    pub fn now(self) -> Time {
        match self.source {
            Source::System => since_boot(),
            Source::Tokio { started } => {
                let elapsed = started.elapsed() + Duration::from_secs(1);
                Time::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
            }
        }
    }

    /// Seconds since 1970 (UTC): for the expiry of grants and certificates, never for measuring.
    pub fn unix_seconds(self) -> u64 {
        self.unix_nanos() / 1_000_000_000
    }

    /// Nanoseconds since 1970 (UTC): for stamps that replicas and regions compare. May go back.
    pub fn unix_nanos(self) -> u64 {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since_1970.unwrap_or(Duration::ZERO).as_nanos();
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// Sleeps until a machine's deadline; `None` and [`Time::MAX`] mean for ever.
    ///
    /// For a `select!` in a driver: wakes at or after `deadline`, by a millisecond or two.
    pub async fn sleep_until(self, deadline: Option<Time>) {
        match deadline {
            Some(deadline) if deadline < Time::MAX => {
                tokio::time::sleep(deadline.saturating_since(self.now())).await;
            }
            _ => std::future::pending().await,
        }
    }
}

fn since_boot() -> Time {
    let now = clock_gettime(MONOTONIC);
    // Time since boot: neither part is negative.
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Time::from_nanos(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
}

#[cfg(target_os = "linux")]
const MONOTONIC: ClockId = ClockId::Boottime;
#[cfg(not(target_os = "linux"))]
const MONOTONIC: ClockId = ClockId::Monotonic;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn system_time_never_goes_back() {
        let clock = Clock::system();
        let mut last = clock.now();
        for _ in 0..1_000 {
            let now = clock.now();
            assert!(now >= last);
            last = now;
        }
        assert!(last > Time::ZERO);
    }

    #[test]
    fn wall_clock_counts_from_1970() {
        assert!(Clock::system().unix_seconds() > 1_700_000_000);
    }

    #[tokio::test(start_paused = true)]
    async fn tokio_clock_follows_paused_time() {
        let clock = Clock::tokio();
        let started = clock.now();
        assert!(started > Time::ZERO);
        tokio::time::advance(Duration::from_secs(90)).await;
        assert_eq!(
            clock.now().saturating_since(started),
            Duration::from_secs(90)
        );
    }

    #[tokio::test(start_paused = true)]
    async fn past_deadline_is_due_and_no_deadline_never_is() {
        let clock = Clock::tokio();
        clock.sleep_until(Some(Time::ZERO)).await;
        let never = clock.sleep_until(None);
        assert!(
            tokio::time::timeout(Duration::from_secs(1_000), never)
                .await
                .is_err()
        );
    }
}
