//! What happens between regions, counted for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flotilla_common::name::RegionName;

/// For so long after a list nothing else counts as owed: twice the pause of an idle follower.
const LISTED_FOR_NANOS: u64 = 10_000_000_000;

/// Counters of one replica.
#[derive(Debug, Default)]
pub(crate) struct RegionCounts {
    by_region: Mutex<BTreeMap<RegionName, PerRegion>>,
    reads: Mutex<BTreeMap<(RegionName, &'static str), u64>>,
    forwarded: Mutex<BTreeMap<RegionName, u64>>,
    /// Changes that no region could take.
    unforwarded: AtomicU64,
    /// Merged keys whose closure is in no region.
    broken_closures: AtomicU64,
    /// First pushes of immutable tags that a later one in another region replaced.
    immutable_conflicts: AtomicU64,
}

/// Counters about one other region.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PerRegion {
    /// Bytes of blobs copied from it.
    pub(crate) copied_bytes: u64,
    /// Journal entries merged and dropped.
    pub(crate) entries_done: u64,
    /// Entries that wait for a region that does not answer.
    pub(crate) blocked: u64,
    /// Entries whose stamps are too far ahead of this replica's clock.
    pub(crate) ahead: u64,
    /// Entries that are owed.
    pub(crate) owed: u64,
    /// Whether this replica has the lease to follow the region.
    pub(crate) has_lease: bool,
    /// Whether it follows the region: it has the lease, and the region is the one that is known.
    pub(crate) follows: bool,
    /// Whether its storage is a wrong one.
    pub(crate) is_refused: bool,
    /// When the oldest entry was written that is not merged and may have reached its keys, in
    /// nanoseconds since 1970.
    pub(crate) oldest_owed: Option<u64>,
    /// When the last complete list of entries was asked for, in nanoseconds since 1970; before the
    /// first one, when this replica got the lease.
    pub(crate) listed_at: Option<u64>,
}

impl PerRegion {
    /// Age of the oldest entry that is owed, in nanoseconds. While the region cannot be asked, what
    /// it owes is unknown, and may be as old as the last list. 0 for a replica without the lease.
    pub(crate) fn lag_nanos(&self, unix_now: u64) -> u64 {
        if !self.has_lease {
            return 0;
        }
        let age = |at: Option<u64>| at.map_or(0, |at| unix_now.saturating_sub(at));
        let unlisted = Some(age(self.listed_at)).filter(|age| *age > LISTED_FOR_NANOS);
        age(self.oldest_owed).max(unlisted.unwrap_or(0))
    }

    /// Leaves what is counted, and drops what is known of the region at present.
    fn forget(&mut self) {
        *self = Self {
            copied_bytes: self.copied_bytes,
            entries_done: self.entries_done,
            is_refused: self.is_refused,
            ..Self::default()
        };
    }
}

impl RegionCounts {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RegionName, PerRegion>> {
        self.by_region
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the counters about a region.
    pub(crate) fn update(&self, region: &RegionName, change: impl FnOnce(&mut PerRegion)) {
        change(self.lock().entry(region.clone()).or_default());
    }

    pub(crate) fn copied(&self, region: &RegionName, bytes: usize) {
        self.update(region, |counts| counts.copied_bytes += bytes as u64);
    }

    /// This replica has the lease to follow a region, since `unix_now` at the latest.
    pub(crate) fn hold_lease(&self, region: &RegionName, unix_now: u64) {
        self.update(region, |counts| {
            counts.has_lease = true;
            counts.listed_at.get_or_insert(unix_now);
        });
    }

    /// Another replica follows a region, or none does any longer.
    pub(crate) fn lose_lease(&self, region: &RegionName) {
        self.update(region, PerRegion::forget);
    }

    pub(crate) fn set_follows(&self, region: &RegionName, follows: bool) {
        self.update(region, |counts| counts.follows = follows);
    }

    /// A read that was served by a region, or failed.
    pub(crate) fn read(&self, by: &RegionName, outcome: &'static str) {
        let mut reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        *reads.entry((by.clone(), outcome)).or_default() += 1;
    }

    /// A change that was forwarded to a region, or that none could take.
    pub(crate) fn forwarded(&self, to: Option<&RegionName>) {
        let Some(region) = to else {
            self.unforwarded.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let mut forwarded = self
            .forwarded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *forwarded.entry(region.clone()).or_default() += 1;
    }

    /// Reads by region and outcome.
    pub(crate) fn reads(&self) -> BTreeMap<(RegionName, &'static str), u64> {
        let reads = self.reads.lock().unwrap_or_else(PoisonError::into_inner);
        reads.clone()
    }

    /// Forwarded changes by region, and those that no region could take.
    pub(crate) fn all_forwarded(&self) -> (BTreeMap<RegionName, u64>, u64) {
        let forwarded = self
            .forwarded
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        (forwarded.clone(), self.unforwarded.load(Ordering::Relaxed))
    }

    pub(crate) fn broken_closure(&self) {
        self.broken_closures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn immutable_conflicts_found(&self, number: u64) {
        self.immutable_conflicts
            .fetch_add(number, Ordering::Relaxed);
    }

    /// A copy of all counters, by region.
    pub(crate) fn by_region(&self) -> BTreeMap<RegionName, PerRegion> {
        self.lock().clone()
    }

    pub(crate) fn immutable_conflicts(&self) -> u64 {
        self.immutable_conflicts.load(Ordering::Relaxed)
    }

    pub(crate) fn broken_closures(&self) -> u64 {
        self.broken_closures.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn lag_grows_while_a_region_cannot_be_listed() {
        let mut counts = PerRegion {
            has_lease: true,
            listed_at: Some(100 * SECOND),
            ..PerRegion::default()
        };
        assert_eq!(counts.lag_nanos(105 * SECOND), 0, "an idle follower pauses");
        assert_eq!(counts.lag_nanos(160 * SECOND), 60 * SECOND);
        counts.oldest_owed = Some(40 * SECOND);
        assert_eq!(counts.lag_nanos(105 * SECOND), 65 * SECOND);
        counts.has_lease = false;
        assert_eq!(
            counts.lag_nanos(160 * SECOND),
            0,
            "another replica tells it"
        );
    }

    #[test]
    fn replica_without_the_lease_keeps_only_its_counters() {
        let counts = RegionCounts::default();
        let region: RegionName = "us-1".parse().expect("a name");
        counts.hold_lease(&region, SECOND);
        counts.hold_lease(&region, 9 * SECOND);
        counts.copied(&region, 5);
        assert_eq!(counts.by_region()[&region].listed_at, Some(SECOND));
        counts.lose_lease(&region);
        let left = counts.by_region()[&region];
        assert_eq!((left.copied_bytes, left.listed_at), (5, None));
    }
}
