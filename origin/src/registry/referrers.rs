//! Referrers: one key per fact "this manifest refers to that subject", listed by subject.

use flotilla_common::digest::Digest;
use flotilla_common::manifest::Manifest;
use flotilla_common::name::RepositoryName;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde_json::{Map, Value, json};

use super::{Registry, RegistryError, StoredManifest};
use crate::keys;
use crate::record::{Pointer, ReferrerValue};

/// Referrers that one answer lists at most.
const MAX_REFERRERS: usize = 1000;
/// Descriptors that are read at once.
const READS_AT_ONCE: usize = 16;

impl Registry {
    /// The descriptors of the manifests that refer to `subject`, which itself need not exist.
    pub(crate) async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> Result<Vec<Value>, RegistryError> {
        let live = self.live_keys(&keys::referrers(repository, subject), None, MAX_REFERRERS).await?;
        let reads = stream::iter(live.into_iter().take(MAX_REFERRERS)).map(|key| async move {
            let Some(object) = self.storage.read(&key).await? else { return Ok(None) };
            let value = Pointer::<ReferrerValue>::of(&key, &object.body)?.value;
            Ok::<_, RegistryError>(value.and_then(|value| serde_json::from_str(&value.descriptor).ok()))
        });
        let found: Vec<Option<Value>> = reads.buffered(READS_AT_ONCE).try_collect().await?;
        Ok(found.into_iter().flatten().collect())
    }

    pub(super) async fn write_referrer(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        stored: &StoredManifest,
        manifest: &Manifest,
    ) -> Result<(), RegistryError> {
        let key = keys::referrer(repository, subject, &stored.digest);
        let descriptor =
            descriptor(&stored.digest, manifest, &stored.media_type, stored.bytes.len()).to_string();
        self.write_pointer(&key, Some(ReferrerValue { descriptor })).await
    }

    pub(super) async fn bury_referrer(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        digest: &Digest,
    ) -> Result<(), RegistryError> {
        let key = keys::referrer(repository, subject, digest);
        match self.write_pointer::<ReferrerValue>(&key, None).await {
            // Buried before, by a delete that was cut short.
            Err(RegistryError::ManifestUnknown) => Ok(()),
            other => other,
        }
    }
}

/// The descriptor of a referrer (OCI distribution specification, "Listing Referrers").
fn descriptor(digest: &Digest, manifest: &Manifest, media_type: &str, size: usize) -> Value {
    let mut descriptor = Map::new();
    descriptor.insert("mediaType".to_owned(), json!(media_type));
    descriptor.insert("digest".to_owned(), json!(digest.to_string()));
    descriptor.insert("size".to_owned(), json!(size));
    let own = manifest.artifact_type.clone().filter(|own| !own.is_empty());
    let config = manifest.config.as_ref().map(|config| config.media_type.clone());
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
    fn an_artifact_is_described_by_its_type_or_by_its_configuration() {
        let digest = Digest::sha256(b"x");
        let config = json!({"mediaType": "application/vnd.example", "digest": digest, "size": 1});
        let text = json!({"schemaVersion": 2, "config": config, "annotations": {"a": "b"}}).to_string();
        let manifest = Manifest::parse(text.as_bytes()).expect("a manifest");
        let described = descriptor(&digest, &manifest, OCI_MANIFEST, 9);
        assert_eq!(described["artifactType"], "application/vnd.example");
        assert_eq!(described["annotations"]["a"], "b");
        assert_eq!(described["size"], 9);
        let text = json!({"schemaVersion": 2, "artifactType": "x/y", "manifests": []}).to_string();
        let manifest = Manifest::parse(text.as_bytes()).expect("an index");
        assert_eq!(descriptor(&digest, &manifest, OCI_INDEX, 9)["artifactType"], "x/y");
    }
}
