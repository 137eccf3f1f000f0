//! Sweeps: a region walks all keys of another one and merges each. The state is stored, so that a
//! sweep goes on where it was after a crash.

use core::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};

use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{Fact, FactKey, FactKind, MAX_FACTS, MAX_KEYS, RegionState};
use futures_util::{StreamExt, TryStreamExt, stream};

use super::entry::EntryError;
use super::members::{Members, RegionPolicy};
use super::replicate::{Replicated, Replicator, led_by};
use super::source::{Source, SourceError, readable_facts};
use super::storage_pins::{FoundStorage, KnownStorage, compare};
use super::sweep_state::{SweepStep, SweepTimes, next_step, page_merged, retried};
use crate::layout;
use crate::nonce::nonce;
use crate::record::{RegionRecord, SweepState, decode, encode};
use crate::registry::{MergeReason, RegistryError};
use crate::storage::{Key, Object, Storage, StorageError, entries};

/// Keys merged concurrently.
const KEYS_AT_ONCE: usize = 16;

/// Walks the keys of one region.
#[derive(Debug)]
pub(crate) struct Sweeper {
    replicator: Arc<Replicator>,
    members: Arc<Members>,
    times: SweepTimes,
    key: Key,
    /// The owed sweep that ended last. A journal page that was listed before its end may still name
    /// it.
    ended: Mutex<Option<u128>>,
    /// Why the region was refused at the last comparison, which was logged.
    refusal: Mutex<Option<String>>,
}

impl Sweeper {
    pub(crate) fn new(
        replicator: Arc<Replicator>,
        members: Arc<Members>,
        region: &flotilla_common::name::RegionName,
        times: SweepTimes,
    ) -> Self {
        Self {
            replicator,
            members,
            times,
            key: layout::region(region),
            ended: Mutex::default(),
            refusal: Mutex::default(),
        }
    }

    /// Refuses a region whose storage is this region's, or another one than before: entries would
    /// be done by the wrong one.
    ///
    /// # Errors
    /// [`SourceError`] that says what is wrong; the storage's.
    pub(crate) async fn check_storage_id(&self, source: &dyn Source) -> Result<(), EntryError> {
        let state = source.state().await?;
        let refused = |reason: String| SourceError {
            region: source.region().clone(),
            reason,
        };
        let checked = self.check_state(source, &state, &refused).await;
        let refusal = match &checked {
            Err(EntryError::Source(error)) => Some(error.reason.clone()),
            Ok(()) | Err(EntryError::Registry(_)) => None,
        };
        let mut logged = self.refusal.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reason) = refusal.as_deref()
            && *logged != refusal
        {
            tracing::error!(region = %source.region(), reason, "refusing to replicate from a region");
        }
        *logged = refusal;
        checked
    }

    async fn check_state(
        &self,
        source: &dyn Source,
        state: &RegionState,
        refused: &impl Fn(String) -> SourceError,
    ) -> Result<(), EntryError> {
        let registry = &self.replicator.registry;
        if state.region != *source.region() {
            let reason = format!(
                "its URL leads to region {}; correct the policy",
                state.region
            );
            return Err(refused(reason).into());
        }
        let known = self.read().await?;
        let pinned = known.as_ref().map(|(_, record)| KnownStorage::of(record));
        let pinned = pinned.unwrap_or_default();
        let (own, found) = (registry.storage_id(), state.storage_id);
        match (compare(own, &pinned, found, &state.replaced), known) {
            (FoundStorage::Refused(reason), _) => Err(refused(reason.to_owned()).into()),
            (FoundStorage::Renewed, Some((object, record))) => {
                self.accept_renewed(&object, record, found).await
            }
            (FoundStorage::Known, Some(_)) => Ok(()),
            (FoundStorage::Known | FoundStorage::Renewed, None) => {
                let record = RegionRecord {
                    storage_id: found,
                    retired: Vec::new(),
                    is_whole: false,
                    selection: self.members.policy().selection(),
                    sweep: SweepState::first(registry.unix_nanos(), &self.times),
                    nonce: nonce(),
                };
                self.write(None, record).await
            }
        }
    }

    /// Records that a region's storage was restored from an old copy and has another id. Its keys
    /// are swept again. So are those of all other regions: what the region had given only to some
    /// of them since the copy is in no journal.
    async fn accept_renewed(
        &self,
        seen: &Object,
        record: RegionRecord,
        storage_id: StorageId,
    ) -> Result<(), EntryError> {
        let storage = self.replicator.registry.storage();
        let first = || SweepState::first(self.replicator.registry.unix_nanos(), &self.times);
        // Before the new id is recorded: a replica that dies in between does it again.
        let others = region_records(&**storage).await;
        for (key, object, other) in others.map_err(RegistryError::from)? {
            if key != self.key {
                let again = RegionRecord {
                    is_whole: false,
                    sweep: first(),
                    ..other
                };
                write_region(&**storage, &key, Some(&object), again)
                    .await
                    .map_err(RegistryError::from)?;
            }
        }
        let mut retired = record.retired;
        retired.push(record.storage_id);
        let renewed = RegionRecord {
            storage_id,
            retired,
            sweep: first(),
            ..record
        };
        self.write(Some(seen), renewed).await?;
        tracing::warn!(key = %self.key, %storage_id, "a region has a renewed storage; sweeping all regions again");
        Ok(())
    }

    /// Does the next step of the sweep, if there is one now. Returns whether it did.
    ///
    /// # Errors
    /// The source or the storage failed: the step is repeated.
    pub(crate) async fn step(
        &self,
        source: &Arc<dyn Source>,
        owed: Option<u128>,
    ) -> Result<bool, EntryError> {
        let Some((object, record)) = self.read().await? else {
            return Ok(false);
        };
        let ended = *self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let owed = owed.filter(|owed| ended != Some(*owed));
        let now = self.replicator.registry.unix_nanos();
        let policy = self.members.policy();
        let selection = policy.selection();
        let sources = led_by(source, &self.members.sources());
        let next = match next_step(&record, now, owed, &selection, &self.times) {
            SweepStep::Idle => return Ok(false),
            SweepStep::Store { sweep, stays_whole } => RegionRecord {
                is_whole: record.is_whole && stays_whole,
                selection,
                sweep,
                ..record
            },
            SweepStep::Page { kind, after } => {
                let page = source.keys(kind, after.as_ref(), MAX_KEYS).await?;
                let last = page.keys.last().cloned();
                if page.more && (last.is_none() || last == after) {
                    return Err(SourceError {
                        region: source.region().clone(),
                        reason: "it answered with a page of keys that leads no further".to_owned(),
                    }
                    .into());
                }
                let blocked = self.merge(&sources, &policy, &page.keys).await?;
                RegionRecord {
                    sweep: page_merged(record.sweep, now, last, page.more, blocked),
                    ..record
                }
            }
            SweepStep::Retry(keys) => {
                let blocked = self.merge(&sources, &policy, &keys).await?;
                RegionRecord {
                    sweep: retried(record.sweep, now, blocked),
                    ..record
                }
            }
            SweepStep::End {
                owed,
                next,
                is_whole,
            } => {
                if owed.is_some() {
                    source.done(Vec::new(), owed).await?;
                    *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = owed;
                }
                RegionRecord {
                    is_whole: is_whole || record.is_whole || is_empty(&**source).await?,
                    sweep: next,
                    ..record
                }
            }
        };
        self.write(Some(&object), next).await?;
        Ok(true)
    }

    /// Whether everything that the region had is here, by the policy as it is now.
    pub(crate) async fn is_whole(&self) -> Result<bool, RegistryError> {
        let selection = self.members.policy().selection();
        let is_whole =
            |record: &RegionRecord| record.is_whole && !selection.may_lack_after(&record.selection);
        let known = self.read().await?;
        Ok(known.is_some_and(|(_, record)| is_whole(&record)))
    }

    /// Merges keys. Returns those that wait for another region.
    async fn merge(
        &self,
        sources: &[Arc<dyn Source>],
        policy: &RegionPolicy,
        keys: &[FactKey],
    ) -> Result<Vec<FactKey>, EntryError> {
        let Some(source) = sources.first() else {
            return Ok(keys.to_vec());
        };
        let mut unfinished = Vec::new();
        let mut failure = None;
        let mut at = 0;
        while at < keys.len() {
            let batch = &keys[at..(at + MAX_FACTS).min(keys.len())];
            let facts = readable_facts(&**source, batch).await?;
            at += facts.len().min(batch.len());
            let pairs: Vec<_> = batch.iter().cloned().zip(facts).collect();
            let merges = stream::iter(pairs).map(|(key, fact)| async move {
                let merged = match fact {
                    Ok(fact) => self.merge_key(sources, policy, &key, &fact).await,
                    Err(error) => Ok(Replicated::Blocked(error.to_string())),
                };
                (key, merged)
            });
            let mut merges = merges.buffer_unordered(KEYS_AT_ONCE);
            while let Some((key, merged)) = merges.next().await {
                match merged {
                    Ok(Replicated::Merged) => {}
                    Ok(Replicated::MergedBroken) => self.replicator.counts().broken_closure(),
                    Ok(Replicated::Blocked(_) | Replicated::Ahead(_)) => unfinished.push(key),
                    Err(error) => {
                        failure = Some(error);
                        unfinished.push(key);
                    }
                }
            }
        }
        // One record that cannot be read or written holds up nothing. A storage that is out does.
        if let Some(error) = failure {
            tracing::debug!(region = %source.region(), %error, "a sweep could not merge a key; trying it again");
            self.replicator
                .registry
                .probe_storage()
                .await
                .map_err(RegistryError::from)?;
        }
        Ok(unfinished)
    }

    async fn merge_key(
        &self,
        sources: &[Arc<dyn Source>],
        policy: &RegionPolicy,
        key: &FactKey,
        fact: &Fact,
    ) -> Result<Replicated, RegistryError> {
        if !policy.selects()(key) && !self.replicator.registry.has_fact(key).await? {
            return Ok(Replicated::Merged);
        }
        self.replicator
            .replicate(sources, key, fact, MergeReason::Sweep)
            .await
    }

    async fn read(&self) -> Result<Option<(Object, RegionRecord)>, RegistryError> {
        let Some(object) = self.replicator.registry.storage().read(&self.key).await? else {
            return Ok(None);
        };
        let record = decode(&self.key, &object.body)?;
        Ok(Some((object, record)))
    }

    async fn write(&self, seen: Option<&Object>, record: RegionRecord) -> Result<(), EntryError> {
        let storage = self.replicator.registry.storage();
        let written = write_region(&**storage, &self.key, seen, record).await;
        // A conflict is another replica's step, as good as this one.
        match written {
            Ok(()) | Err(StorageError::Conflict { .. }) => Ok(()),
            Err(error) => Err(RegistryError::from(error).into()),
        }
    }
}

/// What this region knows of all others, those included that the policy no longer lists.
///
/// # Errors
/// The storage's.
pub(crate) async fn region_records(
    storage: &dyn Storage,
) -> Result<Vec<(Key, Object, RegionRecord)>, StorageError> {
    let mut records = Vec::new();
    let mut listed = pin!(entries(storage, layout::regions(), None));
    while let Some(entry) = listed.try_next().await? {
        if let Some(object) = storage.read(&entry.key).await? {
            let record = decode(&entry.key, &object.body)?;
            records.push((entry.key, object, record));
        }
    }
    Ok(records)
}

/// Writes what is known of a region, in place of what was `seen`.
///
/// # Errors
/// The storage's; [`StorageError::Conflict`] if it was changed meanwhile.
pub(crate) async fn write_region(
    storage: &dyn Storage,
    key: &Key,
    seen: Option<&Object>,
    record: RegionRecord,
) -> Result<(), StorageError> {
    let record = RegionRecord {
        nonce: nonce(),
        ..record
    };
    let body = encode(key, &record)?.into();
    let written = match seen {
        None => storage.create(key, body).await,
        Some(object) => storage.swap(key, &object.version, body).await,
    };
    written.map(drop)
}

/// Whether a region has no keys. One that joins with an empty storage has nothing that this one
/// could lack: its later changes are in its journal.
async fn is_empty(source: &dyn Source) -> Result<bool, SourceError> {
    for kind in [FactKind::Manifests, FactKind::Tags] {
        let page = source.keys(kind, None, 1).await?;
        if !page.keys.is_empty() || page.more {
            return Ok(false);
        }
    }
    Ok(true)
}
