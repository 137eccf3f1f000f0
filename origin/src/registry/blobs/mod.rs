//! Blobs: a membership (`rb`) names a generation, and the record of the generation names the data.
//!
//! A cold blob costs two reads and no listing. GET serves live and condemned blobs. HEAD, mount and
//! manifest PUT rely on the blob, so they make a condemned one live again. If the generation of a
//! membership is dead, another generation of the digest is looked for.

use std::sync::{Arc, OnceLock};

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;
use flotilla_common::seal::{BlobFacts, Seal};
use flotilla_common::time::Time;

use super::{ENTRY_LEN, Registry, RegistryError};
use crate::cache::Effect;
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{
    BlobRecord, MembershipRecord, RecordState, Rescue, Segment, TableLocation, decode, encode,
};
use crate::replicas::Changed;
use crate::storage::{Key, Object, Storage, StorageError};
use crate::upload::id::Generation;

mod lost;

pub(crate) use lost::LostGeneration;

/// How many generations of a digest are tried when the one of a membership is dead.
const MAX_GENERATIONS: usize = 100;

/// What the caller relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// The bytes, now: a condemned blob and a cached record of any age will do.
    Bytes,
    /// That the blob stays: its record is live, and was read within L.
    Live,
    /// The same, with a record that is read now.
    LiveNow,
}

/// A cached membership of a blob in a repository.
#[derive(Clone, Debug)]
pub(super) struct CachedMembership {
    pub(super) generation: Generation,
    state: RecordState,
}

/// A cached record of a blob.
#[derive(Debug)]
pub(crate) struct CachedRecord {
    pub(crate) facts: BlobFacts,
    pub(crate) segments: Vec<Segment>,
    pub(crate) table: TableLocation,
    state: RecordState,
    seal: OnceLock<Seal>,
}

impl CachedRecord {
    fn new(record: BlobRecord) -> Arc<Self> {
        let BlobRecord {
            state,
            facts,
            segments,
            table,
            nonce: _,
        } = record;
        Arc::new(Self {
            facts,
            segments,
            table,
            state,
            seal: OnceLock::new(),
        })
    }

    pub(super) fn weight(&self) -> usize {
        let values = match &self.table {
            TableLocation::Embedded(table) => table.values().len(),
            TableLocation::None | TableLocation::Object { .. } => 0,
        };
        2 * ENTRY_LEN + values * 32 + self.segments.len() * size_of::<Segment>()
    }
}

/// A blob of a repository.
#[derive(Clone, Debug)]
pub(crate) struct FoundBlob {
    pub(crate) generation: Generation,
    pub(crate) record: Arc<CachedRecord>,
    /// When the oldest read behind this started.
    pub(crate) read_at: Time,
    /// From an expired cache entry, because storage is unavailable.
    pub(crate) stale: bool,
}

impl FoundBlob {
    pub(crate) fn size(&self) -> u64 {
        self.record.facts.size
    }
}

impl Registry {
    /// Finds a blob of the repository.
    pub(crate) async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        need: Need,
    ) -> Result<Option<FoundBlob>, RegistryError> {
        let Some((membership, membership_read_at, stale)) =
            self.membership(repository, digest).await?
        else {
            return Ok(None);
        };
        if need != Need::Bytes && stale {
            let key = layout::membership(repository, digest);
            return Err(StorageError::unavailable(
                "read membership",
                key,
                "storage is unavailable and the cached membership has expired",
            )
            .into());
        }
        if need != Need::Bytes && membership.state == RecordState::Condemned {
            self.add_membership(repository, digest, &membership.generation)
                .await?;
        }
        if let Some((record, read_at)) = self.record(digest, &membership.generation, need).await? {
            let generation = membership.generation;
            let read_at = read_at.min(membership_read_at);
            return Ok(Some(FoundBlob {
                generation,
                record,
                read_at,
                stale,
            }));
        }
        self.other_generation(repository, digest).await
    }

    async fn membership(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<(CachedMembership, Time, bool)>, RegistryError> {
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let key = layout::membership(repository, digest);
            async move {
                let Some(object) = storage.read(&key).await? else {
                    return Ok(None);
                };
                let MembershipRecord {
                    state,
                    generation,
                    nonce: _,
                } = decode(&key, &object.body)?;
                Ok(state
                    .is_served()
                    .then_some(CachedMembership { generation, state }))
            }
        };
        let cached = self
            .memberships
            .get(&(repository.clone(), *digest), fill)
            .await?;
        Ok(cached.map(|cached| (cached.value, cached.read_at, cached.stale)))
    }

    /// The record of a generation, unless it is dead.
    async fn record(
        &self,
        digest: &Digest,
        generation: &Generation,
        need: Need,
    ) -> Result<Option<(Arc<CachedRecord>, Time)>, RegistryError> {
        let cache_key = (*digest, *generation);
        if need == Need::Bytes
            && let Some(cached) = self.records.peek(&cache_key)
        {
            return Ok(Some((cached.value, cached.read_at)));
        }
        if need == Need::LiveNow {
            return self.rescue(digest, generation).await;
        }
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let key = layout::blob(digest, generation);
            async move { read_record(&*storage, &key).await }
        };
        let Some(cached) = self.records.get(&cache_key, fill).await? else {
            return Ok(None);
        };
        if need == Need::Bytes || (cached.value.state == RecordState::Live && !cached.stale) {
            return Ok(Some((cached.value, cached.read_at)));
        }
        self.rescue(digest, generation).await
    }

    /// Reads the record of a generation, and makes it live if it is condemned. `None` if it is dead
    /// or missing.
    async fn rescue(
        &self,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<Option<(Arc<CachedRecord>, Time)>, RegistryError> {
        let read_at = self.clock.now();
        let rescue = async {
            let key = layout::blob(digest, generation);
            match self.storage.read(&key).await {
                Ok(Some(object)) => {
                    let (effect, record) = self.rescue_record(&key, object).await?;
                    Ok::<_, RegistryError>((effect, Ok(record)))
                }
                Ok(None) => Ok((Effect::Unchanged, Ok(None))),
                // The cached record stays: GET may still serve it while storage is unavailable.
                Err(error) => Ok((Effect::Unchanged, Err(error))),
            }
        };
        let rescued = self.records.write(&(*digest, *generation), rescue).await?;
        Ok(rescued?.map(|record| (record, read_at)))
    }

    async fn rescue_record(
        &self,
        key: &Key,
        object: Object,
    ) -> Result<(Effect<Arc<CachedRecord>>, Option<Arc<CachedRecord>>), RegistryError> {
        let mut record: BlobRecord = decode(key, &object.body)?;
        match record.state.rescue() {
            Rescue::Impossible => return Ok((Effect::Changed, None)),
            Rescue::NotNeeded => {}
            Rescue::SwapToLive => {
                record.state = RecordState::Live;
                record.nonce = nonce();
                let body = encode(key, &record)?.into();
                let outcome = self.conditional_write(key, Some(&object.version), body);
                if let WriteOutcome::Lost { present, .. } = outcome.await? {
                    return Ok((Effect::Changed, after_lost_rescue(key, present)?));
                }
            }
        }
        let record = CachedRecord::new(record);
        Ok((Effect::Stored(Arc::clone(&record)), Some(record)))
    }

    /// Finds a generation that is not dead, and makes the membership name it.
    async fn other_generation(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<FoundBlob>, RegistryError> {
        let page = self
            .storage
            .list(&layout::generations(digest), None, MAX_GENERATIONS)
            .await?;
        for entry in page.entries {
            let Ok(generation) = entry.key.last_segment().parse::<Generation>() else {
                continue;
            };
            if let Some((record, read_at)) = self.rescue(digest, &generation).await? {
                self.add_membership(repository, digest, &generation).await?;
                return Ok(Some(FoundBlob {
                    generation,
                    record,
                    read_at,
                    stale: false,
                }));
            }
        }
        Ok(None)
    }

    /// Writes the record of a finished upload. If another request wrote it first, it is the same.
    pub(super) async fn keep_record(
        &self,
        generation: &Generation,
        record: BlobRecord,
    ) -> Result<(), RegistryError> {
        let digest = record.facts.digest;
        let key = layout::blob(&digest, generation);
        let body = encode(&key, &record)?.into();
        let write = async {
            Ok::<_, RegistryError>(match self.conditional_write(&key, None, body).await? {
                WriteOutcome::Written => (Effect::Stored(CachedRecord::new(record)), true),
                WriteOutcome::Lost { .. } => (Effect::Unchanged, false),
            })
        };
        if self.records.write(&(digest, *generation), write).await? {
            return Ok(());
        }
        let rescued = self.rescue(&digest, generation).await?;
        rescued.map(drop).ok_or(RegistryError::UploadUnknown)
    }

    /// Makes the repository's membership of the blob live, with a generation that is live.
    pub(super) async fn add_membership(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<(), RegistryError> {
        let write = async {
            let written = self.write_membership(repository, digest, generation).await;
            Ok::<_, RegistryError>(match written {
                Ok(true) => {
                    let membership = CachedMembership {
                        generation: *generation,
                        state: RecordState::Live,
                    };
                    (Effect::Stored(membership), Ok(()))
                }
                Ok(false) => (Effect::Changed, Ok(())),
                // The cached membership stays true, and is served while storage is unavailable:
                // this write can only make it live.
                Err(error) => (Effect::Unchanged, Err(error)),
            })
        };
        self.memberships
            .write(&(repository.clone(), *digest), write)
            .await?
    }

    /// Writes a membership. False if storage has another one that is live.
    ///
    /// # Errors
    /// [`RegistryError::Contended`] if another change came in between.
    async fn write_membership(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<bool, RegistryError> {
        let key = layout::membership(repository, digest);
        let record = || MembershipRecord {
            state: RecordState::Live,
            generation: *generation,
            nonce: nonce(),
        };
        let body = encode(&key, &record())?.into();
        let mut outcome = self.conditional_write(&key, None, body).await?;
        if let WriteOutcome::Lost {
            present: Some(present),
            may_have_applied,
        } = outcome
        {
            if self.is_live_membership(digest, &key, &present).await? {
                return Ok(false);
            }
            // A client may have seen the first write and deleted the membership since. A second
            // write would bring it back after the delete was acknowledged.
            if may_have_applied {
                return Err(RegistryError::Contended);
            }
            // The first write met an older membership, so it was not applied and never will be.
            let body = encode(&key, &record())?.into();
            outcome = self
                .conditional_write(&key, Some(&present.version), body)
                .await?;
        }
        match outcome {
            WriteOutcome::Written => Ok(true),
            WriteOutcome::Lost {
                present: Some(present),
                ..
            } if self.is_live_membership(digest, &key, &present).await? => Ok(false),
            WriteOutcome::Lost { .. } => Err(RegistryError::Contended),
        }
    }

    /// Whether a membership in storage is live and names a generation that is live.
    async fn is_live_membership(
        &self,
        digest: &Digest,
        key: &Key,
        present: &Object,
    ) -> Result<bool, RegistryError> {
        let membership: MembershipRecord = decode(key, &present.body)?;
        let live = membership.state == RecordState::Live;
        Ok(live
            && self
                .record(digest, &membership.generation, Need::Live)
                .await?
                .is_some())
    }

    /// Adds a blob of repository `from`, or of any repository, to repository `to`. `None` if there
    /// is no such blob.
    pub(crate) async fn mount(
        &self,
        from: Option<&RepositoryName>,
        to: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<()>, RegistryError> {
        let Some(from) = from else {
            return Ok(self.other_generation(to, digest).await?.map(drop));
        };
        let Some(blob) = self.blob(from, digest, Need::Live).await? else {
            return Ok(None);
        };
        self.add_membership(to, digest, &blob.generation)
            .await
            .map(Some)
    }

    /// Removes a blob from a repository, by a tombstone in place of its membership.
    pub(crate) async fn delete_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let key = layout::membership(repository, digest);
        let object = self
            .storage
            .read(&key)
            .await?
            .ok_or(RegistryError::BlobUnknown)?;
        let mut membership: MembershipRecord = decode(&key, &object.body)?;
        let change = Changed::Blob(repository.clone(), *digest);
        if !membership.state.is_served() {
            self.invalidate_deleted(change).await;
            return Err(RegistryError::BlobUnknown);
        }
        membership.state = RecordState::Dead;
        membership.nonce = nonce();
        let body = encode(&key, &membership)?.into();
        let write = async {
            let outcome = self.conditional_write(&key, Some(&object.version), body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        let cache_key = (repository.clone(), *digest);
        match self.memberships.write(&cache_key, write).await? {
            WriteOutcome::Written => {
                self.invalidate_replicas(vec![change]).await;
                Ok(())
            }
            WriteOutcome::Lost { .. } => Err(RegistryError::Contended),
        }
    }

    /// Drops a blob from the caches, because a segment of its record was missing.
    pub(super) fn forget_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        generation: &Generation,
    ) {
        self.records.invalidate(&(*digest, *generation));
        self.memberships.invalidate(&(repository.clone(), *digest));
    }

    /// The seal of a record, signed on first use.
    pub(super) fn seal<'a>(&self, record: &'a CachedRecord) -> &'a Seal {
        record
            .seal
            .get_or_init(|| self.seal_key.seal(record.facts.clone()))
    }
}

/// The record after a rescue lost to another writer, whose rescue is as good.
fn after_lost_rescue(
    key: &Key,
    winner: Option<Object>,
) -> Result<Option<Arc<CachedRecord>>, RegistryError> {
    let Some(winner) = winner else {
        return Ok(None);
    };
    let record: BlobRecord = decode(key, &winner.body)?;
    match record.state.rescue() {
        Rescue::NotNeeded => Ok(Some(CachedRecord::new(record))),
        Rescue::SwapToLive => Err(RegistryError::Contended),
        Rescue::Impossible => Ok(None),
    }
}

/// Reads a record, unless it is dead.
async fn read_record(
    storage: &dyn Storage,
    key: &Key,
) -> Result<Option<Arc<CachedRecord>>, StorageError> {
    let Some(object) = storage.read(key).await? else {
        return Ok(None);
    };
    let record: BlobRecord = decode(key, &object.body)?;
    Ok(record.state.is_served().then(|| CachedRecord::new(record)))
}

#[cfg(test)]
mod tests;
