//! The facts of the registry and how they change, without HTTP: blobs, uploads, manifests, tags,
//! referrers, closures.
//!
//! Reads go through caches, writes through
//! [`ConditionalWriter`](crate::conditional_write::ConditionalWriter). Nothing is read, changed and
//! written back without a precondition, and memory holds nothing that another replica could not
//! learn from storage.

mod blobs;
mod change_rules;
mod changes;
mod closure;
mod content;
mod error;
mod facts;
mod hybrid_clock;
mod journal;
mod known_tags;
mod manifests;
mod merge;
mod referrers;
mod tags;
mod upload_progress;
mod upload_sessions;
mod uploads;

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RegionName, RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_common::storage_id::StorageId;
use flotilla_common::time::Time;
use flotilla_common::wire::region::EntryId;
use flotilla_runtime::clock::Clock;
use tokio::time::sleep;

use crate::buffer_pool::BufferPool;
use crate::cache::{Cache, CacheLimits};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::config::Limits;
use crate::format::{self, Format};
use crate::layout;
use crate::replicas::{Changed, Invalidator};
use crate::stall_budget::StallBudget;
use crate::storage::{Key, Storage, StorageError, Version};
use crate::upload::id::{Generation, UploadIdSigner};
use crate::upload::receive::BATCH_LEN;

pub(crate) use blobs::{FoundBlob, LostGeneration, Need};
pub(crate) use change_rules::{ChangeRules, UnseenValue};
pub(crate) use content::{gave_wrong_bytes, read_segments};
pub(crate) use error::RegistryError;
pub(crate) use facts::{list_fact_keys, read_fact};
pub(crate) use hybrid_clock::{HybridClock, MAX_AHEAD};
pub(crate) use known_tags::{KnownTag, LiveTag};
pub(crate) use manifests::CachedManifest;
pub(crate) use merge::{MergeReason, Merged};
pub(crate) use referrers::MAX_REFERRERS;
pub(crate) use tags::MAX_TAGS;
pub(crate) use upload_progress::{LocationHint, UploadProgress};
pub(crate) use uploads::UploadBody;

use blobs::{CachedMembership, CachedRecord};

type BlobKey = (RepositoryName, Digest);

/// The registry of one replica.
pub(crate) struct Registry {
    storage: Arc<dyn Storage>,
    limits: Limits,
    format: Format,
    clock: Clock,
    stamps: HybridClock,
    seal_key: SealKey,
    signer: UploadIdSigner,
    batches: BufferPool,
    sessions: moka::sync::Cache<Generation, Arc<upload_sessions::UploadSession>>,
    memberships: Cache<BlobKey, CachedMembership>,
    records: Cache<(Digest, Generation), Arc<CachedRecord>>,
    small_blobs: Cache<(Digest, Generation), Bytes>,
    manifests: Cache<BlobKey, Arc<CachedManifest>>,
    tags: Cache<(RepositoryName, Tag), LiveTag>,
    /// The last known value of each tag, however old: for the time when storage is out.
    known_tags: moka::sync::Cache<(RepositoryName, Tag), KnownTag>,
    closures: moka::sync::Cache<Digest, Arc<closure::Closure>>,
    /// Bodies of journal entries, which never change.
    journal_entries: moka::sync::Cache<(RegionName, EntryId), Bytes>,
    invalidator: Arc<Invalidator>,
}

/// Time-to-live of content that never changes.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);
/// Approximate overhead of a cache entry, in bytes.
const ENTRY_LEN: usize = 160;

impl core::fmt::Debug for Registry {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Registry")
            .field("storage", &self.storage)
            .finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(
        storage: Arc<dyn Storage>,
        format: Format,
        seal_key: SealKey,
        limits: Limits,
        invalidator: Arc<Invalidator>,
        clock: Clock,
    ) -> Self {
        let timed = |time_to_live: Duration, bytes: u64| CacheLimits {
            time_to_live,
            term: None,
            refresh_after: None,
            bytes,
            fill_timeout: limits.storage_timeout,
        };
        let term = || Some(invalidator.cache_term());
        let refreshed = |bytes: u64| CacheLimits {
            term: term(),
            refresh_after: Some(limits.repository_time_to_live / 2),
            ..timed(limits.repository_time_to_live, bytes)
        };
        let other = limits.other_caches.0;
        Self {
            clock,
            stamps: HybridClock::new(clock, seal_key.issuer().clone()),
            signer: UploadIdSigner::of(&seal_key, &format),
            seal_key,
            batches: BufferPool::new(BATCH_LEN, limits.upload_buffers.0),
            sessions: moka::sync::Cache::builder()
                .max_capacity(other)
                .weigher(|_, session: &Arc<upload_sessions::UploadSession>| {
                    u32::try_from(session.weight()).unwrap_or(u32::MAX)
                })
                .time_to_live(limits.upload_lifetime)
                .build(),
            memberships: Cache::new(refreshed(other), clock, |(name, _): &BlobKey, _| {
                ENTRY_LEN + name.as_str().len()
            }),
            records: Cache::new(
                timed(format.horizons.liveness, limits.record_cache.0),
                clock,
                |_, record: &Arc<CachedRecord>| record.weight(),
            ),
            small_blobs: Cache::new(
                timed(FOR_EVER, limits.small_blob_cache.0),
                clock,
                |_, bytes: &Bytes| ENTRY_LEN + bytes.len(),
            ),
            manifests: Cache::new(
                refreshed(limits.manifest_cache.0),
                clock,
                |(name, _): &BlobKey, manifest: &Arc<CachedManifest>| {
                    ENTRY_LEN + name.as_str().len() + manifest.weight()
                },
            ),
            tags: Cache::new(
                CacheLimits {
                    term: term(),
                    ..timed(limits.tag_time_to_live, other)
                },
                clock,
                |(name, tag): &(RepositoryName, Tag), _| {
                    ENTRY_LEN + name.as_str().len() + tag.as_str().len()
                },
            ),
            closures: moka::sync::Cache::builder()
                .max_capacity(other)
                .weigher(|_, closure: &Arc<closure::Closure>| {
                    u32::try_from(closure.weight()).unwrap_or(u32::MAX)
                })
                .build(),
            known_tags: moka::sync::Cache::builder()
                .max_capacity(other)
                // The tags that were changed last matter most.
                .eviction_policy(moka::policy::EvictionPolicy::lru())
                .weigher(|(name, tag): &(RepositoryName, Tag), _| {
                    let len = ENTRY_LEN + name.as_str().len() + tag.as_str().len();
                    u32::try_from(len).unwrap_or(u32::MAX)
                })
                .build(),
            journal_entries: moka::sync::Cache::builder()
                .max_capacity(other)
                .weigher(|_, body: &Bytes| {
                    u32::try_from(ENTRY_LEN + body.len()).unwrap_or(u32::MAX)
                })
                .build(),
            storage,
            limits,
            format,
            invalidator,
        }
    }

    pub(crate) fn seal_key(&self) -> &SealKey {
        &self.seal_key
    }

    /// The region whose changes this replica stamps.
    pub(crate) const fn region(&self) -> &RegionName {
        self.stamps.region()
    }

    /// The time of stamps and journal entries, in nanoseconds since 1970.
    pub(crate) fn unix_nanos(&self) -> u64 {
        self.stamps.unix_nanos()
    }

    /// Identifies the bucket.
    pub(crate) const fn storage_id(&self) -> StorageId {
        self.format.storage_id
    }

    /// The ids that the bucket had before.
    pub(crate) fn replaced_storages(&self) -> &[StorageId] {
        &self.format.replaced
    }

    /// The machine's wall clock, in nanoseconds since 1970.
    pub(crate) fn wall_clock_nanos(&self) -> u64 {
        self.clock.unix_nanos()
    }

    /// Lets stamps follow the wall clock, which was found to be right.
    pub(crate) fn trust_wall_clock(&self) {
        self.stamps.set_offset();
    }

    /// The region's storage.
    pub(crate) const fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Where it reads the time.
    pub(crate) const fn clock(&self) -> Clock {
        self.clock
    }

    /// The monotonic clock.
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    /// Whether what was read as live since `started` still counts as live (L).
    pub(crate) fn is_recent(&self, started: Time) -> bool {
        self.clock.now().saturating_since(started) <= self.format.horizons.liveness
    }

    /// How many expired values were served because storage was unavailable.
    pub(crate) fn stale_answers(&self) -> u64 {
        self.memberships.stale_answers()
            + self.manifests.stale_answers()
            + self.tags.stale_answers()
    }

    /// The stall budget of a new request body.
    pub(crate) fn stall_budget(&self) -> StallBudget {
        StallBudget::new(self.limits.stall_timeout)
    }

    /// Reads the `format` object: storage answers, and still is the bucket that was opened.
    ///
    /// # Errors
    /// Those of the read, and [`StorageError::Missing`].
    pub(crate) async fn probe_storage(&self) -> Result<(), StorageError> {
        let key = layout::format();
        let object = self.storage.read(&key).await?;
        let object = object.ok_or_else(|| StorageError::missing("read object", &key))?;
        let id = self.format.storage_id;
        if format::storage_id_of(&object.body).is_none_or(|present| present == id) {
            return Ok(());
        }
        // Other regions know the storage by the new id, and refuse this origin.
        Err(StorageError::unavailable(
            "read object",
            &key,
            format!(
                "the storage no longer has the id {id}, with which this origin started: it was renewed (`flotilla origin format renew`) or replaced; restart this origin"
            ),
        ))
    }

    /// Whether another listed replica reaches storage, asked for at most `limit`; `None` if no other
    /// replica runs.
    pub(crate) async fn any_sibling_reaches_storage(&self, limit: Duration) -> Option<bool> {
        self.invalidator.any_sibling_reaches_storage(limit).await
    }

    /// Invalidates changed keys at the other replicas. When it returns, no replica serves the
    /// values from before the change.
    pub(crate) async fn invalidate_replicas(&self, changed: Vec<Changed>) {
        let time_to_live = changed.iter().map(|changed| match changed {
            Changed::Tag(..) | Changed::ForwardedTag { .. } => self.limits.tag_time_to_live,
            Changed::Manifest(..) | Changed::Blob(..) | Changed::ForwardedManifest { .. } => {
                self.limits.repository_time_to_live
            }
        });
        let time_to_live = time_to_live.max().unwrap_or_default();
        self.invalidator.invalidate(changed, time_to_live).await;
    }

    /// Invalidates a key that a delete found deleted already. The replica that deleted it may have
    /// stopped before it sent invalidations, so the 404 must wait until no replica serves the key.
    async fn invalidate_deleted(&self, change: Changed) {
        self.invalidate(change.clone());
        self.invalidate_replicas(vec![change]).await;
    }

    /// Drops from the caches what another replica changed.
    pub(crate) fn invalidate(&self, changed: Changed) {
        match changed {
            Changed::Tag(repository, tag) => self.tags.invalidate(&(repository, tag)),
            Changed::Manifest(repository, digest)
            | Changed::ForwardedManifest {
                repository, digest, ..
            } => self.manifests.invalidate(&(repository, digest)),
            Changed::Blob(repository, digest) => self.memberships.invalidate(&(repository, digest)),
            Changed::ForwardedTag {
                repository,
                tag,
                stamp,
                digest,
            } => {
                self.tags.invalidate(&(repository.clone(), tag.clone()));
                self.remember_tag(&repository, &tag, KnownTag::new(stamp, digest));
            }
        }
    }

    /// Creates `key`, or replaces its version `seen`, within twice the storage timeout: clients do
    /// not wait longer.
    ///
    /// # Errors
    /// Those of [`ConditionalWriter::write`], which is cancelled at the deadline.
    async fn conditional_write(
        &self,
        key: &Key,
        seen: Option<&Version>,
        body: Bytes,
    ) -> Result<WriteOutcome, StorageError> {
        // A call that hangs, the read of its outcome, and a second attempt.
        let timeout = self.limits.storage_timeout * 2;
        let write = ConditionalWriter {
            storage: &*self.storage,
        }
        .write(key, seen, body);
        tokio::select! {
            // The deadline comes first: an attempt that ends at it is not followed by another one.
            biased;
            () = sleep(timeout) => {
                Err(StorageError::unavailable("write object", key, "the outcome is unknown after the timeout"))
            }
            outcome = write => outcome,
        }
    }
}
