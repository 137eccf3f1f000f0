//! Checks of tags, referrers, and manifests with the content that they name.

use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RepositoryName, Tag};

use super::{Checker, FOREIGN_KEY, Problems, parse_repository_key};
use crate::layout;
use crate::record::{
    ManifestRecord, MembershipRecord, Pointer, RecordState, ReferrerValue, TOMBSTONE_LIMIT,
    TagValue,
};
use crate::storage::{Entry, Key, StorageError};

/// The state of an object that another object refers to.
pub(super) enum Target {
    Present,
    /// A client deleted it: its key holds a tombstone.
    Deleted,
    /// Its key does not exist, or its object is not valid.
    Missing,
}

impl Problems {
    /// Adds the problem of a reference to `name`, if there is one.
    fn add_reference(&mut self, name: impl core::fmt::Display, target: &Target) {
        match target {
            Target::Present => {}
            Target::Deleted => self.leftovers.push(format!("{name} was deleted")),
            Target::Missing => self.damage.push(format!("{name} is missing")),
        }
    }
}

impl Checker {
    pub(super) async fn check_manifest(&self, key: &Key) -> Result<Problems, StorageError> {
        let Some((repository, digest)) = parse_repository_key::<Digest>(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Problems::default());
        };
        let record = match ManifestRecord::of(key, &object.body) {
            Ok(record) => record,
            Err(error) => return Ok(Problems::damage(error)),
        };
        let Some((_, bytes)) = record.content else {
            return Ok(Problems::default());
        };
        if !digest.matches(&bytes) {
            return Ok(Problems::damage("its content does not match its digest"));
        }
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Problems::damage(error)),
        };
        self.check_references(&repository, &digest, &manifest).await
    }

    async fn check_references(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<Problems, StorageError> {
        let mut problems = Problems::default();
        for blob in manifest.blobs() {
            problems.add_reference(
                format_args!("blob {}", blob.digest),
                &self.blob_target(repository, &blob.digest).await?,
            );
        }
        for child in &manifest.manifests {
            let target = self.manifest_target(repository, &child.digest).await?;
            problems.add_reference(format_args!("manifest {}", child.digest), &target);
        }
        if let Some(subject) = &manifest.subject {
            // The referrer is written after the manifest, so it is missing after an interrupted
            // push.
            let key = layout::referrer(repository, &subject.digest, digest);
            if self.storage.read(&key).await?.is_none() {
                problems.leftovers.push(format!(
                    "not in the referrers of {}: the push was interrupted",
                    subject.digest
                ));
            }
        }
        Ok(problems)
    }

    pub(super) async fn blob_target(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Target, StorageError> {
        let Some(object) = self
            .storage
            .read(&layout::membership(repository, digest))
            .await?
        else {
            return Ok(Target::Missing);
        };
        Ok(match codec::decode::<MembershipRecord>(&object.body) {
            Ok(membership) if membership.state == RecordState::Dead => Target::Deleted,
            Ok(_) => Target::Present,
            Err(_) => Target::Missing,
        })
    }

    async fn manifest_target(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Target, StorageError> {
        let key = layout::manifest(repository, digest);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(Target::Missing);
        };
        Ok(match ManifestRecord::of(&key, &object.body) {
            Ok(record) if record.content.is_some() => Target::Present,
            Ok(_) => Target::Deleted,
            Err(_) => Target::Missing,
        })
    }

    pub(super) async fn check_tag(&self, entry: &Entry) -> Result<Problems, StorageError> {
        let key = &entry.key;
        let Some((repository, _)) = parse_repository_key::<Tag>(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Problems::default());
        };
        let pointer = match Pointer::<TagValue>::of(key, &object.body) {
            Ok(pointer) => pointer,
            Err(error) => return Ok(Problems::damage(error)),
        };
        let mut problems = check_length(object.body.len(), pointer.value.is_some());
        if let Some(TagValue { digest }) = pointer.value {
            problems.add_reference(
                format_args!("manifest {digest}"),
                &self.manifest_target(&repository, &digest).await?,
            );
        }
        Ok(problems)
    }

    pub(super) async fn check_referrer(&self, entry: &Entry) -> Result<Problems, StorageError> {
        let key = &entry.key;
        let Some((repository, subject, digest)) = parse_referrer_key(key) else {
            return Ok(Problems::damage(FOREIGN_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Problems::default());
        };
        let pointer = match Pointer::<ReferrerValue>::of(key, &object.body) {
            Ok(pointer) => pointer,
            Err(error) => return Ok(Problems::damage(error)),
        };
        let mut problems = check_length(object.body.len(), pointer.value.is_some());
        let Some(ReferrerValue { descriptor }) = pointer.value else {
            return Ok(problems);
        };
        if !has_digest(&descriptor, &digest) {
            problems
                .damage
                .push("its descriptor does not match the manifest".to_owned());
        }
        let key = layout::manifest(&repository, &digest);
        let manifest = self.storage.read(&key).await?.and_then(|object| {
            let (_, bytes) = ManifestRecord::of(&key, &object.body).ok()?.content?;
            Manifest::parse(&bytes).ok()
        });
        match manifest {
            Some(manifest)
                if manifest
                    .subject
                    .as_ref()
                    .is_some_and(|named| named.digest == subject) => {}
            Some(_) => problems
                .damage
                .push(format!("its manifest does not refer to {subject}")),
            None => problems.add_reference(
                "its manifest",
                &self.manifest_target(&repository, &digest).await?,
            ),
        }
        Ok(problems)
    }
}

/// Checks the length of a tag or referrer: a listing distinguishes live ones from tombstones by
/// their length alone.
fn check_length(len: usize, is_live: bool) -> Problems {
    if (len as u64 >= TOMBSTONE_LIMIT) == is_live {
        return Problems::default();
    }
    Problems::damage(format_args!(
        "a listing takes its {len} bytes for {}",
        if is_live {
            "a tombstone"
        } else {
            "a live object"
        }
    ))
}

fn has_digest(descriptor: &str, digest: &Digest) -> bool {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(descriptor);
    parsed.is_ok_and(|value| value["digest"].as_str() == Some(digest.to_string().as_str()))
}

/// Parses `ref/<name>/_/<subject>/<digest>`.
fn parse_referrer_key(key: &Key) -> Option<(RepositoryName, Digest, Digest)> {
    let (repository, rest) = key.as_str().strip_prefix("ref/")?.split_once("/_/")?;
    let (subject, digest) = rest.split_once('/')?;
    Some((
        repository.parse().ok()?,
        subject.parse().ok()?,
        digest.parse().ok()?,
    ))
}
