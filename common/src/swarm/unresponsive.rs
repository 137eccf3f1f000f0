//! Neighbours that are connected but do not answer requests.
//!
//! ```text
//!             two requests in a row timed out
//! responsive ─────────────────────────────────▶ unresponsive
//!     ▲                                              │
//!     └── any message from it, or some time passed ──┘
//! ```
//!
//! A machine that is paused or swaps keeps its connections until they time out, which takes
//! seconds. Its chunks must not count as available for so long: chunks that only it holds are
//! requested elsewhere and, if no other neighbour holds them, from the tracker. While a neighbour
//! is unresponsive its chunks are set aside, its uploads take no slot, and the tracker learns that
//! it is unreachable. Nothing is forgotten; a neighbour that was only slow is asked again.

use core::time::Duration;

use crate::time::Time;

/// Timeouts in a row after which a neighbour is unresponsive.
const MAX_TIMEOUTS: u32 = 2;
/// After this time an unresponsive neighbour is asked again, if it is still connected.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// Whether one neighbour answers requests.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Responsiveness {
    /// Requests in a row that timed out.
    timeouts: u32,
    /// Set while it is unresponsive: when it is asked again.
    retry_at: Option<Time>,
}

impl Responsiveness {
    pub(super) fn is_unresponsive(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Whether the last request timed out, or the neighbour is unresponsive.
    pub(super) fn is_suspected(&self) -> bool {
        self.timeouts > 0 || self.is_unresponsive()
    }

    /// When an unresponsive neighbour is asked again.
    pub(super) fn retry_at(&self) -> Option<Time> {
        self.retry_at
    }

    /// Counts a request that timed out; if the neighbour becomes unresponsive by it, returns when
    /// it is to be asked again.
    pub(super) fn count_timeout(&mut self, now: Time) -> Option<Time> {
        self.timeouts += 1;
        if self.timeouts < MAX_TIMEOUTS || self.is_unresponsive() {
            return None;
        }
        self.retry_at = Some(now + RETRY_AFTER);
        self.retry_at
    }

    /// Records a message from the neighbour; true if it was unresponsive.
    pub(super) fn mark_responsive(&mut self) -> bool {
        self.timeouts = 0;
        self.retry_at.take().is_some()
    }

    /// Puts the neighbour on probation after its time: one more timeout makes it unresponsive
    /// again.
    pub(super) fn mark_on_probation(&mut self) {
        self.timeouts = MAX_TIMEOUTS - 1;
    }
}
