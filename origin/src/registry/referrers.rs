//! Referrers: one key for each fact "this manifest refers to that subject", listed by subject.
//!
//! An entry carries the stamp and turn of its manifest, and the entry with the higher ones stays.
//! So if a push and a delete of one manifest run through two replicas, an entry remains exactly if
//! the manifest does, whichever of them is slower.

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::RepositoryName;
use flotilla_common::wire::region::{FactHead, FactKey};
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};

use super::{CachedManifest, Registry, RegistryError};
use crate::conditional_write::WriteOutcome;
use crate::layout;
use crate::nonce::nonce;
use crate::record::{Pointer, ReferrerValue, Stamp};
use crate::storage::Key;

/// Maximum referrers in one answer.
pub(crate) const MAX_REFERRERS: usize = 1000;
/// Bytes of descriptors after which an answer ends: annotations may be long, and clients limit how
/// much they read.
const MAX_PAGE_LEN: usize = 2 << 20;
/// Descriptors read concurrently.
const READS_AT_ONCE: usize = 16;
/// How often an entry is written again after it lost to entries of earlier changes.
const MAX_ATTEMPTS: u32 = 8;

/// A page of the manifests that refer to a subject.
#[derive(Debug, Default)]
pub(crate) struct ReferrerPage {
    pub(crate) descriptors: Vec<Value>,
    /// The digest of the last referrer, if there are more after it.
    pub(crate) next: Option<String>,
}

impl Registry {
    /// At most `limit` descriptors of the manifests that refer to `subject`, after the digest
    /// `last`; at least one, if there are any. The subject need not exist.
    ///
    /// An entry of an evicted manifest does not count: the replica that evicted it may have stopped
    /// before it removed the entry. A delete that stops there is not acknowledged, and is repeated.
    pub(crate) async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        last: Option<&Digest>,
        limit: usize,
    ) -> Result<ReferrerPage, RegistryError> {
        let limit = limit.clamp(1, MAX_REFERRERS);
        let after = last.map(|last| layout::referrer(repository, subject, last));
        let live = self
            .live_keys(&layout::referrers(repository, subject), after, limit)
            .await?;
        let keys = live.len();
        let reads = stream::iter(live.into_iter().take(limit)).map(|key| async move {
            let object = self.storage.read(&key).await?;
            let pointer = object
                .map(|object| Pointer::<ReferrerValue>::of(&key, &object.body))
                .transpose()?;
            let value = match pointer.and_then(|pointer| pointer.value) {
                Some(value) if !self.is_evicted(repository, &key).await? => Some(value),
                _ => None,
            };
            Ok::<_, RegistryError>((key, value))
        });
        let mut reads = reads.buffered(READS_AT_ONCE);
        let mut page = ReferrerPage::default();
        let mut read = 0;
        let mut len = 0;
        while let Some((key, value)) = reads.try_next().await? {
            read += 1;
            if let Some(value) = value {
                len += value.descriptor.len();
                page.descriptors
                    .extend(serde_json::from_str::<Value>(&value.descriptor));
            }
            if read == limit || len >= MAX_PAGE_LEN {
                page.next = (read < keys).then(|| key.last_segment().to_owned());
                break;
            }
        }
        Ok(page)
    }

    /// Whether the manifest of an entry was evicted.
    async fn is_evicted(
        &self,
        repository: &RepositoryName,
        entry: &Key,
    ) -> Result<bool, RegistryError> {
        let Ok(digest) = entry.last_segment().parse() else {
            return Ok(false);
        };
        let found = self.manifest_by_digest(repository, &digest).await;
        // One that cannot be read is not evicted.
        if !matches!(found, Ok(None)) {
            return Ok(false);
        }
        let key = FactKey::Manifest(repository.clone(), digest);
        let head = self.fact(&key).await?.head;
        Ok(matches!(head, FactHead::Evicted { .. }))
    }

    /// Adds a manifest to the referrers of its subject, if it has one. `written` are the stamp and
    /// turn with which the manifest is stored.
    pub(super) async fn write_referrer(
        &self,
        repository: &RepositoryName,
        stored: &CachedManifest,
        manifest: &Manifest,
        written: (Stamp, u32),
    ) -> Result<(), RegistryError> {
        let Some(subject) = &manifest.subject else {
            return Ok(());
        };
        let key = layout::referrer(repository, &subject.digest, &stored.digest);
        let descriptor = descriptor(
            &stored.digest,
            manifest,
            &stored.media_type,
            stored.bytes.len(),
        )
        .to_string();
        self.write_referrer_entry(&key, written, Some(ReferrerValue { descriptor }))
            .await
    }

    /// Removes a manifest from the referrers of its subject. `written` are the stamp and turn with
    /// which it was deleted or evicted. A tombstone is written even if there is no entry: the entry
    /// of an earlier push may still come.
    pub(super) async fn delete_referrer(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        digest: &Digest,
        written: (Stamp, u32),
    ) -> Result<(), RegistryError> {
        let key = layout::referrer(repository, subject, digest);
        self.write_referrer_entry(&key, written, None).await
    }

    /// Writes an entry, unless the present one is of a later change. An entry that lost to an
    /// earlier one was not applied and never will be, so it may be written again.
    async fn write_referrer_entry(
        &self,
        key: &Key,
        (stamp, turn): (Stamp, u32),
        value: Option<ReferrerValue>,
    ) -> Result<(), RegistryError> {
        let mut present = self.storage.read(key).await?;
        for _ in 0..MAX_ATTEMPTS {
            if let Some(object) = &present {
                let present = Pointer::<ReferrerValue>::of(key, &object.body)?;
                if (&present.stamp, present.turn) >= (&stamp, turn) {
                    return Ok(());
                }
            }
            let entry = Pointer {
                stamp: stamp.clone(),
                turn,
                value: value.clone(),
                nonce: nonce(),
            };
            let seen = present.as_ref().map(|object| &object.version);
            match self
                .conditional_write(key, seen, entry.body(key)?.into())
                .await?
            {
                WriteOutcome::Written => return Ok(()),
                WriteOutcome::Lost {
                    present: winner, ..
                } => present = winner,
            }
        }
        Err(RegistryError::Contended)
    }
}

/// The descriptor of a referrer (OCI distribution specification, "Listing Referrers").
fn descriptor(digest: &Digest, manifest: &Manifest, media_type: &str, size: usize) -> Value {
    let mut descriptor = Map::new();
    descriptor.insert("mediaType".to_owned(), json!(media_type));
    descriptor.insert("digest".to_owned(), json!(digest.to_string()));
    descriptor.insert("size".to_owned(), json!(size));
    let own = manifest.artifact_type.clone().filter(|own| !own.is_empty());
    let config = manifest
        .config
        .as_ref()
        .map(|config| config.media_type.clone());
    if let Some(artifact_type) = own.or(config) {
        descriptor.insert("artifactType".to_owned(), json!(artifact_type));
    }
    if !manifest.annotations.is_empty() {
        descriptor.insert("annotations".to_owned(), json!(manifest.annotations));
    }
    Value::Object(descriptor)
}

#[cfg(test)]
mod tests {
    use flotilla_common::manifest::{OCI_INDEX, OCI_MANIFEST};

    use super::*;

    #[test]
    fn artifact_type_falls_back_to_the_config_media_type() {
        let digest = Digest::sha256(b"x");
        let config = json!({"mediaType": "application/vnd.example", "digest": digest, "size": 1});
        let text =
            json!({"schemaVersion": 2, "config": config, "annotations": {"a": "b"}}).to_string();
        let manifest = Manifest::parse(text.as_bytes()).expect("a manifest");
        let described = descriptor(&digest, &manifest, OCI_MANIFEST, 9);
        assert_eq!(described["artifactType"], "application/vnd.example");
        assert_eq!(described["annotations"]["a"], "b");
        assert_eq!(described["size"], 9);
        let text = json!({"schemaVersion": 2, "artifactType": "x/y", "manifests": []}).to_string();
        let manifest = Manifest::parse(text.as_bytes()).expect("an index");
        assert_eq!(
            descriptor(&digest, &manifest, OCI_INDEX, 9)["artifactType"],
            "x/y"
        );
    }
}
