//! Manifests: stored with their bytes in each repository, found by digest or by tag.
//!
//! This file reads them; `changes` writes them.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::time::Time;

use super::{KnownTag, LiveTag, Registry, RegistryError};
use crate::cache::Cached;
use crate::layout;
use crate::record::{ManifestRecord, Pointer, TagValue};
use crate::storage::StorageError;

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
    pub(super) fn new(digest: Digest, media_type: String, bytes: Bytes) -> Self {
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
    /// When its read started.
    pub(super) read_at: Time,
    /// From an expired cache entry, because storage is unavailable.
    pub(crate) stale: bool,
    /// The tag that names it, if it was found by tag.
    pub(crate) tag: Option<LiveTag>,
}

impl Registry {
    /// The manifest that a reference names.
    pub(crate) async fn manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
    ) -> Result<FoundManifest, RegistryError> {
        let (digest, tag) = match reference {
            Reference::Digest(digest) => (*digest, None),
            Reference::Tag(tag) => {
                let tag = self.tag(repository, tag).await?;
                let tag = tag.ok_or(RegistryError::ManifestUnknown)?;
                (tag.value.digest, Some(tag))
            }
        };
        let found = self
            .manifest_by_digest(repository, &digest)
            .await?
            .ok_or(RegistryError::ManifestUnknown)?;
        Ok(FoundManifest {
            stale: found.stale || tag.as_ref().is_some_and(|tag| tag.stale),
            tag: tag.map(|tag| tag.value),
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
                let tag = self.tags.fresh(&key)?;
                (key.0, tag.digest)
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
            read_at: cached.read_at,
            stale: cached.stale,
            tag: None,
        }))
    }

    /// The manifest that a tag names.
    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<Cached<LiveTag>>, RegistryError> {
        let fill = || {
            let storage = Arc::clone(&self.storage);
            let known_tags = self.known_tags.clone();
            let cache_key = (repository.clone(), tag.clone());
            let key = layout::tag(repository, tag);
            async move {
                let Some(object) = storage.read(&key).await? else {
                    return Ok(None);
                };
                let pointer = Pointer::<TagValue>::of(&key, &object.body)?;
                let stamp = pointer.stamp;
                let digest = pointer.value.map(|value| value.digest);
                KnownTag::new(stamp.clone(), digest).remember(&known_tags, cache_key);
                Ok(digest.map(|digest| LiveTag { stamp, digest }))
            }
        };
        let cache_key = (repository.clone(), tag.clone());
        Ok(self.tags.get(&cache_key, fill).await?)
    }
}
