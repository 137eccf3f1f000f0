//! What happens between regions, counted for metrics.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flotilla_common::name::RegionName;

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
    /// Age of the oldest reached entry that is not merged, in nanoseconds.
    pub(crate) lag_nanos: u64,
    /// Entries that are owed.
    pub(crate) owed: u64,
    /// Whether this replica follows the region at present.
    pub(crate) follows: bool,
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

    /// A copy of all counters, by region.
    pub(crate) fn by_region(&self) -> BTreeMap<RegionName, PerRegion> {
        self.lock().clone()
    }

    pub(crate) fn broken_closures(&self) -> u64 {
        self.broken_closures.load(Ordering::Relaxed)
    }
}
