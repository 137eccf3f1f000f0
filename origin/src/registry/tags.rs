//! Lists the tags of a repository, and writes tags.

use flotilla_common::name::{RepositoryName, Tag};

use super::{Registry, RegistryError};
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{Pointer, TOMBSTONE_LIMIT, TagValue};
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

    /// Writes a tag in place of the present one. `None` writes a tombstone, if there is a live tag.
    pub(super) async fn write_pointer(
        &self,
        key: &Key,
        value: Option<TagValue>,
    ) -> Result<(), RegistryError> {
        let present = self.storage.read(key).await?;
        let replaced = present
            .as_ref()
            .map(|object| Pointer::<TagValue>::of(key, &object.body))
            .transpose()?;
        if value.is_none()
            && replaced
                .as_ref()
                .is_none_or(|pointer| pointer.value.is_none())
        {
            return Err(RegistryError::ManifestUnknown);
        }
        let stamp = self
            .stamps
            .stamp(replaced.as_ref().map(|pointer| &pointer.stamp));
        let body = Pointer {
            stamp,
            value,
            nonce: nonce(),
        }
        .body(key)?
        .into();
        let seen = present.as_ref().map(|object| &object.version);
        match self.conditional_write(key, seen, body).await? {
            WriteOutcome::Written => Ok(()),
            WriteOutcome::Lost(_) => Err(RegistryError::Contended),
        }
    }
}
