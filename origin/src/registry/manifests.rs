//! Manifests: stored per repository with their bytes, found by digest or by tag.
//!
//! A PUT checks that every blob it names is live, then writes `rm`, the referrer, the tag, in that
//! order, each by a compare-and-swap on what was read just before. The referrer has the stamp of
//! `rm`, see `referrers`. If more than L passed between the oldest check and the confirmed `rm`,
//! all is checked again past the caches before it is acknowledged.

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

/// Blobs of a manifest that are checked at once.
const CHECKS_AT_ONCE: usize = 16;

/// A manifest in memory.
#[derive(Debug)]
pub(crate) struct StoredManifest {
    pub(crate) digest: Digest,
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// The digest as text, in quotes.
    quoted_digest: Bytes,
}

impl StoredManifest {
    fn new(digest: Digest, media_type: String, bytes: Bytes) -> Self {
        Self {
            digest,
            media_type,
            bytes,
            quoted_digest: format!("\"{digest}\"").into(),
        }
    }

    /// The digest as text, as an entity tag has it.
    pub(crate) const fn quoted_digest(&self) -> &Bytes {
        &self.quoted_digest
    }

    /// The digest as text.
    pub(crate) fn digest_text(&self) -> Bytes {
        self.quoted_digest.slice(1..self.quoted_digest.len() - 1)
    }

    /// Bytes that it takes in memory.
    pub(super) fn weight(&self) -> usize {
        self.bytes.len() + self.media_type.len() + self.quoted_digest.len()
    }
}

/// A manifest, and whether it is known only from memory past its time.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) manifest: Arc<StoredManifest>,
    pub(crate) stale: bool,
}

/// What a PUT answers.
#[derive(Clone, Debug)]
pub(crate) struct Pushed {
    pub(crate) digest: Digest,
    /// What it refers to.
    pub(crate) subject: Option<Digest>,
}

/// What storing a manifest did to what caches may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stored {
    /// Nothing: it was not there, or was the same. Absence is never cached.
    New,
    /// It had another media type.
    Changed,
}

impl Registry {
    /// The manifest that a reference names.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<Found, RegistryError> {
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
        Ok(Found {
            stale: found.stale || tag_is_stale,
            ..found
        })
    }

    /// The manifest that a reference names if memory holds all that the answer needs, and nothing
    /// of it is due to be read again.
    pub(crate) fn manifest_in_memory(
        &self,
        repository: RepositoryName,
        reference: Reference,
    ) -> Option<Arc<StoredManifest>> {
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
    ) -> Result<Option<Found>, RegistryError> {
        let digest = *digest;
        let fill = || {
            let (storage, key) = (
                Arc::clone(&self.storage),
                layout::manifest(repository, &digest),
            );
            async move {
                let Some(object) = storage.read(&key).await? else {
                    return Ok(None);
                };
                let Some((media_type, bytes)) = ManifestRecord::of(&key, &object.body)?.content
                else {
                    return Ok(None);
                };
                if !digest.matches(&bytes) {
                    tracing::error!(%key, "read manifest: the storage holds other bytes than were pushed");
                    return Err(StorageError::unavailable(
                        "read manifest",
                        &key,
                        "not the bytes of the digest",
                    ));
                }
                Ok(Some(Arc::new(StoredManifest::new(
                    digest, media_type, bytes,
                ))))
            }
        };
        let cached = self
            .manifests
            .get(&(repository.clone(), digest), fill)
            .await?;
        Ok(cached.map(|cached| Found {
            manifest: cached.value,
            stale: cached.stale,
        }))
    }

    /// Stores a manifest and moves tags to it, and tells the other replicas. `media_type` is what
    /// the request says, without parameters.
    pub(crate) async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        tags: &[Tag],
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<Pushed, RegistryError> {
        let digest = match reference {
            Reference::Digest(digest) => *digest,
            Reference::Tag(_) => Digest::sha256(&bytes),
        };
        if !digest.matches(&bytes) {
            let computed = Digest::of(digest.algorithm(), &bytes);
            return Err(RegistryError::DigestInvalid(format!(
                "the manifest has the digest {computed}"
            )));
        }
        let manifest = Manifest::parse(&bytes)
            .map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        let media_type = agreed_media_type(media_type, &manifest)?;
        let oldest = self.check_named(repository, &manifest, Need::Live).await?;
        let stored = Arc::new(StoredManifest::new(digest, media_type, bytes));
        let mut changed = Vec::new();
        let (what_became, stamp) = self.write_manifest(repository, Arc::clone(&stored)).await?;
        if what_became == Stored::Changed {
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
        Ok(Pushed { digest, subject })
    }

    /// Checks that the repository has all that a manifest names. The start of the oldest read that
    /// it rests on.
    async fn check_named(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        need: Need,
    ) -> Result<Time, RegistryError> {
        let began = self.clock.now();
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
            .try_fold(began, |oldest, read_at| async move {
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

    /// Checks past the caches what was checked too long ago; a manifest that names what has died is
    /// taken back.
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
        let checked = self.check_named(repository, manifest, Need::LiveNow).await;
        if let Err(RegistryError::ManifestBlobUnknown(_)) = &checked {
            self.bury_manifest(repository, digest).await?;
        }
        checked.map(drop)
    }

    /// Stores a manifest. What that did, and the stamp of what is there now.
    async fn write_manifest(
        &self,
        repository: &RepositoryName,
        manifest: Arc<StoredManifest>,
    ) -> Result<(Stored, Stamp), RegistryError> {
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
            buried_subject: None,
            nonce: nonce(),
        };
        let another_type = |(media_type, _): (String, Bytes)| media_type != manifest.media_type;
        let stored = match replaced
            .and_then(|record| record.content)
            .is_some_and(another_type)
        {
            true => Stored::Changed,
            false => Stored::New,
        };
        let seen = present.as_ref().map(|object| &object.version);
        let body = record.body(&key)?;
        let cache_key = (repository.clone(), manifest.digest);
        let write = async {
            Ok::<_, RegistryError>(match self.write_if_unchanged(&key, seen, body).await? {
                WriteOutcome::Written => (Effect::Stored(manifest), WriteOutcome::Written),
                lost => (Effect::Changed, lost),
            })
        };
        let winner = match self.manifests.write(&cache_key, write).await? {
            WriteOutcome::Written => return Ok((stored, record.stamp)),
            WriteOutcome::Lost(winner) => winner.ok_or(RegistryError::Contended)?,
        };
        // The bytes under a digest are always the same: another's are as good, while they are
        // alive.
        let winner = ManifestRecord::of(&key, &winner.body)?;
        winner
            .content
            .map(|_| (stored, winner.stamp))
            .ok_or(RegistryError::Contended)
    }

    /// Writes a tombstone in the place of a manifest, tells the other replicas, and takes it out of
    /// its subject's list.
    async fn bury_manifest(
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
            self.gone_already(change).await;
            // Who wrote the tombstone may have died before it did this.
            if let Some(subject) = record.buried_subject {
                self.bury_referrer(repository, &subject, digest, record.stamp)
                    .await?;
            }
            return Err(RegistryError::ManifestUnknown);
        };
        let stamp = self.stamps.stamp(Some(&record.stamp));
        let subject = Manifest::parse(&bytes)
            .ok()
            .and_then(|manifest| manifest.subject);
        let buried_subject = subject.map(|subject| subject.digest);
        let tombstone = ManifestRecord {
            stamp: stamp.clone(),
            content: None,
            buried_subject,
            nonce: nonce(),
        };
        let body = tombstone.body(&key)?;
        let write = async {
            let outcome = self.write_if_unchanged(&key, Some(&object.version), body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        let cache_key = (repository.clone(), *digest);
        match self.manifests.write(&cache_key, write).await? {
            WriteOutcome::Written => self.invalidate_replicas(vec![change]).await,
            WriteOutcome::Lost(_) => return Err(RegistryError::Contended),
        }
        match buried_subject {
            Some(subject) => {
                self.bury_referrer(repository, &subject, digest, stamp)
                    .await
            }
            None => Ok(()),
        }
    }

    /// Deletes a tag, or a manifest with its referrer. Tags that name the manifest then lead
    /// nowhere.
    pub(crate) async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<(), RegistryError> {
        let tag = match reference {
            Reference::Digest(digest) => return self.bury_manifest(repository, digest).await,
            Reference::Tag(tag) => tag,
        };
        let change = Changed::Tag(repository.clone(), tag.clone());
        match self.write_tag(repository, tag, None).await {
            // That no tag was ever there is told, too: it is not known here what there was.
            Err(RegistryError::ManifestUnknown) => {
                self.gone_already(change).await;
                Err(RegistryError::ManifestUnknown)
            }
            written => {
                written?;
                self.invalidate_replicas(vec![change]).await;
                Ok(())
            }
        }
    }

    /// The digest that a tag names, and whether it is known only from memory past its time.
    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<(Digest, bool)>, RegistryError> {
        let fill = || {
            let (storage, key) = (Arc::clone(&self.storage), layout::tag(repository, tag));
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

/// The media type that request and manifest agree on.
fn agreed_media_type(header: Option<&str>, manifest: &Manifest) -> Result<String, RegistryError> {
    match (header, manifest.media_type.as_deref()) {
        (Some(header), Some(own)) if header != own => Err(RegistryError::ManifestInvalid(format!(
            "the request's Content-Type is {header}, the manifest's mediaType {own}"
        ))),
        (Some(media_type), _) | (None, Some(media_type)) => Ok(media_type.to_owned()),
        (None, None) if manifest.is_index() => Ok(manifest::OCI_INDEX.to_owned()),
        (None, None) => Ok(manifest::OCI_MANIFEST.to_owned()),
    }
}
