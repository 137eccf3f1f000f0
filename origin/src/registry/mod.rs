//! The registry's facts and how they change, without HTTP: blobs, uploads, manifests, tags,
//! referrers, closures.
//!
//! Everything here reads through caches and writes through [`ConditionalWriter`]; nothing is read, changed
//! and written back without a precondition, and nothing is kept here that another replica could not
//! learn from storage.

mod blobs;
mod closure;
mod content;
mod error;
mod manifests;
mod referrers;
mod sessions;
mod stamps;
mod tags;
mod uploads;

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::{RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_runtime::clock::Clock;
use tokio::time::sleep;

use crate::buffer_pool::BufferPool;
use crate::cache::{Cache, CacheLimits};
use crate::conditional_write::{ConditionalWriter, WriteOutcome};
use crate::config::Limits;
use crate::format::Format;
use crate::layout;
use crate::replicas::{Changed, Invalidator};
use crate::stall_budget::StallBudget;
use crate::storage::{Key, Storage, StorageError, Version};
use crate::upload::id::{Generation, UploadIdSigner};
use crate::upload::receive::BATCH_LEN;

pub(crate) use blobs::{Blob, Need};
pub(crate) use content::read_segments;
pub(crate) use error::RegistryError;
pub(crate) use manifests::StoredManifest;
pub(crate) use referrers::MAX_REFERRERS;
pub(crate) use tags::MAX_TAGS;
pub(crate) use uploads::{Body, Known, Progress};

use blobs::{Membership, StoredRecord};
use stamps::HybridClock;

type BlobKey = (RepositoryName, Digest);

/// All that a replica knows and may do.
pub(crate) struct Registry {
    storage: Arc<dyn Storage>,
    limits: Limits,
    format: Format,
    clock: Clock,
    stamps: HybridClock,
    seal_key: SealKey,
    signer: UploadIdSigner,
    batches: BufferPool,
    sessions: moka::sync::Cache<Generation, Arc<sessions::Session>>,
    memberships: Cache<BlobKey, Membership>,
    records: Cache<(Digest, Generation), Arc<StoredRecord>>,
    small_blobs: Cache<(Digest, Generation), Bytes>,
    manifests: Cache<BlobKey, Arc<StoredManifest>>,
    tags: Cache<(RepositoryName, Tag), Digest>,
    closures: moka::sync::Cache<Digest, Arc<closure::Closure>>,
    invalidator: Arc<Invalidator>,
}

/// Time-to-live of what never changes.
const FOR_EVER: Duration = Duration::from_hours(24 * 365);
/// Bytes of an entry's bookkeeping, roughly.
const ENTRY_LEN: usize = 160;

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
            refresh_after: None,
            bytes,
            fill_timeout: limits.storage_timeout,
        };
        let refreshed = |bytes: u64| CacheLimits {
            refresh_after: Some(limits.repository_time_to_live / 2),
            ..timed(limits.repository_time_to_live, bytes)
        };
        let other = limits.other_caches.0;
        Self {
            clock,
            stamps: HybridClock::new(clock, seal_key.issuer().clone()),
            seal_key,
            signer: UploadIdSigner::new(format.upload_secret),
            batches: BufferPool::new(BATCH_LEN, limits.upload_buffers.0),
            sessions: moka::sync::Cache::builder()
                .max_capacity(other)
                .weigher(|_, session: &Arc<sessions::Session>| {
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
                |_, record: &Arc<StoredRecord>| record.weight(),
            ),
            small_blobs: Cache::new(
                timed(FOR_EVER, limits.small_blob_cache.0),
                clock,
                |_, bytes: &Bytes| ENTRY_LEN + bytes.len(),
            ),
            manifests: Cache::new(
                refreshed(limits.manifest_cache.0),
                clock,
                |(name, _): &BlobKey, manifest: &Arc<StoredManifest>| {
                    ENTRY_LEN + name.as_str().len() + manifest.weight()
                },
            ),
            tags: Cache::new(
                timed(limits.tag_time_to_live, other),
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
            storage,
            limits,
            format,
            invalidator,
        }
    }

    pub(crate) fn seal_key(&self) -> &SealKey {
        &self.seal_key
    }

    /// How often a value was served past its time, since storage could not be reached.
    pub(crate) fn stale_answers(&self) -> u64 {
        self.memberships.stale_answers()
            + self.manifests.stale_answers()
            + self.tags.stale_answers()
    }

    /// The patience with a client that sends a body.
    pub(crate) fn stall_budget(&self) -> StallBudget {
        StallBudget::new(self.limits.stall_timeout)
    }

    /// Whether storage answers a small read, and is the one that it was: it has the object that is
    /// in all of ours.
    pub(crate) async fn check_storage(&self) -> Result<(), StorageError> {
        let key = layout::format();
        let found = self.storage.read(&key).await?;
        found
            .map(drop)
            .ok_or_else(|| StorageError::missing("read object", &key))
    }

    /// Tells the other replicas what was changed; when it returns, none of them serves what was
    /// there before.
    async fn invalidate_replicas(&self, changed: Vec<Changed>) {
        let longest = changed.iter().map(|changed| match changed {
            Changed::Tag(..) => self.limits.tag_time_to_live,
            Changed::Manifest(..) | Changed::Blob(..) => self.limits.repository_time_to_live,
        });
        let longest = longest.max().unwrap_or_default();
        self.invalidator.tell(changed, longest).await;
    }

    /// A delete finds what was deleted before, perhaps by a replica that died before it told the
    /// others: they are told before the client hears that there is nothing, and would still be
    /// served it elsewhere.
    async fn gone_already(&self, change: Changed) {
        self.invalidate(change.clone());
        self.invalidate_replicas(vec![change]).await;
    }

    /// Drops from the caches what another replica changed.
    pub(crate) fn invalidate(&self, changed: Changed) {
        match changed {
            Changed::Tag(repository, tag) => self.tags.invalidate(&(repository, tag)),
            Changed::Manifest(repository, digest) => {
                self.manifests.invalidate(&(repository, digest))
            }
            Changed::Blob(repository, digest) => self.memberships.invalidate(&(repository, digest)),
        }
    }

    /// Settles a write, whatever the storage does: a client that waits longer has given up.
    ///
    /// # Errors
    /// As [`ConditionalWriter::write`], which is left where it stands when its time is over.
    async fn write_if_unchanged(
        &self,
        key: &Key,
        seen: Option<&Version>,
        body: Bytes,
    ) -> Result<WriteOutcome, StorageError> {
        // Time for a call that hangs, for finding out what became of it, and for repeating it.
        let within = self.limits.storage_timeout * 2;
        let settling = ConditionalWriter {
            storage: &*self.storage,
        }
        .write(key, seen, body);
        tokio::select! {
            // Looked at first: a call that ends with its time is not followed by another one.
            biased;
            () = sleep(within) => {
                Err(StorageError::unavailable("settle write", key, "what became of it is not known in time"))
            }
            settled = settling => settled,
        }
    }
}
