//! When other regions last made changes for this one, by repository. A page of a journal that was
//! listed before such a change does not name it.

use std::collections::HashMap;

use flotilla_common::name::{RegionName, RepositoryName};
use flotilla_common::time::Time;

/// Repositories that are remembered of a region.
const MAX_REPOSITORIES: usize = 4096;

/// The changes that one region made for this one since its last page.
#[derive(Debug, Default)]
struct Changes {
    last: HashMap<RepositoryName, Time>,
    /// The last change of a repository for which there was no room.
    others: Option<Time>,
}

/// The changes of all regions.
#[derive(Debug, Default)]
pub(super) struct ForwardedChanges(HashMap<RegionName, Changes>);

impl ForwardedChanges {
    /// Takes note of a change that `region` acknowledged.
    pub(super) fn note(&mut self, region: RegionName, repository: RepositoryName, now: Time) {
        let changes = self.0.entry(region).or_default();
        if changes.last.len() < MAX_REPOSITORIES || changes.last.contains_key(&repository) {
            changes.last.insert(repository, now);
        } else {
            changes.others = Some(now);
        }
    }

    /// Whether the region may have changed the repository after a page was listed; `None` for no
    /// page at all.
    pub(super) fn is_missed_by(
        &self,
        listed: Option<Time>,
        region: &RegionName,
        repository: &RepositoryName,
    ) -> bool {
        let Some(changes) = self.0.get(region) else {
            return false;
        };
        let last = changes.last.get(repository).copied().max(changes.others);
        last.is_some_and(|last| listed.is_none_or(|listed| last >= listed))
    }

    /// Forgets the changes of a region that a page lists, unless they are merged.
    pub(super) fn drop_listed(&mut self, region: &RegionName, listed: Time) {
        let Some(changes) = self.0.get_mut(region) else {
            return;
        };
        changes.last.retain(|_, at| *at >= listed);
        changes.others = changes.others.filter(|at| *at >= listed);
        if changes.last.is_empty() && changes.others.is_none() {
            self.0.remove(region);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    fn name<T: core::str::FromStr<Err: core::fmt::Debug>>(text: &str) -> T {
        text.parse().expect("a name")
    }

    #[test]
    fn pages_from_before_a_change_miss_it() {
        let mut changes = ForwardedChanges::default();
        let at = |seconds| Time::ZERO + Duration::from_secs(seconds);
        let us = name("us-1");
        changes.note(name("us-1"), name("app"), at(5));
        let misses = |changes: &ForwardedChanges, listed, repository| {
            changes.is_missed_by(listed, &us, &name(repository))
        };
        assert!(misses(&changes, None, "app"));
        assert!(misses(&changes, Some(at(5)), "app"));
        assert!(!misses(&changes, Some(at(6)), "app"));
        assert!(!misses(&changes, None, "other"));
        assert!(!changes.is_missed_by(None, &name("ap-1"), &name("app")));
        changes.drop_listed(&us, at(5));
        assert!(misses(&changes, None, "app"));
        changes.drop_listed(&us, at(6));
        assert!(!misses(&changes, None, "app"));
    }

    #[test]
    fn without_room_every_repository_counts_as_changed() {
        let mut changes = ForwardedChanges::default();
        for number in 0..=MAX_REPOSITORIES {
            changes.note(name("us-1"), name(&format!("app-{number}")), Time::ZERO);
        }
        assert!(changes.is_missed_by(None, &name("us-1"), &name("other")));
        changes.drop_listed(&name("us-1"), Time::ZERO + Duration::from_secs(1));
        assert!(!changes.is_missed_by(None, &name("us-1"), &name("other")));
    }
}
