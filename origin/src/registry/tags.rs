//! Lists the tags of a repository.

use flotilla_common::name::{RepositoryName, Tag};

use super::{Registry, RegistryError};
use crate::layout;
use crate::record::TOMBSTONE_LIMIT;
use crate::storage::{Key, PAGE_LEN, Prefix};

/// Maximum tags in one answer.
pub(crate) const MAX_TAGS: usize = 10_000;

/// A page of tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagPage {
    pub(crate) tags: Vec<String>,
    /// Whether there are more tags after the last.
    pub(crate) more: bool,
}

impl Registry {
    /// At most `limit` tags after `last`, in byte order.
    pub(crate) async fn tag_page(
        &self,
        repository: &RepositoryName,
        last: Option<&Tag>,
        limit: usize,
    ) -> Result<TagPage, RegistryError> {
        let limit = limit.min(MAX_TAGS);
        let after = last.map(|last| layout::tag(repository, last));
        let live = self
            .live_keys(&layout::tags(repository), after, limit)
            .await?;
        if live.is_empty() && last.is_none() && limit > 0 && !self.has_manifests(repository).await?
        {
            return Err(RegistryError::NameUnknown);
        }
        let more = live.len() > limit;
        let tags = live
            .iter()
            .take(limit)
            .map(|key| key.last_segment().to_owned())
            .collect();
        Ok(TagPage { tags, more })
    }

    /// The keys of the live pointers under a prefix, one more than `limit` if there are more.
    /// Tombstones are recognized by their size.
    pub(super) async fn live_keys(
        &self,
        prefix: &Prefix,
        mut after: Option<Key>,
        limit: usize,
    ) -> Result<Vec<Key>, RegistryError> {
        let mut live = Vec::new();
        while live.len() <= limit {
            let page_len = (limit + 1 - live.len()).min(PAGE_LEN);
            let page = self.storage.list(prefix, after.as_ref(), page_len).await?;
            after = page.entries.last().map(|entry| entry.key.clone());
            let live_entries = page
                .entries
                .into_iter()
                .filter(|entry| entry.size >= TOMBSTONE_LIMIT);
            live.extend(live_entries.map(|entry| entry.key));
            if !page.more {
                break;
            }
        }
        Ok(live)
    }

    async fn has_manifests(&self, repository: &RepositoryName) -> Result<bool, RegistryError> {
        let page = self
            .storage
            .list(&layout::manifests(repository), None, 1)
            .await?;
        Ok(!page.entries.is_empty())
    }
}
