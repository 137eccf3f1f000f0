//! Whether storage can be used, as `/readyz` reports it.
//!
//! A probe is one small read of the `format` object, which every bucket of an origin has. Probes
//! run on demand, one at a time, and a result is reused for [`FRESH`]: storage sees one read per
//! second however many load balancers ask. A failed probe is repeated after [`RETRY_AFTER`], and
//! only two failures in a row make the replica unready. One success makes it ready again.
//!
//! ```text
//! Ready ──a probe fails──▶ (RETRY_AFTER) ──the second fails, too──▶ NotReady ──a probe succeeds──▶ Ready
//! ```
//! A probe never changes anything in storage, and never waits without a bound.

use core::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::storage::StorageError;

/// How long a result is reused.
const FRESH: Duration = Duration::from_secs(1);
/// Between a failed probe and its repetition.
const RETRY_AFTER: Duration = Duration::from_millis(500);
/// For one probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of the last probe.
#[derive(Debug, Default)]
pub(crate) struct StorageHealth(Mutex<Option<ProbeResult>>);

#[derive(Clone, Debug)]
struct ProbeResult {
    at: Instant,
    outcome: Result<(), String>,
}

impl StorageHealth {
    /// Probes storage with `probe`, unless a recent result exists.
    ///
    /// # Errors
    /// Why storage cannot be used, as text for operators.
    pub(crate) async fn check<F>(&self, probe: impl Fn() -> F) -> Result<(), String>
    where
        F: Future<Output = Result<(), StorageError>>,
    {
        // The holder of the lock probes; other callers wait for its result.
        let mut last = self.0.lock().await;
        if let Some(last) = last.as_ref().filter(|last| last.at.elapsed() < FRESH) {
            return last.outcome.clone();
        }
        let outcome = match probe_once(&probe).await {
            Ok(()) => Ok(()),
            Err(_) => {
                sleep(RETRY_AFTER).await;
                probe_once(&probe).await
            }
        };
        let was_ready = last.as_ref().is_none_or(|last| last.outcome.is_ok());
        match &outcome {
            Err(reason) if was_ready => {
                tracing::warn!(reason, "storage is unavailable; /readyz says so")
            }
            Ok(()) if !was_ready => {
                tracing::info!("storage is available again")
            }
            _ => {}
        }
        *last = Some(ProbeResult {
            at: Instant::now(),
            outcome: outcome.clone(),
        });
        outcome
    }
}

async fn probe_once<F>(probe: impl Fn() -> F) -> Result<(), String>
where
    F: Future<Output = Result<(), StorageError>>,
{
    match timeout(PROBE_TIMEOUT, probe()).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("storage does not answer within {PROBE_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    /// Storage that counts probes and fails those whose numbers are listed.
    #[derive(Default)]
    struct Probes {
        made: AtomicUsize,
        failing: Vec<usize>,
    }

    impl Probes {
        fn failing(numbers: impl IntoIterator<Item = usize>) -> Self {
            Self {
                made: AtomicUsize::new(0),
                failing: numbers.into_iter().collect(),
            }
        }

        async fn probe(&self) -> Result<(), StorageError> {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(10)).await;
            let fault = StorageError::unavailable("read object", "format", "it is gone");
            if self.failing.contains(&number) {
                Err(fault)
            } else {
                Ok(())
            }
        }

        fn made(&self) -> usize {
            self.made.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn callers_share_one_probe_per_second() {
        let health = StorageHealth::default();
        let probes = Probes::default();
        let all = join_all((0..100).map(|_| health.check(|| probes.probe()))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(probes.made(), 1);
        sleep(FRESH).await;
        assert_eq!(health.check(|| probes.probe()).await, Ok(()));
        assert_eq!(probes.made(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn two_failures_make_unready_and_one_success_makes_ready() {
        let health = StorageHealth::default();
        let probes = Probes::failing([0, 2, 3, 4, 5]);
        assert_eq!(
            health.check(|| probes.probe()).await,
            Ok(()),
            "the second probe succeeded"
        );
        for _ in 0..2 {
            sleep(FRESH).await;
            let reason = health
                .check(|| probes.probe())
                .await
                .expect_err("storage is gone");
            assert!(reason.contains("it is gone"), "{reason}");
        }
        sleep(FRESH).await;
        assert_eq!(health.check(|| probes.probe()).await, Ok(()));
        assert_eq!(probes.made(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn hung_storage_is_unready_after_two_timeouts() {
        let health = StorageHealth::default();
        let started = Instant::now();
        let reason = health
            .check(core::future::pending)
            .await
            .expect_err("it hangs");
        assert!(reason.contains("does not answer within 2s"), "{reason}");
        assert_eq!(started.elapsed(), 2 * PROBE_TIMEOUT + RETRY_AFTER);
    }
}
