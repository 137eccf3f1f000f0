//! Generations whose data is missing in the storage, although their records are live.
//!
//! Only a copy of the blob helps. A membership that is live keeps its generation, so the lost one
//! must be dead before the copy is finished. The bytes of the copy are there by then: between the
//! two writes the blob is absent here, as after a delete.

use flotilla_common::digest::Digest;
use flotilla_common::name::RepositoryName;

use super::Registry;
use crate::cache::Effect;
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{BlobRecord, RecordState, TableLocation, decode, encode};
use crate::registry::RegistryError;
use crate::storage::{Key, StorageError, Version};
use crate::upload::id::Generation;

/// A generation with missing data.
#[derive(Debug)]
pub(crate) struct LostGeneration {
    generation: Generation,
    record: BlobRecord,
    /// The version in which the record was read.
    version: Version,
}

impl LostGeneration {
    /// Bytes of the blob.
    pub(crate) const fn size(&self) -> u64 {
        self.record.facts.size
    }
}

impl Registry {
    /// The generation by which a repository has a blob, if an object of its data is missing. The
    /// record is read anew, and each object is looked for.
    ///
    /// # Errors
    /// The storage does not say whether an object is there.
    pub(crate) async fn lost_generation(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<LostGeneration>, RegistryError> {
        let Some((membership, ..)) = self.membership(repository, digest).await? else {
            return Ok(None);
        };
        let generation = membership.generation;
        let key = layout::blob(digest, &generation);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(None);
        };
        let record: BlobRecord = decode(&key, &object.body)?;
        if !record.state.is_served() {
            return Ok(None);
        }
        let table = match record.table {
            TableLocation::Object { nonce } => Some(nonce),
            TableLocation::None | TableLocation::Embedded(_) => None,
        };
        let objects = record.segments.iter().map(|segment| segment.nonce);
        for nonce in objects.chain(table) {
            if self
                .is_missing(&layout::segment(&generation, nonce))
                .await?
            {
                return Ok(Some(LostGeneration {
                    generation,
                    record,
                    version: object.version,
                }));
            }
        }
        Ok(None)
    }

    async fn is_missing(&self, key: &Key) -> Result<bool, StorageError> {
        match self.storage.read_range(key, 0..1).await {
            Ok(_) => Ok(false),
            Err(StorageError::Missing { .. }) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Marks a lost generation dead. False if its record was changed since it was read.
    ///
    /// # Errors
    /// Those of the storage; the record may be dead then.
    pub(crate) async fn bury_generation(
        &self,
        lost: LostGeneration,
    ) -> Result<bool, RegistryError> {
        let LostGeneration {
            generation,
            mut record,
            version,
        } = lost;
        let digest = record.facts.digest;
        record.state = RecordState::Dead;
        record.nonce = nonce();
        let key = layout::blob(&digest, &generation);
        let body = encode(&key, &record)?.into();
        let write = async {
            let outcome = self.conditional_write(&key, Some(&version), body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        let outcome = self.records.write(&(digest, generation), write).await?;
        Ok(matches!(outcome, WriteOutcome::Written))
    }

    /// Whether a repository names a blob, whatever became of its data.
    ///
    /// # Errors
    /// Those of the storage.
    pub(crate) async fn has_membership(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<bool, RegistryError> {
        Ok(self.membership(repository, digest).await?.is_some())
    }
}
