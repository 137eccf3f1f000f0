//! The clock of a storage.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

/// A time by the clock of the storage, in milliseconds since the Unix epoch.
///
/// Compare it with other times of the same storage. A replica's clock may differ from the
/// storage's, so a comparison of the two is an estimate of their offset and decides nothing else.
/// Object stores report seconds for single objects and milliseconds in listings, so two times of
/// one version may differ by a second. The time is taken while the object is written: it may lie
/// before the object appeared, by at most the duration of the write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorageTime(u64);

impl StorageTime {
    /// A number of milliseconds since the Unix epoch.
    pub const fn from_unix_ms(unix_ms: u64) -> Self {
        Self(unix_ms)
    }

    /// Milliseconds since the Unix epoch.
    pub const fn unix_ms(self) -> u64 {
        self.0
    }

    /// How much later this is than `earlier`; zero if it is not later.
    pub const fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// The modification time of a file; a time before 1970 counts as 1970.
    pub(super) fn of_file(modified: SystemTime) -> Self {
        let since_epoch = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX))
    }
}
