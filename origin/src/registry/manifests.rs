//! Manifests: stored with their bytes in each repository, found by digest or by tag.
//!
//! A PUT checks that all blobs of the manifest are live. Then it writes the manifest (`rm`), its
//! referrer and its tags, in this order, each by a compare-and-swap on a version that was read just
//! before. The referrer gets the stamp of the manifest, see `referrers`. If more than L passed
//! between the start of the oldest check and the confirmed write of `rm`, all blobs are checked
//! again, past the caches, before the PUT is acknowledged.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{self, Manifest};
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::time::Time;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Need, Registry, RegistryError};
use crate::cache::Effect;
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{ManifestRecord, Pointer, Stamp, TagValue};
use crate::replicas::Changed;
use crate::storage::StorageError;

/// Blobs of a manifest checked concurrently.
const CHECKS_AT_ONCE: usize = 16;

/// A cached manifest.
#[derive(Debug)]
pub(crate) struct CachedManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// The digest as an entity tag: text in quotes.
    quoted_digest: Bytes,
}

impl CachedManifest {
    fn new(digest: Digest, media_type: String, bytes: Bytes) -> Self {
        Self {
            digest,
            media_type,
            bytes,
            quoted_digest: format!("\"{digest}\"").into(),
        }
    }

    /// The digest as an entity tag.
    pub(crate) const fn quoted_digest(&self) -> &Bytes {
        &self.quoted_digest
    }

    /// The digest as text.
    pub(crate) fn digest_text(&self) -> Bytes {
        self.quoted_digest.slice(1..self.quoted_digest.len() - 1)
    }

    /// Approximate bytes in memory.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.media_type.len() + self.quoted_digest.len()
    }
}

/// A manifest of a repository.
#[derive(Clone, Debug)]
pub(crate) struct FoundManifest {
    pub(crate) manifest: Arc<CachedManifest>,
    /// From an expired cache entry, because storage is unavailable.
    pub(crate) stale: bool,
}

/// A manifest that was stored.
#[derive(Clone, Debug)]
pub(crate) struct PushedManifest {
    pub(crate) digest: Digest,
    /// The manifest to which it refers.
    pub(crate) subject: Option<Digest>,
}

/// Whether caches of other replicas may hold another version of a stored manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaced {
    /// There was none, or an equal one. Absence is never cached.
    Nothing,
    /// There was one with another media type.
    OtherMediaType,
}

impl Registry {
    /// The manifest that a reference names.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FoundManifest, RegistryError> {
        let (digest, tag_is_stale) = match reference {
            Reference::Digest(digest) => (*digest, false),
            Reference::Tag(tag) => self
                .tag(repository, tag)
                .await?
                .ok_or(RegistryError::ManifestUnknown)?,
        };
        let found = self
            .manifest_by_digest(repository, &digest)
            .await?
            .ok_or(RegistryError::ManifestUnknown)?;
        Ok(FoundManifest {
            stale: found.stale || tag_is_stale,
            ..found
        })
    }

    /// The manifest that a reference names, if everything that the answer needs is in memory and
    /// neither expired nor due to be refreshed.
    pub(crate) fn manifest_in_memory(
        &self,
        repository: RepositoryName,
        reference: Reference,
    ) -> Option<Arc<CachedManifest>> {
        let key = match reference {
            Reference::Digest(digest) => (repository, digest),
            Reference::Tag(tag) => {
                let key = (repository, tag);
                let digest = self.tags.fresh(&key)?;
                (key.0, digest)
            }
        };
        self.manifests.fresh(&key)
    }

    pub(super) async fn manifest_by_digest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<FoundManifest>, RegistryError> {
        let digest = *digest;
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let key = layout::manifest(repository, &digest);
            async move {
                let Some(object) = storage.read(&key).await? else {
                    return Ok(None);
                };
                let Some((media_type, bytes)) = ManifestRecord::of(&key, &object.body)?.content
                else {
                    return Ok(None);
                };
                if !digest.matches(&bytes) {
                    tracing::error!(%key, "stored manifest does not match its digest; not serving it");
                    return Err(StorageError::unavailable(
                        "read manifest",
                        &key,
                        "the bytes do not match the digest",
                    ));
                }
                Ok(Some(Arc::new(CachedManifest::new(
                    digest, media_type, bytes,
                ))))
            }
        };
        let cached = self
            .manifests
            .get(&(repository.clone(), digest), fill)
            .await?;
        Ok(cached.map(|cached| FoundManifest {
            manifest: cached.value,
            stale: cached.stale,
        }))
    }

    /// Stores a manifest, moves tags to it and invalidates at the other replicas. `media_type` is
    /// the Content-Type of the request, without parameters.
    pub(crate) async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        tags: &[Tag],
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<PushedManifest, RegistryError> {
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256(&bytes),
        };
        if !digest.matches(&bytes) {
            let computed = Digest::of(digest.algorithm(), &bytes);
            return Err(RegistryError::DigestInvalid(format!(
                "digest mismatch: the manifest has {computed}"
            )));
        }
        let manifest = Manifest::parse(&bytes)
            .map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        let media_type = agreed_media_type(media_type, &manifest)?;
        let oldest = self
            .check_references(repository, &manifest, Need::Live)
            .await?;
        let stored = Arc::new(CachedManifest::new(digest, media_type, bytes));
        let mut changed = Vec::new();
        let (replaced, stamp) = self.write_manifest(repository, Arc::clone(&stored)).await?;
        if replaced == Replaced::OtherMediaType {
            changed.push(Changed::Manifest(repository.clone(), digest));
        }
        if self.clock.now().saturating_since(oldest) > self.format.horizons.liveness {
            self.check_again(repository, &manifest, &digest).await?;
        }
        let subject = manifest.subject.as_ref().map(|subject| subject.digest);
        if let Some(subject) = subject {
            self.write_referrer(repository, &subject, &stored, &manifest, stamp)
                .await?;
        }
        for tag in tags {
            self.write_tag(repository, tag, Some(digest)).await?;
            changed.push(Changed::Tag(repository.clone(), tag.clone()));
        }
        self.invalidate_replicas(changed).await;
        Ok(PushedManifest { digest, subject })
    }

    /// Checks that the repository has all blobs and manifests that a manifest references. Returns
    /// the start of the oldest read on which the result relies.
    async fn check_references(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        need: Need,
    ) -> Result<Time, RegistryError> {
        let started = self.clock.now();
        let blobs = manifest
            .blobs()
            .into_iter()
            .map(|blob| blob.digest)
            .collect::<Vec<_>>();
        let checks = stream::iter(blobs).map(|digest| async move {
            let found = self.blob(repository, &digest, need).await?;
            Ok(found
                .ok_or(RegistryError::ManifestBlobUnknown(digest))?
                .read_at)
        });
        let oldest = checks
            .buffer_unordered(CHECKS_AT_ONCE)
            .try_fold(started, |oldest, read_at| async move {
                Ok::<_, RegistryError>(oldest.min(read_at))
            });
        let oldest = oldest.await?;
        let children = manifest
            .manifests
            .iter()
            .filter(|child| child.urls.is_empty())
            .map(|child| child.digest);
        let checks = stream::iter(children.collect::<Vec<_>>()).map(|digest| async move {
            let found = self.manifest_by_digest(repository, &digest).await?;
            found
                .map(drop)
                .ok_or(RegistryError::ManifestBlobUnknown(digest))
        });
        checks
            .buffer_unordered(CHECKS_AT_ONCE)
            .try_collect::<()>()
            .await?;
        Ok(oldest)
    }

    /// Checks the references again, past the caches. A manifest that references a dead blob is
    /// deleted.
    async fn check_again(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        for blob in manifest.blobs() {
            self.memberships
                .invalidate(&(repository.clone(), blob.digest));
        }
        let checked = self
            .check_references(repository, manifest, Need::LiveNow)
            .await;
        if let Err(RegistryError::ManifestBlobUnknown(_)) = &checked {
            self.delete_by_digest(repository, digest).await?;
        }
        checked.map(drop)
    }

    /// Stores a manifest. Returns what it replaced, and the stamp that the stored one has now.
    async fn write_manifest(
        &self,
        repository: &RepositoryName,
        manifest: Arc<CachedManifest>,
    ) -> Result<(Replaced, Stamp), RegistryError> {
        let key = layout::manifest(repository, &manifest.digest);
        let present = self.storage.read(&key).await?;
        let replaced = present
            .as_ref()
            .map(|object| ManifestRecord::of(&key, &object.body))
            .transpose()?;
        let record = ManifestRecord {
            stamp: self
                .stamps
                .stamp(replaced.as_ref().map(|record| &record.stamp)),
            content: Some((manifest.media_type.clone(), manifest.bytes.clone())),
            deleted_subject: None,
            nonce: nonce(),
        };
        let has_other_type = |(media_type, _): (String, Bytes)| media_type != manifest.media_type;
        let what_was_replaced = match replaced
            .and_then(|record| record.content)
            .is_some_and(has_other_type)
        {
            true => Replaced::OtherMediaType,
            false => Replaced::Nothing,
        };
        let seen = present.as_ref().map(|object| &object.version);
        let body = record.body(&key)?;
        let cache_key = (repository.clone(), manifest.digest);
        let write = async {
            Ok::<_, RegistryError>(match self.conditional_write(&key, seen, body).await? {
                WriteOutcome::Written => (Effect::Stored(manifest), WriteOutcome::Written),
                lost => (Effect::Changed, lost),
            })
        };
        let winner = match self.manifests.write(&cache_key, write).await? {
            WriteOutcome::Written => return Ok((what_was_replaced, record.stamp)),
            WriteOutcome::Lost(winner) => winner.ok_or(RegistryError::Contended)?,
        };
        // Bytes with one digest are equal, so the manifest of another writer is as good, unless it
        // is a tombstone.
        let winner = ManifestRecord::of(&key, &winner.body)?;
        winner
            .content
            .map(|_| (what_was_replaced, winner.stamp))
            .ok_or(RegistryError::Contended)
    }

    /// Writes a tombstone in place of a manifest, invalidates at the other replicas, and removes
    /// the manifest from the referrers of its subject.
    async fn delete_by_digest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let key = layout::manifest(repository, digest);
        let object = self
            .storage
            .read(&key)
            .await?
            .ok_or(RegistryError::ManifestUnknown)?;
        let record = ManifestRecord::of(&key, &object.body)?;
        let change = Changed::Manifest(repository.clone(), *digest);
        let Some((_, bytes)) = record.content else {
            self.invalidate_deleted(change).await;
            // The replica that wrote the tombstone may have stopped before it did this.
            if let Some(subject) = record.deleted_subject {
                self.delete_referrer(repository, &subject, digest, record.stamp)
                    .await?;
            }
            return Err(RegistryError::ManifestUnknown);
        };
        let stamp = self.stamps.stamp(Some(&record.stamp));
        let subject = Manifest::parse(&bytes)
            .ok()
            .and_then(|manifest| manifest.subject);
        let deleted_subject = subject.map(|subject| subject.digest);
        let tombstone = ManifestRecord {
            stamp: stamp.clone(),
            content: None,
            deleted_subject,
            nonce: nonce(),
        };
        let body = tombstone.body(&key)?;
        let write = async {
            let outcome = self.conditional_write(&key, Some(&object.version), body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        let cache_key = (repository.clone(), *digest);
        match self.manifests.write(&cache_key, write).await? {
            WriteOutcome::Written => self.invalidate_replicas(vec![change]).await,
            WriteOutcome::Lost(_) => return Err(RegistryError::Contended),
        }
        match deleted_subject {
            Some(subject) => {
                self.delete_referrer(repository, &subject, digest, stamp)
                    .await
            }
            None => Ok(()),
        }
    }

    /// Deletes a tag, or a manifest and its entry among the referrers. Tags of the manifest are not
    /// deleted and answer 404 from then on.
    pub(crate) async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<(), RegistryError> {
        let tag = match reference {
            Reference::Digest(digest) => return self.delete_by_digest(repository, digest).await,
            Reference::Tag(tag) => tag,
        };
        let change = Changed::Tag(repository.clone(), tag.clone());
        match self.write_tag(repository, tag, None).await {
            // Also if there never was a tag: this replica cannot tell.
            Err(RegistryError::ManifestUnknown) => {
                self.invalidate_deleted(change).await;
                Err(RegistryError::ManifestUnknown)
            }
            written => {
                written?;
                self.invalidate_replicas(vec![change]).await;
                Ok(())
            }
        }
    }

    /// The digest that a tag names, and whether it comes from an expired cache entry.
    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(Digest, bool)>, RegistryError> {
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let key = layout::tag(repository, tag);
            async move {
                let Some(object) = storage.read(&key).await? else {
                    return Ok(None);
                };
                let pointer = Pointer::<TagValue>::of(&key, &object.body)?;
                Ok(pointer.value.map(|value| value.digest))
            }
        };
        let cached = self
            .tags
            .get(&(repository.clone(), tag.clone()), fill)
            .await?;
        Ok(cached.map(|cached| (cached.value, cached.stale)))
    }

    /// Moves a tag to a digest, or deletes it.
    async fn write_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: Option<Digest>,
    ) -> Result<(), RegistryError> {
        let key = layout::tag(repository, tag);
        let write = async {
            self.write_pointer(&key, digest.map(|digest| TagValue { digest }))
                .await?;
            Ok((digest.map_or(Effect::Changed, Effect::Stored), ()))
        };
        self.tags
            .write(&(repository.clone(), tag.clone()), write)
            .await
    }
}

/// The media type on which request and manifest agree.
fn agreed_media_type(header: Option<&str>, manifest: &Manifest) -> Result<String, RegistryError> {
    match (header, manifest.media_type.as_deref()) {
        (Some(header), Some(own)) if header != own => Err(RegistryError::ManifestInvalid(format!(
            "Content-Type is {header}, but mediaType in the manifest is {own}"
        ))),
        (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type.to_owned()),
        (None, None) if manifest.is_index() => Ok(manifest::OCI_INDEX.to_owned()),
        (None, None) => Ok(manifest::OCI_MANIFEST.to_owned()),
    }
}
