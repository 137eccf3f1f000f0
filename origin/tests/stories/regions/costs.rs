//! What other regions add to the storage operations of a request, which `docs/origin.md`
//! guarantees.

use core::ops::Range;
use core::time::Duration;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_origin::storage::{
    self, ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageResult, Version,
};
use reqwest::StatusCode;

use super::harness::Regions;
use super::until;
use crate::servers::GateState;
use crate::support::{MANIFEST, Registry, descriptor, manifest, sample};

/// Kinds of objects that replicas use at any time, whether clients send requests or not.
const BACKGROUND: [&str; 6] = ["format", "lease", "policy", "probe", "region", "trimmed"];

/// How often each operation was called, by its name and the kind of the object.
type Calls = BTreeMap<(&'static str, String), i64>;

/// Counts the calls of a storage.
#[derive(Debug)]
struct RecordingStorage {
    inner: Arc<dyn Storage>,
    calls: Arc<Mutex<Calls>>,
}

impl RecordingStorage {
    fn count(&self, operation: &'static str, object: &str) {
        let kind = object.split('/').next().unwrap();
        // Replicas look at what they owe at any time, too.
        let is_look = kind == "journal" && ["read", "list"].contains(&operation);
        if !is_look && !BACKGROUND.contains(&kind) {
            let key = (operation, kind.to_owned());
            *self.calls.lock().unwrap().entry(key).or_default() += 1;
        }
    }
}

#[async_trait]
impl Storage for RecordingStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        self.count("create", key.as_str());
        self.inner.create(key, body).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        self.count("swap", key.as_str());
        self.inner.swap(key, seen, body).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.count("read", key.as_str());
        self.inner.read(key).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.count("read", key.as_str());
        self.inner.read_range(key, range).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.count("list", &prefix.to_string());
        self.inner.list(prefix, after, limit).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.count("create", key.as_str());
        self.inner.begin_write(key).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.count("delete", key.as_str());
        self.inner.delete(key).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.count("delete", key.as_str());
        self.inner.remove(key, seen).await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        self.inner.presigned_get(key, valid_for).await
    }
}

/// A number of regions, of which the first one's storage counts calls. The others cannot reach it.
async fn start(count: usize) -> (Regions, Arc<Mutex<Calls>>) {
    let calls = Arc::<Mutex<Calls>>::default();
    let open = |number| {
        let inner = storage::open("memory:///", 64 << 20).unwrap();
        if number > 0 {
            return inner;
        }
        let calls = Arc::clone(&calls);
        Arc::new(RecordingStorage { inner, calls }) as Arc<dyn Storage>
    };
    let storages = (0..count).map(open).collect();
    let regions = Regions::start_on(storages, 1, "", |_, _| {}).await;
    for other in 1..count {
        regions.gate(other, 0).set(GateState::Closed);
    }
    (regions, calls)
}

/// Sends each kind of change once, and returns the calls that each one costs.
async fn costs(client: &Registry, calls: &Mutex<Calls>) -> Vec<(&'static str, Calls)> {
    let mut costs = Vec::new();
    let mut end = |change| {
        let calls = core::mem::take(&mut *calls.lock().unwrap());
        costs.push((change, calls));
    };
    end("start");
    let layer = sample(70_000, 1);
    client.push_blob("app", layer.clone()).await;
    end("blob");
    client.push_blob("app", "{}").await;
    end("config");
    let body = manifest(b"{}", &[layer]);
    let path = "/v2/app/manifests/v1";
    let answer = client.put_manifest(path, MANIFEST, body.clone()).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    end("manifest");
    let mut artifact: serde_json::Value = serde_json::from_slice(&body).unwrap();
    artifact["subject"] = descriptor(MANIFEST, &body);
    let path = "/v2/app/manifests/v2";
    let answer = client.put_manifest(path, MANIFEST, artifact.to_string());
    assert_eq!(answer.await.status(), StatusCode::CREATED);
    end("manifest with a subject");
    let path = "/v2/app/manifests/v1";
    assert_eq!(client.get(path).await.status(), StatusCode::OK);
    end("pull");
    assert_eq!(client.delete(path).await, StatusCode::ACCEPTED);
    end("delete of a tag");
    costs
}

#[tokio::test]
async fn change_costs_one_more_create_per_other_region() {
    let (alone, calls) = start(1).await;
    let alone = costs(&alone.client(0), &calls).await;
    let (regions, calls) = start(3).await;
    let with_others = costs(&regions.client(0), &calls).await;
    for ((change, alone), (_, mut with_others)) in alone.into_iter().zip(with_others).skip(1) {
        let journal = with_others.remove(&("create", "journal".to_owned()));
        let is_recorded = !matches!(change, "blob" | "config" | "pull");
        assert_eq!(journal, is_recorded.then_some(2), "{change}");
        assert_eq!(with_others, alone, "{change}");
    }

    // Then the entries are deleted, and nothing else is written.
    for other in 1..3 {
        regions.gate(other, 0).set(GateState::Open);
    }
    let deleted = ("delete", "journal".to_owned());
    until("the entries are dropped", async || {
        calls.lock().unwrap().get(&deleted) >= Some(&6)
    })
    .await;
    let calls = calls.lock().unwrap();
    let mut writes = calls
        .keys()
        .filter(|(operation, _)| !["read", "list"].contains(operation));
    assert_eq!(writes.next(), Some(&deleted));
    assert_eq!(writes.next(), None);
}
