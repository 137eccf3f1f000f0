//! The upload stall budget: a minimum rate for request bodies.
//!
//! A slow client holds memory that other uploads wait for, up to a part of 5 MiB on remote storage,
//! and an upload permit. So a client must send at least 16 KiB/s on average, in bursts of any
//! shape: waiting for body bytes drains the budget, received bytes refill it, and an empty budget
//! ends the request with 408. Time in which the origin does not read costs nothing.

use core::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

/// Bytes per second. Any usable link pushes layers much faster; a part of 5 MiB takes five and a
/// half minutes.
const MIN_UPLOAD_RATE: u32 = 16 << 10;

/// The message for a client whose budget is exhausted; names the rate of this module.
pub(crate) const EXHAUSTED: &str = "the client stalled: less than 16 KiB/s on average";

/// The client has stalled for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetExhausted;

/// How long one client may still be waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StallBudget {
    full: Duration,
    left: Duration,
}

impl StallBudget {
    /// A full budget: how long a client may send nothing.
    pub(crate) const fn new(full: Duration) -> Self {
        Self { full, left: full }
    }

    /// Reads the next piece of a body; `None` at its end. If the returned future is dropped, the
    /// time that it waited still counts.
    ///
    /// # Errors
    /// [`BudgetExhausted`].
    pub(crate) async fn next<E>(
        &mut self,
        body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    ) -> Result<Option<Result<Bytes, E>>, BudgetExhausted> {
        let piece = self.wait(body.next()).await?;
        if let Some(Ok(piece)) = &piece {
            self.refill(piece.len());
        }
        Ok(piece)
    }

    /// Waits for the client, at the cost of the budget.
    async fn wait<T>(&mut self, client: impl Future<Output = T>) -> Result<T, BudgetExhausted> {
        let left = self.left;
        let _stall = Stall {
            budget: self,
            since: Instant::now(),
        };
        timeout(left, client).await.map_err(|_| BudgetExhausted)
    }

    /// Adds the time that received bytes take at the minimum rate.
    fn refill(&mut self, bytes: usize) {
        let earned = Duration::from_secs_f64(bytes as f64 / f64::from(MIN_UPLOAD_RATE));
        self.left = self.left.saturating_add(earned).min(self.full);
    }
}

/// Charges the time until it is dropped.
struct Stall<'a> {
    budget: &'a mut StallBudget,
    since: Instant,
}

impl Drop for Stall<'_> {
    fn drop(&mut self) {
        self.budget.left = self.budget.left.saturating_sub(self.since.elapsed());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// How long a client that sends `bytes_per_second` is tolerated, up to an hour.
    async fn tolerated(bytes_per_second: usize) -> Duration {
        let mut budget = StallBudget::new(MINUTE);
        let started = Instant::now();
        while started.elapsed() < Duration::from_hours(1)
            && budget.wait(sleep(SECOND)).await.is_ok()
        {
            budget.refill(bytes_per_second);
        }
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn minimum_rate_is_tolerated_and_less_is_not() {
        assert_eq!(tolerated(0).await, MINUTE);
        assert!(tolerated(1).await < MINUTE + SECOND);
        assert!(tolerated(MIN_UPLOAD_RATE as usize / 2).await <= 2 * MINUTE + SECOND);
        assert!(tolerated(MIN_UPLOAD_RATE as usize).await >= Duration::from_hours(1));
    }

    #[tokio::test(start_paused = true)]
    async fn budget_is_capped_and_drained_only_by_waiting() {
        let mut budget = StallBudget::new(MINUTE);
        budget.refill(1 << 30);
        sleep(2 * MINUTE).await;
        let started = Instant::now();
        // Many short waits, each abandoned.
        while timeout(SECOND, budget.wait(core::future::pending::<()>()))
            .await
            .is_err()
        {}
        assert_eq!(started.elapsed(), MINUTE);
        assert_eq!(
            budget.wait(core::future::pending::<()>()).await,
            Err(BudgetExhausted)
        );
    }
}
