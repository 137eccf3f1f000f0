//! Changes of manifests and tags, by a PUT or a DELETE.
//!
//! ```text
//! check blobs and children
//! read the manifest's key and all tags (versions and stamps)
//! one stamp above all of them
//! a journal entry for each other region: the keys, each with the stamp that was read
//! swap the manifest by its version ──▶ [more than L since the oldest check: check again]
//! referrer ──▶ swap each tag by its version ──▶ invalidate at the other replicas
//! ```
//! No key is written before the journal entries are confirmed. So a change that any client saw is
//! owed to the other regions, also if this replica dies. An entry whose change never happened is
//! dropped by the follower after a while.
//!
//! If a check fails after the manifest was written, the manifest is evicted and not deleted:
//! another region may have the same manifest whole, and its push was acknowledged.

use core::future::{Ready, ready};
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{self, Manifest};
use flotilla_common::name::{Reference, RepositoryName, Tag};
use flotilla_common::stamp::Stamp;
use flotilla_common::time::Time;
use flotilla_common::wire::region::{Fact, FactHead, FactKey};
use futures_util::future::try_join_all;
use futures_util::{StreamExt, TryStreamExt, stream};

use super::change_rules::ChangeRules;
use super::{CachedManifest, KnownTag, LiveTag, MergeReason, Need, Registry, RegistryError};
use crate::cache::Effect;
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{ManifestRecord, ManifestState, Pointer, TagValue};
use crate::replicas::Changed;
use crate::storage::{Key, Object};

/// Blobs of a manifest checked concurrently.
const CHECKS_AT_ONCE: usize = 16;
/// How often the manifest is written again after only the state of the present one changed.
const MAX_ATTEMPTS: u32 = 4;

/// A manifest that was stored.
#[derive(Clone, Debug)]
pub(crate) struct PushedManifest {
    pub(crate) digest: Digest,
    /// The manifest to which it refers.
    pub(crate) subject: Option<Digest>,
    /// Of the tags, and of the manifest unless a concurrent push was first.
    pub(crate) stamp: Stamp,
    /// The sum of the blobs that it names, as it states them.
    pub(crate) bytes: u64,
}

/// Whether caches of other replicas may hold another version of a stored manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Replaced {
    /// There was none, or an equal one. Absence is never cached.
    Nothing,
    /// There was one with another media type.
    OtherMediaType,
}

/// A key as a change found it.
struct Base<R> {
    key: Key,
    object: Option<Object>,
    record: Option<R>,
}

impl Base<ManifestRecord> {
    fn stamp(&self) -> Option<&Stamp> {
        self.record.as_ref().map(|record| &record.stamp)
    }
}

impl Base<Pointer<TagValue>> {
    fn stamp(&self) -> Option<&Stamp> {
        self.record.as_ref().map(|pointer| &pointer.stamp)
    }

    fn digest(&self) -> Option<Digest> {
        Some(self.record.as_ref()?.value.as_ref()?.digest)
    }
}

impl Registry {
    /// Stores a manifest, moves tags to it and invalidates at the other replicas. `media_type` is
    /// the Content-Type of the request, without parameters.
    pub(crate) async fn put_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        tags: &[Tag],
        media_type: Option<&str>,
        bytes: Bytes,
        rules: &ChangeRules,
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
        let subject = manifest.subject.as_ref().map(|subject| subject.digest);
        let oldest = self
            .check_references(repository, &manifest, Need::Live)
            .await?;
        let stored = Arc::new(CachedManifest::new(digest, media_type, bytes));

        let manifest_base = self.read_manifest_base(repository, &digest).await?;
        let tag_bases = tags.iter().map(|tag| self.read_tag_base(repository, tag));
        let tag_bases = try_join_all(tag_bases).await?;
        refuse_immutable(&rules.immutable, tags, &tag_bases, &digest)?;
        let seen = tag_bases.iter().filter_map(Base::<Pointer<_>>::stamp);
        let seen = seen.chain(manifest_base.stamp());
        let stamp = self.stamp_above(seen, rules)?;
        let manifest_key = FactKey::Manifest(repository.clone(), digest);
        let tag_keys = tags
            .iter()
            .zip(&tag_bases)
            .map(|(tag, base)| (FactKey::Tag(repository.clone(), tag.clone()), base.stamp()));
        let keys = core::iter::once((manifest_key, manifest_base.stamp())).chain(tag_keys);
        self.write_journal(&rules.owed_to, keys).await?;

        let mut changed = Vec::new();
        let (replaced, written) = self
            .write_manifest(
                repository,
                Arc::clone(&stored),
                subject,
                &stamp,
                manifest_base,
            )
            .await?;
        if replaced == Replaced::OtherMediaType {
            changed.push(Changed::Manifest(repository.clone(), digest));
        }
        if self.clock.now().saturating_since(oldest) > self.format.horizons.liveness {
            self.check_again(repository, &manifest, &stored, &stamp)
                .await?;
        }
        if subject.is_some() {
            self.write_referrer(repository, &stored, &manifest, written)
                .await?;
        }
        for (tag, base) in tags.iter().zip(tag_bases) {
            self.write_tag(repository, tag, base, Some(digest), &stamp)
                .await?;
            changed.push(Changed::Tag(repository.clone(), tag.clone()));
        }
        self.invalidate_replicas(changed).await;
        Ok(PushedManifest {
            digest,
            subject,
            stamp,
            bytes: manifest.stated_bytes(),
        })
    }

    /// Deletes a tag, or a manifest and its entry among the referrers. Tags of the manifest are not
    /// deleted and answer 404 from then on. Returns the stamp of the delete.
    pub(crate) async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        reference: &Reference,
        rules: &ChangeRules,
    ) -> Result<Stamp, RegistryError> {
        match reference {
            Reference::Digest(digest) => self.delete_by_digest(repository, digest, rules).await,
            Reference::Tag(tag) => self.delete_tag(repository, tag, rules).await,
        }
    }

    /// Writes a tombstone in place of a manifest, invalidates at the other replicas, and removes
    /// the manifest from the referrers of its subject.
    async fn delete_by_digest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        rules: &ChangeRules,
    ) -> Result<Stamp, RegistryError> {
        let base = self.read_manifest_base(repository, digest).await?;
        let record = base.record.as_ref();
        let seen_stamp = record.map(|record| &record.stamp);
        let unseen = rules.unseen_above(seen_stamp);
        let change = Changed::Manifest(repository.clone(), *digest);
        if unseen.is_none() && !record.is_some_and(|record| record.state.is_served()) {
            let record = record.ok_or(RegistryError::ManifestUnknown)?;
            self.invalidate_deleted(change).await;
            // The replica that wrote the tombstone may have stopped before it did this.
            if let Some(subject) = record.subject {
                let written = (record.stamp.clone(), record.turn);
                self.delete_referrer(repository, &subject, digest, written)
                    .await?;
            }
            return Err(RegistryError::ManifestUnknown);
        }
        let unseen_stamp = unseen.map(|value| &value.stamp);
        let stamp = self.stamp_above(seen_stamp.into_iter().chain(unseen_stamp), rules)?;
        let own_subject = record.and_then(|record| record.subject);
        let tombstone = ManifestRecord {
            stamp: stamp.clone(),
            turn: 0,
            state: ManifestState::Deleted,
            content: None,
            subject: own_subject.or_else(|| unseen?.subject),
            nonce: nonce(),
        };
        let key = FactKey::Manifest(repository.clone(), *digest);
        self.write_journal(&rules.owed_to, [(key, seen_stamp)])
            .await?;
        let body = tombstone.body(&base.key)?;
        let seen = base.object.as_ref().map(|object| &object.version);
        let write = async {
            let outcome = self.conditional_write(&base.key, seen, body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        match self
            .manifests
            .write(&(repository.clone(), *digest), write)
            .await?
        {
            WriteOutcome::Written => self.invalidate_replicas(vec![change]).await,
            WriteOutcome::Lost { .. } => return Err(RegistryError::Contended),
        }
        if let Some(subject) = tombstone.subject {
            self.delete_referrer(repository, &subject, digest, (stamp.clone(), 0))
                .await?;
        }
        Ok(stamp)
    }

    async fn delete_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        rules: &ChangeRules,
    ) -> Result<Stamp, RegistryError> {
        let base = self.read_tag_base(repository, tag).await?;
        let change = Changed::Tag(repository.clone(), tag.clone());
        let unseen = rules.unseen_above(base.stamp());
        if base.digest().is_none() && unseen.is_none() {
            // Also if there never was a tag: this replica cannot tell.
            self.invalidate_deleted(change).await;
            return Err(RegistryError::ManifestUnknown);
        }
        let unseen = unseen.map(|value| &value.stamp);
        let stamp = self.stamp_above(base.stamp().into_iter().chain(unseen), rules)?;
        let key = FactKey::Tag(repository.clone(), tag.clone());
        self.write_journal(&rules.owed_to, [(key, base.stamp())])
            .await?;
        self.write_tag(repository, tag, base, None, &stamp).await?;
        self.invalidate_replicas(vec![change]).await;
        Ok(stamp)
    }

    async fn read_manifest_base(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Base<ManifestRecord>, RegistryError> {
        let key = layout::manifest(repository, digest);
        let object = self.storage.read(&key).await?;
        let record = object
            .as_ref()
            .map(|object| ManifestRecord::of(&key, &object.body));
        Ok(Base {
            record: record.transpose()?,
            key,
            object,
        })
    }

    async fn read_tag_base(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Base<Pointer<TagValue>>, RegistryError> {
        let key = layout::tag(repository, tag);
        let object = self.storage.read(&key).await?;
        let record = object
            .as_ref()
            .map(|object| Pointer::of(&key, &object.body));
        Ok(Base {
            record: record.transpose()?,
            key,
            object,
        })
    }

    /// One stamp for a whole change.
    fn stamp_above<'a>(
        &self,
        seen: impl IntoIterator<Item = &'a Stamp>,
        rules: &ChangeRules,
    ) -> Result<Stamp, RegistryError> {
        let seen = seen.into_iter().map(|stamp| stamp.clock);
        self.stamps
            .stamp(seen.chain(rules.above))
            .map_err(|ahead| RegistryError::StampAhead(ahead.by))
    }

    /// Checks that the repository has all blobs and manifests that a manifest references. Returns
    /// the start of the oldest read on which the result relies.
    pub(super) async fn check_references(
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
            .try_fold(started, earlier);
        let oldest = oldest.await?;
        let checks = stream::iter(children(manifest)).map(|digest| async move {
            let found = self.manifest_by_digest(repository, &digest).await?;
            Ok(found
                .ok_or(RegistryError::ManifestBlobUnknown(digest))?
                .read_at)
        });
        checks
            .buffer_unordered(CHECKS_AT_ONCE)
            .try_fold(oldest, earlier)
            .await
    }

    /// Checks the references again, past the caches. A manifest that references a dead blob is
    /// evicted, if it still is the one that was written with `stamp`.
    ///
    /// A follower that copies the same manifest from another region may have found it before the
    /// eviction, and relies on it. It brought the blobs before that, so a check after the eviction
    /// sees them, and the manifest comes back.
    async fn check_again(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
        stored: &CachedManifest,
        stamp: &Stamp,
    ) -> Result<(), RegistryError> {
        let checked = self.check_references_now(repository, manifest).await;
        if !matches!(checked, Err(RegistryError::ManifestBlobUnknown(_))) {
            return checked;
        }
        self.evict(repository, &stored.digest, stamp).await?;
        if self
            .check_references_now(repository, manifest)
            .await
            .is_err()
        {
            return checked;
        }
        let head = FactHead::Manifest {
            stamp: stamp.clone(),
            media_type: stored.media_type.clone(),
            len: u32::try_from(stored.bytes.len()).unwrap_or(u32::MAX),
        };
        let bytes = stored.bytes.to_vec();
        let fact = Fact { head, bytes };
        let needed = MergeReason::Needed;
        // The entry of this push is still owed: an evicted manifest does not end it.
        self.merge_manifest(repository, &stored.digest, &fact, needed, &[])
            .await
            .map(drop)
    }

    /// Checks the references, past the caches.
    async fn check_references_now(
        &self,
        repository: &RepositoryName,
        manifest: &Manifest,
    ) -> Result<(), RegistryError> {
        for blob in manifest.blobs() {
            self.memberships
                .invalidate(&(repository.clone(), blob.digest));
        }
        for child in children(manifest) {
            self.manifests.invalidate(&(repository.clone(), child));
        }
        self.check_references(repository, manifest, Need::LiveNow)
            .await
            .map(drop)
    }

    /// Evicts a manifest that has this stamp: it is absent in this region until a push or a closure
    /// brings it back. Other regions keep theirs.
    async fn evict(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        stamp: &Stamp,
    ) -> Result<(), RegistryError> {
        let base = self.read_manifest_base(repository, digest).await?;
        let Some(record) = base
            .record
            .filter(|record| record.stamp == *stamp && record.state.is_served())
        else {
            return Ok(());
        };
        let evicted = ManifestRecord {
            turn: record.turn + 1,
            state: ManifestState::Evicted,
            content: None,
            nonce: nonce(),
            ..record
        };
        let body = evicted.body(&base.key)?;
        let seen = base.object.as_ref().map(|object| &object.version);
        let write = async {
            let outcome = self.conditional_write(&base.key, seen, body);
            Ok::<_, RegistryError>((Effect::Changed, outcome.await?))
        };
        // A lost swap is another request's change, which decides for itself.
        self.manifests
            .write(&(repository.clone(), *digest), write)
            .await?;
        let changed = Changed::Manifest(repository.clone(), *digest);
        self.invalidate_replicas(vec![changed]).await;
        if let Some(subject) = evicted.subject {
            let written = (evicted.stamp, evicted.turn);
            self.delete_referrer(repository, &subject, digest, written)
                .await?;
        }
        Ok(())
    }

    /// Stores a manifest in place of the one that was read. Returns what it replaced, and the stamp
    /// and turn of the stored one.
    async fn write_manifest(
        &self,
        repository: &RepositoryName,
        manifest: Arc<CachedManifest>,
        subject: Option<Digest>,
        stamp: &Stamp,
        mut base: Base<ManifestRecord>,
    ) -> Result<(Replaced, (Stamp, u32)), RegistryError> {
        let record = ManifestRecord {
            stamp: stamp.clone(),
            turn: 0,
            state: ManifestState::Live,
            content: Some((manifest.media_type.clone(), manifest.bytes.clone())),
            subject,
            nonce: nonce(),
        };
        let seen_stamp = base.stamp().cloned();
        let replaced = replaced_by(base.record.as_ref(), &manifest.media_type);
        let cache_key = (repository.clone(), manifest.digest);
        for _ in 0..MAX_ATTEMPTS {
            let seen = base.object.as_ref().map(|object| &object.version);
            let body = record.body(&base.key)?;
            let stored = Arc::clone(&manifest);
            let write = async {
                Ok::<_, RegistryError>(
                    match self.conditional_write(&base.key, seen, body).await? {
                        WriteOutcome::Written => (Effect::Stored(stored), WriteOutcome::Written),
                        lost => (Effect::Changed, lost),
                    },
                )
            };
            let winner = match self.manifests.write(&cache_key, write).await? {
                WriteOutcome::Written => return Ok((replaced, (record.stamp, record.turn))),
                WriteOutcome::Lost { present, .. } => present.ok_or(RegistryError::Contended)?,
            };
            let won = ManifestRecord::of(&base.key, &winner.body)?;
            if won.state == ManifestState::Live && Some(&won.stamp) > seen_stamp.as_ref() {
                // Bytes with one digest are equal, so the other writer's manifest is as good. Its
                // stamp is above the one in the journal entry, which is reached with it.
                return Ok((replaced, (won.stamp, won.turn)));
            }
            if Some(&won.stamp) != seen_stamp.as_ref() {
                return Err(RegistryError::Contended);
            }
            // Only the state of the same version changed, by a rescue or the collector. This write
            // never applied, or its own stamp would be there. Without it the entry is never
            // reached.
            base.object = Some(winner);
        }
        Err(RegistryError::Contended)
    }

    /// Moves a tag to a digest, or deletes it.
    async fn write_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        base: Base<Pointer<TagValue>>,
        digest: Option<Digest>,
        stamp: &Stamp,
    ) -> Result<(), RegistryError> {
        let pointer = Pointer {
            stamp: stamp.clone(),
            turn: 0,
            value: digest.map(|digest| TagValue { digest }),
            nonce: nonce(),
        };
        let body = pointer.body(&base.key)?.into();
        let seen = base.object.as_ref().map(|object| &object.version);
        let write = async {
            match self.conditional_write(&base.key, seen, body).await? {
                WriteOutcome::Written => {
                    let stamp = stamp.clone();
                    let live = digest.map(|digest| LiveTag { stamp, digest });
                    Ok((live.map_or(Effect::Changed, Effect::Stored), ()))
                }
                WriteOutcome::Lost { .. } => Err(RegistryError::Contended),
            }
        };
        self.tags
            .write(&(repository.clone(), tag.clone()), write)
            .await?;
        self.remember_tag(repository, tag, KnownTag::new(stamp.clone(), digest));
        Ok(())
    }
}

fn earlier(oldest: Time, read_at: Time) -> Ready<Result<Time, RegistryError>> {
    ready(Ok(oldest.min(read_at)))
}

/// The manifests that an index names and that the repository must have.
fn children(manifest: &Manifest) -> Vec<Digest> {
    let children = manifest.manifests.iter();
    children
        .filter(|child| child.urls.is_empty())
        .map(|child| child.digest)
        .collect()
}

fn replaced_by(record: Option<&ManifestRecord>, media_type: &str) -> Replaced {
    let content = record.and_then(|record| record.content.as_ref());
    match content.is_some_and(|(present, _)| present != media_type) {
        true => Replaced::OtherMediaType,
        false => Replaced::Nothing,
    }
}

/// Refuses to move an immutable tag that names another digest.
fn refuse_immutable(
    immutable: &[Tag],
    tags: &[Tag],
    bases: &[Base<Pointer<TagValue>>],
    digest: &Digest,
) -> Result<(), RegistryError> {
    for (tag, base) in tags.iter().zip(bases) {
        if immutable.contains(tag)
            && let Some(present) = base.digest().filter(|present| present != digest)
        {
            return Err(RegistryError::Denied(format!(
                "tag {tag} is immutable (policy) and names {present}; push another tag, or delete this one first"
            )));
        }
    }
    Ok(())
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
