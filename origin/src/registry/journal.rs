//! The journal: keys that this region's replicas were about to write, owed to each other region.
//!
//! An entry is written before any of its keys, and dropped by the region that it is owed to, once
//! that region has merged the keys. The source only keeps the list. Entries that are never fetched
//! are trimmed; the trim mark then says that the region must sweep all keys instead.

use core::time::Duration;

use bytes::Bytes;
use flotilla_common::name::RegionName;
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{
    EntryId, FactKey, JournalPage, MAX_ENTRIES, OwedEntry, OwedTo,
};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Registry, RegistryError};
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{JournalRecord, TrimMark, decode, encode};
use crate::storage::{Key, Object, PAGE_LEN, StorageError, entries};

/// Entries read or deleted concurrently.
const CALLS_AT_ONCE: usize = 16;
/// Journals that are looked for.
const MAX_JOURNALS: usize = 1_000;
/// Approximate bytes of keys after which a page ends, so that it stays below the limit of one
/// encoded message.
const MAX_PAGE_LEN: usize = 2 << 20;

impl Registry {
    /// Writes down the keys that are about to change, each with the stamp that was seen there, for
    /// each region in `owed_to`. Returns once all entries are durable.
    pub(super) async fn write_journal<'a>(
        &self,
        owed_to: &[RegionName],
        keys: impl IntoIterator<Item = (FactKey, Option<&'a Stamp>)>,
    ) -> Result<(), RegistryError> {
        if owed_to.is_empty() {
            return Ok(());
        }
        let keys: Vec<_> = keys
            .into_iter()
            .map(|(key, seen)| (key, seen.cloned()))
            .collect();
        let created = self.stamps.unix_nanos();
        let entries = owed_to.iter().map(|region| {
            let nonce = nonce();
            let key = layout::journal_entry(region, EntryId { created, nonce });
            let record = JournalRecord {
                keys: keys.clone(),
                nonce,
            };
            async move {
                let body: Bytes = encode(&key, &record)?.into();
                match self.conditional_write(&key, None, body.clone()).await? {
                    WriteOutcome::Written => {
                        // The region lists it soon.
                        let cache_key = (region.clone(), EntryId { created, nonce });
                        self.journal_entries.insert(cache_key, body);
                        Ok::<_, RegistryError>(())
                    }
                    WriteOutcome::Lost { .. } => Err(RegistryError::Contended),
                }
            }
        });
        try_join_all(entries).await.map(drop)
    }

    /// The entries that are owed to a region, oldest first, at most `limit` after `after`. Their
    /// age is left at zero.
    pub(crate) async fn journal_page(
        &self,
        region: &RegionName,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, RegistryError> {
        let (ids, mut more) = self
            .entry_ids(region, after, limit.min(MAX_ENTRIES))
            .await?;
        let reads = stream::iter(ids).map(|id| async move {
            let entry = self.entry(region, id).await?;
            Ok::<_, RegistryError>(entry.map(|keys| OwedEntry { id, keys }))
        });
        let mut reads = reads.buffered(CALLS_AT_ONCE);
        let mut entries = Vec::new();
        let mut len = 0;
        while let Some(entry) = reads.try_next().await? {
            let Some(entry) = entry else { continue };
            len += approximate_len(&entry);
            entries.push(entry);
            if len >= MAX_PAGE_LEN {
                more = true;
                break;
            }
        }
        drop(reads);
        // After the listing: a trim marks first and deletes then, so a listing that misses trimmed
        // entries is followed by a read that sees the mark.
        let mark = self.read_trim_mark(region).await?;
        Ok(JournalPage {
            entries,
            more,
            age_ms: 0,
            sweep: mark.and_then(|(_, mark)| mark.sweep),
        })
    }

    /// The entries and the sweep that are owed to a region.
    pub(crate) async fn owed_to(&self, region: &RegionName) -> Result<OwedTo, RegistryError> {
        let (ids, _) = self.entry_ids(region, None, MAX_ENTRIES).await?;
        let mark = self.read_trim_mark(region).await?;
        Ok(OwedTo {
            region: region.clone(),
            entries: u32::try_from(ids.len()).unwrap_or(u32::MAX),
            oldest: ids.first().map(|id| id.created),
            sweep: mark.and_then(|(_, mark)| mark.sweep),
        })
    }

    /// Drops entries that the region has merged, and the mark of a sweep that it has ended.
    pub(crate) async fn drop_entries(
        &self,
        region: &RegionName,
        entries: Vec<EntryId>,
        sweep: Option<u128>,
    ) -> Result<(), RegistryError> {
        let deletes = stream::iter(entries).map(|entry| async move {
            let key = layout::journal_entry(region, entry);
            self.journal_entries.invalidate(&(region.clone(), entry));
            self.storage.delete(&key).await
        });
        deletes
            .buffer_unordered(CALLS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        if sweep.is_some()
            && let Some((object, mark)) = self.read_trim_mark(region).await?
            && mark.sweep == sweep
        {
            // A lost swap is another trim: the region owes another sweep.
            self.write_trim_mark(region, Some(&object), None).await?;
        }
        Ok(())
    }

    /// Marks a region as owed a sweep, then drops entries that it has not fetched. The caller picks
    /// only entries that are older than the horizon: a younger one may belong to a write in flight.
    pub(crate) async fn trim_journal(
        &self,
        region: &RegionName,
        entries: Vec<EntryId>,
    ) -> Result<(), RegistryError> {
        let present = self.read_trim_mark(region).await?;
        let object = present.as_ref().map(|(object, _)| object);
        match self.write_trim_mark(region, object, Some(nonce())).await? {
            WriteOutcome::Written => self.drop_entries(region, entries, None).await,
            WriteOutcome::Lost { .. } => Err(RegistryError::Contended),
        }
    }

    /// Trims entries of a region that are older than `kept`, and the oldest of those that are more
    /// than `max_entries`. An entry that is younger than the horizon stays in any case: its write
    /// may be in flight. Returns the number of trimmed entries.
    pub(crate) async fn trim_old_entries(
        &self,
        region: &RegionName,
        kept: Duration,
        max_entries: usize,
    ) -> Result<usize, RegistryError> {
        let now = self.stamps.unix_nanos();
        let before =
            |age: Duration| now.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let horizon = self.format.horizons.horizon;
        let (oldest_kept, in_flight) = (before(kept.max(horizon)), before(horizon));
        let surplus = self
            .count_entries(region)
            .await?
            .saturating_sub(max_entries);
        let mut trimmed = 0;
        loop {
            let (ids, more) = self.entry_ids(region, None, MAX_ENTRIES).await?;
            let is_trimmed = |(number, id): &(usize, EntryId)| {
                let is_surplus = trimmed + number < surplus && id.created < in_flight;
                id.created < oldest_kept || is_surplus
            };
            let old: Vec<_> = ids
                .into_iter()
                .enumerate()
                .take_while(is_trimmed)
                .map(|(_, id)| id)
                .collect();
            let is_last = !more || old.len() < MAX_ENTRIES;
            if !old.is_empty() {
                trimmed += old.len();
                self.trim_journal(region, old).await?;
            }
            if is_last {
                return Ok(trimmed);
            }
        }
    }

    /// The number of entries that are owed to a region.
    async fn count_entries(&self, region: &RegionName) -> Result<usize, RegistryError> {
        let entries = entries(&*self.storage, layout::journal(region), None);
        let count = entries.try_fold(0, async |number, _| Ok(number + 1));
        Ok(count.await?)
    }

    /// The regions to which entries are owed, also those that the policy no longer lists.
    pub(crate) async fn journal_regions(&self) -> Result<Vec<RegionName>, RegistryError> {
        let prefix = layout::journals();
        let mut regions = Vec::new();
        let mut after = None;
        for _ in 0..MAX_JOURNALS {
            let page = self.storage.list(&prefix, after.as_ref(), 1).await?;
            let Some(entry) = page.entries.into_iter().next() else {
                break;
            };
            after = Some(match layout::journal_region(&entry.key) {
                Some(region) => {
                    let end = layout::journal_end(&region);
                    regions.push(region);
                    end
                }
                None => entry.key,
            });
        }
        Ok(regions)
    }

    async fn entry_ids(
        &self,
        region: &RegionName,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<(Vec<EntryId>, bool), RegistryError> {
        let prefix = layout::journal(region);
        let mut after = after.map(|entry| layout::journal_entry(region, entry));
        let mut ids = Vec::new();
        loop {
            let page_len = (limit - ids.len()).min(PAGE_LEN);
            let page = self.storage.list(&prefix, after.as_ref(), page_len).await?;
            after = page.entries.last().map(|entry| entry.key.clone());
            let listed = page.entries.iter();
            ids.extend(listed.filter_map(|entry| layout::entry_id(&entry.key)));
            if !page.more || ids.len() >= limit || after.is_none() {
                return Ok((ids, page.more));
            }
        }
    }

    /// The keys of an entry; `None` if it was dropped meanwhile. Entries never change, so they are
    /// cached.
    async fn entry(
        &self,
        region: &RegionName,
        id: EntryId,
    ) -> Result<Option<Vec<(FactKey, Option<Stamp>)>>, RegistryError> {
        let cache_key = (region.clone(), id);
        let key = layout::journal_entry(region, id);
        let body = match self.journal_entries.get(&cache_key) {
            Some(body) => body,
            None => {
                let Some(object) = self.storage.read(&key).await? else {
                    return Ok(None);
                };
                self.journal_entries.insert(cache_key, object.body.clone());
                object.body
            }
        };
        let record: JournalRecord = decode(&key, &body)?;
        Ok(Some(record.keys))
    }

    async fn read_trim_mark(
        &self,
        region: &RegionName,
    ) -> Result<Option<(Object, TrimMark)>, RegistryError> {
        let key = layout::trim_mark(region);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(None);
        };
        let mark = decode(&key, &object.body)?;
        Ok(Some((object, mark)))
    }

    async fn write_trim_mark(
        &self,
        region: &RegionName,
        present: Option<&Object>,
        sweep: Option<u128>,
    ) -> Result<WriteOutcome, StorageError> {
        let key: Key = layout::trim_mark(region);
        let mark = TrimMark {
            sweep,
            nonce: nonce(),
        };
        let body: Bytes = encode(&key, &mark)?.into();
        let seen = present.map(|object| &object.version);
        self.conditional_write(&key, seen, body).await
    }
}

/// Bytes of an entry in an encoded page: digests, tags and stamps need less than 300 per key.
fn approximate_len(entry: &OwedEntry) -> usize {
    let keys = entry.keys.iter();
    keys.map(|(key, _)| 300 + key.repository().as_str().len())
        .sum()
}
