//! The keys that regions owe each other, from their journals.

use std::collections::HashMap;

use flotilla_common::name::RegionName;
use flotilla_common::wire::region::{EntryId, FactKey, MAX_ENTRIES};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Owed, RegionCheck, age_s, retried};
use crate::layout;
use crate::record::{JournalRecord, TrimMark, decode};
use crate::regions::source::{Source, SourceError};
use crate::storage::{PAGE_LEN, StorageError};

/// Entries of a journal that are read; a longer journal is read up to here.
const MAX_READ: usize = 100_000;
/// Entries read concurrently.
const READS_AT_ONCE: usize = 16;

/// The keys in a journal.
#[derive(Debug, Default)]
pub(super) struct OwedKeys {
    /// When the oldest entry of each key was created, in nanoseconds since 1970.
    created: HashMap<FactKey, u64>,
    entries: usize,
    /// Whether there are more entries.
    is_partial: bool,
    /// Whether all keys are owed, because entries were dropped unread.
    sweep: bool,
}

impl OwedKeys {
    fn add(&mut self, id: EntryId, keys: impl IntoIterator<Item = FactKey>) {
        self.entries += 1;
        for key in keys {
            self.created.entry(key).or_insert(id.created);
        }
    }

    /// Why a key will be replicated, for people; `None` if no entry and no sweep will bring it.
    pub(super) fn reason(&self, key: &FactKey, now: u64) -> Option<String> {
        if let Some(created) = self.created.get(key) {
            return Some(format!("owed since {} s", age_s(now, *created)));
        }
        if self.sweep {
            return Some("a sweep is owed".to_owned());
        }
        let is_partial = self.is_partial;
        is_partial.then(|| format!("over {MAX_READ} entries are owed, perhaps this one"))
    }
}

impl RegionCheck {
    /// How much this region owes another.
    pub(super) async fn owed_to(&self, region: &RegionName) -> Result<Owed, StorageError> {
        let (ids, _) = self.entries_for(region, MAX_ENTRIES).await?;
        let now = self.clock.unix_nanos();
        Ok(Owed {
            entries: ids.len() as u64,
            oldest_s: ids.first().map(|id| age_s(now, id.created)),
            sweep: self.sweep_owed_to(region).await?,
        })
    }

    /// What this region owes another.
    pub(super) async fn keys_owed_to(&self, region: &RegionName) -> Result<OwedKeys, StorageError> {
        let (ids, is_partial) = self.entries_for(region, MAX_READ).await?;
        let reads = stream::iter(ids).map(|id| async move {
            let key = layout::journal_entry(region, id);
            let Some(object) = self.storage.read(&key).await? else {
                return Ok(None);
            };
            let record: JournalRecord = decode(&key, &object.body)?;
            Ok::<_, StorageError>(Some((id, record.keys)))
        });
        let mut reads = reads.buffered(READS_AT_ONCE);
        let mut owed = OwedKeys::default();
        while let Some(entry) = reads.try_next().await? {
            if let Some((id, keys)) = entry {
                owed.add(id, keys.into_iter().map(|(key, _)| key));
            }
        }
        owed.is_partial = is_partial;
        // After the listing: a trim marks first, and deletes then.
        owed.sweep = self.sweep_owed_to(region).await?;
        Ok(owed)
    }

    async fn entries_for(
        &self,
        region: &RegionName,
        limit: usize,
    ) -> Result<(Vec<EntryId>, bool), StorageError> {
        let prefix = layout::journal(region);
        let mut ids = Vec::new();
        let mut after = None;
        loop {
            let len = (limit - ids.len()).min(PAGE_LEN);
            let page = self.storage.list(&prefix, after.as_ref(), len).await?;
            let listed = page.entries.iter();
            ids.extend(listed.filter_map(|entry| layout::entry_id(&entry.key)));
            after = page.entries.last().map(|entry| entry.key.clone());
            if !page.more || ids.len() >= limit || after.is_none() {
                return Ok((ids, page.more));
            }
        }
    }

    async fn sweep_owed_to(&self, region: &RegionName) -> Result<bool, StorageError> {
        let key = layout::trim_mark(region);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(false);
        };
        let mark: TrimMark = decode(&key, &object.body)?;
        Ok(mark.sweep.is_some())
    }
}

/// What another region owes this one.
pub(super) async fn keys_owed_by(source: &dyn Source) -> Result<OwedKeys, SourceError> {
    let mut owed = OwedKeys::default();
    let mut after = None;
    loop {
        let page = retried(|| source.journal(after, MAX_ENTRIES)).await?;
        owed.sweep |= page.sweep.is_some();
        after = page.entries.last().map(|entry| entry.id);
        for entry in page.entries {
            owed.add(entry.id, entry.keys.into_iter().map(|(key, _)| key));
        }
        if !page.more || after.is_none() {
            return Ok(owed);
        }
        if owed.entries >= MAX_READ {
            owed.is_partial = true;
            return Ok(owed);
        }
    }
}
