//! A decorator that counts storage operations, for metrics and for the promises about cost.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageError, StorageFuture,
    Version,
};

/// Operations of one kind.
#[derive(Debug, Default)]
struct Kind {
    begun: AtomicU64,
    failed: AtomicU64,
}

impl Kind {
    fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Counts the operation, and whether storage fails it. A conflict, or nothing there, is an
    /// answer.
    fn count<'a, T: Send + 'a>(&'a self, call: StorageFuture<'a, T>) -> StorageFuture<'a, T> {
        self.begin();
        Box::pin(async move {
            let outcome = call.await;
            if let Err(StorageError::Unavailable { .. } | StorageError::Full { .. }) = &outcome {
                self.failed.fetch_add(1, Ordering::Relaxed);
            }
            outcome
        })
    }
}

/// How many operations of each kind were begun, and how many failed. A streamed object is one
/// write, however many parts it has; of what is streamed, only a beginning that fails counts as
/// failed.
#[derive(Debug, Default)]
pub struct Operations {
    creates: Kind,
    swaps: Kind,
    reads: Kind,
    range_reads: Kind,
    lists: Kind,
    streamed_writes: Kind,
    deletes: Kind,
}

impl Operations {
    /// Create-only puts, swaps and streamed writes.
    pub fn writes(&self) -> u64 {
        let counters = [&self.creates, &self.swaps, &self.streamed_writes];
        counters.map(Kind::begun).iter().sum()
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

    /// All of them.
    pub fn total(&self) -> u64 {
        self.writes() + self.metadata_reads() + self.range_reads() + self.lists() + self.deletes()
    }

    fn kinds(&self) -> [(&'static str, &Kind); 7] {
        [
            ("create", &self.creates),
            ("swap", &self.swaps),
            ("read", &self.reads),
            ("range_read", &self.range_reads),
            ("list", &self.lists),
            ("streamed_write", &self.streamed_writes),
            ("delete", &self.deletes),
        ]
    }

    /// Each kind with its name, for metrics.
    pub fn by_kind(&self) -> [(&'static str, u64); 7] {
        self.kinds().map(|(name, kind)| (name, kind.begun()))
    }

    /// How many of each kind failed: storage could not be reached, refused, throttled for too long,
    /// or is full.
    pub fn failures_by_kind(&self) -> [(&'static str, u64); 7] {
        self.kinds()
            .map(|(name, kind)| (name, kind.failed.load(Ordering::Relaxed)))
    }
}

/// Storage whose operations are counted.
#[derive(Debug)]
pub struct Counted {
    inner: Arc<dyn Storage>,
    operations: Arc<Operations>,
}

impl Counted {
    /// Counts what goes to `inner`.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Self {
            inner,
            operations: Arc::default(),
        }
    }

    /// The counters, which go on counting.
    pub fn operations(&self) -> Arc<Operations> {
        Arc::clone(&self.operations)
    }
}

impl Storage for Counted {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.operations.creates.count(self.inner.create(key, body))
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        self.operations
            .swaps
            .count(self.inner.swap(key, seen, body))
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        self.operations.reads.count(self.inner.read(key))
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        self.operations
            .range_reads
            .count(self.inner.read_range(key, range))
    }

    /// Counts as a read of a data object, which it takes the place of.
    fn file<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Arc<File>>> {
        let file = self.inner.file(key);
        Box::pin(async move {
            let file = file.await?;
            file.iter()
                .for_each(|_| self.operations.range_reads.begin());
            Ok(file)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        self.operations
            .lists
            .count(self.inner.list(prefix, after, limit))
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        self.operations.streamed_writes.count(self.inner.write(key))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        self.operations.deletes.count(self.inner.delete(key))
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        self.inner.presigned_get(key, valid_for)
    }
}
