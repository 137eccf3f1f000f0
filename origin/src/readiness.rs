//! Whether storage can be used, as `/readyz` says it.
//!
//! A look is one small read of the object that every storage of ours has. It is made when somebody
//! asks, by one of those who ask at a time, and its answer is good for [`FRESH`]: however often all
//! balancers ask, storage sees one request in that time. A look that fails is made again after
//! [`PAUSE`], and only both together are the answer "not ready": a single failure never takes a
//! replica out of service. One good look brings it back.
//!
//! ```text
//! Ready ──a look fails──▶ (PAUSE) ──the second fails, too──▶ NotReady ──a look succeeds──▶ Ready
//! ```
//! It must never change anything in storage, nor wait without a bound.

use core::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout};

use crate::storage::StorageError;

/// How long an answer is good.
const FRESH: Duration = Duration::from_secs(1);
/// Between a look that failed and the one that confirms it.
const PAUSE: Duration = Duration::from_millis(500);
/// For one look.
const LOOK_TIMEOUT: Duration = Duration::from_secs(2);

/// What the last look found.
#[derive(Debug, Default)]
pub(crate) struct StorageHealth(Mutex<Option<Found>>);

#[derive(Clone, Debug)]
struct Found {
    at: Instant,
    outcome: Result<(), String>,
}

impl StorageHealth {
    /// Whether storage can be used; looks, unless somebody did a moment ago.
    ///
    /// # Errors
    /// Why it cannot, for people.
    pub(crate) async fn check<F>(&self, look: impl Fn() -> F) -> Result<(), String>
    where
        F: Future<Output = Result<(), StorageError>>,
    {
        // Whoever has the lock looks; the others wait for what it finds.
        let mut found = self.0.lock().await;
        if let Some(found) = found.as_ref().filter(|found| found.at.elapsed() < FRESH) {
            return found.outcome.clone();
        }
        let outcome = match once(&look).await {
            Ok(()) => Ok(()),
            Err(_) => {
                sleep(PAUSE).await;
                once(&look).await
            }
        };
        let was_ready = found.as_ref().is_none_or(|found| found.outcome.is_ok());
        match &outcome {
            Err(reason) if was_ready => tracing::warn!(reason, "storage cannot be used: not ready"),
            Ok(()) if !was_ready => tracing::info!("storage can be used again: ready"),
            _ => {}
        }
        *found = Some(Found {
            at: Instant::now(),
            outcome: outcome.clone(),
        });
        outcome
    }
}

async fn once<F>(look: impl Fn() -> F) -> Result<(), String>
where
    F: Future<Output = Result<(), StorageError>>,
{
    match timeout(LOOK_TIMEOUT, look()).await {
        Ok(outcome) => outcome.map_err(|error| error.to_string()),
        Err(_) => Err(format!("storage does not answer within {LOOK_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use core::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    /// Storage that fails the looks that a list says, and counts them.
    #[derive(Default)]
    struct Looks {
        made: AtomicUsize,
        failing: Vec<usize>,
    }

    impl Looks {
        fn failing(looks: impl IntoIterator<Item = usize>) -> Self {
            Self {
                made: AtomicUsize::new(0),
                failing: looks.into_iter().collect(),
            }
        }

        async fn look(&self) -> Result<(), StorageError> {
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
    async fn however_many_ask_storage_sees_one_look_in_a_second() {
        let (health, looks) = (StorageHealth::default(), Looks::default());
        let all = join_all((0..100).map(|_| health.check(|| looks.look()))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(looks.made(), 1);
        sleep(FRESH).await;
        assert_eq!(health.check(|| looks.look()).await, Ok(()));
        assert_eq!(looks.made(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_changes_nothing_two_do_and_one_success_mends_it() {
        let (health, looks) = (StorageHealth::default(), Looks::failing([0, 2, 3, 4, 5]));
        assert_eq!(
            health.check(|| looks.look()).await,
            Ok(()),
            "the second look was good"
        );
        for _ in 0..2 {
            sleep(FRESH).await;
            let reason = health
                .check(|| looks.look())
                .await
                .expect_err("storage is gone");
            assert!(reason.contains("it is gone"), "{reason}");
        }
        sleep(FRESH).await;
        assert_eq!(health.check(|| looks.look()).await, Ok(()));
        assert_eq!(looks.made(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn storage_that_hangs_is_not_waited_for() {
        let (health, began) = (StorageHealth::default(), Instant::now());
        let reason = health
            .check(core::future::pending)
            .await
            .expect_err("it hangs");
        assert!(reason.contains("does not answer within 2s"), "{reason}");
        assert_eq!(began.elapsed(), 2 * LOOK_TIMEOUT + PAUSE);
    }
}
