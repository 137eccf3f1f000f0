//! The patience with a client that sends a body.
//!
//! Who sends nothing for the length of it has used it up; so has, after a while, who sends a byte
//! now and then. A client that is slow holds memory which others wait for, up to a part of 5 MiB on
//! remote storage, and an upload's place. Waiting for bytes costs patience, and bytes restore it at
//! the least rate: who sends as much on average may go on for ever, in whatever bursts. What it
//! waits for us costs nothing.

use core::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

/// The least rate, in bytes per second: far below what a layer's push can use, and a part of 5 MiB
/// in five and a half minutes.
const LEAST_RATE: u32 = 16 << 10;

/// The patience is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BudgetExhausted;

/// What is left of the patience with one client.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StallBudget {
    whole: Duration,
    left: Duration,
}

impl StallBudget {
    pub(crate) const fn new(whole: Duration) -> Self {
        Self { whole, left: whole }
    }

    /// The next piece of a body, which restores what it is worth; `None` at the end. Given up
    /// before it is there, it has cost what was waited all the same.
    pub(crate) async fn next<E>(
        &mut self,
        body: &mut (impl Stream<Item = Result<Bytes, E>> + Unpin),
    ) -> Result<Option<Result<Bytes, E>>, BudgetExhausted> {
        let piece = self.wait(body.next()).await?;
        if let Some(Ok(piece)) = &piece {
            self.restore(piece.len());
        }
        Ok(piece)
    }

    /// Waits for something of the client's.
    async fn wait<T>(&mut self, something: impl Future<Output = T>) -> Result<T, BudgetExhausted> {
        let left = self.left;
        let _waiting = Waiting {
            patience: self,
            since: Instant::now(),
        };
        timeout(left, something).await.map_err(|_| BudgetExhausted)
    }

    /// The client has sent so many bytes.
    fn restore(&mut self, bytes: usize) {
        let worth = Duration::from_secs_f64(bytes as f64 / f64::from(LEAST_RATE));
        self.left = self.left.saturating_add(worth).min(self.whole);
    }
}

struct Waiting<'a> {
    patience: &'a mut StallBudget,
    since: Instant,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.patience.left = self.patience.left.saturating_sub(self.since.elapsed());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use tokio::time::sleep;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);
    const SECOND: Duration = Duration::from_secs(1);

    /// How long a client is waited for that sends so many bytes each second, for an hour at most.
    async fn waited(bytes_each_second: usize) -> Duration {
        let (mut patience, started) = (StallBudget::new(MINUTE), Instant::now());
        while started.elapsed() < Duration::from_hours(1)
            && patience.wait(sleep(SECOND)).await.is_ok()
        {
            patience.restore(bytes_each_second);
        }
        started.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn a_byte_each_second_is_not_enough_and_the_least_rate_is() {
        assert_eq!(waited(0).await, MINUTE);
        assert!(waited(1).await < MINUTE + SECOND);
        assert!(waited(LEAST_RATE as usize / 2).await <= 2 * MINUTE + SECOND);
        assert!(waited(LEAST_RATE as usize).await >= Duration::from_hours(1));
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_never_more_than_whole_and_only_waiting_costs_it() {
        let mut patience = StallBudget::new(MINUTE);
        patience.restore(1 << 30);
        sleep(2 * MINUTE).await;
        let started = Instant::now();
        // Looked at and left, again and again.
        while timeout(SECOND, patience.wait(core::future::pending::<()>()))
            .await
            .is_err()
        {}
        assert_eq!(started.elapsed(), MINUTE);
        assert_eq!(
            patience.wait(core::future::pending::<()>()).await,
            Err(BudgetExhausted)
        );
    }
}
