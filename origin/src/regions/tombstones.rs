//! When a tombstone may be removed.
//!
//! A tombstone keeps an older value from coming back: from a region that has not heard of the
//! delete, or from a follower that read the value before. So it stays until all regions have merged
//! everything that was written before it, and for longer than any request lasts.
//!
//! Age is counted from the time at which the tombstone was written, never from its stamp: a machine
//! that deletes by itself stamps one above the value that it deletes, which may be months old. And
//! a stamp may lie in the future; while it does, a push over the absent key would get a lower one
//! than the tombstone of another region.

use core::time::Duration;

use flotilla_common::wire::region::RegionState;

/// Subtracted from the floor: more than the clocks of two regions may differ.
const MARGIN: Duration = Duration::from_hours(1);

/// A tombstone as a region's storage holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tombstone {
    /// The clock of its stamp, in nanoseconds since 1970.
    pub(crate) stamp: u64,
    /// When it was written, by the storage's clock, in nanoseconds since 1970.
    pub(crate) modified: u64,
}

/// The time before which everything that was written, in any region for any region, is merged, in
/// nanoseconds since 1970. `states` are those of all regions of the policy, this one included.
///
/// `None` if a region could not be asked (`None` in `states`), is not whole, or owes or is owed a
/// sweep.
pub(crate) fn merged_before<'a>(
    states: impl IntoIterator<Item = Option<&'a RegionState>>,
) -> Option<u64> {
    let mut oldest = u64::MAX;
    for state in states {
        let state = state?;
        if !state.is_whole || state.owed.iter().any(|owed| owed.sweep.is_some()) {
            return None;
        }
        let entries = state.owed.iter().filter_map(|owed| owed.oldest);
        oldest = entries.fold(oldest.min(state.clock), u64::min);
    }
    Some(oldest.saturating_sub(nanos(MARGIN)))
}

/// Whether a tombstone may be removed at `now` (the storage's clock, in nanoseconds since 1970), if
/// everything before `merged_before` is merged and tombstones are kept for `keep`, which is longer
/// than the horizon. The caller removes the version that it read, and no other.
pub(crate) fn may_remove(
    tombstone: Tombstone,
    merged_before: Option<u64>,
    now: u64,
    keep: Duration,
) -> bool {
    let Some(merged_before) = merged_before else {
        return false;
    };
    now.saturating_sub(tombstone.modified) >= nanos(keep)
        && tombstone.modified < merged_before
        && tombstone.stamp < merged_before
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use flotilla_common::storage_id::StorageId;
    use flotilla_common::wire::region::{OwedTo, StorageStanding};

    use super::*;

    const DAY: Duration = Duration::from_hours(24);
    const KEEP: Duration = Duration::from_hours(24 * 30);

    fn at_day(day: u32) -> u64 {
        nanos(DAY * day)
    }

    /// A region at a day, with what it owes another.
    fn state(day: u32, oldest: Option<u64>) -> RegionState {
        let owed = OwedTo {
            region: "us-1".parse().expect("a label"),
            entries: u32::from(oldest.is_some()),
            oldest,
            sweep: None,
        };
        RegionState {
            region: "eu-1".parse().expect("a label"),
            storage_id: StorageId::from_bytes([0; 16]),
            replaced: Vec::new(),
            clock: at_day(day),
            standing: StorageStanding::Usable,
            is_whole: true,
            owed: vec![owed],
        }
    }

    fn written(day: u32) -> Tombstone {
        Tombstone {
            stamp: at_day(day),
            modified: at_day(day),
        }
    }

    #[test]
    fn tombstones_stay_until_they_are_old_and_merged_everywhere() {
        let idle = state(100, None);
        let merged = merged_before([Some(&idle), Some(&idle)]);
        assert!(may_remove(written(60), merged, at_day(100), KEEP));
        assert!(!may_remove(written(80), merged, at_day(100), KEEP));
        let behind = state(100, Some(at_day(59)));
        let merged = merged_before([Some(&idle), Some(&behind)]);
        assert!(!may_remove(written(60), merged, at_day(100), KEEP));
        assert!(may_remove(written(58), merged, at_day(100), KEEP));
    }

    #[test]
    fn regions_that_cannot_vouch_stop_removals() {
        let idle = state(100, None);
        assert_eq!(merged_before([Some(&idle), None]), None);
        let mut trimmed = state(100, None);
        trimmed.owed[0].sweep = Some(7);
        assert_eq!(merged_before([Some(&idle), Some(&trimmed)]), None);
        let joining = RegionState {
            is_whole: false,
            ..state(100, None)
        };
        assert_eq!(merged_before([Some(&idle), Some(&joining)]), None);
        assert!(!may_remove(written(1), None, at_day(100), KEEP));
    }

    #[test]
    fn old_and_future_stamps_do_not_count_as_age() {
        let idle = state(100, None);
        let merged = merged_before([Some(&idle)]);
        let of_retention = Tombstone {
            stamp: at_day(1),
            modified: at_day(99),
        };
        assert!(!may_remove(of_retention, merged, at_day(100), KEEP));
        let from_the_future = Tombstone {
            stamp: at_day(101),
            modified: at_day(60),
        };
        assert!(!may_remove(from_the_future, merged, at_day(100), KEEP));
    }
}
