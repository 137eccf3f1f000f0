//! A limit on how often a message is logged. A fault that repeats with each request must not fill
//! the disk with its log.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Admits one message in each interval and counts the others.
#[derive(Debug)]
pub struct LogLimit {
    interval: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    logged: Option<Instant>,
    suppressed: u64,
}

impl LogLimit {
    /// At most one message in each `interval`.
    pub const fn new(interval: Duration) -> Self {
        Self {
            interval,
            state: Mutex::new(State {
                logged: None,
                suppressed: 0,
            }),
        }
    }

    /// At most one message in a minute.
    pub const fn once_a_minute() -> Self {
        Self::new(Duration::from_secs(60))
    }

    /// The number of messages that were suppressed since the last one, if another may be logged
    /// now.
    pub fn admit(&self) -> Option<u64> {
        // No code panics while it holds the lock.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |logged: Instant| logged.elapsed() >= self.interval;
        if state.logged.is_none_or(is_due) {
            state.logged = Some(Instant::now());
            return Some(std::mem::take(&mut state.suppressed));
        }
        state.suppressed += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_message_in_each_interval_is_admitted() {
        let limit = LogLimit::once_a_minute();
        assert_eq!(limit.admit(), Some(0));
        for _ in 0..3 {
            assert_eq!(limit.admit(), None);
        }
        tokio::time::advance(Duration::from_secs(60)).await;
        assert_eq!(limit.admit(), Some(3));
        assert_eq!(limit.admit(), None);
    }
}
