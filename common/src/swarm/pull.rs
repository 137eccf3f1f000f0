//! The state that all downloads of one blob share.

use core::time::Duration;

use super::per_blob::PerBlob;
use crate::time::Time;

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
}

impl Pull {
    pub(super) fn new() -> Self {
        Self {
            moved_at: Time::ZERO,
            jitter: 1.0,
            paused_until: Time::ZERO,
            cursor: None,
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
        self.moved_at + timeout.mul_f64(self.jitter * libm::exp2(f64::from(log2)))
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

    /// The lowest chunk that a reader waits for.
    pub(super) fn cursor(&self) -> Option<u32> {
        self.cursor
    }
}
