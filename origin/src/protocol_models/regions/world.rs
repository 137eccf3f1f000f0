//! Regions, contents and requests of the models, and a region as a follower sees it.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{OCI_INDEX, OCI_MANIFEST};
use flotilla_common::name::{Reference, RegionName, RepositoryName, Tag};
use flotilla_common::stamp::Stamp;
use flotilla_common::wire::region::{
    EntryId, Fact, FactKey, FactKind, JournalPage, KeysPage, RegionState, StorageStanding,
    TakeAnswer, TakeRequest,
};
use futures_util::StreamExt;

use super::super::blob_collection::{push, replica_in, repository};
use super::super::storage_model::ModelStorage;
use crate::format::Horizons;
use crate::nonce::nonce;
use crate::record::{BlobRecord, ManifestRecord, ManifestState, RecordState, decode, encode};
use crate::regions::source::{Source, SourceBlob, SourceError};
use crate::registry::{ChangeRules, Need, Registry, RegistryError};
use crate::storage::{Key, Storage};

/// The config blob of [`image`].
pub(super) const CONFIG: &[u8] = b"{}";
/// The subject of [`image`].
pub(super) const SUBJECT: &[u8] = b"subject";

/// L of the models: so short that a scenario can let it pass without a timeout.
pub(super) const LIVENESS: core::time::Duration = core::time::Duration::from_millis(1);

/// A region of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Region {
    A,
    B,
    C,
}

impl Region {
    /// The prefix of its keys in the model.
    const fn prefix(self) -> &'static str {
        match self {
            Self::A => "a/",
            Self::B => "b/",
            Self::C => "c/",
        }
    }

    pub(super) fn name(self) -> RegionName {
        let name = self.prefix().trim_end_matches('/');
        name.parse().expect("a label")
    }

    /// Its bucket.
    pub(super) fn storage(self, model: &ModelStorage) -> ModelStorage {
        model.of_region(self.prefix())
    }

    /// A replica of it with empty caches. Its clock agrees with that of a replica that is created
    /// at the same time, and is ahead of one that is created after tokio's clock was advanced.
    pub(super) async fn replica(self, model: &ModelStorage) -> Arc<Registry> {
        let horizons = Horizons {
            liveness: LIVENESS,
            ..Horizons::default()
        };
        let prefix = self.prefix();
        let name = prefix.trim_end_matches('/');
        replica_in(name, &self.storage(model), horizons).await
    }

    /// It, as `caller` sees it, through a new replica.
    pub(super) async fn source(self, model: &ModelStorage, caller: Self) -> Arc<dyn Source> {
        Arc::new(LocalSource {
            registry: self.replica(model).await,
            name: self.name(),
            caller: caller.name(),
        })
    }
}

/// The rules of a change that is owed to these regions.
pub(super) fn owed_to(regions: &[Region]) -> ChangeRules {
    ChangeRules {
        owed_to: regions.iter().map(|region| region.name()).collect(),
        ..ChangeRules::default()
    }
}

pub(super) fn tag() -> Tag {
    "v1".parse().expect("a tag")
}

pub(super) fn tag_key() -> FactKey {
    FactKey::Tag(repository(), tag())
}

pub(super) fn manifest_key(manifest: &[u8]) -> FactKey {
    FactKey::Manifest(repository(), Digest::sha256(manifest))
}

/// An index that names nothing, so it needs no blobs.
pub(super) fn index(number: u32) -> Bytes {
    let annotations = serde_json::json!({"number": number.to_string()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "annotations": annotations})
        .to_string()
        .into()
}

/// An index that names one manifest.
pub(super) fn index_of(child: &[u8]) -> Bytes {
    let child = serde_json::json!({"mediaType": OCI_INDEX, "digest": Digest::sha256(child), "size": child.len()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [child]})
        .to_string()
        .into()
}

/// A manifest with one blob and a subject.
pub(super) fn image() -> Bytes {
    let config = serde_json::json!({"mediaType": "x/y", "digest": Digest::sha256(CONFIG), "size": CONFIG.len()});
    let subject = serde_json::json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256(SUBJECT), "size": SUBJECT.len()});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [], "subject": subject})
        .to_string()
        .into()
}

/// Pushes a manifest by its digest and moves tags to it.
pub(super) async fn put(
    registry: &Registry,
    manifest: &Bytes,
    tags: &[Tag],
    rules: &ChangeRules,
) -> Result<Stamp, RegistryError> {
    let reference = Reference::Digest(Digest::sha256(manifest));
    let pushed = registry
        .put_manifest(
            &repository(),
            &reference,
            tags,
            None,
            manifest.clone(),
            rules,
        )
        .await?;
    Ok(pushed.stamp)
}

/// Deletes the tag.
pub(super) async fn delete_tag(
    registry: &Registry,
    rules: &ChangeRules,
) -> Result<Stamp, RegistryError> {
    let reference = Reference::Tag(tag());
    registry
        .delete_manifest(&repository(), &reference, rules)
        .await
}

/// Deletes a manifest by its digest.
pub(super) async fn delete_manifest(
    registry: &Registry,
    manifest: &Bytes,
    rules: &ChangeRules,
) -> Result<Stamp, RegistryError> {
    let reference = Reference::Digest(Digest::sha256(manifest));
    registry
        .delete_manifest(&repository(), &reference, rules)
        .await
}

/// A replica that has just looked at the config blob, so that it counts as live for L.
pub(super) async fn warm_replica(model: &ModelStorage, region: Region) -> Arc<Registry> {
    let registry = region.replica(model).await;
    push(&registry, CONFIG).await.expect("a push");
    let blob = Digest::sha256(CONFIG);
    let found = registry.blob(&repository(), &blob, Need::Live).await;
    found.expect("no faults").expect("a blob");
    registry
}

/// Kills all generations of the blobs of a region, as its collector does after W.
pub(super) async fn kill_blobs(model: &ModelStorage, region: Region) {
    let storage = region.storage(model);
    for (key, body) in storage.objects("blob/") {
        let mut record: BlobRecord = decode(&key, &body).expect("a record");
        (record.state, record.nonce) = (RecordState::Dead, nonce());
        let present = storage.read(&key).await.expect("no faults");
        let version = present.expect("a record").version;
        let body = encode(&key, &record).expect("a body").into();
        let swapped = storage.swap(&key, &version, body).await;
        swapped.expect("the only writer");
    }
}

/// Changes the state of a manifest within its stamp, unless another writer is first.
pub(super) async fn change_state(storage: &ModelStorage, key: &Key, state: ManifestState) {
    let present = storage.read(key).await.expect("no faults");
    let present = present.expect("a manifest");
    let record = ManifestRecord::of(key, &present.body).expect("a manifest");
    let is_served = state.is_served();
    let changed = ManifestRecord {
        turn: record.turn + u32::from(!is_served),
        content: record.content.clone().filter(|_| is_served),
        state,
        nonce: nonce(),
        ..record
    };
    let body = changed.body(key).expect("a body");
    let _ = storage.swap(key, &present.version, body).await;
}

/// A region whose registry is called directly.
#[derive(Debug)]
struct LocalSource {
    registry: Arc<Registry>,
    name: RegionName,
    caller: RegionName,
}

impl LocalSource {
    fn error(&self, error: &RegistryError) -> SourceError {
        SourceError {
            region: self.name.clone(),
            reason: error.to_string(),
        }
    }
}

#[async_trait]
impl Source for LocalSource {
    fn region(&self) -> &RegionName {
        &self.name
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        let owed = self.registry.owed_to(&self.caller).await;
        Ok(RegionState {
            region: self.name.clone(),
            storage_id: self.registry.storage_id(),
            replaced: self.registry.replaced_storages().to_vec(),
            clock: 0,
            standing: StorageStanding::Usable,
            is_whole: true,
            owed: vec![owed.map_err(|error| self.error(&error))?],
        })
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        let page = self.registry.journal_page(&self.caller, after, limit).await;
        page.map_err(|error| self.error(&error))
    }

    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError> {
        let dropped = self
            .registry
            .drop_entries(&self.caller, entries, sweep)
            .await;
        dropped.map_err(|error| self.error(&error))
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        let facts = self.registry.facts(keys).await;
        facts.map_err(|error| self.error(&error))
    }

    async fn keys(
        &self,
        kind: FactKind,
        after: Option<&FactKey>,
        limit: usize,
    ) -> Result<KeysPage, SourceError> {
        let page = self.registry.fact_keys(kind, after, limit).await;
        page.map_err(|error| self.error(&error))
    }

    async fn take(&self, _: TakeRequest) -> Result<TakeAnswer, SourceError> {
        Ok(TakeAnswer { merged: false })
    }

    async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<SourceBlob>, SourceError> {
        let found = self.registry.blob(repository, digest, Need::Bytes).await;
        let Some(found) = found.map_err(|error| self.error(&error))? else {
            return Ok(None);
        };
        let size = found.size();
        let bytes = self
            .registry
            .read_blob(repository, &found, offset..size)
            .await
            .map_err(|error| self.error(&error))?;
        let bytes = bytes.map(|piece| piece.map_err(|error| error.to_string()));
        Ok(Some(SourceBlob {
            size,
            bytes: bytes.boxed(),
        }))
    }
}
