//! What one page of another region's journal says about repositories and manifests.

use core::time::Duration;
use std::collections::HashSet;

use flotilla_common::name::RepositoryName;
use flotilla_common::time::Time;
use flotilla_common::wire::region::{FactKey, JournalPage};

/// How old a page may be, by the start of its listing at the other region.
pub(super) const FRESH: Duration = Duration::from_secs(1);
/// Entries beyond which a region counts as owing something in every repository.
const MAX_KNOWN: usize = 999;

/// What a page names.
#[derive(Debug)]
pub(super) struct Page {
    /// When its listing began, at the earliest.
    pub(super) listed: Time,
    /// When it arrived. An entry that is dropped between the listing and this time may be missing.
    pub(super) received: Time,
    repositories: HashSet<RepositoryName>,
    manifests: HashSet<FactKey>,
    /// Whether there are more entries than the page tells.
    is_partial: bool,
}

impl Page {
    /// A page that was asked for at `asked`: its listing may have begun earlier, but not later than
    /// its age says.
    pub(super) fn new(page: &JournalPage, asked: Time, received: Time) -> Self {
        let age = Duration::from_millis(page.age_ms);
        let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
        let keys = page.entries.iter().flat_map(|entry| &entry.keys);
        let keys = keys.map(|(key, _)| key);
        let manifests = keys
            .clone()
            .filter(|key| matches!(key, FactKey::Manifest(..)));
        Self {
            listed: Time::from_nanos(asked.as_nanos().saturating_sub(age)),
            received,
            is_partial: page.more || page.entries.len() > MAX_KNOWN || page.sweep.is_some(),
            manifests: manifests.cloned().collect(),
            repositories: keys.map(|key| key.repository().clone()).collect(),
        }
    }

    pub(super) fn is_fresh(&self, now: Time) -> bool {
        now.saturating_since(self.listed) < FRESH
    }

    pub(super) fn names(&self, repository: &RepositoryName) -> bool {
        self.is_partial || self.repositories.contains(repository)
    }

    /// Whether it names a manifest; `None` if there are more entries than it tells.
    pub(super) fn names_manifest(&self, key: &FactKey) -> Option<bool> {
        let names = self.manifests.contains(key);
        (names || !self.is_partial).then_some(names)
    }
}
