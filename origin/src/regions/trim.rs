//! Drops journal entries that a region does not fetch.

use core::time::Duration;

use flotilla_common::name::RegionName;

use crate::registry::Registry;

/// How long a region may leave its entries before they are dropped and it sweeps all keys instead.
const KEPT_ENTRIES: Duration = Duration::from_hours(7 * 24);
/// How many of its entries are kept, however young they are, unless a write may be in flight.
const MAX_KEPT_ENTRIES: usize = 10_000_000;

/// Drops entries that a region has not fetched for a week, or that are too many; also those of a
/// region that the policy no longer lists, which no region will fetch.
pub(super) async fn trim_journals(registry: &Registry, regions: Vec<RegionName>) {
    for region in regions {
        let trimmed = registry.trim_old_entries(&region, KEPT_ENTRIES, MAX_KEPT_ENTRIES);
        match trimmed.await {
            Ok(0) => {}
            Ok(entries) => {
                tracing::warn!(%region, entries, "dropped journal entries that the region did not fetch for a week, or that were more than 10 million; it sweeps all keys when it returns");
            }
            Err(error) => {
                tracing::debug!(%region, %error, "old journal entries could not be dropped");
            }
        }
    }
}
