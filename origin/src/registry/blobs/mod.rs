//! Blobs: a repository's claim (`rb`) names a generation, the generation's record names the data.
//!
//! A cold blob costs two reads and no listing. GET serves what is live or condemned; HEAD, mount
//! and manifest PUT swap what is condemned back to live, at any time. A claim whose generation is
//! dead looks for another generation.

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
    BlobRecord, MembershipRecord, Rescue, Segment, State, TableAt, decode, encode,
};
use crate::replicas::Changed;
use crate::storage::{Key, Object, Storage, StorageError};
use crate::upload::id::Generation;

/// Generations of one digest that are looked at when a claim's own is dead.
const GENERATIONS: usize = 100;

/// What the caller relies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Its bytes, now: condemned is good enough, and so is memory of any age.
    Bytes,
    /// That it stays: live, read within L.
    Live,
    /// The same, read now.
    LiveNow,
}

/// A repository's claim to a blob, as cached.
#[derive(Clone, Debug)]
pub(super) struct Membership {
    generation: Generation,
    state: State,
}

/// A record in memory.
#[derive(Debug)]
pub(crate) struct StoredRecord {
    pub(crate) facts: BlobFacts,
    pub(crate) segments: Vec<Segment>,
    pub(crate) table: TableAt,
    state: State,
    seal: OnceLock<Seal>,
}

impl StoredRecord {
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
            TableAt::Here(table) => table.values().len(),
            TableAt::Nowhere | TableAt::Object { .. } => 0,
        };
        2 * ENTRY_LEN + values * 32 + self.segments.len() * size_of::<Segment>()
    }
}

/// A blob that a repository has.
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    pub(crate) generation: Generation,
    pub(crate) record: Arc<StoredRecord>,
    /// When the oldest read behind this began.
    pub(crate) read_at: Time,
    /// Known only from memory past its time, since storage cannot be reached.
    pub(crate) stale: bool,
}

impl Blob {
    pub(crate) fn size(&self) -> u64 {
        self.record.facts.size
    }
}

impl Registry {
    /// The blob, if the repository has it.
    pub(crate) async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        need: Need,
    ) -> Result<Option<Blob>, RegistryError> {
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
                "only an expired one is known",
            )
            .into());
        }
        if need != Need::Bytes && membership.state == State::Condemned {
            self.add_membership(repository, digest, &membership.generation)
                .await?;
        }
        if let Some((record, read_at)) = self.record(digest, &membership.generation, need).await? {
            let (generation, read_at) = (membership.generation, read_at.min(membership_read_at));
            return Ok(Some(Blob {
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
    ) -> Result<Option<(Membership, Time, bool)>, RegistryError> {
        let fill = || {
            let (storage, key) = (
                Arc::clone(&self.storage),
                layout::membership(repository, digest),
            );
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
                    .then_some(Membership { generation, state }))
            }
        };
        let cached = self
            .memberships
            .get(&(repository.clone(), *digest), fill)
            .await?;
        Ok(cached.map(|cached| (cached.value, cached.read_at, cached.stale)))
    }

    /// The record of a generation that is not dead.
    async fn record(
        &self,
        digest: &Digest,
        generation: &Generation,
        need: Need,
    ) -> Result<Option<(Arc<StoredRecord>, Time)>, RegistryError> {
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
            let (storage, key) = (Arc::clone(&self.storage), layout::blob(digest, generation));
            async move { read_record(&*storage, &key).await }
        };
        let Some(cached) = self.records.get(&cache_key, fill).await? else {
            return Ok(None);
        };
        if need == Need::Bytes || (cached.value.state == State::Live && !cached.stale) {
            return Ok(Some((cached.value, cached.read_at)));
        }
        self.rescue(digest, generation).await
    }

    /// Swaps a condemned record to live. `None` if it is dead.
    async fn rescue(
        &self,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<Option<(Arc<StoredRecord>, Time)>, RegistryError> {
        let read_at = self.clock.now();
        let rescue = async {
            let key = layout::blob(digest, generation);
            match self.storage.read(&key).await {
                Ok(Some(object)) => {
                    let (effect, record) = self.rescue_record(&key, object).await?;
                    Ok::<_, RegistryError>((effect, Ok(record)))
                }
                Ok(None) => Ok((Effect::Unchanged, Ok(None))),
                // A failed read must not cost the cached record: it may still be served.
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
    ) -> Result<(Effect<Arc<StoredRecord>>, Option<Arc<StoredRecord>>), RegistryError> {
        let mut record: BlobRecord = decode(key, &object.body)?;
        match record.state.rescue() {
            Rescue::Impossible => return Ok((Effect::Changed, None)),
            Rescue::NotNeeded => {}
            Rescue::SwapToLive => {
                record.state = State::Live;
                record.nonce = nonce();
                let body = encode(key, &record)?.into();
                let outcome = self.write_if_unchanged(key, Some(&object.version), body);
                if let WriteOutcome::Lost(winner) = outcome.await? {
                    return Ok((Effect::Changed, after_lost_rescue(key, winner)?));
                }
            }
        }
        let record = StoredRecord::new(record);
        Ok((Effect::Stored(Arc::clone(&record)), Some(record)))
    }

    /// Points a claim whose generation is dead at one that is not.
    async fn other_generation(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Blob>, RegistryError> {
        let page = self
            .storage
            .list(&layout::generations(digest), None, GENERATIONS)
            .await?;
        for entry in page.entries {
            let Ok(generation) = entry.key.last_segment().parse::<Generation>() else {
                continue;
            };
            if let Some((record, read_at)) = self.rescue(digest, &generation).await? {
                self.add_membership(repository, digest, &generation).await?;
                return Ok(Some(Blob {
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
            Ok::<_, RegistryError>(match self.write_if_unchanged(&key, None, body).await? {
                WriteOutcome::Written => (Effect::Stored(StoredRecord::new(record)), true),
                WriteOutcome::Lost(_) => (Effect::Unchanged, false),
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
            let held = self.write_membership(repository, digest, generation);
            Ok(match held.await? {
                true => {
                    let membership = Membership {
                        generation: *generation,
                        state: State::Live,
                    };
                    (Effect::Stored(membership), ())
                }
                false => (Effect::Changed, ()),
            })
        };
        self.memberships
            .write(&(repository.clone(), *digest), write)
            .await
    }

    /// Writes a membership. False if another one is there that is as good.
    async fn write_membership(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        generation: &Generation,
    ) -> Result<bool, RegistryError> {
        let key = layout::membership(repository, digest);
        let record = || MembershipRecord {
            state: State::Live,
            generation: *generation,
            nonce: nonce(),
        };
        let body = encode(&key, &record())?.into();
        let mut outcome = self.write_if_unchanged(&key, None, body).await?;
        if let WriteOutcome::Lost(Some(present)) = outcome {
            if self.is_live_membership(digest, &key, &present).await? {
                return Ok(false);
            }
            // The first write met an older membership, so it was not applied and never will be.
            let body = encode(&key, &record())?.into();
            outcome = self
                .write_if_unchanged(&key, Some(&present.version), body)
                .await?;
        }
        match outcome {
            WriteOutcome::Written => Ok(true),
            WriteOutcome::Lost(Some(present))
                if self.is_live_membership(digest, &key, &present).await? =>
            {
                Ok(false)
            }
            WriteOutcome::Lost(_) => Err(RegistryError::Contended),
        }
    }

    /// Whether a claim that is there is live and names a generation that lives.
    async fn is_live_membership(
        &self,
        digest: &Digest,
        key: &Key,
        present: &Object,
    ) -> Result<bool, RegistryError> {
        let membership: MembershipRecord = decode(key, &present.body)?;
        let live = membership.state == State::Live;
        Ok(live
            && self
                .record(digest, &membership.generation, Need::Live)
                .await?
                .is_some())
    }

    /// Lets a repository have a blob that another one has, or that any has. `None` if there is
    /// none.
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

    /// Takes a blob out of a repository, by a tombstone in the place of its membership.
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
            self.gone_already(change).await;
            return Err(RegistryError::BlobUnknown);
        }
        membership.state = State::Dead;
        membership.nonce = nonce();
        let body = encode(&key, &membership)?.into();
        let write = async {
            let outcome = self.write_if_unchanged(&key, Some(&object.version), body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        let cache_key = (repository.clone(), *digest);
        match self.memberships.write(&cache_key, write).await? {
            WriteOutcome::Written => {
                self.invalidate_replicas(vec![change]).await;
                Ok(())
            }
            WriteOutcome::Lost(_) => Err(RegistryError::Contended),
        }
    }

    /// Forgets what memory says of a blob whose data was not where its record says.
    pub(super) fn forget(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        generation: &Generation,
    ) {
        self.records.invalidate(&(*digest, *generation));
        self.memberships.invalidate(&(repository.clone(), *digest));
    }

    /// The seal of a record, signed once and kept.
    pub(super) fn seal<'a>(&self, record: &'a StoredRecord) -> &'a Seal {
        record
            .seal
            .get_or_init(|| self.seal_key.seal(record.facts.clone()))
    }
}

/// What another's write left of a rescue: somebody else's rescue is as good as one's own.
fn after_lost_rescue(
    key: &Key,
    winner: Option<Object>,
) -> Result<Option<Arc<StoredRecord>>, RegistryError> {
    let Some(winner) = winner else {
        return Ok(None);
    };
    let record: BlobRecord = decode(key, &winner.body)?;
    match record.state.rescue() {
        Rescue::NotNeeded => Ok(Some(StoredRecord::new(record))),
        Rescue::SwapToLive => Err(RegistryError::Contended),
        Rescue::Impossible => Ok(None),
    }
}

/// A record that is not dead.
async fn read_record(
    storage: &dyn Storage,
    key: &Key,
) -> Result<Option<Arc<StoredRecord>>, StorageError> {
    let Some(object) = storage.read(key).await? else {
        return Ok(None);
    };
    let record: BlobRecord = decode(key, &object.body)?;
    Ok(record.state.is_served().then(|| StoredRecord::new(record)))
}

#[cfg(test)]
mod tests;
