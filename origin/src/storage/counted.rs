//! A decorator that counts storage operations, for metrics and for the promises about cost.

use core::ops::Range;
use core::sync::atomic::{AtomicU64, Ordering};
use core::time::Duration;
use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;

use super::{ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageFuture, Version};

/// How many operations of each kind were begun. A streamed object is one write, however many parts it has.
#[derive(Debug, Default)]
pub struct Operations {
    creates: AtomicU64,
    swaps: AtomicU64,
    reads: AtomicU64,
    range_reads: AtomicU64,
    lists: AtomicU64,
    streamed_writes: AtomicU64,
    deletes: AtomicU64,
}

impl Operations {
    /// Create-only puts, swaps and streamed writes.
    pub fn writes(&self) -> u64 {
        let counters = [&self.creates, &self.swaps, &self.streamed_writes];
        counters.map(|counter| counter.load(Ordering::Relaxed)).iter().sum()
    }

    /// Reads of whole small objects: records, manifests, tags.
    pub fn metadata_reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Reads of data objects.
    pub fn range_reads(&self) -> u64 {
        self.range_reads.load(Ordering::Relaxed)
    }

    /// Pages of listings.
    pub fn lists(&self) -> u64 {
        self.lists.load(Ordering::Relaxed)
    }

    /// Unconditional deletes.
    pub fn deletes(&self) -> u64 {
        self.deletes.load(Ordering::Relaxed)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.writes() + self.metadata_reads() + self.range_reads() + self.lists() + self.deletes()
    }

    /// Each kind with its name, for metrics.
    pub fn by_kind(&self) -> [(&'static str, u64); 7] {
        [
            ("create", self.creates.load(Ordering::Relaxed)),
            ("swap", self.swaps.load(Ordering::Relaxed)),
            ("read", self.metadata_reads()),
            ("range_read", self.range_reads()),
            ("list", self.lists()),
            ("streamed_write", self.streamed_writes.load(Ordering::Relaxed)),
            ("delete", self.deletes()),
        ]
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
        Self { inner, operations: Arc::default() }
    }

    /// The counters, which go on counting.
    pub fn operations(&self) -> Arc<Operations> {
        Arc::clone(&self.operations)
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

impl Storage for Counted {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        count(&self.operations.creates);
        self.inner.create(key, body)
    }

    fn swap<'a>(&'a self, key: &'a Key, seen: &'a Version, body: Bytes) -> StorageFuture<'a, Version> {
        count(&self.operations.swaps);
        self.inner.swap(key, seen, body)
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        count(&self.operations.reads);
        self.inner.read(key)
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        count(&self.operations.range_reads);
        self.inner.read_range(key, range)
    }

    /// Counts as a read of a data object, which it takes the place of.
    fn file<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Arc<File>>> {
        let file = self.inner.file(key);
        Box::pin(async move {
            let file = file.await?;
            file.iter().for_each(|_| count(&self.operations.range_reads));
            Ok(file)
        })
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        count(&self.operations.lists);
        self.inner.list(prefix, after, limit)
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        count(&self.operations.streamed_writes);
        self.inner.write(key)
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        count(&self.operations.deletes);
        self.inner.delete(key)
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }

    fn presigned_get<'a>(&'a self, key: &'a Key, valid_for: Duration) -> StorageFuture<'a, Option<String>> {
        self.inner.presigned_get(key, valid_for)
    }
}
