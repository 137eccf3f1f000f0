//! The bytes that all pulls of a burst deliver to their clients, and the longest stall.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// Deliveries of all pulls.
#[derive(Debug)]
pub struct Delivery {
    started: Instant,
    delivered: watch::Sender<u64>,
    longest_stall_nanos: AtomicU64,
}

/// Deliveries of one pull. Clones belong to the same pull.
#[derive(Clone, Debug)]
pub struct PullDelivery {
    all: Arc<Delivery>,
    /// When the last byte was delivered, in nanoseconds since the start of all; at first, when the
    /// pull began.
    last_nanos: Arc<AtomicU64>,
}

impl Delivery {
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            started: Instant::now(),
            delivered: watch::Sender::new(0),
            longest_stall_nanos: AtomicU64::new(0),
        })
    }

    /// A pull that begins now.
    pub fn begin_pull(self: &Arc<Self>) -> PullDelivery {
        PullDelivery {
            all: Arc::clone(self),
            last_nanos: Arc::new(AtomicU64::new(self.nanos())),
        }
    }

    /// Waits until the pulls have delivered `bytes` in total.
    pub async fn wait_for(&self, bytes: u64) {
        let mut delivered = self.delivered.subscribe();
        // The sender lives as long as `self`.
        let _ = delivered.wait_for(|delivered| *delivered >= bytes).await;
    }

    /// The longest time in which any running pull delivered no byte. It includes the time to a
    /// pull's first byte.
    pub fn longest_stall(&self) -> Duration {
        Duration::from_nanos(self.longest_stall_nanos.load(Ordering::Relaxed))
    }

    fn nanos(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

impl PullDelivery {
    /// Counts bytes that the pull delivers now.
    pub fn add_bytes(&self, bytes: u64) {
        self.end_stall();
        self.all
            .delivered
            .send_modify(|delivered| *delivered += bytes);
    }

    /// The pull ends now.
    pub fn finish(&self) {
        self.end_stall();
    }

    fn end_stall(&self) {
        let now = self.all.nanos();
        let stall = now.saturating_sub(self.last_nanos.swap(now, Ordering::Relaxed));
        self.all
            .longest_stall_nanos
            .fetch_max(stall, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn longest_stall_of_any_pull_until_it_ends() {
        let delivery = Delivery::new();
        let (first, second) = (delivery.begin_pull(), delivery.begin_pull());
        let pause = |seconds| tokio::time::sleep(Duration::from_secs(seconds));
        pause(1).await;
        first.add_bytes(1);
        second.add_bytes(1);
        pause(2).await;
        first.add_bytes(1);
        assert_eq!(delivery.longest_stall(), Duration::from_secs(2));
        first.finish();
        pause(3).await;
        // The second one was stalled all the time; the first one had ended.
        second.finish();
        assert_eq!(delivery.longest_stall(), Duration::from_secs(5));
    }

    #[tokio::test]
    async fn wait_ends_with_the_byte_that_was_waited_for() {
        let delivery = Delivery::new();
        let pull = delivery.begin_pull();
        let mut wait = std::pin::pin!(delivery.wait_for(10));
        pull.add_bytes(9);
        assert!(futures_util::poll!(&mut wait).is_pending());
        pull.add_bytes(1);
        wait.await;
    }
}
