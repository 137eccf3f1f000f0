//! Manifests with all that they name, tags and referrers.

use flotilla_common::codec;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::{RepositoryName, Tag};

use super::{Checker, Look, NO_KEY, in_repository};
use crate::layout;
use crate::record::{
    ManifestRecord, MembershipRecord, Pointer, ReferrerValue, State, TOMBSTONE_LIMIT, TagValue,
};
use crate::storage::{Entry, Key, StorageError};

/// What is known of something that another object names.
enum Named {
    There,
    /// A tombstone is in its place: somebody deleted it.
    Deleted,
    /// Nothing is in its place, or nothing that can be read.
    Missing,
}

impl Look {
    /// What is said of an object that names something.
    fn about(&mut self, what: impl core::fmt::Display, named: &Named) {
        match named {
            Named::There => {}
            Named::Deleted => self.leftovers.push(format!("{what} was deleted")),
            Named::Missing => self.damage.push(format!("{what} is missing")),
        }
    }
}

impl Checker {
    pub(super) async fn look_at_manifest(&self, key: &Key) -> Result<Look, StorageError> {
        let Some((repository, digest)) = in_repository::<Digest>(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Look::default());
        };
        let record = match ManifestRecord::of(key, &object.body) {
            Ok(record) => record,
            Err(error) => return Ok(Look::damage(error)),
        };
        let Some((_, bytes)) = record.content else {
            return Ok(Look::default());
        };
        if !digest.matches(&bytes) {
            return Ok(Look::damage(
                "it holds other bytes than those of its digest",
            ));
        }
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Look::damage(error)),
        };
        self.look_at_named(&repository, &digest, &manifest).await
    }

    async fn look_at_named(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        manifest: &Manifest,
    ) -> Result<Look, StorageError> {
        let mut look = Look::default();
        for blob in manifest.blobs() {
            look.about(
                format_args!("blob {}", blob.digest),
                &self.named_blob(repository, &blob.digest).await?,
            );
        }
        for child in &manifest.manifests {
            let named = self.named_manifest(repository, &child.digest).await?;
            look.about(format_args!("manifest {}", child.digest), &named);
        }
        if let Some(subject) = &manifest.subject {
            // The referrer is written after the manifest, so a push that was cut short lacks it.
            let key = layout::referrer(repository, &subject.digest, digest);
            if self.storage.read(&key).await?.is_none() {
                look.leftovers.push(format!(
                    "{} does not list it: its push was cut short",
                    subject.digest
                ));
            }
        }
        Ok(look)
    }

    async fn named_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Named, StorageError> {
        let Some(object) = self
            .storage
            .read(&layout::membership(repository, digest))
            .await?
        else {
            return Ok(Named::Missing);
        };
        Ok(match codec::decode::<MembershipRecord>(&object.body) {
            Ok(claim) if claim.state == State::Dead => Named::Deleted,
            Ok(_) => Named::There,
            Err(_) => Named::Missing,
        })
    }

    async fn named_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Named, StorageError> {
        let key = layout::manifest(repository, digest);
        let Some(object) = self.storage.read(&key).await? else {
            return Ok(Named::Missing);
        };
        Ok(match ManifestRecord::of(&key, &object.body) {
            Ok(record) if record.content.is_some() => Named::There,
            Ok(_) => Named::Deleted,
            Err(_) => Named::Missing,
        })
    }

    pub(super) async fn look_at_tag(&self, entry: &Entry) -> Result<Look, StorageError> {
        let key = &entry.key;
        let Some((repository, _)) = in_repository::<Tag>(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Look::default());
        };
        let pointer = match Pointer::<TagValue>::of(key, &object.body) {
            Ok(pointer) => pointer,
            Err(error) => return Ok(Look::damage(error)),
        };
        let mut look = length_problem(object.body.len(), pointer.value.is_some());
        if let Some(TagValue { digest }) = pointer.value {
            look.about(
                format_args!("manifest {digest}"),
                &self.named_manifest(&repository, &digest).await?,
            );
        }
        Ok(look)
    }

    pub(super) async fn look_at_referrer(&self, entry: &Entry) -> Result<Look, StorageError> {
        let key = &entry.key;
        let Some((repository, subject, digest)) = referrer(key) else {
            return Ok(Look::damage(NO_KEY));
        };
        let Some(object) = self.storage.read(key).await? else {
            return Ok(Look::default());
        };
        let pointer = match Pointer::<ReferrerValue>::of(key, &object.body) {
            Ok(pointer) => pointer,
            Err(error) => return Ok(Look::damage(error)),
        };
        let mut look = length_problem(object.body.len(), pointer.value.is_some());
        let Some(ReferrerValue { descriptor }) = pointer.value else {
            return Ok(look);
        };
        if !describes(&descriptor, &digest) {
            look.damage
                .push("its descriptor is not that of the manifest".to_owned());
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
            Some(_) => look
                .damage
                .push(format!("the manifest does not refer to {subject}")),
            None => look.about(
                "its manifest",
                &self.named_manifest(&repository, &digest).await?,
            ),
        }
        Ok(look)
    }
}

/// A listing tells the dead from the living by their size alone.
fn length_problem(len: usize, live: bool) -> Look {
    if (len as u64 >= TOMBSTONE_LIMIT) == live {
        return Look::default();
    }
    Look::damage(format_args!(
        "{len} bytes: a listing takes it for {}",
        if live { "deleted" } else { "live" }
    ))
}

fn describes(descriptor: &str, digest: &Digest) -> bool {
    let parsed: Result<serde_json::Value, _> = serde_json::from_str(descriptor);
    parsed.is_ok_and(|value| value["digest"].as_str() == Some(digest.to_string().as_str()))
}

/// The parts of `ref/<name>/_/<subject>/<digest>`.
fn referrer(key: &Key) -> Option<(RepositoryName, Digest, Digest)> {
    let (repository, rest) = key.as_str().strip_prefix("ref/")?.split_once("/_/")?;
    let (subject, digest) = rest.split_once('/')?;
    Some((
        repository.parse().ok()?,
        subject.parse().ok()?,
        digest.parse().ok()?,
    ))
}
