//! A decorator that counts storage operations, for metrics and for tests of what a request costs.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageResult,
    Version,
};

/// The counters of one kind of operation.
#[derive(Debug, Default)]
struct OperationCounter {
    begun: AtomicU64,
    failed: AtomicU64,
}

impl OperationCounter {
    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Counts `call`, and whether the storage failed it. A conflict or a missing object is a valid
    /// answer, not a failure.
    async fn count<T>(
        &self,
        call: impl Future<Output = StorageResult<T>> + Send,
    ) -> StorageResult<T> {
        self.begin();
        let outcome = call.await;
        if let Err(StorageError::Unavailable { .. } | StorageError::Full { .. }) = &outcome {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        outcome
    }
}

/// How many operations of each kind were begun, and how many failed. A streamed object counts as
/// one write, however many parts it has. A stream counts as failed only if it could not be opened.
#[derive(Debug, Default)]
pub struct Operations {
    creates: OperationCounter,
    swaps: OperationCounter,
    reads: OperationCounter,
    range_reads: OperationCounter,
    lists: OperationCounter,
    streamed_writes: OperationCounter,
    deletes: OperationCounter,
    removes: OperationCounter,
}

impl Operations {
    /// Create-only puts, swaps and streamed writes.
    pub fn writes(&self) -> u64 {
        let counters = [&self.creates, &self.swaps, &self.streamed_writes];
        counters.map(OperationCounter::begun).iter().sum()
    }

    /// Reads of whole small objects: records, manifests, tags.
    pub fn metadata_reads(&self) -> u64 {
        self.reads.begun()
    }

    /// Reads of data objects.
    pub fn range_reads(&self) -> u64 {
        self.range_reads.begun()
    }

    /// Pages of listings.
    pub fn lists(&self) -> u64 {
        self.lists.begun()
    }

    /// Unconditional deletes.
    pub fn deletes(&self) -> u64 {
        self.deletes.begun()
    }

    /// Conditional removals.
    pub fn removes(&self) -> u64 {
        self.removes.begun()
    }

    /// Operations of all kinds.
    pub fn total(&self) -> u64 {
        let kinds = self.kinds();
        kinds.iter().map(|(_, kind)| kind.begun()).sum()
    }

    fn kinds(&self) -> [(&'static str, &OperationCounter); 8] {
        [
            ("create", &self.creates),
            ("swap", &self.swaps),
            ("read", &self.reads),
            ("range_read", &self.range_reads),
            ("list", &self.lists),
            ("streamed_write", &self.streamed_writes),
            ("delete", &self.deletes),
            ("remove", &self.removes),
        ]
    }

    /// The number of operations begun, by kind, for metrics.
    pub fn by_kind(&self) -> [(&'static str, u64); 8] {
        self.kinds().map(|(name, kind)| (name, kind.begun()))
    }

    /// The number of failed operations, by kind: the storage was unreachable, refused the call,
    /// throttled for too long, or is full.
    pub fn failures_by_kind(&self) -> [(&'static str, u64); 8] {
        self.kinds()
            .map(|(name, kind)| (name, kind.failed.load(Ordering::Relaxed)))
    }
}

/// Storage that counts its operations.
#[derive(Debug)]
pub struct CountingStorage {
    inner: Arc<dyn Storage>,
    operations: Arc<Operations>,
}

impl CountingStorage {
    /// Counts the calls to `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            operations: Arc::default(),
        }
    }

    /// The counters, shared with this storage.
    pub fn operations(&self) -> Arc<Operations> {
        Arc::clone(&self.operations)
    }
}

#[async_trait]
impl Storage for CountingStorage {
    async fn create(&self, key: &Key, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.create(key, body);
        self.operations.creates.count(call).await
    }

    async fn swap(&self, key: &Key, seen: &Version, body: Bytes) -> StorageResult<Version> {
        let call = self.inner.swap(key, seen, body);
        self.operations.swaps.count(call).await
    }

    async fn read(&self, key: &Key) -> StorageResult<Option<Object>> {
        self.operations.reads.count(self.inner.read(key)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> StorageResult<ByteStream> {
        let call = self.inner.read_range(key, range);
        self.operations.range_reads.count(call).await
    }

    /// A file counts as a read of a data object, because it replaces one.
    async fn open_file(&self, key: &Key) -> StorageResult<Option<Arc<File>>> {
        let file = self.inner.open_file(key).await?;
        if file.is_some() {
            self.operations.range_reads.begin();
        }
        Ok(file)
    }

    async fn list(
        &self,
        prefix: &Prefix,
        after: Option<&Key>,
        limit: usize,
    ) -> StorageResult<Page> {
        let call = self.inner.list(prefix, after, limit);
        self.operations.lists.count(call).await
    }

    async fn begin_write(&self, key: &Key) -> StorageResult<Box<dyn ObjectWriter>> {
        let call = self.inner.begin_write(key);
        self.operations.streamed_writes.count(call).await
    }

    async fn delete(&self, key: &Key) -> StorageResult<()> {
        self.operations.deletes.count(self.inner.delete(key)).await
    }

    async fn remove(&self, key: &Key, seen: &Version) -> StorageResult<()> {
        let call = self.inner.remove(key, seen);
        self.operations.removes.count(call).await
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    async fn presigned_get(&self, key: &Key, valid_for: Duration) -> StorageResult<Option<String>> {
        self.inner.presigned_get(key, valid_for).await
    }
}
