//! The closure of a manifest: seals and chunk tables of all its blobs, in one answer for peers; and
//! the grant that permits the peer to receive them from neighbours.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::chunk::Geometry;
use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::grant::{Grant, LIFETIME_S};
use flotilla_common::hash_tree::ChunkTable;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{PeerId, RepositoryName};
use flotilla_common::proof::Proof;
use flotilla_common::wire::origin::ClosureAnswer;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{ENTRY_LEN, FoundBlob, Need, Registry, RegistryError};
use crate::layout;
use crate::record::TableLocation;
use crate::storage::StorageError;

/// Blobs of a manifest looked up concurrently.
const LOOKUPS_AT_ONCE: usize = 16;

/// An encoded answer without a grant, cached by the digest of the manifest: it never changes.
#[derive(Debug)]
pub(super) struct Closure {
    answer: Bytes,
    /// The digests of the manifest and of its blobs.
    digests: Vec<Digest>,
}

impl Closure {
    pub(super) fn weight(&self) -> usize {
        ENTRY_LEN + self.answer.len() + self.digests.len() * size_of::<Digest>()
    }
}

/// Whether a peer may receive the blobs of a repository. Every peer with a certificate of the fleet
/// may; rules that map peers to repositories belong here.
const fn is_permitted(_peer: &PeerId, _repository: &RepositoryName) -> bool {
    true
}

impl Registry {
    /// The encoded [`ClosureAnswer`] for a manifest of the repository, with a grant for `peer` if
    /// it presented a certificate.
    ///
    /// A blob that the manifest references and the repository lacks gets
    /// [`Proof::DigestOnly`].
    pub(crate) async fn closure(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
        peer: Option<&PeerId>,
    ) -> Result<Bytes, RegistryError> {
        let closure = self.ungranted_closure(repository, manifest).await?;
        let Some(peer) = peer.filter(|peer| is_permitted(peer, repository)) else {
            return Ok(closure.answer.clone());
        };
        let expires_unix_s = self.clock.unix_seconds() + LIFETIME_S;
        let grant = Grant::sign(
            &self.seal_key,
            peer.clone(),
            closure.digests.clone(),
            expires_unix_s,
        );
        let granted = ClosureAnswer::with_grant(&closure.answer, grant);
        Ok(granted
            .map_err(|error| StorageError::unavailable("encode closure", manifest, error))?
            .into())
    }

    async fn ungranted_closure(
        &self,
        repository: &RepositoryName,
        manifest: &Digest,
    ) -> Result<Arc<Closure>, RegistryError> {
        let stored = self
            .manifest_by_digest(repository, manifest)
            .await?
            .ok_or(RegistryError::ManifestUnknown)?;
        if let Some(closure) = self.closures.get(manifest) {
            return Ok(closure);
        }
        let parsed = Manifest::parse(&stored.manifest.bytes);
        let parsed =
            parsed.map_err(|error| StorageError::unavailable("parse manifest", manifest, error))?;
        let blobs: Vec<_> = parsed
            .blobs()
            .into_iter()
            .map(|blob| (blob.digest, blob.size))
            .collect();
        let digests = core::iter::once(*manifest)
            .chain(blobs.iter().map(|(digest, _)| *digest))
            .collect();
        let proofs = stream::iter(blobs).map(|(digest, size)| async move {
            match self.blob(repository, &digest, Need::Bytes).await? {
                Some(blob) => self.proof(&blob).await.map(|proof| (proof, true)),
                None => Ok((Proof::DigestOnly { digest, size }, false)),
            }
        });
        let proofs: Vec<_> = proofs
            .buffered(LOOKUPS_AT_ONCE)
            .try_collect::<Vec<_>>()
            .await?;
        let complete = proofs.iter().all(|(_, sealed)| *sealed);
        let answer = ClosureAnswer {
            proofs: proofs.into_iter().map(|(proof, _)| proof).collect(),
            grant: None,
        };
        let answer = codec::encode(&answer);
        let answer: Bytes = answer
            .map_err(|error| StorageError::unavailable("encode closure", manifest, error))?
            .into();
        let closure = Arc::new(Closure { answer, digests });
        if complete {
            self.closures.insert(*manifest, Arc::clone(&closure));
        }
        Ok(closure)
    }

    async fn proof(&self, blob: &FoundBlob) -> Result<Proof, RegistryError> {
        let table = match &blob.record.table {
            TableLocation::None => None,
            TableLocation::Embedded(table) => Some(table.clone()),
            TableLocation::Object { nonce } => Some(self.read_table(blob, *nonce).await?),
        };
        Ok(Proof::Sealed {
            seal: self.seal(&blob.record).clone(),
            table,
        })
    }

    async fn read_table(&self, blob: &FoundBlob, nonce: u128) -> Result<ChunkTable, RegistryError> {
        let facts = &blob.record.facts;
        let key = layout::segment(&blob.generation, nonce);
        let object = self
            .storage
            .read(&key)
            .await?
            .ok_or_else(|| StorageError::missing("read table", &key))?;
        let table: Result<ChunkTable, _> = codec::decode(&object.body);
        let table =
            table.map_err(|error| StorageError::unavailable("decode table", &key, error))?;
        if !table.proves(&Geometry::for_size(facts.size), &facts.root) {
            tracing::error!(%key, "chunk table does not match the root of its blob; run `flotilla origin check`");
            return Err(StorageError::unavailable(
                "read table",
                &key,
                "it does not match the root of the blob",
            )
            .into());
        }
        Ok(table)
    }
}
