//! The rules by which a cache hands fills to readers.

use core::time::Duration;

/// The decisions of a [`Cache`](super::Cache) that keep its readers from stale answers.
///
/// The origin runs [`ShippedRules`]. The protocol models leave one rule out at a time and check
/// that an acknowledged write is then missed.
pub(crate) trait Rules: Send + Sync + 'static {
    /// Whether a reader may join a fill that started `age` ago.
    fn may_join(&self, age: Duration, time_to_live: Duration) -> bool {
        age < time_to_live
    }

    /// Whether a reader may take absence from a fill that was running before the reader asked.
    fn accepts_earlier_absence(&self) -> bool {
        false
    }

    /// Whether an invalidation advances the epoch of its key, so that fills that are in flight are
    /// neither joined nor kept.
    fn invalidation_advances_epoch(&self) -> bool {
        true
    }
}

/// The defaults.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShippedRules;

impl Rules for ShippedRules {}
