//! Merging what another region has: the value with the higher stamp stays.
//!
//! A merge reads the present value and swaps by its version, so a change that came in between is
//! looked at again. Merging the same fact twice, late, or by two replicas at once changes nothing.

use core::time::Duration;
use std::sync::Arc;

use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RegionName, RepositoryName, Tag};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{Fact, FactHead, FactKey};

use super::{CachedManifest, KnownTag, Registry, RegistryError};
use crate::cache::Effect;
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{ManifestRecord, ManifestState, Pointer, TagValue};
use crate::replicas::Changed;
use crate::storage::{Object, StorageError};

/// How often a merge is decided again after other writes came in between.
const MAX_ATTEMPTS: u32 = 8;

/// The outcome of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Merged {
    /// The fact was written.
    Written,
    /// The present value is as new, or newer.
    Kept,
    /// The stamp is too far ahead of this replica's clock: try again later.
    Ahead(Duration),
}

/// Why a manifest is merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MergeReason {
    /// A sweep found it. What this region evicted stays evicted.
    Sweep,
    /// A journal entry, a tag or an index names it. What this region evicted comes back.
    Needed,
}

/// What a merge does to a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
enum ManifestStep {
    Keep,
    /// Writes the other region's value, with this turn.
    Take {
        stamp: Stamp,
        turn: u32,
    },
    /// Makes the present, condemned value live.
    Rescue,
}

impl Registry {
    /// The value of a tag, read past the caches; `None` if it never had one.
    pub(crate) async fn stored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<KnownTag>, RegistryError> {
        let key = layout::tag(repository, tag);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(None);
        };
        let pointer = Pointer::<TagValue>::of(&key, &object.body)?;
        let digest = pointer.value.map(|value| value.digest);
        Ok(Some(KnownTag::new(pointer.stamp, digest)))
    }

    /// Whether a key holds a value or a tombstone.
    pub(crate) async fn has_fact(&self, key: &FactKey) -> Result<bool, RegistryError> {
        Ok(self.storage.read(&layout::fact(key)).await?.is_some())
    }

    /// Merges a tag. If `digest` is `Some`, its closure must be whole here.
    pub(crate) async fn merge_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        stamp: &Stamp,
        digest: Option<Digest>,
    ) -> Result<Merged, RegistryError> {
        if let Some(by) = self.stamps.too_far_ahead(stamp) {
            return Ok(Merged::Ahead(by));
        }
        let key = layout::tag(repository, tag);
        let cache_key = (repository.clone(), tag.clone());
        let mut present = self.storage.read(&key).await?;
        for _ in 0..MAX_ATTEMPTS {
            let seen = present.as_ref();
            let pointer = seen.map(|object| Pointer::<TagValue>::of(&key, &object.body));
            if pointer
                .transpose()?
                .is_some_and(|pointer| pointer.stamp >= *stamp)
            {
                return Ok(Merged::Kept);
            }
            let pointer = Pointer {
                stamp: stamp.clone(),
                turn: 0,
                value: digest.map(|digest| TagValue { digest }),
                nonce: nonce(),
            };
            let body = pointer.body(&key)?.into();
            let version = seen.map(|object| &object.version);
            let write = async {
                let outcome = self.conditional_write(&key, version, body).await?;
                Ok::<_, RegistryError>((Effect::Changed, outcome))
            };
            match self.tags.write(&cache_key, write).await? {
                WriteOutcome::Written => {
                    self.remember_tag(repository, tag, KnownTag::new(stamp.clone(), digest));
                    let changed = Changed::Tag(repository.clone(), tag.clone());
                    self.invalidate_replicas(vec![changed]).await;
                    return Ok(Merged::Written);
                }
                WriteOutcome::Lost {
                    present: winner, ..
                } => present = winner,
            }
        }
        Err(RegistryError::Contended)
    }

    /// Merges a manifest and its referrer entry. If the fact is a live manifest, everything that it
    /// references must be here.
    ///
    /// A manifest that comes back from an eviction may have a higher stamp than the fact: that of a
    /// push which was refused here, or which `others` heard of in vain while it was evicted. So it
    /// is owed to them, like a push.
    ///
    /// # Errors
    /// Those of the storage; [`RegistryError::DigestInvalid`] if the bytes do not have the digest.
    pub(crate) async fn merge_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        fact: &Fact,
        reason: MergeReason,
        others: &[RegionName],
    ) -> Result<Merged, RegistryError> {
        if let Some(by) = fact
            .stamp()
            .and_then(|stamp| self.stamps.too_far_ahead(stamp))
        {
            return Ok(Merged::Ahead(by));
        }
        if matches!(fact.head, FactHead::Manifest { .. }) && !digest.matches(&fact.bytes) {
            return Err(RegistryError::DigestInvalid(format!(
                "another region sent other bytes as manifest {digest}"
            )));
        }
        let key = layout::manifest(repository, digest);
        let mut present = self.storage.read(&key).await?;
        let mut is_owed = false;
        for _ in 0..MAX_ATTEMPTS {
            let record = present
                .as_ref()
                .map(|object| ManifestRecord::of(&key, &object.body))
                .transpose()?;
            let next = match step(record.as_ref(), &fact.head, reason) {
                ManifestStep::Keep => {
                    // A follower that died may have left this undone.
                    if let Some(record) = record {
                        self.follow_with_referrer(repository, digest, &record)
                            .await?;
                    }
                    return Ok(Merged::Kept);
                }
                ManifestStep::Take { stamp, turn } => {
                    if !is_owed && fact.stamp() < Some(&stamp) {
                        let key = FactKey::Manifest(repository.clone(), *digest);
                        self.write_journal(others, [(key, fact.stamp())]).await?;
                        is_owed = true;
                    }
                    taken(fact, stamp, turn)
                }
                ManifestStep::Rescue => record.map(|record| ManifestRecord {
                    state: ManifestState::Live,
                    nonce: nonce(),
                    ..record
                }),
            };
            let Some(next) = next else {
                return Ok(Merged::Kept);
            };
            match self
                .swap_manifest(repository, digest, present.as_ref(), &next)
                .await?
            {
                WriteOutcome::Written => {
                    self.follow_with_referrer(repository, digest, &next).await?;
                    return Ok(Merged::Written);
                }
                WriteOutcome::Lost {
                    present: winner, ..
                } => present = winner,
            }
        }
        Err(RegistryError::Contended)
    }

    async fn swap_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        present: Option<&Object>,
        next: &ManifestRecord,
    ) -> Result<WriteOutcome, RegistryError> {
        let key = layout::manifest(repository, digest);
        let body = next.body(&key)?;
        let seen = present.map(|object| &object.version);
        let write = async {
            let outcome = self.conditional_write(&key, seen, body).await?;
            Ok::<_, RegistryError>((Effect::Changed, outcome))
        };
        let cache_key = (repository.clone(), *digest);
        let outcome = self.manifests.write(&cache_key, write).await?;
        if matches!(outcome, WriteOutcome::Written) && present.is_some() {
            let changed = Changed::Manifest(repository.clone(), *digest);
            self.invalidate_replicas(vec![changed]).await;
        }
        Ok(outcome)
    }

    /// Makes the referrer entry of a manifest agree with its record in this region.
    async fn follow_with_referrer(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        record: &ManifestRecord,
    ) -> Result<(), RegistryError> {
        let Some(subject) = &record.subject else {
            return Ok(());
        };
        let written = (record.stamp.clone(), record.turn);
        let Some((media_type, bytes)) = &record.content else {
            return self
                .delete_referrer(repository, subject, digest, written)
                .await;
        };
        let key = layout::manifest(repository, digest);
        let manifest = Manifest::parse(bytes)
            .map_err(|error| StorageError::unavailable("parse manifest", &key, error))?;
        let stored = Arc::new(CachedManifest::new(
            *digest,
            media_type.clone(),
            bytes.clone(),
        ));
        self.write_referrer(repository, &stored, &manifest, written)
            .await
    }
}

/// The record that takes over a fact; `None` for one that has no value.
fn taken(fact: &Fact, stamp: Stamp, turn: u32) -> Option<ManifestRecord> {
    let (state, content, subject) = match &fact.head {
        FactHead::Manifest { media_type, .. } => {
            let bytes = Bytes::copy_from_slice(&fact.bytes);
            let subject = Manifest::parse(&bytes).ok()?.subject;
            let content = Some((media_type.clone(), bytes));
            let subject = subject.map(|subject| subject.digest);
            (ManifestState::Live, content, subject)
        }
        FactHead::DeletedManifest { subject, .. } => (ManifestState::Deleted, None, *subject),
        FactHead::Absent | FactHead::Evicted { .. } | FactHead::Tag { .. } => return None,
    };
    Some(ManifestRecord {
        stamp,
        turn,
        state,
        content,
        subject,
        nonce: nonce(),
    })
}

/// Decides the merge of a manifest.
fn step(present: Option<&ManifestRecord>, fact: &FactHead, reason: MergeReason) -> ManifestStep {
    let (stamp, is_live) = match fact {
        FactHead::Manifest { stamp, .. } => (stamp, true),
        FactHead::DeletedManifest { stamp, .. } => (stamp, false),
        // Eviction is regional, so it says nothing about this region.
        FactHead::Absent | FactHead::Evicted { .. } | FactHead::Tag { .. } => {
            return ManifestStep::Keep;
        }
    };
    let Some(present) = present else {
        return ManifestStep::Take {
            stamp: stamp.clone(),
            turn: 0,
        };
    };
    let is_needed = is_live && reason == MergeReason::Needed;
    match present.state {
        // The bytes are equal, so whichever stamp the fact has, it restores what this region
        // evicted. The higher stamp stays.
        ManifestState::Evicted if is_needed => ManifestStep::Take {
            stamp: stamp.max(&present.stamp).clone(),
            turn: if *stamp > present.stamp {
                0
            } else {
                present.turn + 1
            },
        },
        _ if *stamp > present.stamp => ManifestStep::Take {
            stamp: stamp.clone(),
            turn: 0,
        },
        ManifestState::Condemned if is_needed => ManifestStep::Rescue,
        _ => ManifestStep::Keep,
    }
}

#[cfg(test)]
mod tests;
