//! Storage that writes down the order in which changes of tags apply, and that can be paused on
//! both sides of a call.

use core::ops::Range;
use core::time::Duration;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flotilla_origin::storage::{
    ByteStream, Key, Object, ObjectWriter, Page, Prefix, Storage, StorageFuture, Version,
};
use futures_util::FutureExt;
use tokio::sync::{Mutex, watch};

/// A change of a tag, as the storage applied it.
#[derive(Clone, Debug)]
pub(super) struct Applied {
    pub(super) key: String,
    pub(super) body: Bytes,
    /// Between the two it took effect.
    pub(super) began: Instant,
    pub(super) ended: Instant,
}

/// All changes of tags, in their order.
pub(super) type Log = Arc<Mutex<Vec<Applied>>>;

/// One replica's way to the storage that all share.
pub(super) struct Recorder {
    pub(super) inner: Arc<dyn Storage>,
    pub(super) log: Log,
    pub(super) paused: watch::Receiver<bool>,
}

impl core::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("Recorder")
    }
}

impl Recorder {
    /// A call waits while the replica is paused, and so does what it found: it may be old when it
    /// arrives.
    fn through<'a, T: Send + 'a>(&'a self, call: StorageFuture<'a, T>) -> StorageFuture<'a, T> {
        let mut paused = self.paused.clone();
        async move {
            let _ = paused.wait_for(|paused| !*paused).await;
            let outcome = call.await;
            let _ = paused.wait_for(|paused| !*paused).await;
            outcome
        }
        .boxed()
    }

    /// One change of a tag at a time, so that the log has their order.
    fn recorded<'a>(
        &'a self,
        key: &'a Key,
        body: Bytes,
        write: StorageFuture<'a, Version>,
    ) -> StorageFuture<'a, Version> {
        if !key.as_str().starts_with("tag/") {
            return self.through(write);
        }
        self.through(
            async move {
                let mut log = self.log.lock().await;
                let began = Instant::now();
                let version = write.await?;
                log.push(Applied {
                    key: key.to_string(),
                    body,
                    began,
                    ended: Instant::now(),
                });
                Ok(version)
            }
            .boxed(),
        )
    }
}

impl Storage for Recorder {
    fn create<'a>(&'a self, key: &'a Key, body: Bytes) -> StorageFuture<'a, Version> {
        self.recorded(key, body.clone(), self.inner.create(key, body))
    }

    fn swap<'a>(
        &'a self,
        key: &'a Key,
        seen: &'a Version,
        body: Bytes,
    ) -> StorageFuture<'a, Version> {
        self.recorded(key, body.clone(), self.inner.swap(key, seen, body))
    }

    fn read<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Option<Object>> {
        self.through(self.inner.read(key))
    }

    fn read_range<'a>(&'a self, key: &'a Key, range: Range<u64>) -> StorageFuture<'a, ByteStream> {
        self.through(self.inner.read_range(key, range))
    }

    fn list<'a>(
        &'a self,
        prefix: &'a Prefix,
        after: Option<&'a Key>,
        limit: usize,
    ) -> StorageFuture<'a, Page> {
        self.through(self.inner.list(prefix, after, limit))
    }

    fn write<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, Box<dyn ObjectWriter>> {
        self.through(self.inner.write(key))
    }

    fn delete<'a>(&'a self, key: &'a Key) -> StorageFuture<'a, ()> {
        self.through(self.inner.delete(key))
    }

    fn presigned_get<'a>(
        &'a self,
        key: &'a Key,
        valid_for: Duration,
    ) -> StorageFuture<'a, Option<String>> {
        self.inner.presigned_get(key, valid_for)
    }

    fn is_remote(&self) -> bool {
        self.inner.is_remote()
    }
}
