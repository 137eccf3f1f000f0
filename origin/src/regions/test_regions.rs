//! Regions in memory, for tests: a registry each, and a region as another one sees it.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_common::digest::Digest;
use flotilla_common::manifest::{OCI_INDEX, OCI_MANIFEST};
use flotilla_common::name::{Reference, RegionName, RepositoryName, Tag};
use flotilla_common::seal::SealKey;
use flotilla_common::storage_id::StorageId;
use flotilla_common::wire::region::{
    EntryId, Fact, FactHead, FactKey, FactKind, JournalPage, KeysPage, RegionState,
    StorageStanding, TakeAnswer, TakeRequest,
};
use flotilla_runtime::clock::Clock;
use flotilla_runtime::rate::Limiter;
use futures_util::{StreamExt, stream};

use super::copy::BlobCopier;
use super::counts::RegionCounts;
use super::lease::Lease;
use super::members::Members;
use super::replicate::Replicator;
use super::source::{Source, SourceBlob, SourceError};
use crate::config::Limits;
use crate::format::{Horizons, read_or_create};
use crate::layout;
use crate::nonce::nonce;
use crate::policy::{self, LivePolicy, Region};
use crate::record::{JournalRecord, encode};
use crate::registry::{ChangeRules, Need, Registry, RegistryError, UploadBody};
use crate::replicas::{Invalidator, Replicas, Secret};
use crate::storage::{CountingStorage, Operations, Storage, open};

/// The repository of all tests.
pub(super) fn repository() -> RepositoryName {
    "app".parse().unwrap()
}

pub(super) fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

pub(super) fn tag_key(name: &str) -> FactKey {
    FactKey::Tag(repository(), tag(name))
}

/// An image with one layer.
pub(super) fn image_of(layer: &Digest, len: usize) -> Bytes {
    let layer = serde_json::json!({"mediaType": "x/y", "digest": layer, "size": len});
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [layer]})
        .to_string()
        .into()
}

/// An index that names these manifests, which may repeat.
pub(super) fn index_of(children: &[&Bytes]) -> Bytes {
    let described: Vec<_> = children
        .iter()
        .map(|child| {
            serde_json::json!({"mediaType": OCI_MANIFEST, "digest": Digest::sha256(child), "size": child.len()})
        })
        .collect();
    serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": described})
        .to_string()
        .into()
}

/// A policy of these regions, and with rules (`[[repository]]`).
pub(super) fn policy(regions: &[&str], rules: &str) -> String {
    let entry = |name: &&str| format!("[[region]]\nname = \"{name}\"\nurl = \"https://{name}\"\n");
    regions.iter().map(entry).collect::<String>() + rules
}

/// A region of one replica on a storage in memory.
pub(super) struct TestRegion {
    pub(super) name: RegionName,
    storage: Arc<dyn Storage>,
    pub(super) registry: Arc<Registry>,
    /// Counts what the registry asks of the storage.
    pub(super) operations: Arc<Operations>,
    /// Of all replicators that copy into it.
    pub(super) counts: Arc<RegionCounts>,
}

impl TestRegion {
    pub(super) async fn start(name: &str) -> Self {
        let name: RegionName = name.parse().unwrap();
        let storage = CountingStorage::new(open("memory:///", 0).unwrap());
        let operations = storage.operations();
        let storage: Arc<dyn Storage> = Arc::new(storage);
        let format = read_or_create(&*storage, Horizons::default())
            .await
            .unwrap();
        let key = SealKey::from_secret(name.clone(), &[7; 32]);
        let secret = Secret::new(&key, &format);
        let invalidator = Invalidator::new(Replicas::none(), secret, Clock::tokio()).unwrap();
        let registry = Registry::new(
            Arc::clone(&storage),
            format,
            key,
            Limits::default(),
            Arc::new(invalidator),
            Clock::tokio(),
        );
        Self {
            name,
            storage,
            registry: Arc::new(registry),
            operations,
            counts: Arc::default(),
        }
    }

    /// Copies without a limit of bandwidth into this region.
    pub(super) fn replicator(&self) -> Replicator {
        let registry = Arc::clone(&self.registry);
        let copier = BlobCopier::new(registry, Limiter::unlimited(), Arc::clone(&self.counts));
        Replicator::new(Arc::clone(&self.registry), copier)
    }

    /// Stores a policy here.
    pub(super) async fn set_policy(&self, text: &str) {
        let seen = policy::read(&*self.storage).await.unwrap();
        policy::set(&*self.storage, text, seen.as_ref())
            .await
            .unwrap();
    }

    /// The other regions of the stored policy, which are among `others`, and that policy.
    pub(super) async fn members(&self, others: &[&Self]) -> (Arc<Members>, LivePolicy) {
        let sources = others.iter().map(|other| other.source_of(self));
        self.members_by(sources.collect()).await
    }

    /// The same with sources whose faults a test sets.
    pub(super) async fn members_by(
        &self,
        sources: Vec<Arc<TestSource>>,
    ) -> (Arc<Members>, LivePolicy) {
        let storage = Arc::clone(&self.storage);
        let live = LivePolicy::start(storage, self.name.clone(), Clock::tokio());
        let live = live.await.unwrap();
        let connect = move |region: &Region| -> Arc<dyn Source> {
            let found = sources.iter().find(|source| source.name == region.name);
            // A new connection for each entry of the policy.
            Arc::new(TestSource::clone(found.unwrap()))
        };
        let members = Members::new(self.name.clone(), live.clone(), Box::new(connect));
        (Arc::new(members), live)
    }

    /// This region, as `caller` sees it.
    pub(super) fn source_of(&self, caller: &Self) -> Arc<TestSource> {
        Arc::new(TestSource {
            registry: Arc::clone(&self.registry),
            name: self.name.clone(),
            caller: caller.name.clone(),
            faults: Arc::default(),
        })
    }

    /// Pushes a blob.
    pub(super) async fn push_blob(&self, bytes: Bytes) -> Digest {
        let digest = Digest::sha256(&bytes);
        let repository = repository();
        let (ticket, progress) = self.registry.begin_upload(&repository, false);
        let body = UploadBody {
            bytes: stream::iter([Ok(bytes)]).boxed(),
            len: None,
            offset: None,
        };
        let hint = Some(progress.hint);
        let pushed = self
            .registry
            .finish(&repository, ticket, hint, digest, body);
        pushed.await.unwrap();
        digest
    }

    /// Writes an entry whose write never happens.
    pub(super) async fn owe(&self, key: FactKey, to: &Self) {
        let nonce = nonce();
        let created = self.registry.unix_nanos();
        let entry = layout::journal_entry(&to.name, EntryId { created, nonce });
        let keys = vec![(key, None)];
        let record = JournalRecord { keys, nonce };
        let body = encode(&entry, &record).unwrap().into();
        self.storage.create(&entry, body).await.unwrap();
    }

    /// Overwrites a key with bytes that are no record.
    pub(super) async fn corrupt(&self, key: &FactKey) {
        let key = layout::fact(key);
        let version = match self.storage.read(&key).await.unwrap() {
            Some(object) => object.version,
            None => self.storage.create(&key, "x".into()).await.unwrap(),
        };
        let garbage = Bytes::from_static(b"garbage");
        self.storage.swap(&key, &version, garbage).await.unwrap();
    }

    /// Whether a tag names a manifest here.
    pub(super) async fn has_tag(&self, name: &str) -> bool {
        let fact = self.registry.fact(&tag_key(name)).await.unwrap();
        let live = |head| matches!(head, FactHead::Tag { digest, .. } if digest.is_some());
        live(fact.head)
    }

    /// A contender for a lease of this region.
    pub(super) fn lease(&self, job: &str) -> Lease {
        Lease::new(Arc::clone(&self.storage), Clock::tokio(), job)
    }

    /// Pushes a manifest with tags, owed to these regions.
    pub(super) async fn push(&self, manifest: &Bytes, tags: &[&str], owed_to: &[&Self]) {
        let rules = ChangeRules {
            owed_to: owed_to.iter().map(|region| region.name.clone()).collect(),
            ..ChangeRules::default()
        };
        let reference = Reference::Digest(Digest::sha256(manifest));
        let tags: Vec<Tag> = tags.iter().map(|name| tag(name)).collect();
        let repository = repository();
        let pushed = self.registry.put_manifest(
            &repository,
            &reference,
            &tags,
            None,
            manifest.clone(),
            &rules,
        );
        pushed.await.unwrap();
    }
}

/// A region whose registry is called directly. Clones count together.
#[derive(Clone, Debug)]
pub(super) struct TestSource {
    registry: Arc<Registry>,
    name: RegionName,
    caller: RegionName,
    pub(super) faults: Arc<SourceFaults>,
}

/// How a region misbehaves towards another one, and what it was asked.
#[derive(Debug)]
pub(super) struct SourceFaults {
    /// Requests for blobs.
    pub(super) blob_calls: AtomicUsize,
    /// Requests for facts.
    pub(super) fact_calls: AtomicUsize,
    /// Blobs that never arrive.
    pub(super) hanging: Mutex<HashSet<Digest>>,
    /// The maximum number of entries in a page.
    pub(super) page_len: AtomicUsize,
    /// Bytes after which each body of a blob fails.
    pub(super) breaks_after: AtomicUsize,
    /// Whether the journal cannot be listed.
    pub(super) is_silent: AtomicBool,
    /// The storage that it says it uses, if not its own.
    pub(super) storage_id: Mutex<Option<StorageId>>,
}

impl Default for SourceFaults {
    fn default() -> Self {
        Self {
            blob_calls: AtomicUsize::new(0),
            fact_calls: AtomicUsize::new(0),
            hanging: Mutex::default(),
            page_len: AtomicUsize::new(usize::MAX),
            breaks_after: AtomicUsize::new(usize::MAX),
            is_silent: AtomicBool::new(false),
            storage_id: Mutex::default(),
        }
    }
}

impl TestSource {
    fn error(&self, error: &RegistryError) -> SourceError {
        SourceError {
            region: self.name.clone(),
            reason: error.to_string(),
        }
    }
}

#[async_trait]
impl Source for TestSource {
    fn region(&self) -> &RegionName {
        &self.name
    }

    async fn state(&self) -> Result<RegionState, SourceError> {
        let storage_id = *self.faults.storage_id.lock().unwrap();
        Ok(RegionState {
            region: self.name.clone(),
            storage_id: storage_id.unwrap_or_else(|| self.registry.storage_id()),
            replaced: self.registry.replaced_storages().to_vec(),
            clock: 0,
            standing: StorageStanding::Usable,
            is_whole: true,
            owed: Vec::new(),
        })
    }

    async fn journal(
        &self,
        after: Option<EntryId>,
        limit: usize,
    ) -> Result<JournalPage, SourceError> {
        if self.faults.is_silent.load(Ordering::Relaxed) {
            return Err(SourceError {
                region: self.name.clone(),
                reason: "no answer".to_owned(),
            });
        }
        let limit = limit.min(self.faults.page_len.load(Ordering::Relaxed));
        let page = self.registry.journal_page(&self.caller, after, limit).await;
        page.map_err(|error| self.error(&error))
    }

    async fn done(&self, entries: Vec<EntryId>, sweep: Option<u128>) -> Result<(), SourceError> {
        let dropped = self.registry.drop_entries(&self.caller, entries, sweep);
        dropped.await.map_err(|error| self.error(&error))
    }

    async fn facts(&self, keys: &[FactKey]) -> Result<Vec<Fact>, SourceError> {
        self.faults.fact_calls.fetch_add(1, Ordering::Relaxed);
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
        self.faults.blob_calls.fetch_add(1, Ordering::Relaxed);
        if self.faults.hanging.lock().unwrap().contains(digest) {
            core::future::pending::<()>().await;
        }
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
        let mut left = self.faults.breaks_after.load(Ordering::Relaxed);
        let small = bytes.flat_map(|piece| match piece {
            Ok(piece) => stream::iter(split(piece)).map(Ok).boxed(),
            Err(error) => stream::iter([Err(error.to_string())]).boxed(),
        });
        let bytes = small.map(move |piece: Result<Bytes, String>| {
            let piece = piece?;
            match left.checked_sub(piece.len()) {
                Some(rest) => {
                    left = rest;
                    Ok(piece)
                }
                None => Err("connection reset".to_owned()),
            }
        });
        Ok(Some(SourceBlob {
            size,
            bytes: bytes.boxed(),
        }))
    }
}

/// Pieces as a connection delivers them.
fn split(mut bytes: Bytes) -> impl Iterator<Item = Bytes> + Send {
    core::iter::from_fn(move || {
        let next = bytes.split_to(bytes.len().min(64 << 10));
        (!next.is_empty()).then_some(next)
    })
}
