//! The state that all downloads of one blob share.

use core::time::Duration;

use super::per_blob::PerBlob;
use crate::time::Time;

/// How often the delay after a failure of all origins doubles.
const MAX_DOUBLINGS: u32 = 4;

/// The pulls by blob.
pub(super) type Pulls = PerBlob<Pull>;

/// The progress of one blob's pull.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pull {
    /// When bytes of it last came, or it was wanted.
    moved_at: Time,
    /// Spreads the timeouts of peers that wait for the same chunks, from 1 to 2.
    jitter: f64,
    /// Nothing is fetched before this, because the own store failed.
    paused_until: Time,
    /// The lowest chunk that a reader waits for.
    cursor: Option<u32>,
    /// No origin is asked before this, because none delivered the last chunk.
    origin_retry_at: Time,
    /// How often in a row no origin delivered.
    origin_failures: u32,
}

impl Pull {
    pub(super) fn new() -> Self {
        Self {
            moved_at: Time::ZERO,
            jitter: 1.0,
            paused_until: Time::ZERO,
            cursor: None,
            origin_retry_at: Time::ZERO,
            origin_failures: 0,
        }
    }

    /// The blob is wanted from now on.
    pub(super) fn start(&mut self, now: Time, jitter: f64) {
        self.moved_at = now;
        self.jitter = jitter;
    }

    /// Bytes came, or the blob is wanted again.
    pub(super) fn mark_moved(&mut self, now: Time) {
        self.moved_at = now;
    }

    /// When the pull has not moved for `timeout`, spread by its jitter and multiplied by two to the
    /// power of `log2`.
    pub(super) fn deadline(&self, timeout: Duration, log2: i32) -> Time {
        self.moved_at + self.spread(timeout, log2)
    }

    /// `timeout`, spread by the pull's jitter and multiplied by two to the power of `log2`.
    pub(super) fn spread(&self, timeout: Duration, log2: i32) -> Duration {
        timeout.mul_f64(self.jitter * libm::exp2(f64::from(log2)))
    }

    /// When bytes last came, or the blob was wanted.
    pub(super) fn moved_at(&self) -> Time {
        self.moved_at
    }

    pub(super) fn pause(&mut self, until: Time) {
        self.paused_until = until;
    }

    pub(super) fn paused_until(&self) -> Time {
        self.paused_until
    }

    pub(super) fn is_paused(&self, now: Time) -> bool {
        self.paused_until > now
    }

    pub(super) fn set_cursor(&mut self, cursor: Option<u32>) {
        self.cursor = cursor;
    }

    /// No origin delivered a chunk: none is asked for `delay`, twice as long each time in a row.
    pub(super) fn delay_origin(&mut self, now: Time, delay: Duration) {
        self.origin_retry_at = now + delay * (1 << self.origin_failures.min(MAX_DOUBLINGS));
        self.origin_failures = self.origin_failures.saturating_add(1);
    }

    /// An origin delivered a chunk, or is usable again.
    pub(super) fn clear_origin_delay(&mut self) {
        self.origin_retry_at = Time::ZERO;
        self.origin_failures = 0;
    }

    /// When an origin may be asked for a chunk.
    pub(super) fn origin_retry_at(&self) -> Time {
        self.origin_retry_at
    }

    /// The lowest chunk that a reader waits for.
    pub(super) fn cursor(&self) -> Option<u32> {
        self.cursor
    }
}
