//! Storage that records the order in which changes of tags, manifests and referrers apply, and that
//! can be paused before and after each call.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_origin::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageResult, Version,
};
use tokio::sync::{Mutex, watch};

/// A change of a tag, a manifest or a referrer, as the storage applied it.
#[derive(Clone, Debug)]
pub(super) struct AppliedChange {
    pub(super) key: String,
    pub(super) body: Bytes,
    /// The change took effect between `began` and `ended`.
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

/// All changes, in the order in which they applied.
pub(super) type ChangeLog = Arc<Mutex<Vec<AppliedChange>>>;

/// The keys whose changes are recorded.
const RECORDED: [&str; 3] = ["tag/", "rm/", "ref/"];

/// One replica's connection to the shared storage.
pub(super) struct RecordingStorage {
    pub(super) inner: Arc<dyn Storage>,
    pub(super) log: ChangeLog,
    pub(super) paused: watch::Receiver<bool>,
}

impl core::fmt::Debug for RecordingStorage {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("RecordingStorage")
    }
}

impl RecordingStorage {
    /// Delays a call, and its outcome, while the replica is paused: the outcome may be old when it
    /// arrives.
    async fn pausable<T>(
        &self,
        call: impl Future<Output = StorageResult<T>> + Send,
    ) -> StorageResult<T> {
        let mut paused = self.paused.clone();
        let _ = paused.wait_for(|paused| !*paused).await;
        let outcome = call.await;
        let _ = paused.wait_for(|paused| !*paused).await;
        outcome
    }

    /// Records a change. Changes apply one at a time, so that the log has their order.
    async fn record(
        &self,
        key: &Key,
        body: Bytes,
        write: impl Future<Output = StorageResult<Version>> + Send,
    ) -> StorageResult<Version> {
        if !RECORDED
            .iter()
            .any(|prefix| key.as_str().starts_with(prefix))
        {
            return self.pausable(write).await;
        }
        let recorded = async {
            let mut log = self.log.lock().await;
            let began = Instant::now();
            let version = write.await?;
            log.push(AppliedChange {
                key: key.to_string(),
                body,
                began,
                ended: Instant::now(),
            });
            Ok(version)
        };
        self.pausable(recorded).await
    }
}

#[async_trait]
impl Storage for RecordingStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.create(key, body.clone());
        self.record(key, body, call).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.swap(key, seen, body.clone());
        self.record(key, body, call).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.pausable(self.inner.read(key)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        self.pausable(self.inner.read_range(key, range)).await
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        self.pausable(self.inner.list(prefix, after, limit)).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        self.pausable(self.inner.begin_write(key)).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.pausable(self.inner.delete(key)).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        self.pausable(self.inner.remove(key, seen)).await
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        self.inner.presigned_get(key, valid_for).await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }
}
